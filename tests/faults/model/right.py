"""What must never be, checked at every step; and what must be when all is over, judged without efm-lb's own code.

**Never two ready writers.** After every command to a HAProxy at most one server of the proxy for writes is ready;
after every RELOAD of a PgBouncer its entries for writes lead to one node. (A pgpool has one primary.) One thing can
bring about two, for no longer than `CROSSING`: two hosts tell a HAProxy at the same moment to give writes to different
nodes, because one of them asked earlier. HAProxy takes their commands in turns, and both see what came of it.

**Never writes to a node in recovery.** Telling a balancer to give writes to a node is: pcp_promote_node; a server of
the proxy for writes made ready; an entry for writes written to the file, or loaded from it. Whoever tells it has
asked the node itself before, for this event, and the node was then out of recovery, and the only such node that
answered. The node may go into recovery between that answer and the command: so the answer must not be older than a
hook's deadline. Nor may writes be given to a primary on an older timeline than any that was answered with it, that
the host had seen before, or that the balancer's own file has remembered for `CROSSING`. Nothing else is refused because
of what the file remembers.

**Nothing that is not its business**: an attach whose TYPE is standby gives no writes; with two primaries in sight only
a detach is sent; reconcile sends nothing when it sees two primaries, or hears half of three nodes or less; a call
does not undo a newer one of the same host, about the same node, that was carried out before it was judged.

**What is reported is so**: when an adapter says changed or unchanged, its balancer is as the event wants it, unless
somebody else has told it something meanwhile, or in the second before.

**No pgpool is made to hang**: to search for its primary while a node is attached that did not answer.

**Everything right in the end**: see `wrong`.
"""

from __future__ import annotations

import re
from math import inf
from typing import TYPE_CHECKING, Protocol

from efm_lb import Attach, Detach, Event, Origin, Promote, Result
from efm_lb.configuration import Reconcile
from efm_lb.truth import Reach, Role, Truth
from faults.model.databases import Cluster, Database, Life
from faults.model.simulation import Simulation, Task, Violation

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FENCED", "Watch", "wrong"]

FENCED = "writes follow timeline"
"""What a refusal says that comes from the balancer's own file."""
_WHOLE = 1.0
"""Seconds that what a service has kept for the next one is inexact by: it is in whole seconds."""
CROSSING = 1.0
"""Seconds after which two hosts that crossed must have seen it and ended it."""


class _Balancer(Protocol):
    kind: str
    name: str

    @property
    def never_reads_primary(self) -> bool: ...

    @property
    def writers(self) -> Sequence[Database]: ...

    @property
    def readers(self) -> Sequence[Database]: ...


