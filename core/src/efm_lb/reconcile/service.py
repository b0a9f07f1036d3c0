"""``efm-lb reconcile``: once, for EFM's ``script.custom.monitor``, or as a service that goes on until it is ended.

The service comes here without typer and with the compiled plan, so that it holds no validator in memory.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from ctypes import CDLL
from typing import NamedTuple

from efm_lb import compiled, signals
from efm_lb.command_line import CUSTOM_MONITOR, RECONCILE, is_monitor, valued
from efm_lb.configuration import Configuration
from efm_lb.errors import (
    EX_OK,
    EX_TEMPFAIL,
    EX_USAGE,
    CallError,
    EfmLbError,
    NotInstalledError,
    printable,
    unforeseen,
)
from efm_lb.libpq import LibpqNotFoundError
from efm_lb.reconcile.rounds import Round, Rounds
from efm_lb.reconcile.supervisor import ALIVE, READY, Supervisor
from efm_lb.reconcile.vigil import Vigil
from efm_lb.settings import settings_of
from efm_lb.signals import Terminated
from efm_lb.sources import gather
from efm_lb.state import write_all
from efm_lb.system_log import complain

__all__ = ["Arguments", "main", "parse", "refuse"]

SCHEMA = "efm-lb/reconcile/v1"
_M_ARENA_MAX = -8
"""Of glibc's mallopt(3)."""
_ANEW = "the settings have changed: starting anew"
_ROUNDS = 10
"""Rounds that a single reconcile takes at most: what it waits for may be due soon."""


class Arguments(NamedTuple):
    """The command line.

    :param watch: go on until a signal comes
    :param custom_monitor: for EFM, which takes any other exit code than 0 for a failed database
    """

    cluster: str = "efm"
    env_file: str | None = None
    watch: bool = False
    custom_monitor: bool = False
    json: bool = False


def main(argv: Sequence[str]) -> int:
    """Bring every balancer in line with the databases.

    :param argv: the command line without the program's name and without ``reconcile``
    :return: 0 when every balancer is right or rightly left alone, 75 when not; see `efm_lb.errors` for the others
    """
    problems: Sequence[str] = ()
    try:
        try:
            signals.raise_terminated()
            code = run(parse(argv), os.environ)
        except EfmLbError as error:
            code, problems = error.exit_code, list(error.messages)
        except Exception as error:  # no traceback, and above all no exit code that makes EFM promote
            code, why = unforeseen(error)
            problems = [why]
        signals.ignore()
    except Terminated:
        code, problems = EX_TEMPFAIL, ["terminated by a signal before it was done"]
        if "--watch" in argv:  # it never is
            code, problems = EX_OK, ()
    return _ended(argv, code, problems)


def refuse(argv: Sequence[str]) -> int:
    """Say that a command line asks for ``--custom-monitor``, and does not begin with ``reconcile``.

    :param argv: the command line without the program's name
    :return: 0, for EFM's sake
    """
    options = f"efm-lb {RECONCILE} {CUSTOM_MONITOR} [--cluster NAME] [--env-file FILE]"
    return _ended(argv, EX_USAGE, [f"{CUSTOM_MONITOR} needs the word {RECONCILE} before all options: {options}"])


def _ended(argv: Sequence[str], code: int, problems: Sequence[str]) -> int:
    """Say why it ends; the exit code."""
    lines = [printable(f"efm-lb reconcile: {problem}") for problem in problems]
    if problems and "--json" in argv:
        from efm_lb.failure import as_document

        _say(as_document(code, problems))
    else:
        for line in lines:
            _say(line)
    if not is_monitor(argv):
        return code
    if lines:
        complain(lines)  # EFM takes no notice of what a monitor says that ends with 0
    return EX_OK


def parse(argv: Sequence[str]) -> Arguments:
    """Read ``[--watch | --custom-monitor] [--json] [--cluster NAME] [--env-file FILE]``.

    :raises CallError: there is something else
    """
    rest, options = valued(argv, ("--cluster", "--env-file"))
    for word in rest:
        if word not in ("--watch", "--custom-monitor", "--json"):
            raise CallError(f"efm-lb reconcile [--watch | --custom-monitor] [--json]: what is {word!r}?")
    if "--watch" in rest and "--custom-monitor" in rest:
        raise CallError("--custom-monitor looks once, --watch goes on: choose one")
    return Arguments(
        options.get("--cluster", "efm"),
        options.get("--env-file"),
        "--watch" in rest,
        "--custom-monitor" in rest,
        "--json" in rest,
    )


