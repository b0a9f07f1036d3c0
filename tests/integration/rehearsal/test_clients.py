"""What the clients report is what happened to them."""

from __future__ import annotations

import time

import pytest

from efm_lb.rehearsal import sql
from efm_lb.rehearsal.balancer import Entrance
from efm_lb.rehearsal.clients import Clients, Writer
from efm_lb.rehearsal.cluster import TABLE, Cluster
from efm_lb.rehearsal.pgpool import Pgpool


class Remembering(Writer):
    """A writer that was never started, with a past of its own."""

    def __init__(self, successes: list[float], cuts: list[float]) -> None:
        super().__init__(Entrance("127.0.0.1", 1))
        self._successes = successes
        for moment in cuts:
            self._note("cut", sql.SqlError("gone", "57P01", cut=True))
            self._troubles[-1] = self._troubles[-1]._replace(moment=moment)


def test_a_gap_begins_with_the_last_success_before_the_mark() -> None:
    seen = Remembering([1.0, 2.0, 2.05, 4.05, 4.1], cuts=[2.1]).experience(since=1.5, until=4.2)
    assert (seen.done, seen.cuts, seen.recovered) == (4, 1, True)
    assert seen.longest_gap == pytest.approx(2.0)
    assert seen.total_gaps == pytest.approx(1.0 + 2.0 + 0.1)
    assert seen.texts == {"57P01 gone": 1}


def test_a_client_that_never_comes_back_has_not_recovered() -> None:
    seen = Remembering([1.0], cuts=[1.1]).experience(since=0.9, until=6.0)
    assert not seen.recovered
    assert seen.longest_gap == pytest.approx(5.0)


def test_rows_are_accounted_for(cluster: Cluster, pgpool: Pgpool) -> None:
    primary = cluster.nodes[0]
    with Clients(pgpool.writing, pgpool.reading, readers=0) as clients:
        assert all(clients.writer.wait_success() for _ in range(3))
    early, late, twice = sorted(clients.writer.acknowledged)[:3]
    moment = (clients.writer.acknowledged[early] + clients.writer.acknowledged[late]) / 2
    primary.query(f"delete from {TABLE} where number in ({early}, {late})")
    primary.query(f"insert into {TABLE} values (1, {twice})")
    accounts = clients.accounts(primary, orphaned=moment)
    assert (accounts.lost_to_replication, accounts.lost, accounts.doubled) == (1, 1, 1)
    assert clients.accounts(primary).lost == 2


def test_a_terminated_session_is_a_cut(cluster: Cluster) -> None:
    primary = cluster.nodes[0]
    entrance = Entrance(primary.host, primary.port)
    with Clients(entrance, entrance, readers=0) as clients:
        started = time.monotonic()
        primary.query("select pg_terminate_backend(pid) from pg_stat_activity where query like 'insert%'")
        assert clients.writer.wait_success()
        time.sleep(0.1)
        seen = clients.writing(started, time.monotonic())
    assert (seen.cuts, seen.refused, seen.recovered) == (1, 0, True)