class Watch:
    """Looks on.

    :ivar out: when each node was taken out of a balancer while it was up, by balancer
    :ivar obeys: EFM may take out a live primary
    :param policy: of reconcile; its period is the longest time between two looks
    :param oldest: seconds that an answer may be old when it is acted on
    """

    def __init__(self, simulation: Simulation, cluster: Cluster, policy: Reconcile, oldest: float) -> None:
        self._simulation = simulation
        self._cluster = cluster
        self.policy = policy
        self._oldest = oldest
        self.obeys = False
        self.out: dict[tuple[str, Database], list[float]] = {}
        self._done: dict[tuple[str, str], list[tuple[float, bool, float]]] = {}
        self._seen: dict[str, int] = {}
        self._crossed: dict[str, float] = {}
        self._on_purpose: dict[tuple[str, Database], float] = {}
        self._touches: dict[str, list[tuple[float, Task | None]]] = {}
        self._wrote: dict[str, list[tuple[Task | None, Sequence[Database]]]] = {}
        self._looked: dict[str, list[float]] = {}
        self._services: dict[str, list[tuple[float, float]]] = {}
        self._stopped: dict[str, float] = {}
        self._outages: dict[str, list[tuple[float, float]]] = {}
        self._remembered: dict[str, list[tuple[float, int]]] = {}
        self.counts: dict[str, int] = {}

    def _never(self, what: str) -> None:
        task = self._simulation.current
        violation = Violation(f"{what} ({task.name if task else ''})")
        self._simulation.error = self._simulation.error or violation  # efm-lb guards itself against its adapters
        raise violation

    def sends(self, balancer: _Balancer, event: Event, began: float, argv: Sequence[str]) -> None:
        """An event goes to a balancer.

        :param began: when the call was made
        :param argv: the call; nothing for reconcile
        """
        truth = event.truth
        primaries = [state.node.name for state in truth.states if state.role is Role.PRIMARY]
        task = self._simulation.current
        assert task
        if len(primaries) > 1 and (not isinstance(event, Detach) or event.origin is Origin.RECONCILE):
            self._never(f"{event.node.name}: {type(event).__name__} with two primaries in sight")
        silent = sum(state.reach in (Reach.NO_RESPONSE, Reach.REFUSED) for state in truth.states)
        if event.origin is Origin.RECONCILE and len(truth.states) > 2 and 2 * silent >= len(truth.states):
            self._never("reconcile acts on a host that hears half of the nodes or less")
        if argv[:1] == ["attach"] and argv[2:3] in (["s"], ["standby"]) and isinstance(event, Promote):
            self._never(f"{' '.join(argv[:3])} moves writes")
        if event.origin is Origin.RECONCILE and isinstance(event, Attach | Promote):
            self._demand_no_undoing(balancer, self._cluster.of(event.node), task)
        if len(primaries) == 1:
            timeline = max(state.timeline or 0 for state in truth.states if state.role is Role.PRIMARY)
            self._seen[task.host.name] = max(self._seen.get(task.host.name, 0), timeline)
        wanted = argv[:1] != ["detach"]
        if argv:
            done = [each for each in self._done.get((task.host.name, argv[1]), ()) if each[2] <= task.process.judged]
            newest, newest_wanted, _ = max(done, default=(0.0, wanted, 0.0))
            if newest > began and newest_wanted != wanted:
                self._never(f"{' '.join(argv[:3])} undoes a newer call that was carried out before")

    def _demand_no_undoing(self, balancer: _Balancer, database: Database, task: Task) -> None:
        """Reconcile puts back what EFM has taken out on purpose: not before `hold` seconds are over.

        Only where nothing else can have led it to believe otherwise: before and after that detach nothing else happened
        to the balancer or to the node, and every host has always reached it; and a primary had the writes, and a
        standby had not: it may have been meant as the primary that it was. A service that has begun since knows the
        calls of its own host only, and those that were carried out.
        """
        at = self._on_purpose.get((balancer.name, database))
        if at is None or self._cluster.was_cut or database.promoted_at > at:
            return
        since, look = at, self.policy.period + 2.0
        if task.process.began + look > at:
            calls = self._done.get((task.host.name, database.node.name), ())
            began = [began for began, wanted, when in calls if not wanted and when >= at]
            since = min(at, *began) - _WHOLE if began else -inf
        look = max(
            look, at - max((looked for looked in self._looked.get(task.host.name, ()) if looked < at), default=0.0)
        )
        if self._simulation.now >= since + self.policy.hold:
            return  # or it cannot know
        touches = self._touches[balancer.name]
        own = {teller for touch, teller in touches if touch == at} - {None}
        others = [touch for touch, teller in touches if teller not in own and touch > at - look]
        changes = [change for change, _ in database.running if change > at - look]
        before = [writers for teller, writers in self._wrote[balancer.name] if teller not in own]
        had_writes = database in (before[-1] if before else self._cluster.all[:1])
        if not others and not changes and database.in_recovery != had_writes:
            self._never(f"{balancer.name}: reconcile puts back {database}, which was taken out on purpose")

    def carried_out(self, host: str, began: float, argv: Sequence[str]) -> None:
        """A call of EFM's has done all that it wanted."""
        done = self._done.setdefault((host, argv[1]), [])
        done.append((began, argv[0] != "detach", self._simulation.now))

    def touched(self, balancer: _Balancer, teller: Task | None) -> None:
        """A balancer has done something that it was told, or was restarted, or its file was changed (by nobody)."""
        if self._simulation.current is None:
            return  # it is being made
        self._touches.setdefault(balancer.name, []).append((self._simulation.now, teller))
        self._wrote.setdefault(balancer.name, []).append((teller, tuple(balancer.writers)))

    @property
    def teller(self) -> Task | None:
        task = self._simulation.current
        return task.process if task and task.event else None

    def reported(self, balancer: _Balancer, event: Event, result: Result, began: float) -> None:
        """An adapter has said what came of an event that it got at ``began``."""
        if result not in (Result.CHANGED, Result.UNCHANGED):
            return
        me = self.teller
        for at, teller in reversed(self._touches.get(balancer.name, ())):
            if at < began - 1.0:
                break
            if teller is not me:
                return
        node = self._cluster.of(event.node)
        if isinstance(event, Promote):
            is_so = balancer.writers == [node]
        elif isinstance(event, Attach):
            is_so = True
        else:
            # An entry of PgBouncer's cannot be empty.
            is_alone = balancer.kind == "pgbouncer" and list(balancer.readers) == [node]
            is_primary = event.truth.primary == event.node
            may_stay = is_alone and (balancer.never_reads_primary or not event.truth.primary)
            is_so = node not in balancer.readers or may_stay or (balancer.kind == "pgbouncer" and is_primary)
        if isinstance(event, Attach) and event.truth.role(event.node) is Role.STANDBY:
            is_so = node in balancer.readers
        if not is_so:
            self._never(f"{balancer.name} is not as it was reported after {type(event).__name__} {node}")

    def looked(self, host: str, at: float) -> None:
        """A host's reconcile service has played a round that began at a time."""
        self._looked.setdefault(host, []).append(at)

    def looks(self, host: str, looked: float) -> None:
        """A host's reconcile service has begun to look.

        :param looked: when the one before has looked for the last time and could keep what it saw
        """
        self._services.setdefault(host, []).append((looked, self._simulation.now))

    def stopped(self, balancer: _Balancer) -> None:
        """A balancer has gone down."""
        self._stopped[balancer.name] = self._simulation.now

    def started(self, balancer: _Balancer) -> None:
        """A balancer that had gone down is back."""
        outage = self._stopped[balancer.name], self._simulation.now
        self._outages.setdefault(balancer.name, []).append(outage)

    def forget_timelines(self) -> None:
        """A person has told all hosts to."""
        self._seen.clear()
        self._remembered.clear()
        self.count("a person had to say that a timeline is gone")

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def writers(self, balancer: _Balancer) -> None:
        """A balancer was told something."""
        writers = balancer.writers
        if len(writers) < 2:
            self._crossed.pop(balancer.name, None)
            return
        now = self._simulation.now
        tellers = {teller for at, teller in self._touches.get(balancer.name, [])[-20:] if at > now - 0.1}
        since = self._crossed.get(balancer.name)
        if since is None and len(tellers - {None}) > 1:
            self.count("two hosts crossed")
            self._crossed[balancer.name] = now
        elif since is None or now > since + CROSSING:
            names = " and ".join(map(str, writers))
            self._never(f"{balancer.name} has two ready writers: {names}")

    def in_file(self, balancer: _Balancer, hosts: Sequence[str]) -> None:
        """A file is written in which a balancer gives writes to these."""
        if len(hosts) > 1:
            self._never(f"{balancer.name} has two ready writers in its file: {' and '.join(hosts)}")

    def remembers(self, balancer: _Balancer, content: bytes) -> None:
        """A balancer's own file has another content: which timeline its writes follow, by what is written there."""
        marks = re.findall(rb"[#;] efm-lb: writes follow timeline ([0-9]+)$", content, re.MULTILINE)
        newest = max(map(int, marks), default=0)
        self._remembered.setdefault(balancer.name, []).append((self._simulation.now, newest))
        self.count("a file remembers a timeline")

    def refused(self, balancer: _Balancer, event: Event) -> None:
        """An event was refused because of what the file remembers."""
        self.count("refused because of what the file remembers")
        primary = event.truth.primary
        timeline = event.truth.state(primary).timeline if primary else None
        _, newest = self._remembered.get(balancer.name, [(0.0, 0)])[-1]
        if timeline is None or newest <= timeline:
            self._never(f"{balancer.name}: refused for its file, which remembers timeline {newest}, not {timeline}")

    def is_told(self, balancer: _Balancer) -> bool:
        """Whether it is efm-lb that tells a balancer something."""
        task = self._simulation.current
        return bool(task and task.event)

    def gives_writes(self, balancer: _Balancer, database: Database, by_file: bool = False) -> None:
        """A balancer is told to give writes to a node.

        :param by_file: because that is what its file says
        """
        task = self._simulation.current
        assert task
        assert task.event, "nobody tells it"
        truth: Truth = task.event.truth
        self.count("told to give writes")
        state = truth.state(database.node)
        what = f"{balancer.name} is told to give writes to {database}"
        if state.role is Role.STANDBY:
            self._never(f"{what}, which was in recovery when it was asked")
        if by_file and state.reach is not Reach.ACCEPTING:
            return
        if state.role is not Role.PRIMARY:
            self._never(f"{what}, which had not answered")
        if any(other.role is Role.PRIMARY and other.node != state.node for other in truth.states):
            self._never(f"{what}, one of two that were out of recovery")
        age = self._simulation.now - state.seconds
        if age > self._oldest:
            self._never(f"{what}, which was asked {age:.1f} s ago")
        newest = max(*(other.timeline or 0 for other in truth.states), self._seen.get(task.host.name, 0))
        if not by_file:
            settled = self._simulation.now - CROSSING
            newest = max([newest, *[mark for at, mark in self._remembered.get(balancer.name, [])[-1:] if at < settled]])
        if state.timeline is not None and newest > state.timeline:
            self._never(f"{what} on timeline {state.timeline}, and timeline {newest} was seen")
        if not database.is_primary:
            self.count("told to give writes to a node that was the primary when it was asked, and is not any more")

    def makes_search(self, balancer: _Balancer, told: Database, attached: Sequence[Database]) -> None:
        """A pgpool is told something about a node that makes it search for its primary, and asks all that is attached.

        Two silent nodes have to be detached one after the other.
        """
        task = self._simulation.current
        assert task
        assert task.event, "nobody tells it"
        silent = [each for each in attached if task.event.truth.state(each.node).reach is Reach.NO_RESPONSE]
        if silent and told not in silent:
            self._never(f"{balancer.name} is made to search while {silent[0]}, which is silent, is attached: it hangs")

    @property
    def event(self) -> Event | None:
        """What efm-lb tells a balancer now."""
        task = self._simulation.current
        return task.event if task else None

    def taken_out(self, balancer: _Balancer, database: Database, event: Event | None) -> None:
        """A node is out of a balancer's rotation for reads; a primary, for everything.

        :param event: that has brought it about, None when nobody's has
        """
        self.out.setdefault((balancer.name, database), []).append(self._simulation.now)
        self._on_purpose.pop((balancer.name, database), None)
        is_obeyed = database.in_recovery or self.obeys
        is_efms = isinstance(event, Detach) and event.node == database.node and event.origin is not Origin.RECONCILE
        # A pgpool may do it when the node, which was down, is back.
        if event and is_efms and is_obeyed and event.truth.state(event.node).reach.serves:
            self._on_purpose[balancer.name, database] = self._simulation.now

    def excuses(self, balancer: _Balancer, database: Database, work: float) -> float:
        """Until when one that is up may stay out: until the first service has no reason to leave it out any more."""
        return min(self._excuses(host, balancer, database, work) for host in self._services)

    def _excuses(self, host: str, balancer: _Balancer, database: Database, work: float) -> float:
        """Until when the service of one host leaves it out.

        ``hold`` seconds after it was taken out while it was up, as far as somebody who looks once in a period can
        tell, or who has just begun to look again; twice as long each further time, unless it has been back for as long
        as it was out.
        """
        until, seconds, period = 0.0, self.policy.hold, self.policy.period
        for at in self.out.get((balancer.name, database), ()):
            looks = [at, *[began for looked, began in self._services[host] if looked <= at <= began]]
            noticed = [look for look in looks if database.served_between(look - period, look + period + work)]
            if noticed:
                if at >= until + seconds / 2:
                    seconds = self.policy.hold
                until = max(until, max(noticed) + seconds)
                seconds *= 2
        # Who begins to look counts the newest call of its own host that was carried out.
        for _, began in self._services[host]:
            for down, back in self._outages.get(balancer.name, ()):
                if down <= began < back:
                    began = back + period + work
            calls = [call for call in self._done.get((host, database.node.name), ()) if call[2] <= began]
            called, wanted, _ = max(calls, default=(0.0, True, 0.0))
            if not wanted:
                until = max(until, called + self.policy.hold)
        return until