def run(arguments: Arguments, environ: Mapping[str, str]) -> int:
    """Raises as `efm_lb.settings.settings_of`, and `Terminated`."""
    made_from = compiled.identity(gather(arguments.cluster, arguments.env_file, environ))
    configuration, stale = settings_of(arguments.cluster, arguments.env_file, environ)
    if arguments.watch and stale and _is_fresh(arguments, environ):
        _start_anew()  # without what the slow way has imported
    if arguments.watch:
        _use_one_arena()
    try:
        vigil = Vigil(configuration.nodes, configuration.probe, configuration.connect_timeout)
    except LibpqNotFoundError as error:
        raise NotInstalledError(str(error)) from None
    rounds = Rounds(configuration, vigil)
    if arguments.watch:

        def is_changed() -> bool:
            # Not whether there is a plan: it may be impossible to store one, or somebody else's with other variables.
            return compiled.identity(gather(arguments.cluster, arguments.env_file, environ)) != made_from

        _watch(configuration, arguments.json, is_changed, vigil, rounds, Supervisor(environ))
    return _once(configuration, rounds, arguments.json)


def _once(configuration: Configuration, rounds: Rounds, as_json: bool) -> int:
    """Play rounds until everything is right, or what is left does not become right within the deadline."""
    until = time.monotonic() + configuration.deadline
    said: list[str] = []
    for _ in range(_ROUNDS):
        done = rounds.play(max(0.0, until - time.monotonic()))
        said += [line for line in done.lines if line not in said]
        if done.is_right or done.next_look > until:
            break
        time.sleep(max(0.0, done.next_look - time.monotonic()))
    if as_json:
        _say(_document(configuration, said, done.is_right))
    else:
        changing = "not right yet: the databases change while they are looked at"
        for line in said or ["everything is right" if done.is_right else changing]:
            _say(line)
    return EX_OK if done.is_right else EX_TEMPFAIL


def _watch(
    configuration: Configuration,
    as_json: bool,
    is_changed: Callable[[], bool],
    vigil: Vigil,
    rounds: Rounds,
    supervisor: Supervisor,
) -> None:
    before: tuple[str, ...] = ()
    is_right = False
    supervisor.tell(READY)
    while True:
        supervisor.tell(ALIVE)
        if is_changed():
            _say(_document(configuration, [_ANEW], is_right) if as_json else _ANEW)
            _start_anew()
        began = time.monotonic()
        done = rounds.play(0.0)
        is_right = done.is_right
        fresh = [line for line in done.lines if line not in before]
        if as_json:
            if done.lines != before:
                _say(_document(configuration, fresh, is_right))
        else:
            for line in fresh or (["everything is right again"] if before and not done.lines else []):
                _say(line)
        before = done.lines
        _rest(vigil, done, began + configuration.reconcile.period, supervisor)


def _rest(vigil: Vigil, done: Round, next_period: float, supervisor: Supervisor) -> None:
    """Until something is due, or a database says something new."""
    until = max(min(next_period, done.next_look), time.monotonic() + 0.05)
    while not vigil.wait(min(until, time.monotonic() + supervisor.period / 2)) and time.monotonic() < until:
        supervisor.tell(ALIVE)


def _use_one_arena() -> None:
    """Have the C library serve all threads from one heap: with one for each, its habit, they grow for hours."""
    with suppress(AttributeError):  # not glibc
        CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _is_fresh(arguments: Arguments, environ: Mapping[str, str]) -> bool:
    return not isinstance(compiled.read(gather(arguments.cluster, arguments.env_file, environ)), compiled.Stale)


def _start_anew() -> None:
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _document(configuration: Configuration, lines: Sequence[str], is_right: bool) -> str:
    """What came of a round, and what else there is to say, as one line of JSON."""
    import json

    document = {"schema": SCHEMA, "cluster": configuration.cluster, "is_right": is_right, "lines": list(lines)}
    return json.dumps(document)


def _say(line: str) -> None:
    try:
        write_all(1, printable(line).encode("utf-8", "backslashreplace") + b"\n")
    except OSError:
        return
