"""From EFM's calls to the clients: the whole hook as a process, and writers that count their rows."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
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
    env_file = hook_environment(cluster, [], tmp_path.name, poolers=[pgbouncer])
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


def test_a_frozen_primary_gets_no_commit_when_it_thaws(hook: Hook, cluster: Cluster, pgbouncer: Pgbouncer) -> None:
    """Trap 20: what is stuck there would commit on it, and would keep its places in the pool."""
    old, new, other = cluster.nodes
    with writing(pgbouncer, 8) as writers:
        old.freeze()
        try:
            time.sleep(0.5)
            now = time.monotonic()
            still = [writer.number for writer in writers.writers if writer.first_success(now - 0.3)]
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
        late = [
            row
            for row in old.query(f"select writer, number from {TABLE}")
            for writer in writers.writers
            if writer.number == int(row["writer"]) and writer.acknowledged.get(int(row["number"]), 0.0) > promoted
        ]
    assert late == []
    counts: Mapping[str, int] = writers.errors()
    assert all("database removed" in text or "closed" in text for text in counts), counts
    # What was in flight when the primary froze reached it or did not; nothing that was acknowledged is lost.
    assert writers.accounts(new) == (0, 0)


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
