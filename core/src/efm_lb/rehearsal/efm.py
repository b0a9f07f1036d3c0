"""EFM's part: what it does to the databases in each scenario, and when it calls the hook."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from efm_lb.rehearsal.cluster import Cluster, Server
from efm_lb.rehearsal.hooks import Hook, Run
from efm_lb.rehearsal.scenarios import Order, Scenario
from efm_lb.rehearsal.stage import ServerError
from efm_lb.rehearsal.waiting import wait_until

__all__ = ["Efm", "Step"]


@dataclass(frozen=True)
class Step:
    """One thing that EFM did.

    :param what: for a person
    :param started: by ``time.monotonic()``
    :param seconds: how long it took
    :param runs: the runs of the hook; empty for an action on a database
    """

    what: str
    started: float
    seconds: float
    runs: tuple[Run, ...] = ()


class Efm:
    """Plays EFM on a cluster.

    A call of a hook ends before the next step begins, as EFM waits for its exit code.
    Standbys are re-pointed by a reload; EFM's auto.reconfigure restarts them, which
    takes longer and is the same to a balancer.

    :param hooks: one per host that calls; all orders but two-hosts use the first only
    :param watch: told each step once it is over
    :param deliberation: seconds from the detach of a crashed primary to the promotion, in which
        EFM picks a standby, asks the other agents and fences; how long that is, no manual says

    :ivar failed: the crashed primary, until it has rejoined
    :ivar stopped: the stopped standby, until it has started
    :ivar untold: nodes that went down, or came up as standbys, and were not called about: nobody can know
    :ivar lost: the attaches that were not made, as words for the hook; see `make_up`
    :ivar orphaned: when a crashed primary was last replaced, by ``time.monotonic()``: rows acknowledged
        before may have died with it
    :ivar promoted: when a standby was last seen out of recovery, by ``time.monotonic()``
    """

    def __init__(
        self,
        cluster: Cluster,
        hooks: Sequence[Hook],
        order: Order = Order.DOCUMENTED,
        watch: Callable[[Step], None] = lambda step: None,
        deliberation: float = 0.0,
    ) -> None:
        self.cluster = cluster
        self.failed: Server | None = None
        self.stopped: Server | None = None
        self.untold: set[Server] = set()
        self.lost: list[tuple[str, ...]] = []
        self.orphaned: float | None = None
        self.promoted: float | None = None
        self._hooks = hooks
        self._order = order
        self._watch = watch
        self._deliberation = deliberation
        self._steps: list[Step] = []

    def needs(self, scenario: Scenario) -> Scenario | None:
        """The scenario that must be played first for ``scenario`` to make sense, None when there is none."""
        if scenario is Scenario.REJOIN and not self.failed:
            return Scenario.FAILOVER
        if scenario is Scenario.STANDBY_START and not self.stopped:
            return Scenario.STANDBY_STOP
        if scenario is Scenario.STANDBY_STOP and self.stopped:
            return Scenario.STANDBY_START
        needs_standby = (Scenario.SWITCHOVER, Scenario.FAILOVER, Scenario.STANDBY_STOP)
        if scenario in needs_standby and not self.cluster.standbys:
            return Scenario.STANDBY_START if self.stopped else Scenario.REJOIN
        return None

    def play(self, scenario: Scenario) -> list[Step]:
        """Play one scenario to its end.

        :return: what was done, in order
        :raises ServerError: a server did not do what it was told
        """
        self._steps = []
        self.lost = []
        {
            Scenario.CONSISTENT: self._consistent,
            Scenario.SWITCHOVER: self._switchover,
            Scenario.FAILOVER: self._failover,
            Scenario.REJOIN: self._rejoin,
            Scenario.STANDBY_STOP: self._standby_stop,
            Scenario.STANDBY_START: self._standby_start,
        }[scenario]()
        return self._steps

    def make_up(self) -> list[Step]:
        """Make the calls that were lost, as a person does who sees what is wrong.

        :return: what was done, in order
        """
        self._steps = []
        for words in self.lost:
            self._hook_step(words, self._hooks[:1], remark="by hand")
        self.lost = []
        self.untold.clear()
        return self._steps

    def _consistent(self) -> None:
        with self._action("EFM sees nothing to do"):
            time.sleep(1)

    def _switchover(self) -> None:
        old, new, others = self._parts()
        self._leave(old, "p")
        self._take_over(new, others)
        with self._action(f"{old.name} starts as a standby of {new.name}"):
            old.follow(new)
            old.start()
            self.cluster.wait_streaming()
        self._call("attach", old, "s")

    def _failover(self) -> None:
        old, standbys = self.cluster.primary, self.cluster.standbys
        with self._action(f"{old.name}, the primary, crashes"):
            old.kill()
        self.failed = old
        self._call("detach", old, "p")
        if self._deliberation:
            with self._action("EFM deliberates"):
                time.sleep(self._deliberation)
        # Nobody but the crashed primary can have acknowledged a row up to now, and clients hear late.
        self.orphaned = time.monotonic()
        new, *others = _most_advanced_first(standbys)
        self._take_over(new, others)

    def _rejoin(self) -> None:
        old, primary = self.failed, self.cluster.primary
        if not old:
            raise ServerError("no primary has crashed")
        with self._action(f"{old.name} is rewound and starts as a standby of {primary.name}"):
            old.rejoin(primary)
            self.cluster.wait_streaming()
        self.failed = None
        self._call("attach", old, "s")

    def _standby_stop(self) -> None:
        standby = self.cluster.standbys[-1]
        self._leave(standby, "s")
        self.stopped = standby

    def _standby_start(self) -> None:
        standby = self.stopped
        if not standby:
            raise ServerError("no standby was stopped")
        with self._action(f"{standby.name} starts"):
            standby.follow(self.cluster.primary)
            standby.start()
            self.cluster.wait_streaming()
        self.stopped = None
        self._call("attach", standby, "s")

    def _parts(self) -> tuple[Server, Server, list[Server]]:
        """The primary, the standby that takes over, and the other standbys."""
        new, *others = self.cluster.standbys
        return self.cluster.primary, new, others

    def _leave(self, node: Server, kind: str) -> None:
        """A node is stopped, and called about before or after."""
        after = self._order is Order.DETACH_AFTER_STOP
        if not after:
            self._call("detach", node, kind)
        with self._action(f"{node.name} is stopped"):
            node.stop()
        if after:
            self._call("detach", node, kind)

    def _take_over(self, new: Server, others: Sequence[Server]) -> None:
        with self._action(f"{new.name} is promoted"):
            new.promote()
        self.promoted = time.monotonic()
        if others:
            with self._action(f"{', '.join(node.name for node in others)} follows {new.name}"):
                for node in others:
                    node.follow(new)
        self._call("attach", new, "p")

    def _call(self, kind: str, node: Server, letter: str) -> None:
        self.untold.discard(node)
        words = (kind, node.name) if self._order is Order.MISSING_TYPE else (kind, node.name, letter)
        if kind == "detach" and self._order is Order.MISSING_DETACH:
            self.untold.add(node)
            return
        if kind == "attach" and self._order is Order.MISSING_ATTACH:
            self.lost.append(words)
            if letter == "s":
                self.untold.add(node)
            return
        if self._order is Order.TWO_HOSTS:
            self._hook_step(words, self._hooks)
            return
        for _ in range(2 if self._order is Order.DUPLICATE else 1):
            self._hook_step(words, self._hooks[:1])

    def _hook_step(self, words: Sequence[str], hooks: Sequence[Hook], remark: str = "") -> None:
        started = time.monotonic()
        with ThreadPoolExecutor(len(hooks)) as threads:
            runs = tuple(threads.map(lambda hook: hook(*words), hooks))
        what = " ".join(words) + (f" ({remark})" if remark else "")
        self._note(Step(what, started, time.monotonic() - started, runs))

    @contextmanager
    def _action(self, what: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._note(Step(what, started, time.monotonic() - started))

    def _note(self, step: Step) -> None:
        self._steps.append(step)
        self._watch(step)


def _most_advanced_first(standbys: Sequence[Server]) -> list[Server]:
    """In the order in which EFM promotes: one that has less of a crashed primary's WAL could not lead the others."""
    received: dict[Server, int | None] = {}

    def is_known() -> bool:
        received.update((node, node.received_at_last()) for node in standbys)
        return None not in received.values()

    wait_until(is_known, timeout=2)
    return sorted(standbys, key=lambda node: -(received[node] or 0))
