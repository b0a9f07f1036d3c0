"""The illness of pgpool that the fault suite knows is cured without efm-lb, and excuses nothing but itself."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from efm_lb.rehearsal import sql
from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.pgpool import Pgpool
from efm_lb.rehearsal.verdict import misbeliefs
from efm_lb.rehearsal.waiting import wait_until
from faults.illness import beside_the_illness, cure, is_pgpool_ill


def test_it_is_cured(cluster: Cluster, pgpool: Pgpool) -> None:
    first, second, third = cluster.nodes
    first.stop()
    second.promote()
    third.follow(second)
    first.follow(second)
    first.start()
    pgpool.restart(discard_status=True)

    def knock(_: int) -> None:
        with contextlib.suppress(sql.SqlError):
            pgpool.query("select 1", timeout=1)

    def falls_ill() -> bool:
        first.stop("immediate")
        with ThreadPoolExecutor(8) as clients:
            list(clients.map(knock, range(100)))
        first.start()
        return is_pgpool_ill(misbeliefs(cluster, pgpool))

    if not wait_until(falls_ill, timeout=20):
        pytest.skip("this pgpool does not have it")
    assert beside_the_illness([*misbeliefs(cluster, pgpool), "two writers"]) == ["two writers"]
    cure(pgpool)
    assert wait_until(pgpool.is_right, timeout=10), misbeliefs(cluster, pgpool)
