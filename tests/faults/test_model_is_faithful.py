"""The model's balancers beside real ones: told the same at random, they answer and believe the same after each step.

Compared is where the model stands in, which is what the adapters talk to: a session of PCP's, a line of HAProxy's
runtime API with the state of the servers, a session of PgBouncer's console; and the files. What goes on above that is
efm-lb's own code in both.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest

from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.haproxy import Haproxy
from efm_lb.rehearsal.pgbouncer import Pgbouncer
from efm_lb.rehearsal.pgpool import Pgpool
from faults.twins.databases import Databases
from faults.twins.haproxy import HaproxyTwins
from faults.twins.pgbouncer import PgbouncerTwins
from faults.twins.pgpool import SEARCH, PgpoolTwins, Words
from faults.twins.sides import World

pytestmark = pytest.mark.fault("the model's balancers beside real ones")
FIXED = 1000
"""The seed in ``make test``."""
AFTERWARDS = 1.5
"""Seconds in which a pgpool that is not done shows it."""
POOLS = 4
"""Pgpools at a time: each takes a second for each change."""


def seeds(count: int) -> Iterator[str]:
    """One for each sequence: the same in each ``make test``, others in `make faults`."""
    base = int(os.environ.get("EFM_LB_SEED", FIXED if count == 1 else random.randrange(10**9)))
    for seed in range(base, base + count):
        print(f"seed {seed}; EFM_LB_SEED={seed} plays the same")
        yield str(seed)


def long(sequences: int, steps: int) -> object:
    return pytest.param(sequences, steps, marks=pytest.mark.long)


@pytest.mark.parametrize(("sequences", "steps"), [(1, 5), long(6, 8)])
def test_pgpool(sequences: int, steps: int, cluster: Cluster, tried: Callable[[int], None]) -> None:
    settings = {"search_primary_node_timeout": SEARCH}
    for seed in seeds(sequences):
        cluster.reset()
        with contextlib.ExitStack() as running:
            threads = running.enter_context(ThreadPoolExecutor(POOLS))
            reals = [running.enter_context(Pgpool(cluster, settings)) for _ in range(POOLS)]
            list(threads.map(lambda real: real.launch(discard_status=True), reals))
            world = World(seed, len(cluster.nodes))
            running.callback(world.simulation.end)
            twins = [PgpoolTwins(world, real, Random(f"{seed}.{number}")) for number, real in enumerate(reals)]
            model, real = twins[0].facts()
            assert model == real
            databases = Databases(world, cluster, Random(seed))
            running.callback(databases.end)
            nothing: list[tuple[Words, ...]] = [() for _ in twins]
            for number in range(steps):
                if number % 2:
                    print(databases.change())
                    together(world, twins, threads, nothing)
                told = [twin.chosen() for twin in twins]
                print("\n".join(f"{twin.name}: {words}" for twin, words in zip(twins, told, strict=True)))
                tried(len(twins))
                together(world, twins, threads, told)
            time.sleep(AFTERWARDS)
            together(world, twins, threads, nothing)


def together(
    world: World, twins: list[PgpoolTwins], threads: ThreadPoolExecutor, told: list[tuple[Words, ...]]
) -> None:
    """Tell each pair what it is told, at the same time, and compare when all of the model have done it."""
    for twin, words in zip(twins, told, strict=True):
        twin.tell_model(words)
    seconds = world.run_while(lambda: not all(twin.is_idle for twin in twins))
    for twin in twins:
        twin.is_over()
    began = time.monotonic()
    list(threads.map(PgpoolTwins.tell_real, twins, told))
    differences = threads.map(lambda twin: twin.difference(began, seconds), twins)
    assert not list(filter(None, differences))


@pytest.mark.parametrize(("sequences", "steps"), [(1, 40), long(10, 100)])
def test_haproxy(sequences: int, steps: int, cluster: Cluster, tried: Callable[[int], None]) -> None:
    for seed in seeds(sequences):
        with Haproxy.start(cluster) as real:
            world = World(seed, len(cluster.nodes))
            one_by_one(world, HaproxyTwins(world, real, Random(seed)), steps, Random(f"{seed}.databases"))
        tried(steps)


@pytest.mark.parametrize(("sequences", "steps"), [(1, 30), long(8, 60)])
def test_pgbouncer(sequences: int, steps: int, cluster: Cluster, tried: Callable[[int], None]) -> None:
    for seed in seeds(sequences):
        with Pgbouncer.start(cluster) as real:
            world = World(seed, len(cluster.nodes))
            one_by_one(world, PgbouncerTwins(world, real, Random(seed)), steps, Random(f"{seed}.databases"))
        tried(steps)


def one_by_one(world: World, twins: HaproxyTwins | PgbouncerTwins, steps: int, databases: Random) -> None:
    """Tell both sides the same, step by step, while the databases of the model change: events say so to both."""
    try:
        for _ in range(steps):
            if databases.random() < 0.3:
                world.change(databases)
            told, model, real = twins.step()
            print(f"{told}: {model}")
            assert (told, model) == (told, real), "the model and the real one answer otherwise"
            believed, is_so = twins.beliefs()
            assert believed == is_so, "the model and the real one believe otherwise"
    finally:
        world.simulation.end()
