"""From EFM's calls to the clients: the whole hook as a process, and writers that count their rows."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import pytest

from efm_lb.rehearsal import sql
from efm_lb.rehearsal.cluster import TABLE, Cluster
from efm_lb.rehearsal.hooks import Hook, efm_lb_hook, hook_environment
from efm_lb.rehearsal.pgbouncer import WRITE, Pgbouncer
from efm_lb.rehearsal.waiting import wait_until
from integration.pgbouncer.writers import writing

PROMOTION = 1.0
"""Seconds that a promotion is made to take."""


@pytest.fixture
def hook(cluster: Cluster, pgbouncer: Pgbouncer, tmp_path: Path) -> Hook:
    env_file = hook_environment(cluster, [pgbouncer], tmp_path.name)
    hook = efm_lb_hook(env_file)
    # So that its plan is compiled, as it is in production.
    assert hook("attach", cluster.nodes[1].name, "s").exit_code == 0
    return hook


def test_a_planned_switchover_has_no_client_errors(hook: Hook, cluster: Cluster, pgbouncer: Pgbouncer) -> None:
    old, new, other = cluster.nodes
    with writing(pgbouncer, 8) as writers:
        detach = hook("detach", old.name, "p")
        assert detach.exit_code == 0, detach.output
        assert "app held for at most 10 s" in detach.output
        before = time.monotonic()
        old.stop()
        time.sleep(PROMOTION)
        new.promote()
        other.follow(new)
        promotion = time.monotonic() - before
        attach = hook("attach", new.name, "p")
        assert attach.exit_code == 0, attach.output
        assert writers.go_on()
        assert writers.errors() == {}
        stall = writers.longest_stall() - promotion
    print("stall beyond the promotion:", round(stall, 3))
    print("hooks:", (round(detach.seconds, 3), round(attach.seconds, 3)))
    assert writers.accounts(new) == (0, 0)
    assert sum(experience.done for experience in writers.seen()) > 100


def test_a_planned_switchover_with_a_connection_per_transaction(
    hook: Hook, cluster: Cluster, pgbouncer: Pgbouncer
) -> None:
    old, new, _ = cluster.nodes
    errors: list[str] = []
    done: list[float] = []
    over = threading.Event()

    def connect_and_write(number: int) -> None:
        count = 0
        while not over.is_set():
            count += 1
            try:
                with sql.Session(pgbouncer.host, pgbouncer.port, dbname=WRITE, timeout=20) as session:
                    session.execute(f"insert into {TABLE} values ({number}, {count})", 20)
            except sql.SqlError as error:
                errors.append(str(error))
            else:
                done.append(time.monotonic())

    threads = [threading.Thread(target=connect_and_write, args=(number,), daemon=True) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        assert wait_until(lambda: len(done) > 20, 10)
        hook("detach", old.name, "p")
        old.stop()
        new.promote()
        assert hook("attach", new.name, "p").exit_code == 0
        moment = time.monotonic()
        assert wait_until(lambda: sum(each > moment for each in list(done)) > 20, 5), errors
    finally:
        over.set()
        for thread in threads:
            thread.join(25)
    assert errors == []


def test_a_crash_is_over_when_the_promotion_is(hook: Hook, cluster: Cluster, pgbouncer: Pgbouncer) -> None:
    """Trap 17: without lifting server_login_retry the clients would wait for fifteen seconds."""
    old, new, other = cluster.nodes
    with writing(pgbouncer, 8) as writers:
        old.kill()
        assert hook("detach", old.name, "p").exit_code == 0
        time.sleep(PROMOTION)
        new.promote()
        other.follow(new)
        promoted = time.monotonic()
        attach = hook("attach", new.name, "p")
        assert attach.exit_code == 0, attach.output
        assert writers.go_on()
        firsts = [writer.first_success(promoted) for writer in writers.writers]
    stalls = [first - promoted for first in firsts if first]
    print("stall beyond the promotion:", round(max(stalls), 3))
    print("first commit:", round(min(stalls), 3))
    print("errors:", sum(writers.errors().values()))
    print("hook:", round(attach.seconds, 3))
    assert len(stalls) == 8
    assert max(stalls) < 1.5
    assert writers.accounts(new)[1] == 0


def test_trap_20_nothing_is_acknowledged_by_a_frozen_primary_that_thaws(
    hook: Hook, cluster: Cluster, pgbouncer: Pgbouncer
) -> None:
    old, new, other = cluster.nodes
    with writing(pgbouncer, 8) as writers:
        old.freeze()
        frozen = time.monotonic()
        try:
            time.sleep(0.5)
            still = [writer.number for writer in writers.writers if writer.first_success(frozen + 0.2)]
            assert not still, "the old primary is frozen"
            new.promote()
            other.follow(new)
            promoted = time.monotonic()
            run = hook("attach", new.name, "p")
            assert run.exit_code == 0, run.output
            assert "KILL app" in run.output
            assert writers.go_on()
            firsts = [writer.first_success(promoted) for writer in writers.writers]
            print("first commit of the last writer:", round(max(each or 99 for each in firsts) - promoted, 3))
            print("hook:", round(run.seconds, 3))
            assert pgbouncer.paused() == []
        finally:
            old.thaw()
        assert writers.go_on()
        time.sleep(0.5)
        rows = {(int(row["writer"]), int(row["number"])) for row in old.query(f"select * from {TABLE}")}
    acknowledged = {(w.number, number): moment for w in writers.writers for number, moment in w.acknowledged.items()}
    assert [row for row in rows if acknowledged.get(row, 0.0) > promoted] == []
    there = {(int(row["writer"]), int(row["number"])) for row in new.query(f"select * from {TABLE}")}
    # What the old primary acknowledged and had not replicated is lost with it, whatever a pooler does.
    assert [row for row, moment in acknowledged.items() if row not in there and moment > frozen + 0.2] == []
    assert all("database removed" in text or "closed" in text for text in writers.errors()), writers.errors()


def test_trap_20_transactions_that_are_stuck_on_a_frozen_primary_never_commit_there(
    hook: Hook, cluster: Cluster, pgbouncer: Pgbouncer
) -> None:
    """Without KILL their clients would go on when it thaws, and commit; until then they would fill the pool."""
    old, new, _ = cluster.nodes
    outcomes: list[str] = []

    def go_on(session: sql.Session, number: int) -> None:
        try:
            session.execute(f"insert into {TABLE} values (77, {number})", 20)
            session.execute("commit", 20)
            outcomes.append("committed")
        except sql.SqlError as error:
            outcomes.append(str(error))

    sessions = [sql.Session(pgbouncer.host, pgbouncer.port, dbname=WRITE, timeout=5) for _ in range(20)]
    threads = []
    try:
        for session in sessions:
            session.execute("begin")
            session.execute(f"insert into {TABLE} values (77, 0)")
        old.freeze()
        try:
            for number, session in enumerate(sessions, start=1):
                threads.append(threading.Thread(target=go_on, args=(session, number), daemon=True))
                threads[-1].start()
            new.promote()
            run = hook("attach", new.name, "p")
            assert run.exit_code == 0, run.output
            assert pgbouncer.query("select pg_is_in_recovery() as standby") == [{"standby": "f"}], "the pool is free"
        finally:
            old.thaw()
        for thread in threads:
            thread.join(5)
        time.sleep(0.5)
        assert len(outcomes) == 20
        assert "committed" not in outcomes
        for node in (old, new):
            assert node.query(f"select count(*) as rows from {TABLE} where writer = 77") == [{"rows": "0"}]
    finally:
        for session in sessions:
            session.close()


def test_quiet_clients_of_a_dead_primary_are_not_made_to_wait(
    hook: Hook, cluster: Cluster, pgbouncer: Pgbouncer
) -> None:
    old, new, _ = cluster.nodes
    with sql.Session(pgbouncer.host, pgbouncer.port, dbname=WRITE, timeout=20) as session:
        session.execute("select 1")
        old.kill()
        new.promote()
        assert hook("attach", new.name, "p").exit_code == 0
        started = time.monotonic()
        with contextlib.suppress(sql.SqlError):
            session.execute("select 1", 20)
        with sql.Session(pgbouncer.host, pgbouncer.port, dbname=WRITE, timeout=20) as another:
            another.execute("select 1", 20)
        assert time.monotonic() - started < 2
