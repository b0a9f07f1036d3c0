"""What is done to a server in the middle of an event: it is frozen for a while, killed and started again, restarted."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from enum import Enum
from random import Random
from typing import NamedTuple

from efm_lb.rehearsal.cluster import Server
from efm_lb.rehearsal.processes import end_tree, signal_tree
from efm_lb.rehearsal.stage import ServerError
from efm_lb.rehearsal.waiting import wait_until
from faults.servers.estate import Estate
from faults.watch import AnyBalancer, Watch

__all__ = ["PAIRS", "Blow", "How", "Pair", "drawn", "strike"]

_LONGEST_FREEZE = 5.0
_LONGEST_ABSENCE = 3.0
_INTO_A_STEP = 0.6
"""Seconds; few steps take longer."""


_BOTH = 0.25
"""How often there are two."""


class How(Enum):
    """What is done to it."""

    FREEZE = "SIGSTOP"
    FREEZE_FIRST = "SIGSTOP of its first process"
    KILL = "SIGKILL"
    RESTART = "restart"


class Pair(NamedTuple):
    """A kind of server, and what is done to it."""

    kind: str
    how: How

    def __str__(self) -> str:
        return f"{self.kind}: {self.how.value}"


KINDS = ("Pgpool", "Haproxy", "Pgbouncer", "PostgreSQL")
PAIRS = tuple(
    Pair(kind, list(How)[(number + shift) % len(How)]) for shift in range(len(How)) for number, kind in enumerate(KINDS)
)
"""All; among the first four is each kind, and each thing that is done."""


class Blow(NamedTuple):
    """One fault, at one moment.

    :param victim: who suffers it
    :param step: the number of EFM's step in which it comes
    :param delay: seconds from the beginning of the step
    :param seconds: that it is frozen, or away
    """

    victim: Server | AnyBalancer
    how: How
    step: int
    delay: float
    seconds: float

    @property
    def pair(self) -> Pair:
        return Pair(_kind(self.victim), self.how)

    def __str__(self) -> str:
        name = self.victim.name
        lasts = "" if self.how is How.RESTART else f" for {self.seconds:.1f} s"
        return f"{name}: {self.how.value}{lasts}, {self.delay:.2f} s into step {self.step}"


def drawn(chance: Random, estate: Estate, steps: int, pair: Pair | None = None) -> list[Blow]:
    """A blow at a random moment.

    :param steps: how many steps EFM is going to take
    :param pair: who is struck and how; None leaves that to chance, too, and strikes two victims at times
    """
    if pair:
        return [_drawn(chance, estate, pair.kind, pair.how, steps)]
    kinds = chance.sample(KINDS, 1 + (chance.random() < _BOTH))
    hows = [How.FREEZE, How.FREEZE, How.FREEZE_FIRST, How.KILL, How.KILL, How.RESTART]
    return [_drawn(chance, estate, kind, chance.choice(hows), steps) for kind in kinds]


def _drawn(chance: Random, estate: Estate, kind: str, how: How, steps: int) -> Blow:
    victims: list[Server | AnyBalancer] = [*estate.balancers, *estate.cluster.nodes]
    victim = chance.choice([each for each in victims if _kind(each) == kind])
    longest = _LONGEST_FREEZE if how in (How.FREEZE, How.FREEZE_FIRST) else _LONGEST_ABSENCE
    return Blow(victim, how, chance.randrange(steps), chance.random() * _INTO_A_STEP, 0.2 + chance.random() * longest)


def _kind(victim: Server | AnyBalancer) -> str:
    return "PostgreSQL" if isinstance(victim, Server) else type(victim).__name__


def strike(blow: Blow, estate: Estate, watch: Watch) -> bool:
    """Do it, and undo it.

    :return: False when there was nothing to be done: the server is down on purpose
    :raises ServerError: the victim did not come back
    """
    pid = blow.victim.process.pid
    if not pid or not blow.victim.process.running:
        return False
    if blow.how in (How.FREEZE, How.FREEZE_FIRST):
        _freeze(pid, blow.how, blow.seconds)
    elif isinstance(blow.victim, Server):
        _down_and_up(blow, blow.victim, pid, estate)
    else:
        _away(blow, blow.victim, watch)
    return True


def _freeze(pid: int, how: How, seconds: float) -> None:
    if how is How.FREEZE:
        signal_tree(pid, signal.SIGSTOP)
        signal_tree(pid, signal.SIGSTOP)  # what was started meanwhile
    else:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    signal_tree(pid, signal.SIGCONT)


def _down_and_up(blow: Blow, server: Server, pid: int, estate: Estate) -> None:
    if blow.how is How.KILL:
        estate.crashed.add(server)
        end_tree(pid)  # not by its own process' lock: EFM may be stopping it at this very moment
        time.sleep(blow.seconds)
    with estate.hands[server]:
        if server in estate.down:
            return
        if blow.how is How.RESTART:
            estate.crashed.add(server)  # a standby that is away gets no WAL
            server.stop()
        if not server.running:
            server.start(wait=False)


def _away(blow: Blow, balancer: AnyBalancer, watch: Watch) -> None:
    watch.reads_its_file(balancer)
    if blow.how is How.KILL:
        balancer.process.kill()
        time.sleep(blow.seconds)
    else:
        balancer.process.stop()
    watch.reads_its_file(balancer)
    try:
        balancer.launch()
    except ServerError:
        # pgpool takes its time to find a primary, when there is none yet. One that has ended is another matter.
        if not wait_until(lambda: balancer.process.running, timeout=1):
            raise
    watch.reads_its_file(balancer)
