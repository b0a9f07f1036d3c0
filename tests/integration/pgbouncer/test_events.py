"""Attach, detach and promote against a real PgBouncer and real databases."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path

import pytest

from efm_lb import Attach, Detach, Origin, PermanentError, Promote, Result, Severity, TemporaryError, lock
from efm_lb.handover import logins_of
from efm_lb.reconcile.differences import differences, disagreement
from efm_lb.rehearsal.hooks import BARE_ENVIRONMENT
from efm_lb.rehearsal.pgbouncer import READ, WRITE
from efm_lb.rehearsal.waiting import wait_until
from efm_lb_pgbouncer import settle
from efm_lb_pgbouncer.pooler import pooler_of


def switch_over(cluster, new=1):
    """Stop the primary and promote another node, which the rest follows; the old one stays down."""
    cluster.nodes[0].stop()
    cluster.nodes[new].promote()
    for server in cluster.nodes[1:]:
        if server.number != new:
            server.follow(cluster.nodes[new])


def commands(pgbouncer, since):
    """What the console was told, from its log."""
    text = Path(pgbouncer.log).read_text(errors="replace")[since:]
    words = ("RELOAD", "PAUSE", "RESUME", "KILL", "SET", "WAIT_CLOSE")
    return [line for line in text.splitlines() if any(f"LOG {word} " in line for word in words)]


def logins(pgbouncer, since):
    """How often efm-lb has logged in to the console."""
    text = Path(pgbouncer.log).read_text(errors="replace")[since:]
    return text.count("login attempt: db=pgbouncer user=efm_lb")


def mark(pgbouncer):
    return len(Path(pgbouncer.log).read_text(errors="replace"))


def test_what_is_right_is_told_nothing(manager, pgbouncer):
    since, before = mark(pgbouncer), pgbouncer.entries.stat()
    for kind, number in ((Promote, 0), (Attach, 1), (Attach, 2)):
        assert manager.send(kind, number).result is Result.UNCHANGED
        assert manager.plan(kind, number) == ()
    assert commands(pgbouncer, since) == []
    assert pgbouncer.entries.stat().st_mtime_ns == before.st_mtime_ns
    assert pgbouncer.entries.stat().st_ino == before.st_ino


def test_a_standby_goes_out_and_comes_back(manager, cluster, pgbouncer):
    port = cluster.nodes[0].port
    assert manager.send(Detach, 2).result is Result.CHANGED
    assert manager.belief() == "P+ + -"
    assert pgbouncer.places()[READ] == f"127.0.0.12:{port}"
    assert manager.send(Detach, 2).result is Result.UNCHANGED
    assert manager.send(Attach, 2).result is Result.CHANGED
    assert pgbouncer.places()[READ] == f"127.0.0.12,127.0.0.13:{port}"


def test_the_primary_serves_reads_when_no_standby_is_left(manager, pgbouncer, cluster):
    manager.send(Detach, 1)
    manager.send(Detach, 2)
    assert pgbouncer.places()[READ] == f"127.0.0.11:{cluster.nodes[0].port}"
    assert pgbouncer.query("select 1 as one", READ) == [{"one": "1"}]
    manager.send(Attach, 2)
    assert pgbouncer.places()[READ] == f"127.0.0.13:{cluster.nodes[0].port}", "it was only there for want of others"


@pytest.mark.parametrize(("policy", "hosts"), [("always", "127.0.0.12,127.0.0.11"), ("never", "127.0.0.12")])
def test_the_primary_among_the_readers(manage, pgbouncer, cluster, policy, hosts):
    manager = manage(pgbouncer, read_includes_primary=policy)
    manager.send(Detach, 2)
    assert pgbouncer.places()[READ] == f"{hosts}:{cluster.nodes[0].port}"


def test_reads_never_go_to_the_primary_when_that_is_the_policy(manage, pgbouncer, cluster):
    manager = manage(pgbouncer, read_includes_primary="never")
    manager.send(Detach, 2)
    cluster.nodes[1].kill()
    outcome = manager.send(Detach, 1)
    assert outcome.result is Result.UNCHANGED
    assert "must not lead to the primary" in outcome.detail
    assert pgbouncer.places()[READ] == f"127.0.0.12:{cluster.nodes[0].port}"


def test_a_failover(manager, cluster, pgbouncer):
    cluster.nodes[0].kill()
    held = manager.send(Detach, 0)
    assert held.result is Result.DEFERRED
    assert "app stays on 127.0.0.11" in held.detail
    cluster.nodes[1].promote()
    cluster.nodes[2].follow(cluster.nodes[1])
    outcome = manager.send(Promote, 1)
    assert outcome.result is Result.CHANGED
    assert outcome.detail.startswith(f"{WRITE} -> 127.0.0.12:{cluster.nodes[1].port}; {READ} -> 127.0.0.13:")
    assert manager.belief() == "- P+ +"
    assert pgbouncer.query("select pg_is_in_recovery() as standby") == [{"standby": "f"}]
    assert manager.send(Promote, 1).result is Result.UNCHANGED
    assert manager.send(Detach, 0).result is Result.UNCHANGED
    cluster.nodes[0].rejoin(cluster.nodes[1])
    assert manager.send(Attach, 0).result is Result.CHANGED
    assert manager.belief() == "+ P+ +"


def test_the_detach_alone_moves_writes_when_it_comes_last(manager, cluster):
    switch_over(cluster)
    assert manager.send(Detach, 0).result is Result.CHANGED
    assert manager.belief() == "- P+ +"
    assert manager.send(Promote, 1).result is Result.UNCHANGED


def test_an_attach_never_moves_writes(manager, cluster):
    switch_over(cluster)
    assert manager.send(Attach, 1).result is Result.CHANGED, "the new primary serves reads no more"
    assert manager.belief() == "P+ - +"
    assert manager.send(Attach, 2).result is Result.UNCHANGED


def test_a_node_that_is_down_is_not_attached(manager, cluster):
    manager.send(Detach, 2)
    cluster.nodes[2].stop()
    with pytest.raises(TemporaryError, match="does not answer"):
        manager.send(Attach, 2)


def test_the_plan_names_the_steps(manager, cluster, pgbouncer):
    switch_over(cluster)
    port = cluster.nodes[1].port
    assert manager.plan(Promote, 1) == (
        f"{pgbouncer.entries}: {WRITE} -> 127.0.0.12:{port}",
        f"{pgbouncer.entries}: {READ} -> 127.0.0.13:{port}",
        f"RELOAD at {pgbouncer.admin}",
    )
    assert manager.belief() == "P+ + +", "nothing was done"


def test_the_plan_tells_what_becomes_of_an_old_file_that_was_put_back(manager, cluster, pgbouncer):
    """Somebody has not loaded it. By the file alone, a detach of a reader would send the writes back as well."""
    right = pgbouncer.entries.read_text()
    old = right.replace("127.0.0.11", "127.0.0.12")
    pgbouncer.entries.write_text(old)
    port = cluster.nodes[0].port
    cluster.nodes[2].stop()
    assert manager.plan(Promote, 0) == (f"{pgbouncer.entries}: {WRITE} -> 127.0.0.11:{port}",), "it runs already"
    assert manager.plan(Detach, 2) == (
        f"{pgbouncer.entries}: {WRITE} -> 127.0.0.11:{port}",
        f"{pgbouncer.entries}: {READ} -> 127.0.0.12:{port}",
        f"RELOAD at {pgbouncer.admin}",
    )
    assert pgbouncer.entries.read_text() == old, "nothing was done"
    assert pgbouncer.places()[READ] == f"127.0.0.12,127.0.0.13:{port}"
    assert manager.send(Detach, 2).detail == f"{WRITE} -> 127.0.0.11:{port}; {READ} -> 127.0.0.12:{port}; RELOAD"
    assert pgbouncer.places()[WRITE] == f"127.0.0.11:{port}"
    assert manager.plan(Detach, 2) == manager.plan(Promote, 0) == ()


def test_the_plan_names_what_a_reload_brings_from_a_file_that_was_not_loaded(manager, cluster, pgbouncer):
    port = cluster.nodes[0].port
    right = pgbouncer.entries.read_text()
    pgbouncer.entries.write_text(right.replace("127.0.0.11", "127.0.0.12"))
    pgbouncer.console("RELOAD")
    pgbouncer.entries.write_text(right)
    assert manager.plan(Promote, 0) == (f"RELOAD ({WRITE} -> 127.0.0.11:{port}) at {pgbouncer.admin}",)
    cluster.nodes[2].stop()
    assert manager.plan(Detach, 2) == (
        f"{pgbouncer.entries}: {READ} -> 127.0.0.12:{port}",
        f"RELOAD ({WRITE} -> 127.0.0.11:{port}) at {pgbouncer.admin}",
    )
    assert pgbouncer.places()[WRITE] == f"127.0.0.12:{port}", "nothing was done"
    assert manager.send(Detach, 2).detail == f"{READ} -> 127.0.0.12:{port}; RELOAD"
    assert pgbouncer.places()[WRITE] == f"127.0.0.11:{port}"


def test_a_pgbouncer_that_restarts_is_waited_for(manager, cluster, pgbouncer):
    import threading

    switch_over(cluster)
    pgbouncer.process.stop()
    threading.Timer(1.0, pgbouncer.launch).start()
    outcome = manager.send(Promote, 1)
    assert outcome.result is Result.CHANGED
    assert pgbouncer.places()[WRITE] == f"127.0.0.12:{cluster.nodes[1].port}"


def test_a_pgbouncer_that_is_down_finds_the_truth_when_it_starts(manager, cluster, pgbouncer):
    switch_over(cluster)
    pgbouncer.process.stop()
    started = time.monotonic()
    with pytest.raises(TemporaryError, match=f"{WRITE} -> 127.0.0.12:.*but .*Connection refused"):
        manager.send(Promote, 1, seconds=1.5)
    assert time.monotonic() - started < 1.6
    pgbouncer.launch()
    assert manager.belief() == "- P+ +"
    assert manager.send(Promote, 1).result is Result.UNCHANGED


def test_the_follow_up_of_a_dead_primary_changes_nothing(manager, cluster):
    cluster.nodes[0].kill()
    assert manager.send(Detach, 0, Origin.FOLLOW_UP).result is Result.DEFERRED
    assert manager.belief() == "P+ + +"


def test_entries_for_writes_alone(manage, pgbouncer, cluster):
    manager = manage(pgbouncer, read=[])
    assert manager.send(Detach, 2).result is Result.UNCHANGED
    assert manager.belief() == "P+ - -"
    assert [seen.attached for seen in manager.view().nodes] == [True, None, None]
    switch_over(cluster)
    assert manager.send(Promote, 1).result is Result.CHANGED
    assert manager.belief() == "- P+ -"


def test_what_the_file_would_undo_is_seen_and_put_right(manager, pgbouncer, cluster):
    """Somebody has put an old file back, and has not loaded it."""
    first = pgbouncer.entries.read_text()
    switch_over(cluster)
    assert manager.send(Promote, 1).result is Result.CHANGED
    assert differences(manager.truth(), manager.view()) == ()
    right = pgbouncer.entries.read_text()
    pgbouncer.entries.write_text(first)
    seen = manager.view()
    assert not any(each.writes for each in seen.nodes), "a reload would move them back"
    assert seen.of(manager.nodes[1]).detail == f"{WRITE} (CONFIG says otherwise), {READ} in CONFIG alone"
    event, *_ = differences(manager.truth(), seen)
    assert event == Promote(manager.nodes[1], manager.truth(), Origin.RECONCILE)
    assert manager.send(Promote, 1).result is Result.CHANGED
    assert differences(manager.truth(), manager.view()) == ()
    assert pgbouncer.entries.read_text() == right


def test_a_dead_standby_that_only_runs_is_taken_out(manager, pgbouncer, cluster):
    """A PgBouncer that was frozen at the detach has the file of after it, and the entries of before it."""
    standby = manager.nodes[2]
    cluster.nodes[2].stop()
    pgbouncer.entries.write_text(pgbouncer.entries.read_text().replace(f",{standby.host}", ""))
    assert standby.name in disagreement(manager.truth(), manager.view())
    (event,) = differences(manager.truth(), manager.view())
    assert event == Detach(standby, manager.truth(), Origin.RECONCILE)
    assert manager.send(Detach, 2).detail == "RELOAD"
    assert differences(manager.truth(), manager.view()) == ()


def test_whatever_its_process_id_an_event_knows_its_own_login_retry(manager, pgbouncer, monkeypatch):
    """PgBouncer keeps whole microseconds, and cuts off what is none."""
    balancer = pooler_of(manager.balancer)
    with contextlib.closing(balancer.consoles[0].session(time.monotonic() + 10)) as session:
        for pid in range(900):
            monkeypatch.setattr(settle, "getpid", lambda pid=pid: pid)
            settle._lift(session, settle._Told(), time.monotonic() + 10)
            assert settle._is_lifted(session, time.monotonic() + 10), pid
    pgbouncer.console("RELOAD")


def test_a_hook_logs_in_once(make_hook, pgbouncer):
    """On the login that was begun ahead: a second one would be one too many."""
    hook = make_hook(pgbouncer)
    assert hook("attach", "127.0.0.13", "s").exit_code == 0, "its settings are compiled now"
    since = mark(pgbouncer)
    assert hook("detach", "127.0.0.13", "s").exit_code == 0
    assert logins(pgbouncer, since) == 1


def test_a_hook_that_had_to_wait_for_the_lock_logs_in_anew(make_hook, pgbouncer, cluster, tmp_path):
    """What it waited for may have taken long, and PgBouncer may have been restarted meanwhile."""
    hook = make_hook(pgbouncer)
    assert hook("attach", "127.0.0.13", "s").exit_code == 0, "its settings are compiled now"
    since, state = mark(pgbouncer), Path(f"{cluster.stage.directory}/{tmp_path.name}.state")
    before = (state / "efm.journal").stat().st_size
    held = lock.acquire(str(state / "efm.lock"), 5)
    try:
        command = hook.command(["detach", "127.0.0.13", "s"])
        waiting = subprocess.Popen(command, stdout=subprocess.PIPE, env=dict(BARE_ENVIRONMENT))
        assert wait_until(lambda: logins(pgbouncer, since) == 1, timeout=10)
        assert wait_until(lambda: (state / "efm.journal").stat().st_size > before, timeout=10)
        time.sleep(0.5)  # what is less than a moment is no waiting
    finally:
        os.close(held)
    waiting.communicate(timeout=30)
    assert (waiting.returncode, logins(pgbouncer, since)) == (0, 2)


@pytest.mark.parametrize("restarts", [False, True])
def test_a_login_that_was_begun_ahead(manager, pgbouncer, restarts):
    """It may be of no use any more."""
    settings, since = manager.balancer.settings, mark(pgbouncer)
    keywords = {"dbname": "pgbouncer", "passfile": settings["passfile"]}
    begun = logins_of([("pgb1", settings["admin"][0], keywords)], time.monotonic() + 5)["pgb1"]
    manager.balancer = manager.balancer._replace(begun=begun)
    assert wait_until(lambda: logins(pgbouncer, since) == 1, timeout=5)
    if restarts:
        pgbouncer.restart()
    assert manager.send(Detach, 2).result is Result.CHANGED
    if not restarts:
        assert logins(pgbouncer, since) == 1
    assert manager.send(Attach, 2).result is Result.CHANGED


def test_check_of_a_well_configured_one(manage, start_pgbouncer):
    manager = manage(start_pgbouncer(server_login_retry=1))
    findings = manager.check()
    assert [f for f in findings if f.severity is not Severity.OK] == []
    assert len(findings) > 6


def test_check_finds_what_will_go_wrong(manage, start_pgbouncer, cluster):
    pooler = start_pgbouncer(pool_mode="session", so_reuseport=1, query_wait_timeout=5)
    pooler.write_entries(pooler.first_entries() + f"* = host=127.0.0.11 port={cluster.nodes[0].port}\n")
    pooler.console("RELOAD")
    pooler.entries.write_text(pooler.entries.read_text().replace("host=127.0.0.11", "host=192.0.2.1"))
    pooler.console(f"PAUSE {READ}")
    manager = manage(pooler, write=[WRITE, "missing"])
    found = {(f.subject, f.severity) for f in manager.check() if f.severity is not Severity.OK}
    assert found == {
        ("missing", Severity.ERROR),
        (WRITE, Severity.ERROR),
        (READ, Severity.WARNING),
        ("*", Severity.WARNING),
        ("server_login_retry", Severity.WARNING),
        ("server_fast_close", Severity.WARNING),
        ("so_reuseport", Severity.WARNING),
        ("query_wait_timeout", Severity.WARNING),
    }


def test_check_finds_an_entry_that_nobody_would_move(manager, pgbouncer, cluster):
    port = cluster.nodes[0].port
    others = [
        f"forgotten = host=127.0.0.11 port={port}",
        f"standby = host=127.0.0.12 port={port}",
        "stranger = host=192.0.2.7",
        "port = host=127.0.0.11 port=1",
    ]
    pgbouncer.write_entries("\n".join([pgbouncer.first_entries(), *others, ""]))
    pgbouncer.console("RELOAD")
    found = {f.subject: f for f in manager.check() if f.severity is Severity.WARNING}
    assert set(found) == {"forgotten", "server_login_retry"}
    assert found["forgotten"].detail == "leads to the primary, and is neither in WRITE nor in READ: nobody moves it"


def test_check_of_a_user_who_may_only_look(manage, start_pgbouncer):
    pooler = start_pgbouncer(admin_users="someone_else", stats_users="efm_lb")
    (error,) = [f for f in manage(pooler).check() if f.severity is Severity.ERROR]
    assert error.subject == "admin_users"
    with pytest.raises(PermanentError, match="admin access needed"):
        manage(pooler).send(Detach, 2)


def test_check_of_a_console_on_another_address(manage, pgbouncer):
    manager = manage(pgbouncer, admin=[f"host=127.0.0.1 port={pgbouncer.port} user=efm_lb"])
    assert [f for f in manager.check() if "another host" in f.detail] == []
