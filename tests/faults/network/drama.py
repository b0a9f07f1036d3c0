"""A switchover or failover while something is wrong with the network, and the judgement of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from enum import Enum
from typing import NamedTuple, Self

from efm_lb.rehearsal.hooks import Run
from efm_lb.rehearsal.waiting import wait_until
from faults.illness import beside_the_illness, cure, is_pgpool_ill
from faults.network.hosts import Fault
from faults.network.samples import Samples
from faults.network.stand import BALANCERS, CONNECT_TIMEOUT, DEADLINE, Roles, Silence, Stand

__all__ = ["Between", "ComesMidway", "Event", "Told", "play"]

_REPAIRED = 30.0
"""Seconds: several periods of reconcile, and its pauses after what failed, on a machine that has other things to do."""


class Event(Enum):
    """What EFM does."""

    SWITCHOVER = "switchover"
    FAILOVER = "failover"


class Between(NamedTuple):
    """A fault between a host and each of some others, called by the role of their node, or by name.

    :param one: ``old``, ``new``, ``other``, or a host's name
    :param others: the same
    :param call: it comes in the middle of this call, ``detach`` or ``attach``; from the beginning when this is empty
    :param after: bytes of what they say to each other in this call until it comes
    """

    fault: Fault
    one: str
    others: tuple[str, ...]
    call: str = ""
    after: int = 0

    def disturbs(self, one: str, other: str) -> bool:
        """Whether anything is wrong between these two."""
        return (self.one == one and other in self.others) or (self.one == other and one in self.others)


class ComesMidway(NamedTuple):
    """What became of a fault that comes in the middle of a call.

    :param said: bytes in the call, also those that were lost
    :param has_come: something was lost
    """

    fault: Between
    said: int
    has_come: bool

    def __str__(self) -> str:
        fault, one, others, call, after = self.fault
        came = f"came after {after}" if self.has_come else f"did not come: {self.said} of {after}"
        return f"{fault.value} between {one} and {', '.join(others)} {came} bytes of {call}"


class Told(NamedTuple):
    """What was seen of it.

    :param moved: seconds from the promotion to the first write that arrived at the new primary, by balancer
    :param wrong: what must not be so, one line each
    :param cuts: the faults that come in the middle of a call
    :param repaired: seconds that it took to become right when nothing was wrong with the network any more
    :param is_cured: pgpool had to be, see `faults.illness`
    """

    runs: tuple[Run, ...]
    attach: Run
    moved: Mapping[str, float]
    wrong: tuple[str, ...]
    cuts: tuple[ComesMidway, ...]
    repaired: float
    is_cured: bool
    service: str

    def __str__(self) -> str:
        said = [
            f"{' '.join(run.argv[4:7])}: {run.seconds:.1f} s, exit {run.exit_code}\n{run.output}" for run in self.runs
        ]
        moved = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.moved.items())
        return "\n".join(
            [
                *self.wrong,
                *map(str, self.cuts),
                *said,
                f"writes moved after: {moved}",
                f"repaired after {self.repaired:.1f} s; reconcile said:",
                self.service,
            ]
        )


def play(stand: Stand, event: Event, caller: str, *faults: Between, served: Sequence[str] | None = None) -> Told:
    """Play one event while the faults are there, undo them, and wait until everything is right.

    :param caller: where EFM calls the hook: ``new`` or ``other``, or a host's name
    :param served: where reconcile runs, the same; at the caller when it is None, and there afterwards if it is empty
    """
    roles = stand.roles
    hook = _host(stand, roles, caller)
    services = [_host(stand, roles, name) for name in ([caller] if served is None else served)]
    reached = _reached(caller, faults)
    began = time.monotonic()
    with Samples(stand) as samples, ExitStack() as ends:
        service = [ends.enter_context(stand.reconciled(host)) for host in services]
        with _Line(stand, roles, faults) as line:
            runs, promoted_at = _play(stand, event, roles, hook, line)
            moved_at = time.monotonic()
            attach = runs[-1]
            wrong = _judge(stand, reached, roles, attach, _is_clear(caller, reached, faults))
            if event is Event.SWITCHOVER:
                roles.old.follow(roles.new)
                roles.old.start()
                runs.append(stand.efm_lb(hook, "attach", roles.old.host, "s"))
        if not service:
            service = [ends.enter_context(stand.reconciled(hook))]
        undone = time.monotonic()
        stand.rejoin(roles.new)
        if event is Event.FAILOVER:
            runs.append(stand.efm_lb(hook, "attach", roles.old.host, "s"))
        # TCP doubles its pauses: a connection that was held up may stay so for as long again.
        limit = _REPAIRED + (undone - began)
        still = [] if wait_until(stand.is_right, timeout=limit, interval=0.1) else stand.wrong()
        repaired = time.monotonic() - undone
        if is_cured := is_pgpool_ill(still):
            # It excuses only its own lines, and not what it may have covered.
            cure(stand.pool)
            wait_until(stand.is_right, timeout=_REPAIRED, interval=0.1)
            still = [*beside_the_illness(still), *stand.wrong()]
        wrong += [f"still wrong {limit:.0f} s after the fault: {line}" for line in still]
        said = "\n".join(each.output for each in service)
    wrong += _late(runs)
    wrong += samples.wrong(roles.new, moved_at, reached)
    moved = {name: at - promoted_at for name, at in samples.moved(roles.new).items()}
    return Told(tuple(runs), attach, moved, tuple(wrong), tuple(line.cuts), repaired, is_cured, said)


def _play(stand: Stand, event: Event, roles: Roles, hook: str, line: _Line) -> tuple[list[Run], float]:
    """As EFM does it, up to the call about the new primary; and when that was out of recovery."""
    old, new, other = roles
    if event is Event.FAILOVER:
        old.kill()
    with line.during("detach"):
        runs = [stand.efm_lb(hook, "detach", old.host, "p")]
    if event is Event.SWITCHOVER:
        old.stop()
    new.promote()
    promoted_at = time.monotonic()
    other.follow(new)
    with line.during("attach"):
        runs.append(stand.efm_lb(hook, "attach", new.host, "p"))
    return runs, promoted_at


def _reached(caller: str, faults: Sequence[Between]) -> list[str]:
    """The balancers that a call about the new primary must bring right."""

    def is_well(one: str, other: str) -> bool:
        return not any(fault.disturbs(one, other) for fault in faults)

    def finds_the_primary(name: str) -> bool:
        # pgpool asks every attached node which one is it, and waits for one that is silent.
        return all(is_well(node, name) for node in (Roles._fields if name == "pool1" else ("new",)))

    return [name for name in BALANCERS if is_well(caller, "new") and is_well(caller, name) and finds_the_primary(name)]


def _is_clear(caller: str, reached: Sequence[str], faults: Sequence[Between]) -> bool:
    """Whether nothing keeps that call from its work. A standby that is silent may have to be brought back later."""
    return len(reached) == len(BALANCERS) and not any(
        fault.disturbs(caller, node) for fault in faults for node in ("new", "other")
    )


def _judge(stand: Stand, reached: Sequence[str], roles: Roles, attach: Run, is_clear: bool) -> list[str]:
    """What is wrong right after the call about the new primary."""
    wrong, astray = [], []
    for name in BALANCERS:
        try:
            writers = stand.writers(name)
        except Silence as silence:
            # Nobody can say whether it is astray; once the network is well it must be right.
            if name in reached:
                wrong.append(f"{name} can be reached, but {silence}")
            continue
        if writers != [roles.new]:
            astray.append(name)
            if name in reached:
                wrong.append(f"{name} can be reached, and sends writes to {writers}")
    if astray and attach.exit_code == 0:
        wrong.append(f"exit code 0, but {', '.join(astray)} is wrong")
    if attach.exit_code not in (0, 75):
        wrong.append(f"exit code {attach.exit_code}")
    if attach.exit_code and is_clear:
        wrong.append(f"exit code {attach.exit_code}, but nothing was in the way")
    return wrong


def _late(runs: Sequence[Run]) -> list[str]:
    """Of runs that took longer than a call may, also one that waits for another call on its host first."""
    limit = (DEADLINE + 1) + DEADLINE + CONNECT_TIMEOUT + 1
    return [f"{' '.join(run.argv[4:7])} took {run.seconds:.1f} s" for run in runs if run.seconds > limit]


def _host(stand: Stand, roles: Roles, name: str) -> str:
    return stand.host_of(getattr(roles, name)) if name in Roles._fields else name


class _Line:
    """What is wrong with the network while the block runs.

    :ivar cuts: what became of the faults that come in the middle of a call
    """

    def __init__(self, stand: Stand, roles: Roles, faults: Sequence[Between]) -> None:
        self._stand = stand
        self._roles = roles
        self._faults = faults
        self._undo = ExitStack()
        self.cuts: list[ComesMidway] = []

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            for fault in self._faults:
                if not fault.call:
                    undo.enter_context(self._stand.hosts.fault(fault.fault, *self._between(fault)))
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    @contextmanager
    def during(self, call: str) -> Iterator[None]:
        """This call is made in the block; what comes in the middle of it stays."""
        cuts = []
        for fault in self._faults:
            if fault.call == call:
                cut = self._stand.hosts.cut(fault.fault, *self._between(fault), after=fault.after)
                cuts.append((fault, self._undo.enter_context(cut)))
        yield
        self.cuts += [ComesMidway(fault, cut.said, cut.has_come) for fault, cut in cuts]

    def _between(self, fault: Between) -> list[str]:
        return [_host(self._stand, self._roles, name) for name in (fault.one, *fault.others)]