def wrong(cluster: Cluster, balancer: object) -> dict[str, list[Database]]:
    """What is wrong with a balancer, by what it is, in words, and the nodes that it is about.

    Right is: writes go to the writable node and to no other; every standby that is up serves reads; nothing leads to
    a node that is down, as far as the balancer can do without; nobody waits for ever; after a reload it is the same.
    """
    kind = balancer.kind  # type: ignore[attr-defined]
    found: dict[str, list[Database]] = {}
    if not balancer.up:  # type: ignore[attr-defined]
        return {}
    primary = cluster.writable
    writers = balancer.writers  # type: ignore[attr-defined]
    if writers != [primary]:
        found[f"writes go to {', '.join(map(str, writers)) or 'nobody'}, not to {primary}"] = [primary]
    readers = balancer.readers  # type: ignore[attr-defined]
    out = [each for each in cluster.standbys if each not in readers]
    if out:
        found["a standby is out"] = out
    down = [each for each in cluster.all if each.life in (Life.STOPPED, Life.SILENT) and each in readers]
    if down and (kind != "pgbouncer" or any(each.serves for each in readers)):
        found["a node that is down is in rotation"] = down
    if not any(each.serves for each in readers) and not balancer.never_reads_primary:  # type: ignore[attr-defined]
        found["nobody serves reads"] = [primary]
    if kind != "pgpool":
        kept_otherwise = balancer.kept_otherwise  # type: ignore[attr-defined]
        # Whether the primary serves reads is seen to with the next event, and what is dead is not reached by anybody.
        otherwise = [each for proxy, each in kept_otherwise if proxy == "pg_write" or each in cluster.standbys]
        if otherwise:
            found["its file says otherwise"] = otherwise
    if kind == "pgbouncer":
        paused = [name for name, entry in balancer.entries.items() if entry.paused]  # type: ignore[attr-defined]
        if paused:
            found[f"{', '.join(paused)} is paused"] = [primary]
    return found
