"""``efm-lb rehearse``."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import TypeVar

from efm_lb.errors import EX_TEMPFAIL, CallError, EfmLbError
from efm_lb.rehearsal import sql
from efm_lb.rehearsal.kinds import chosen
from efm_lb.rehearsal.play import Play, open_play
from efm_lb.rehearsal.report import Report, plain_console
from efm_lb.rehearsal.results import RehearsalResult
from efm_lb.rehearsal.scenarios import Order, Scenario
from efm_lb.rehearsal.stage import ServerError

__all__ = ["BrokenRehearsalError", "run"]

_Choice = TypeVar("_Choice", bound=Enum)


class BrokenRehearsalError(EfmLbError):
    """A server of the rehearsal did not do what it was told, so nothing was found out."""

    exit_code = EX_TEMPFAIL


def run(scenarios: Sequence[str], order: str, balancers: Sequence[str], keep: bool, as_json: bool) -> int:
    """See `efm_lb.rehearsal.rehearse`.

    :raises CallError: no such scenario, order or balancer
    :raises MissingProgramError: PostgreSQL or a balancer is not installed
    :raises BrokenRehearsalError: a server did not do what it was told
    """
    wanted = [_choice(Scenario, name) for name in scenarios] or list(Scenario)
    calls = _choice(Order, order)
    kinds = chosen(balancers)
    console = plain_console()
    console.quiet = as_json
    report = Report(console)
    began = time.monotonic()
    try:
        with _ended_by_sigterm(), open_play(kinds, calls, watch=report.step) as play:
            report.set_up(play, time.monotonic() - began)
            result = _perform(play, wanted, report, time.monotonic() - began)
            if keep:
                for front in play.fronts:
                    front.clients.end()
                stop = play.cluster.stage.keep()
                report.kept(play, stop)
    except (ServerError, sql.SqlError) as error:
        raise BrokenRehearsalError(str(error)) from error
    if as_json:
        print(json.dumps({**result.as_json(), **({"stop": str(stop)} if keep else {})}, indent=2))
    return 0 if result.right else 1


def _perform(play: Play, scenarios: Sequence[Scenario], report: Report, set_up: float) -> RehearsalResult:
    results = []
    for scenario in play.wanted(scenarios):
        report.scenario_begins(scenario)
        results.append(play.scenario(scenario))
        report.scenario_ends(results[-1])
    result = RehearsalResult(play.order, set_up, tuple(results))
    report.summary(result)
    return result


def _choice(kind: type[_Choice], name: str) -> _Choice:
    try:
        return kind(name)
    except ValueError:
        names = ", ".join(choice.value for choice in kind)
        raise CallError(f"no such {kind.__name__.lower()}: {name}; there are {names}") from None


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the rehearsal as Ctrl-C does: with its servers."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
