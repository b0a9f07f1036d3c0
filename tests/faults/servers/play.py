"""One event with servers that fail in the middle of it, and the judgement of what is there then."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from random import Random
from typing import NamedTuple

from efm_lb.rehearsal.cluster import Server
from efm_lb.rehearsal.hooks import Run
from efm_lb.rehearsal.verdict import wait_right
from efm_lb.rehearsal.waiting import wait_until
from faults.servers.blows import Blow, Pair, drawn, strike
from faults.servers.estate import DEADLINE, RIGHT, Estate
from faults.servers.event import Efm, Promotion
from faults.servers.rows import Accounts, Writers
from faults.watch import Service, Watch

__all__ = ["Told", "play"]

_LOOKS = 8
"""Runs of ``efm-lb reconcile`` after an event, where no service runs."""
_SERVICES = (0, 0, 1, 3, 3)
"""On how many hosts reconcile runs all the time."""
_LONGEST_CALL = (DEADLINE + 1) + DEADLINE + 4
"""Seconds: one that waits for another call on its host first, on a machine that is busy."""
_EXIT_CODES = (0, 75)
"""Nothing that happens here is wrong for good."""


class Told(NamedTuple):
    """What was seen of it.

    :param blows: those that were struck
    :param wrong: what must not be so, one line each
    :param services: on how many hosts reconcile ran all the time
    :param right: seconds that it took to become right once all servers were there again
    :param is_cured: pgpool had to be, see `Efm.cure_pgpool`
    """

    seed: int
    blows: tuple[Blow, ...]
    wrong: tuple[str, ...]
    services: int
    right: float
    is_cured: bool
    rows: Accounts
    tale: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join((f"seed {self.seed}", *self.tale, *(f"WRONG: {line}" for line in self.wrong)))


class _Tale:
    """What happens, in words, with the seconds since it began."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        self.lines.append(f"{time.monotonic() - self._began:7.3f} {text}")


class _Striker:
    """Strikes the blows, each in its step, beside what EFM does.

    :ivar done: those that met somebody, with the moment at which each was over
    :ivar failed: what did not come back
    """

    def __init__(self, estate: Estate, watch: Watch, tale: _Tale, blows: list[Blow]) -> None:
        self.done: list[tuple[Blow, float]] = []
        self.failed: list[str] = []
        self._estate = estate
        self._watch = watch
        self._tale = tale
        self._blows = blows
        self._threads: list[threading.Thread] = []

    def begins(self, step: int) -> None:
        """A step begins."""
        for blow in self._blows:
            if blow.step == step:
                self._threads.append(threading.Thread(target=self._strike, args=(blow,)))
                self._threads[-1].start()

    def wait(self) -> None:
        """Until every victim is there again."""
        for thread in self._threads:
            thread.join()

    def _strike(self, blow: Blow) -> None:
        time.sleep(blow.delay)
        self._tale.say(f"-> {blow}")
        try:
            if strike(blow, self._estate, self._watch):
                self.done.append((blow, time.monotonic()))
                self._tale.say(f"<- {blow.victim.name}")
            else:
                self._tale.say(f"-- {blow.victim.name} is down on purpose")
        except Exception as error:
            self.failed.append(f"{blow.victim.name} did not come back: {error}")


def play(estate: Estate, efm: Efm, watch: Watch, seed: int, pair: Pair | None = None) -> Told:
    """Let one event happen, with one or two blows, and wait until everything is right.

    :param seed: of all that is left to chance
    :param pair: who is struck and how, see `drawn`
    """
    chance, tale = Random(seed), _Tale()
    estate.crashed.clear()
    seen = len(watch.wrong)
    event = chance.choice(efm.possible())
    steps = efm.steps(event, tale.say)
    services = chance.choice(_SERVICES)
    # Where EFM calls there is somebody who remembers what was before.
    estate.hook = chance.choice(estate.hooks[: max(1, services)])
    striker = _Striker(estate, watch, tale, drawn(chance, estate, len(steps), pair))
    tale.say(f"{event.value}; reconcile {f'runs on {services} hosts' if services else 'is run afterwards'}")
    wrong: list[str] = []
    with Writers(estate.balancers, 10 * seed) as writers, ExitStack() as ends:
        served = [ends.enter_context(Service(file)) for file in estate.env_files[:services]]
        for number, step in enumerate(steps):
            striker.begins(number)
            tale.say(step.words)
            step.do()
        striker.wait()
        efm.mend()
        is_cured = efm.cure_pgpool()
        began = time.monotonic()
        looks = [] if served else _looked(estate, tale)
        wait_until(lambda: not estate.wrong(), timeout=RIGHT, interval=0.1)
        right = time.monotonic() - began
        wrong += [line for each in estate.balancers for line in wait_right(estate.cluster, each, estate.down)[0]]
        wrong += estate.wrong()
        wrong += [f"nobody can write through {name} any more" for name in writers.silent()]
        for service in served:
            tale.say(f"reconcile said:\n{service.output}")
            wrong += _bugs("reconcile", service.output)
    wrong += [*striker.failed, *watch.wrong[seen:], *_judged(efm.runs + looks), *_last(looks)]
    wrong += _in_vain(writers, efm.promotion, efm.runs, striker)
    rows = writers.accounts(estate, efm.promotion)
    blows = tuple(blow for blow, _ in striker.done)
    return Told(seed, blows, (*wrong, *rows.lost), services, right, is_cured, rows, tuple(tale.lines))


def _looked(estate: Estate, tale: _Tale) -> list[Run]:
    """Run ``efm-lb reconcile`` until it says that everything is right, some times at most."""
    runs = []
    for _ in range(_LOOKS):
        runs.append(estate.hook("reconcile"))
        tale.say(f"reconcile ended with {runs[-1].exit_code}: {runs[-1].output}")
        if runs[-1].exit_code == 0 and not estate.wrong():
            break
        time.sleep(1)
    return runs


def _last(looks: list[Run]) -> list[str]:
    return [f"the last of {len(looks)} looks ended with {looks[-1].exit_code}"] if looks and looks[-1].exit_code else []


def _judged(runs: list[Run]) -> list[str]:
    """What no run may do."""
    wrong = []
    for run in runs:
        words = " ".join(run.argv[4:-1])
        if run.exit_code not in _EXIT_CODES:
            wrong.append(f"{words} ended with {run.exit_code}: {run.output}")
        wrong += _bugs(words, run.output)
        if run.seconds > _LONGEST_CALL:
            wrong.append(f"{words} took {run.seconds:.1f} s")
    return wrong


def _bugs(words: str, output: str) -> list[str]:
    return [f"{words} said: {output}"] if "Traceback" in output or "a bug in efm-lb" in output else []


def _in_vain(writers: Writers, promotion: Promotion | None, runs: list[Run], striker: _Striker) -> list[str]:
    """Writes that went to a node in recovery after the call about the new primary had said that all is right.

    A balancer that was struck later, and any after a node was, may be behind until reconcile has seen to it.
    """
    if not promotion or any(run.exit_code for run in runs if run.argv[4:7] == ("attach", promotion.new.name, "p")):
        return []
    late = [blow for blow, over in striker.done if over > promotion.called]
    if any(isinstance(blow.victim, Server) for blow in late):
        return []
    struck = {blow.victim.name for blow in late}
    return [
        f"{name} sent {count} writes to a node in recovery after it was proven right"
        for name in writers.balancers
        if name not in struck and (count := writers.in_vain(name, promotion.called))
    ]
