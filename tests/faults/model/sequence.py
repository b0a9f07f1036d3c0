"""One sequence: played from a seed, judged, and cut down to what is needed for it to fail."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from efm_lb.configuration import DetachLivePrimary, Reconcile
from efm_lb_haproxy.settings import Reads
from faults.model import hosts
from faults.model.databases import Cluster, Database
from faults.model.efm import Efm, Event, made_up
from faults.model.haproxy import Haproxy
from faults.model.hosts import Host, World
from faults.model.pgbouncer import Pgbouncer
from faults.model.pgpool import Pgpool
from faults.model.right import Watch, wrong
from faults.model.simulation import Simulation, Violation

__all__ = ["Played", "play", "shortest"]

_DEADLINE, _CONNECT_TIMEOUT = 10.0, 2.0
_FOLLOW_UP = 75.0
"""Seconds after which no follow-up is at work any more."""
_WORK = 12.0
"""Seconds that bringing a balancer right may take after it has begun: pgpool does one thing a second, and searches."""
_ASKED = 3.0
"""Seconds in which a follow-up may still act on what it asked before the last fault."""
_MARK = re.compile(
    rb" *# efm-lb: writes follow timeline [0-9]*$|^; efm-lb: writes follow timeline [0-9]*\n", re.MULTILINE
)


class Played(NamedTuple):
    """What came of a sequence.

    :param failure: what was wrong; empty when nothing was
    :param events: that happened
    :param right_after: seconds after the last fault, -1 when nobody was there to make it right
    :param counts: how often something of interest was
    :param trace: every step, when it was asked for
    """

    seed: str
    failure: str
    events: tuple[Event, ...]
    right_after: float
    counts: dict[str, int]
    trace: tuple[str, ...] = ()


def play(seed: str, events: Sequence[Event] | None = None, traced: bool = False) -> Played:
    """Play a sequence. To be called within `hosts.installed`.

    :param events: instead of all of the seed's
    """
    random = Random(seed)
    world, servers = _world(seed, random, [] if traced else None)
    every_one = made_up(seed, random)
    events = every_one if events is None else events
    simulation, trace = world.simulation, world.simulation.trace
    if trace is not None:
        trace += [f"  {event}" for event in events]
    failure, right_after = "", -1.0
    try:
        efm = Efm(world)
        for event in events:
            efm.happens(event)
        while efm.is_at_work:
            simulation.run(simulation.now + 2.0)
        ending = simulation.spawn(lambda: efm.ends(Random(f"{seed}.end")), "end")
        while not ending.done:
            simulation.run(simulation.now + 0.5)
        if servers:
            right_after = _becomes_right(world, efm, [world.hosts[name] for name in servers])
        else:
            simulation.run(simulation.now + _FOLLOW_UP)
    except Violation as violation:
        failure = str(violation)
    finally:
        simulation.end()
    return Played(seed, failure, tuple(events), right_after, world.watch.counts, tuple(trace or ()))


def _world(seed: str, random: Random, trace: list[str] | None) -> tuple[World, list[str]]:
    """Three hosts, a cluster and balancers, all of a kind that the seed decides; and which hosts run reconcile."""
    simulation = Simulation(f"{seed}.times", trace)
    size = random.choice((2, 3, 3, 3, 3, 4))
    cluster = Cluster(simulation, size, tells_timeline=random.random() < 0.8, archive=random.random() < 0.5)
    rhythm = Reconcile(random.choice((1.0, 5.0)), random.choice((0.5, 2.0)), random.choice((10.0, 30.0)))
    rhythm = rhythm._replace(detach_after=Random(f"{seed}.detach").choice((0.0, 3.0, 8.0)))
    by_timer = Random(f"{seed}.timer").random() < 0.15
    # Who looks once waits for what is due soon, and only then ends.
    judged_by = rhythm._replace(period=rhythm.period + _DEADLINE) if by_timer else rhythm
    watch = Watch(simulation, cluster, judged_by, oldest=_DEADLINE + _CONNECT_TIMEOUT)
    world = World(simulation, cluster, watch)
    hosts.use(world)
    servers = random.sample(("host1", "host2", "host3"), random.choice((0, 1, 1, 2, 3)))
    # With 0 a pgpool may search for ever: nobody can make that right.
    search_timeout = random.choice((3, 3, 3, 10) if servers else (3, 10, 0))
    reads, policy = random.choice(tuple(Reads)), random.choice(("never", "always", "fallback"))
    hold = random.choice((0.0, 10.0))
    kinds = random.sample(("pgpool", "haproxy", "pgbouncer"), random.choice((1, 1, 2, 3)))
    if "pgpool" in kinds:
        world.balancers.append(Pgpool("pool1", simulation, cluster, watch, search_timeout))
    if "haproxy" in kinds:
        world.balancers.append(Haproxy("edge1", simulation, cluster, watch, world.files, reads))
    if "pgbouncer" in kinds:
        world.balancers.append(Pgbouncer("pgb1", simulation, cluster, watch, world.files, policy, hold))  # type: ignore[arg-type]
    detach_live = random.choice((DetachLivePrimary.DEFER,) * 8 + (DetachLivePrimary.OBEY, DetachLivePrimary.REFUSE))
    watch.obeys = detach_live is DetachLivePrimary.OBEY
    for name in ("host1", "host2", "host3"):
        world.hosts[name] = Host(name, world, rhythm, detach_live, _DEADLINE, _CONNECT_TIMEOUT, by_timer)
    for name in servers:
        world.hosts[name].serve()
    if trace is not None:
        trace += [
            f"seed {seed}: {size} nodes, {', '.join(kinds)}; reconcile on {', '.join(servers) or 'no host'}"
            f"{', by a timer' * by_timer}",
            f"{rhythm}, {detach_live}, search_primary_node_timeout {search_timeout}, {reads}, READ {policy},"
            f" hold {hold:g}, timelines {'told' if cluster.tells_timeline else 'not told'} by standbys",
        ]
    return world, servers


def _becomes_right(world: World, efm: Efm, hosts: Sequence[Host]) -> float:
    """Go on until all is right, and stays so.

    :return: seconds after the last fault
    :raises Violation: it is not, in time
    """
    simulation, watch, rhythm = world.simulation, world.watch, world.watch.policy
    while any(not call.done for call in world.calls if "--follow-up" not in call.argv):
        simulation.run(simulation.now + 0.5)  # what a call does that EFM has made is a fault as the call itself
        efm.last_fault = simulation.now
    if world.cluster.newest > world.cluster.writable.timeline:
        # Promoted was a standby that had missed a promotion, and all that is on the newer timeline is gone with its
        # primary. Nobody but a person can know that this one is no old primary: docs/runbook.md, "A cluster that was
        # built anew".
        for path, content in world.files.items():
            world.files[path] = _MARK.sub(b"", content)
        for host in world.hosts.values():
            host.forget()
        watch.forget_timelines()
        efm.last_fault = simulation.now
    began = efm.last_fault
    pools = [each for each in world.balancers if isinstance(each, Pgpool)]
    patience = rhythm.settle * 2 + rhythm.detach_after + rhythm.period + _WORK
    limit = began + patience + sum(each.searches_in_vain for each in pools)
    right_after = 0.0
    while simulation.now < limit:
        simulation.run(min(simulation.now + 0.5, limit))
        if simulation.now < began + _ASKED and (searches := sum(each.searches_in_vain for each in pools)):
            limit = max(limit, simulation.now + patience + searches)
        if _left(world, rhythm):
            right_after = simulation.now - efm.last_fault
    left = _left(world, rhythm)
    if left:
        raise Violation(f"not right {simulation.now - efm.last_fault:.1f} s after the last fault: {left}")
    last = max(
        (watch.excuses(balancer, database, _WORK) for balancer in world.balancers for database in world.cluster.all),
        default=0.0,
    )
    limit = max(simulation.now, last) + rhythm.settle * 2 + rhythm.period + _WORK
    while simulation.now < limit:
        simulation.run(min(simulation.now + 5.0, limit))
        left = _left(world, rhythm)
        if left:
            raise Violation(f"right, but not {simulation.now - efm.last_fault:.1f} s after the last fault: {left}")
    for balancer in world.balancers:
        if found := wrong(world.cluster, balancer):
            raise Violation(f"not right when nobody has a reason to wait any more: {balancer.name}: {_words(found)}")
    return right_after


def _left(world: World, rhythm: Reconcile) -> str:
    """What is wrong and has no excuse."""
    words = []
    for balancer in world.balancers:
        found = wrong(world.cluster, balancer)
        for what, databases in list(found.items()):
            if what in ("a standby is out", "its file says otherwise") or (world.obeys and not what.endswith("paused")):
                found[what] = [each for each in databases if not _is_excused(world, rhythm, balancer, each)]
                if not found[what]:
                    del found[what]
        if found:
            words.append(f"{balancer.name}: {_words(found)}")
    return "; ".join(words)


def _is_excused(world: World, rhythm: Reconcile, balancer: hosts.AnyBalancer, database: Database) -> bool:
    until = world.watch.excuses(balancer, database, _WORK)
    if world.obeys:  # all others wait until the primary gets the writes again
        until = max(until, world.watch.excuses(balancer, world.cluster.writable, _WORK))
    return world.simulation.now < until + rhythm.period + rhythm.settle * 2 + _WORK if until else False


def _words(found: dict[str, list[Database]]) -> str:
    return ", ".join(f"{what} ({', '.join(map(str, databases))})" for what, databases in found.items())


def shortest(played: Played) -> Played:
    """The fewest of the events with which it still fails, tried by leaving out one after the other."""
    best = played
    for event in played.events:
        fewer = [each for each in best.events if each != event]
        again = play(played.seed, fewer)
        if again.failure:
            best = again
    return play(played.seed, best.events, traced=True)
