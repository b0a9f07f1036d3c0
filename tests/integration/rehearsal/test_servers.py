"""The servers of the rehearsal do what a person would do to real ones."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from efm_lb.rehearsal import sql
from efm_lb.rehearsal.cluster import TABLE, Cluster, Server
from efm_lb.rehearsal.pgpool import Pgpool
from efm_lb.rehearsal.processes import started_at
from efm_lb.rehearsal.waiting import wait_until


def test_a_cluster_has_one_primary_and_streaming_standbys(cluster: Cluster) -> None:
    first, *others = cluster.nodes
    assert cluster.primary is first
    assert cluster.standbys == others
    assert all(node.is_streaming() for node in others)
    first.query(f"insert into {TABLE} values (1, 1)")

    def has_row(node: Server) -> bool:
        return node.query(f"select * from {TABLE}") != []

    for node in others:
        assert wait_until(partial(has_row, node), timeout=5)


def test_a_killed_server_refuses_and_comes_back_by_rewinding(cluster: Cluster) -> None:
    old, new, third = cluster.nodes
    old.kill()
    with pytest.raises(sql.SqlError, match="refused"):
        old.query("select 1")
    new.promote()
    third.follow(new)
    new.query(f"insert into {TABLE} values (1, 1)")
    old.rejoin(new)
    cluster.wait_streaming()
    assert cluster.primary is new
    assert cluster.standbys == [old, third]


def test_a_frozen_server_accepts_and_says_nothing(cluster: Cluster) -> None:
    node = cluster.nodes[2]
    node.freeze()
    try:
        started = time.monotonic()
        with pytest.raises(sql.SqlError, match=r"no session within 0\.5 s"):
            node.query("select 1", timeout=0.5)
        assert time.monotonic() - started < 1
    finally:
        node.thaw()
    assert node.in_recovery(timeout=5) is True


def test_reset_undoes_a_failover(cluster: Cluster) -> None:
    cluster.nodes[0].kill()
    cluster.nodes[1].promote()
    cluster.reset()
    assert cluster.primary is cluster.nodes[0]
    assert cluster.nodes[0].query("select timeline_id from pg_control_checkpoint()") == [{"timeline_id": "1"}]


def test_pgpool_knows_the_nodes(pgpool: Pgpool, cluster: Cluster) -> None:
    rows = pgpool.show_pool_nodes()
    assert [row["hostname"] for row in rows] == [node.host for node in cluster.nodes]
    assert pgpool.primary() == cluster.nodes[0].host
    assert pgpool.is_right()
    cluster.nodes[2].stop()
    assert not pgpool.is_right()


def test_pgpool_changes_nothing_by_itself(pgpool: Pgpool, cluster: Cluster) -> None:
    cluster.nodes[2].kill()
    with pytest.raises(sql.SqlError):
        cluster.nodes[2].query("select 1")
    for _ in range(20):
        pgpool.query("select 1")
    assert len(pgpool.attached()) == 3


def test_a_frozen_pgpool_is_thawed_and_a_killed_one_restarted(
    cluster: Cluster, start_pgpool: Callable[..., Pgpool]
) -> None:
    pool = start_pgpool()
    pool.process.freeze()
    with pytest.raises(sql.SqlError):
        pool.query("select 1", timeout=0.3)
    pool.process.thaw()
    assert pool.query("select 1 as one") == [{"one": "1"}]
    pool.process.kill()
    with pytest.raises(sql.SqlError, match="refused"):
        pool.query("select 1")
    pool.reset()
    assert pool.is_right()


_VICTIM = """
import time
from efm_lb.rehearsal.cluster import Cluster
cluster = Cluster.start(nodes=1)
cluster.nodes[0].freeze()
print(cluster.stage.directory, cluster.nodes[0].process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_servers_die_with_a_killed_rehearsal(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", _VICTIM], stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout
        directory, pid = victim.stdout.readline().split()
        victim.send_signal(number)
        victim.wait(10)
    assert wait_until(lambda: not Path(directory).exists(), timeout=10)
    assert wait_until(lambda: started_at(int(pid)) is None, timeout=10)
