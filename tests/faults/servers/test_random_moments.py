"""Servers fail at random moments of an event: pgpool, HAProxy, PgBouncer and PostgreSQL, frozen, killed or restarted.

Afterwards reconcile sees to it, and everything must be right again: nobody is left paused, no balancer ever had two
writers, and no row that a client was told is written is lost, but those that PostgreSQL loses with a primary that
crashes (`faults.servers.rows`). The long test does each to each kind of server first, and then leaves that to chance.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from efm_lb.rehearsal.cluster import TABLE, Cluster
from efm_lb.rehearsal.haproxy import Haproxy
from efm_lb.rehearsal.pgbouncer import Pgbouncer
from efm_lb.rehearsal.pgpool import Pgpool
from faults.illness import CURED
from faults.servers.blows import PAIRS
from faults.servers.estate import Estate
from faults.servers.event import Efm
from faults.servers.play import play
from faults.watch import Watch
from integration.real import follow_ups

pytestmark = pytest.mark.fault("a server frozen, killed or restarted in an event")
SEED = int(os.environ.get("EFM_LB_SEED", "1"))


@pytest.fixture
def estate(cluster: Cluster, pgpool: Pgpool, haproxy: Haproxy, tmp_path: Path) -> Iterator[Estate]:
    # What PgBouncer keeps its clients from after a server was away for a moment is its own affair: 15 s by default.
    with Pgbouncer.start(cluster, {"server_login_retry": 1}) as pgbouncer:
        yield Estate(cluster, (pgpool, haproxy, pgbouncer), tmp_path.name)
    for pid in follow_ups(cluster):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("count", [4, pytest.param(120, marks=pytest.mark.long)])
def test_random_moments(
    estate: Estate, count: int, tried: Callable[[int], None], counted: Callable[[str], None]
) -> None:
    print(f"seeds {SEED} to {SEED + count - 1}; EFM_LB_SEED={SEED} plays the same ones")
    began, struck, slowest = time.monotonic(), Counter[str](), 0.0
    waiting = list(PAIRS[: count // 2])
    acknowledged = died = 0
    with Watch(estate.balancers) as watch:
        efm = Efm(estate, watch)
        watch.leaves_recovery(estate.cluster.nodes[0])
        for seed in range(SEED, SEED + count):
            told = play(estate, efm, watch, seed, waiting[0] if waiting else None)
            tried(len(told.blows))
            counted(f"random moments with {told.services} reconcile services")
            for blow in told.blows:
                struck[str(blow.pair)] += 1
                counted(str(blow.pair))
            waiting = [pair for pair in waiting if not struck[str(pair)]]
            slowest = max(slowest, told.right)
            acknowledged += told.rows.acknowledged
            died += told.rows.died
            if told.is_cured:
                counted(CURED)
            print(f"{told.tale[0]}; {', '.join(map(str, told.blows))}; right after {told.right:.1f} s", flush=True)
            assert not told.wrong, str(told)
            estate.primary().query(f"truncate {TABLE}")
    assert not waiting, "nobody was struck in these ways"
    print(f"{sum(struck.values())} faults in {time.monotonic() - began:.0f} s: {dict(sorted(struck.items()))}")
    print(f"right after {slowest:.1f} s at most; {watch.looks} looks at the balancers")
    print(f"{acknowledged} rows acknowledged; {died} died with a primary that crashed; none was lost otherwise")
