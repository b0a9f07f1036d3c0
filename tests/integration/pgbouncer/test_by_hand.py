"""What an operator has done to PgBouncer by hand, and clients that wait for longer than anybody had thought."""

from __future__ import annotations

import time

import pytest

from efm_lb import Attach, Detach, Promote, Result, TemporaryError
from efm_lb.rehearsal import sql
from efm_lb.rehearsal.pgbouncer import READ, WRITE
from efm_lb.rehearsal.waiting import wait_until
from integration.pgbouncer.writers import writing


def disabled(pooler):
    return [row["name"] for row in pooler.show("databases") if row["disabled"] == "1"]


def test_a_promote_lets_writes_go_that_were_paused_by_hand_and_leaves_reads(manager, pgbouncer):
    pgbouncer.console(f"PAUSE {WRITE}")
    pgbouncer.console(f"PAUSE {READ}")
    assert manager.send(Detach, 2).result is Result.CHANGED
    assert manager.send(Attach, 2).result is Result.CHANGED
    assert pgbouncer.paused() == [WRITE, READ]
    assert manager.send(Promote, 0).detail == f"RESUME {WRITE}"
    assert pgbouncer.paused() == [READ]
    assert manager.send(Promote, 0).result is Result.UNCHANGED
    assert pgbouncer.paused() == [READ]


def test_an_entry_that_is_disabled_is_held_and_moved_and_stays_disabled(manager, pgbouncer, cluster):
    pgbouncer.console(f"DISABLE {WRITE}")
    assert manager.hold().result is Result.CHANGED
    cluster.nodes[0].stop()
    cluster.nodes[1].promote()
    assert manager.send(Promote, 1).result is Result.CHANGED
    assert pgbouncer.paused() == []
    assert disabled(pgbouncer) == [WRITE]
    with pytest.raises(sql.SqlError, match="is disabled"):
        pgbouncer.query("select 1")
    pgbouncer.console(f"ENABLE {WRITE}")
    assert pgbouncer.query("select pg_is_in_recovery() as standby") == [{"standby": "f"}]


def test_a_pause_of_everything_is_shown_nowhere_and_stays(manager, pgbouncer, cluster):
    pgbouncer.console("PAUSE")
    assert pgbouncer.paused() == []
    with pytest.raises(TemporaryError, match="PAUSE app: already suspended/paused"):
        manager.hold()
    cluster.nodes[0].stop()
    cluster.nodes[1].promote()
    assert manager.send(Promote, 1).result is Result.CHANGED
    assert pgbouncer.places()[WRITE] == cluster.nodes[1].address
    with pytest.raises(sql.SqlError, match="no session within"):
        pgbouncer.query("select 1", timeout=1)
    pgbouncer.console("RESUME")
    assert pgbouncer.query("select pg_is_in_recovery() as standby") == [{"standby": "f"}]


def test_who_is_held_for_longer_than_query_wait_timeout_gets_an_error(manage, start_pgbouncer):
    pooler = start_pgbouncer(query_wait_timeout=1, server_login_retry=1)
    manager = manage(pooler, hold=5)
    (warning,) = [finding for finding in manager.check() if finding.subject == "query_wait_timeout"]
    assert "held for 5 s get an error after 1 s" in warning.detail
    with sql.Session(pooler.host, pooler.port, dbname=WRITE, timeout=10) as one:
        one.execute("select 1")
        assert manager.hold().result is Result.CHANGED
        with pytest.raises(sql.SqlError, match="query_wait_timeout"):
            one.execute("select 1", 10)
    assert pooler.paused() == [WRITE], "long before it is let go"
    pooler.console(f"RESUME {WRITE}")


def test_who_was_held_goes_on_waiting_when_the_promotion_comes_after_hold(manage, pgbouncer, cluster):
    manager = manage(pgbouncer, hold=1)
    with writing(pgbouncer, 4) as writers:
        assert manager.hold().result is Result.CHANGED
        cluster.nodes[0].stop()
        assert wait_until(lambda: not pgbouncer.paused(), 5), "HOLD is over"
        time.sleep(2)
        cluster.nodes[1].promote()
        assert manager.send(Promote, 1).result is Result.CHANGED
        assert writers.go_on()
        assert writers.errors() == {}
