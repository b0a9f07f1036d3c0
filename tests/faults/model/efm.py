"""What happens to a cluster, what EFM calls about it, and what becomes of these calls on the way.

EFM's part is what is documented: a detach of a primary that failed or is about to be stopped, an attach after the
promotion, a detach and an attach of standbys that fail, return, or are restarted for a promotion; by any agent, in no
order, without a retry. Each call may be lost, late, doubled, made by two agents at once, and its TYPE wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from efm_lb.truth import Reach
from faults.model.databases import Database, Life
from faults.model.haproxy import Haproxy
from faults.model.hosts import Host, World
from faults.model.pgbouncer import Pgbouncer
from faults.model.pgpool import Pgpool
from faults.model.simulation import Task

__all__ = ["Efm", "Event", "made_up"]

_UNNOTICED = 15.0
"""Seconds in which what is done may go back to an answer from before a node went silent."""


class Event(NamedTuple):
    """One thing that happens.

    :param at: seconds from the beginning
    :param kind: the name of a method of `Efm`
    :param seed: decides everything about it
    """

    at: float
    kind: str
    seed: str

    def __str__(self) -> str:
        return f"{self.kind} at {self.at:.1f}"


_KINDS = {
    "failover": 22,
    "switchover": 18,
    "two_failovers": 6,
    "standby_fails": 14,
    "agent_fails": 10,
    "old_primary_returns": 10,
    "network_is_cut": 8,
    "freezes": 8,
    "thaws": 8,
    "balancer_goes_down": 9,
    "balancer_restarts": 7,
    "balancer_reloads": 6,
    "old_file": 4,
    "by_hand": 8,
    "stray_call": 12,
}


def made_up(seed: str, random: Random) -> list[Event]:
    """A few things that happen, one after the other or at once."""
    kinds, weights = zip(*_KINDS.items(), strict=True)
    at = 0.5
    events = []
    for number in range(random.choice((1, 2, 2, 3, 3, 4, 5))):
        (kind,) = random.choices(kinds, weights)
        events.append(Event(at, kind, f"{seed}.{number}"))
        at += random.choice((0.0, 0.3, random.random() * 3, random.random() * 12))
    restart = Random(f"{seed}.restart")  # apart: the other events of a seed stay the same
    if restart.random() < 0.2:
        events.append(Event(0.5 + restart.random() * at, "service_restarts", f"{seed}.restart"))
    return events


class Efm:
    """Makes events happen in a world.

    :ivar last_fault: when the last of them, or of the calls about them, came
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._simulation = world.simulation
        self._cluster = world.cluster
        self.last_fault = 0.0
        self._is_promoting = False
        self._at_work: list[Task] = []

    @property
    def is_at_work(self) -> bool:
        return any(not task.done for task in self._at_work)

    def happens(self, event: Event) -> None:
        work: Callable[[Random], None] = getattr(self, event.kind)
        self._later(event.at, lambda: work(Random(event.seed)), event.kind)

    def _later(self, delay: float, work: Callable[[], None], name: str) -> None:
        def run() -> None:
            self.last_fault = max(self.last_fault, self._simulation.now)
            work()
            self.last_fault = max(self.last_fault, self._simulation.now)

        self._at_work.append(self._simulation.spawn(run, name, delay))

    # calls

    def _call(self, random: Random, kind: str, database: Database, letter: str) -> None:
        """EFM calls a hook."""
        words = f"{kind} {database} {letter}"
        if random.random() < 0.12:
            self._simulation.say(f"lost: {words}")
            return
        chance = random.random()
        if chance < 0.08:
            letter = random.choice([other for other in ("p", "s", "m", "primary") if other != letter])
        elif chance < 0.15:
            letter = ""
        hosts = [random.choice(list(self._world.hosts))]
        late = [self._delay(random)]
        chance = random.random()
        if chance < 0.24:
            hosts.append(random.choice(list(self._world.hosts)))
            late.append(late[0] + (0.0 if chance < 0.14 else self._delay(random)))
        argv = [kind, database.node.name, *([letter] if letter and kind != "promote" else [])]
        for host, delay in zip(hosts, late, strict=True):
            self._later(delay, lambda host=host: self._run(host, argv), "EFM")  # type: ignore[misc]

    def _run(self, host: str, argv: list[str]) -> None:
        self._world.hosts[host].call(*argv)

    def _delay(self, random: Random) -> float:
        chance = random.random()
        return random.random() * (0.2 if chance < 0.7 else 3.0 if chance < 0.92 else 15.0)

    # what happens

    def _some(self, random: Random, candidates: list[Database]) -> Database | None:
        return random.choice(candidates) if candidates else None

    def _some_host(self, random: Random) -> Host | None:
        """One that runs reconcile."""
        hosts = [host for host in self._world.hosts.values() if host.service]
        return random.choice(hosts) if hosts else None

    def _promotes(self, random: Random, old: Database, switchover: bool) -> None:
        """EFM's part after a primary is gone, or is about to be stopped."""
        sleep = self._simulation.sleep
        cluster = self._cluster
        candidates = [each for each in cluster.standbys if each is not old]
        # EFM promotes the standby that has the most.
        newest = max((each.timeline for each in candidates), default=0)
        new = self._some(random, [each for each in candidates if each.timeline == newest])
        if new is None or random.random() < 0.08:
            return
        if random.random() < 0.15:
            self._call(random, "attach", new, "p")  # before it is promoted
        others = [each for each in cluster.standbys if each not in (old, new)]
        sleep(random.choice((0.0, 0.1, 1.0, 4.0)) * random.random())
        if not (new.serves and new.in_recovery):
            return
        cluster.promote(new)
        sleep(random.random() * 0.3)
        for other in others:
            if random.random() < 0.6:
                self._restarts(random, other)
            elif other.serves and other.in_recovery:
                cluster.follow(other)
        self._call(random, "attach", new, "p")
        if random.random() < 0.2:
            self._call(random, "promote", new, "")
        if (switchover or random.random() < 0.5) and cluster.writable is not old:
            sleep(random.random() * 3)
            if old.life is Life.STOPPED and cluster.writable is not old:
                cluster.follow(old)
                cluster.start(old, random.random())
                self._call(random, "attach", old, "s")

    def _restarts(self, random: Random, standby: Database) -> None:
        """A standby is stopped and started for its new primary."""
        if not (standby.serves and standby.in_recovery):
            return
        cluster = self._cluster
        if random.random() < 0.7:
            self._call(random, "detach", standby, "s")
        cluster.stop(standby)
        self._simulation.sleep(random.random())
        if standby.life is Life.STOPPED and standby is not cluster.writable:
            cluster.follow(standby)
            cluster.start(standby, random.random() * 0.5)
            if random.random() < 0.8:
                self._call(random, "attach", standby, "s")

    def failover(self, random: Random) -> None:
        """The primary fails, and EFM promotes a standby, or does not."""
        old = self._cluster.writable
        if self._is_promoting or not old.is_primary:
            return
        self._is_promoting = True
        try:
            if random.random() < 0.6:
                self._cluster.stop(old)
            else:
                self._cluster.silence(old)
            self._simulation.sleep(random.choice((0.0, 0.5, 5.0)) * random.random())
            self._call(random, "detach", old, "p")
            self._simulation.sleep(random.random() * 1.5)
            self._promotes(random, old, switchover=False)
        finally:
            self._is_promoting = False

    def two_failovers(self, random: Random) -> None:
        """The new primary fails as soon as it is one, while hosts still wait for an answer of the old one."""
        cluster, sleep = self._cluster, self._simulation.sleep
        old = cluster.writable
        if self._is_promoting or not old.is_primary:
            return
        self._is_promoting = True
        try:
            cluster.silence(old)
            sleep(random.random() * 0.5)
            if len(cluster.standbys) < 2:
                return
            first, second = random.sample(cluster.standbys, 2)
            cluster.promote(first)
            self._call(random, "attach", first, "p")
            sleep(random.random() * 2)
            cluster.stop(first)
            if random.random() < 0.7:
                cluster.stop(old)
            sleep(random.random() * 0.3)
            if second.serves and second.in_recovery:
                second.timeline = first.timeline
                cluster.promote(second)
                self._call(random, "attach", second, "p")
        finally:
            self._is_promoting = False

    def switchover(self, random: Random) -> None:
        """EFM stops the primary and promotes a standby."""
        old = self._cluster.writable
        if self._is_promoting or not old.is_primary or len(self._cluster.primaries) > 1:
            return
        self._is_promoting = True
        try:
            self._call(random, "detach", old, "p")
            self._simulation.sleep(random.choice((0.05, 0.5, 3.0)) * random.random())
            if old.is_primary:
                self._cluster.stop(old)
            self._promotes(random, old, switchover=True)
        finally:
            self._is_promoting = False

    def standby_fails(self, random: Random) -> None:
        standby = self._some(random, self._cluster.standbys)
        if standby is None:
            return
        (self._cluster.stop if random.random() < 0.6 else self._cluster.silence)(standby)
        self._simulation.sleep(random.random())
        self._call(random, "detach", standby, "s")
        if random.random() < 0.6:
            self._simulation.sleep(random.choice((0.1, 1.0, 6.0)) * random.random())
            if standby is self._cluster.writable or not standby.in_recovery:
                return
            if standby.life is Life.SILENT:
                self._cluster.thaw(standby)
            elif standby.life is Life.STOPPED:
                self._cluster.start(standby, random.random())
            self._call(random, "attach", standby, "s")

    def agent_fails(self, random: Random) -> None:
        """EFM's agent dies, and the database is fine."""
        database = self._some(random, self._cluster.all)
        assert database
        letter = "s" if database.in_recovery else "p"
        self._call(random, "detach", database, letter)
        if random.random() < 0.6:
            self._simulation.sleep(random.random() * 8)
            self._call(random, "attach", database, letter)

    def old_primary_returns(self, random: Random) -> None:
        """An old primary is started again by mistake, and later stopped or made a standby."""
        cluster = self._cluster
        old = self._some(
            random,
            [each for each in cluster.all if each.life is Life.STOPPED and not each.in_recovery],
        )
        if old is None or old is cluster.writable:
            return
        if random.random() < 0.5 and cluster.writable.serves and not self._is_promoting:
            self._simulation.sleep(random.random() * 5)
            (cluster.stop if random.random() < 0.5 else cluster.silence)(cluster.writable)
        cluster.start(old, random.random())
        if random.random() < 0.7:
            self._call(random, "attach", old, random.choice(("p", "p", "s", "")))
        self._simulation.sleep(random.random() * 10)
        if old.is_primary and old is not cluster.writable:
            cluster.stop(old)
            if random.random() < 0.6:
                cluster.follow(old)
                cluster.start(old, random.random())
                self._call(random, "attach", old, "s")

    def network_is_cut(self, random: Random) -> None:
        """One host does not reach one node, or two."""
        host = random.choice(list(self._world.hosts))
        nodes = random.sample(self._cluster.all, random.choice((1, 1, 2)))
        heard = random.choice((Reach.NO_RESPONSE, Reach.NO_RESPONSE, Reach.REFUSED))
        self._cluster.cut |= {(host, node): heard for node in nodes}
        self._cluster.was_cut = True
        self._cluster.has_changed(f"{host} does not reach {', '.join(map(str, nodes))}: {heard.value}")
        if random.random() < 0.4:
            self._call(random, "detach", nodes[0], "s" if nodes[0].in_recovery else "p")
        self._simulation.sleep(random.random() * 12)
        for node in nodes:
            self._cluster.cut.pop((host, node), None)
        self._cluster.has_changed(f"{host} reaches {', '.join(map(str, nodes))} again")

    def freezes(self, random: Random) -> None:
        """A node does not answer for a while; nobody is called, or EFM does not wait for it."""
        database = self._some(random, [each for each in self._cluster.all if each.serves])
        if database is None:
            return
        self._cluster.silence(database)
        self._simulation.sleep(random.random() * 8)
        if random.random() < 0.5:
            self._call(random, "detach", database, "s" if database.in_recovery else "p")
        if random.random() < 0.7:
            self._cluster.thaw(database)
            if random.random() < 0.3:
                self._call(random, "attach", database, random.choice("ps"))

    def thaws(self, random: Random) -> None:
        """Whatever is silent answers again, also an old primary."""
        for database in self._cluster.all:
            self._cluster.thaw(database)

    def balancer_goes_down(self, random: Random) -> None:
        balancer = random.choice(self._world.balancers)
        if not balancer.up:
            return
        balancer.stop()
        self._simulation.sleep(random.random() * 10)
        if not balancer.up:
            balancer.start()

    def balancer_restarts(self, random: Random) -> None:
        balancer = random.choice(self._world.balancers)
        if balancer.up:
            balancer.stop()
            self._simulation.sleep(random.random() * 0.5)
            if not balancer.up:
                balancer.start()

    def balancer_reloads(self, random: Random) -> None:
        balancer = random.choice(self._world.balancers)
        if not isinstance(balancer, Pgpool):
            balancer.reload()

    def old_file(self, random: Random) -> None:
        """Somebody's automation puts a file back as it was at first; the balancer reads it, or does so later."""
        balancer = random.choice(self._world.balancers)
        if isinstance(balancer, Pgpool):
            return
        balancer.put_back_file()
        self._world.watch.remembers(balancer, balancer.first_config)
        self._simulation.say(f"{balancer.config} is as it was at first")
        if random.random() < 0.6:
            self._simulation.sleep(random.random() * 3)
            balancer.reload()

    def service_restarts(self, random: Random) -> None:
        """A host's reconcile ends wherever it is, and begins anew with what its host has kept."""
        host = self._some_host(random)
        if host is None:
            return
        host.ends()
        self._simulation.sleep(random.choice((0.1, 3.0, 20.0)) * random.random())
        host.serve()

    def by_hand(self, random: Random) -> None:
        """Somebody changes a balancer by hand."""
        balancer = random.choice(self._world.balancers)
        node = self._some(random, self._cluster.all)
        assert node
        if isinstance(balancer, Pgpool):
            balancer.by_hand(random.choice(("attach", "detach", "detach")), node.number)
        elif isinstance(balancer, Haproxy):
            proxy = random.choice(("pg_read", "pg_read", "pg_write"))
            state = random.choice(("maint", "drain", "ready")) if proxy == "pg_read" else "maint"
            balancer.carry_out(f"set server {proxy}/n{node.number} state {state}")
        elif isinstance(balancer, Pgbouncer):
            balancer.reload()

    def stray_call(self, random: Random) -> None:
        """A call about nothing that has happened, or long ago."""
        database = self._some(random, self._cluster.all)
        assert database
        kind = random.choice(("attach", "attach", "detach", "promote"))
        self._call(random, kind, database, random.choice(("p", "s", "")))

    # the end

    def ends(self, random: Random) -> None:
        """The last faults: every database and balancer becomes what it stays; nobody is called about it."""
        cluster, simulation = self._cluster, self._simulation
        simulation.say("the last faults")
        cluster.cut.clear()
        cluster.is_calm = True
        may_stay_silent = (len(cluster.all) - 1) // 2
        for database in cluster.all:
            if database.life is Life.SILENT:
                if random.random() < 0.5 and may_stay_silent:
                    may_stay_silent -= 1
                else:
                    cluster.thaw(database)
        if not cluster.writable.serves:
            if cluster.standbys and random.random() < 0.5:
                simulation.sleep(random.random())
                newest = max(each.timeline for each in cluster.standbys)
                cluster.promote(next(each for each in cluster.standbys if each.timeline == newest))
            else:
                cluster.thaw(cluster.writable)
                if not cluster.writable.serves:
                    cluster.start(cluster.writable, 0.0)
        for database in cluster.all:
            if database is cluster.writable:
                continue
            if not database.in_recovery and database.life is not Life.SILENT:
                cluster.stop(database)
                if random.random() < 0.5:
                    cluster.follow(database)
                    cluster.start(database, 0.0)
            elif database.in_recovery and database.serves and database.timeline != cluster.writable.timeline:
                cluster.follow(database)
        self._starts_a_majority()
        for balancer in self._world.balancers:
            if not balancer.up:
                balancer.start()
        cluster.has_changed("from now on nothing happens")
        self.last_fault = simulation.now
        if any(database.life is Life.SILENT for database in cluster.all):
            self._frees_pgpools()

    def _starts_a_majority(self) -> None:
        """Of three nodes and more: reconcile does nothing where it hears half of them or less."""
        cluster = self._cluster
        stopped = [each for each in cluster.all if each.life is Life.STOPPED] if len(cluster.all) > 2 else []
        for database in stopped:
            heard = sum(each.life not in (Life.STOPPED, Life.SILENT) for each in cluster.all)
            if 2 * heard <= len(cluster.all):
                cluster.follow(database)
                cluster.start(database, 0.0)

    def _frees_pgpools(self) -> None:
        """A pgpool that searched when a node went silent hangs until that node answers, whatever anybody does."""
        for balancer in self._world.balancers:
            if not isinstance(balancer, Pgpool):
                continue
            self._simulation.sleep(_UNNOTICED)
            if balancer.hangs_on:
                self._simulation.say(f"{balancer.name} hangs")
                self._cluster.stop(balancer.hangs_on)
                self.last_fault = self._simulation.now
