"""Clients are held in a planned switchover, and are let go in every case."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from efm_lb import Attach, Detach, Promote, Result, Severity, TemporaryError
from efm_lb.reconcile.differences import differences, disagreement
from efm_lb.rehearsal import sql
from efm_lb.rehearsal.pgbouncer import WRITE
from efm_lb.rehearsal.waiting import wait_until
from efm_lb_pgbouncer import adapter
from integration.pgbouncer.writers import writing

GUARD = "efm_lb_pgbouncer.guard"


def guards(pgbouncer):
    """The processes that let the clients of this PgBouncer go."""
    found = []
    for directory in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            words = (directory / "cmdline").read_bytes().decode().split("\0")
            state = (directory / "stat").read_text().rpartition(")")[2].split()[0]
            if GUARD in words and pgbouncer.admin in words and state != "Z":
                found.append(int(directory.name))
    return found


def links(pid):
    """What a process has open."""
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of this directory
            found.append(os.readlink(descriptor))
    return found


@pytest.fixture(autouse=True)
def no_guard_is_left(pgbouncer):
    yield
    for pid in guards(pgbouncer):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def brief(manage, pgbouncer):
    """A manager that holds for two seconds."""
    return manage(pgbouncer, hold=2)


def switch_over(cluster, new=1):
    cluster.nodes[0].stop()
    cluster.nodes[new].promote()


def test_clients_wait_and_see_no_error(manager, pgbouncer, cluster):
    with writing(pgbouncer) as writers:
        outcome = manager.hold()
        assert outcome.result is Result.CHANGED
        assert outcome.detail.startswith(f"{WRITE} held for at most 10 s")
        assert pgbouncer.paused() == [WRITE]
        switch_over(cluster)
        assert manager.send(Promote, 1).result is Result.CHANGED
        assert pgbouncer.paused() == []
        assert writers.go_on()
        assert writers.errors() == {}
    assert writers.accounts(cluster.nodes[1]) == (0, 0)
    assert wait_until(lambda: not guards(pgbouncer), 2), "what watched over the clients has ended"


def test_only_the_agent_had_died(brief, pgbouncer, cluster):
    """No promotion comes: the clients go on with the same primary within HOLD."""
    with writing(pgbouncer, 2) as writers:
        started = time.monotonic()
        assert brief.hold().result is Result.CHANGED
        assert wait_until(lambda: not pgbouncer.paused(), 4)
        assert 1.5 < time.monotonic() - started < 2.5
        assert writers.go_on()
        assert writers.errors() == {}
    assert wait_until(lambda: not guards(pgbouncer), 2)


def test_trap_17_a_login_that_the_pause_broke_off_makes_nobody_wait(manage, start_pgbouncer, cluster):
    """PgBouncer would try no other for 15 s after it. Here the server does not answer the login before the pause."""
    pooler = start_pgbouncer()
    manager = manage(pooler, hold=1)
    truth = manager.truth()
    waited = []

    def log_in() -> None:
        started = time.monotonic()
        pooler.query("select 1", timeout=25)
        waited.append(time.monotonic() - started)

    client = threading.Thread(target=log_in)
    cluster.nodes[0].freeze()
    try:
        client.start()
        assert wait_until(lambda: any(row["sv_login"] != "0" for row in pooler.show("pools")), 5)
        held = adapter.efm_lb_hold(Detach(manager.nodes[0], truth), manager.balancer, time.monotonic() + 10)
        assert held.result is Result.CHANGED
    finally:
        cluster.nodes[0].thaw()
    client.join()
    assert waited[0] < 10
    assert wait_until(lambda: not guards(pooler), 5)
    (setting,) = [row["value"] for row in pooler.show("config") if row["key"] == "server_login_retry"]
    assert setting == "15"


def test_the_same_call_again_extends_nothing(brief, pgbouncer):
    started = time.monotonic()
    assert brief.hold().result is Result.CHANGED
    time.sleep(1)
    again = brief.hold()
    assert again.result is Result.UNCHANGED
    assert "paused already" in again.detail
    assert len(guards(pgbouncer)) == 1
    assert wait_until(lambda: not pgbouncer.paused(), 4)
    assert time.monotonic() - started < 2.5


def test_two_hooks_at_once(brief, pgbouncer):
    outcomes = []

    def hold() -> None:
        outcomes.append(brief.hold())

    threads = [threading.Thread(target=hold) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {outcome.result for outcome in outcomes} <= {Result.CHANGED, Result.UNCHANGED}
    assert pgbouncer.paused() == [WRITE]
    assert wait_until(lambda: not pgbouncer.paused(), 4)
    assert wait_until(lambda: not guards(pgbouncer), 2)


def test_what_an_operator_paused_is_left_to_the_operator(brief, pgbouncer):
    pgbouncer.console(f"PAUSE {WRITE}")
    assert brief.hold().result is Result.UNCHANGED
    assert guards(pgbouncer) == []
    time.sleep(2.5)
    assert pgbouncer.paused() == [WRITE]


def test_a_pause_after_the_promote_is_left_alone(manage, pgbouncer, cluster):
    manager = manage(pgbouncer, hold=3)
    assert manager.hold().result is Result.CHANGED
    switch_over(cluster)
    assert manager.send(Promote, 1).result is Result.CHANGED
    assert wait_until(lambda: not guards(pgbouncer), 1), "nothing is left to do"
    pgbouncer.console(f"PAUSE {WRITE}")
    time.sleep(3)
    assert pgbouncer.paused() == [WRITE]


def test_trap_18_a_transaction_that_does_not_end_holds_nobody_up(brief, pgbouncer):
    """PAUSE waits for it without end, and stays in force when its sender has gone."""
    with sql.Session(pgbouncer.host, pgbouncer.port, dbname=WRITE) as idle:
        idle.execute("begin")
        started = time.monotonic()
        with pytest.raises(TemporaryError, match="did not end in time"):
            brief.hold()
        assert time.monotonic() - started < 1.5, "half of HOLD"
        assert pgbouncer.paused() == []
        assert pgbouncer.query("select 1 as one") == [{"one": "1"}]
        assert wait_until(lambda: not guards(pgbouncer), 1)
        idle.execute("commit")


def test_trap_18_a_frozen_primary_holds_nobody_up(brief, pgbouncer, cluster):
    with writing(pgbouncer, 2, limit=5):
        truth = brief.truth()
        cluster.nodes[0].freeze()
        try:
            time.sleep(0.2)
            with pytest.raises(TemporaryError, match="did not end in time"):
                adapter.efm_lb_hold(Detach(brief.nodes[0], truth), brief.balancer, time.monotonic() + 10)
            assert pgbouncer.paused() == []
        finally:
            cluster.nodes[0].thaw()


def test_trap_19_a_pause_that_did_not_wait_is_not_believed(brief, start_pgbouncer, manage):
    pooler = start_pgbouncer()
    pooler.console(f"WAIT_CLOSE {WRITE}")
    with sql.Session(pooler.host, pooler.port, dbname=WRITE) as busy:
        busy.execute("begin")
        busy.execute("select 1")
        with pytest.raises(TemporaryError, match="WAIT_CLOSE"):
            manage(pooler, hold=2).hold()
    assert pooler.paused() == []


def test_trap_18_session_pooling_is_not_held(manage, start_pgbouncer):
    pooler = start_pgbouncer(pool_mode="session")
    outcome = manage(pooler).hold()
    assert outcome.result is Result.DEFERRED
    assert "session pooling" in outcome.detail
    assert pooler.paused() == []


def test_a_primary_that_does_not_answer_is_not_held_for(brief, pgbouncer, cluster):
    truth = brief.truth()
    brief.silent.add(0)
    assert brief.hold() is None
    cluster.nodes[0].kill()
    brief.silent.clear()
    assert brief.hold() is None
    assert guards(pgbouncer) == []
    assert truth.primary


def test_hold_zero_is_never(manage, pgbouncer):
    assert manage(pgbouncer, hold=0).hold() is None


def test_a_console_on_another_host_is_never_paused(brief, pgbouncer, monkeypatch):
    from efm_lb import Connection

    monkeypatch.setattr(Connection, "is_local", False)
    outcome = brief.hold()
    assert outcome.result is Result.DEFERRED
    assert "another host" in outcome.detail
    assert pgbouncer.paused() == []
    (warning,) = [f for f in brief.check() if "another host" in f.detail]
    assert "not held" in warning.detail


def test_without_the_process_that_lets_go_nobody_is_paused(brief, pgbouncer, monkeypatch):
    pipes = [link for link in links("self") if link.startswith("pipe:")]
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(TemporaryError, match="the process that lets clients go is not there"):
        brief.hold()
    assert pgbouncer.paused() == []
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(TemporaryError, match="no process could be started"):
        brief.hold()
    assert pgbouncer.paused() == []
    assert [link for link in links("self") if link.startswith("pipe:")] == pipes, "none is left open"


KILLED = """
import os, signal, sys, time
from efm_lb import Balancer, Connection, Detach, Node, NodeState, Reach, Role, Truth
from efm_lb_pgbouncer import adapter
import marshal
settings, nodes, moment = marshal.loads(sys.stdin.buffer.read())
asked = Connection.query
def query(self, statement, deadline):
    if moment == "before PAUSE" and "PAUSE" in statement:
        os.kill(os.getpid(), signal.SIGKILL)
    if moment == "after another host's PAUSE and RESUME" and "PAUSE" in statement:
        for other in (statement, statement.replace("PAUSE", "RESUME")):
            asked(self, other, deadline)
            time.sleep(0.5)
    if moment == "after it stood still for HOLD" and "PAUSE" in statement:
        time.sleep(settings["hold"] + 1)
        deadline = time.monotonic() + 5
    if moment == "in PAUSE" and "PAUSE" in statement:
        import threading
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
    reply = asked(self, statement, deadline)
    if moment.startswith("after") and "PAUSE" in statement:
        os.kill(os.getpid(), signal.SIGKILL)
    return reply
Connection.query = query
nodes = [Node(*node) for node in nodes]
roles = [Role.PRIMARY, Role.STANDBY, Role.STANDBY]
truth = Truth(tuple(NodeState(node, Reach.ACCEPTING, role, 1) for node, role in zip(nodes, roles)))
adapter.efm_lb_hold(Detach(nodes[0], truth), Balancer("pgb1", "pgbouncer", settings, 1.0), time.monotonic() + 10)
if moment == "when it has ended":
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(manager, moment):
    import marshal

    given = marshal.dumps((manager.balancer.settings, [tuple(node) for node in manager.nodes], moment))
    done = subprocess.run([sys.executable, "-c", KILLED], input=given, timeout=20, check=False, start_new_session=True)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("moment", ["before PAUSE", "in PAUSE", "after PAUSE", "after another host's PAUSE and RESUME"])
def test_trap_18_the_hook_is_killed(manage, pgbouncer, moment):
    """SIGKILL at each step before all is paused: clients are let go at once, by a process that is not the hook's."""
    with pgbouncer.console_session() as gone:
        gone.execute(f"PAUSE {WRITE}")
    assert pgbouncer.paused() == [WRITE], "this is the trap"
    pgbouncer.console(f"RESUME {WRITE}")
    with sql.Session(pgbouncer.host, pgbouncer.port, dbname=WRITE) as session:
        if moment == "in PAUSE":
            session.execute("begin")
        killed(manage(pgbouncer, hold=60), moment)
        assert wait_until(lambda: not guards(pgbouncer), 5)
        assert pgbouncer.paused() == []
        if moment == "in PAUSE":
            session.execute("commit")
    assert pgbouncer.query("select 1 as one") == [{"one": "1"}]
    assert marks(pgbouncer) == []


def test_trap_18_the_hook_is_killed_after_it_stood_still(manage, pgbouncer):
    """HOLD is over by then, and its PAUSE comes all the same."""
    killed(manage(pgbouncer, hold=1), "after it stood still for HOLD")
    assert wait_until(lambda: not guards(pgbouncer), 5)
    assert pgbouncer.paused() == []


def test_trap_18_the_hook_is_killed_when_all_is_paused(brief, pgbouncer):
    started = time.monotonic()
    killed(brief, "when it has ended")
    assert pgbouncer.paused() == [WRITE]
    assert len(guards(pgbouncer)) == 1
    assert wait_until(lambda: not pgbouncer.paused(), 5)
    assert time.monotonic() - started < 4
    assert pgbouncer.query("select 1 as one") == [{"one": "1"}]
    assert wait_until(lambda: not guards(pgbouncer), 3)


def test_the_hook_is_killed_before_the_process_that_lets_go_is_ready(brief, pgbouncer):
    reading, writing = os.pipe()
    os.close(reading)
    mark = pgbouncer.entries.with_name(".databases.ini.held")
    words = ("600", "1", str(pgbouncer.passfile), WRITE, str(mark), pgbouncer.admin)
    with open(writing, "wb") as nobody_reads:
        done = subprocess.run(
            [sys.executable, "-I", "-m", "efm_lb_pgbouncer.guard", *words], stdout=nobody_reads, timeout=20, check=False
        )
    assert done.returncode == 0
    assert marks(pgbouncer) == [], "nothing was paused, and nobody is to be told that something was"


@pytest.fixture
def abandoned(manager, pgbouncer):
    """A hold whose guard was killed: nobody lets go."""
    assert manager.hold().result is Result.CHANGED
    (guard,) = guards(pgbouncer)
    os.kill(guard, signal.SIGKILL)
    assert wait_until(lambda: not guards(pgbouncer), 1)
    assert pgbouncer.paused() == [WRITE]
    assert marks(pgbouncer) == [".databases.ini.held"]
    return manager


def marks(pgbouncer):
    return [path.name for path in pgbouncer.directory.iterdir() if path.name.endswith(".held")]


def test_a_killed_guard_is_reported(abandoned, pgbouncer):
    first = abandoned.nodes[0]
    (error,) = [f for f in abandoned.check() if f.severity is Severity.ERROR]
    assert (error.subject, "was killed" in error.detail) == (WRITE, True)
    assert f"RESUME {WRITE} at {pgbouncer.admin}" in error.remedy
    seen = abandoned.view().of(first)
    assert seen.detail == f"{WRITE} (paused, and nobody lets go)"
    assert not seen.writes
    assert disagreement(abandoned.truth(), abandoned.view())[first.name] == "is a primary, but gets no writes"
    (event,) = differences(abandoned.truth(), abandoned.view())
    assert isinstance(event, Promote)
    for kind, number in ((Promote, 0), (Attach, 1)):
        assert abandoned.plan(kind, number) == (f"RESUME {WRITE} at {pgbouncer.admin}",)
    assert pgbouncer.paused() == [WRITE], "nothing was done"


@pytest.mark.parametrize(("kind", "number"), [(Attach, 1), (Detach, 2), (Promote, 0)])
def test_the_next_event_of_any_kind_lets_go_for_a_killed_guard(abandoned, pgbouncer, kind, number):
    outcome = abandoned.send(kind, number)
    assert outcome.result is Result.CHANGED
    assert f"RESUME {WRITE}" in outcome.detail
    assert pgbouncer.paused() == []
    assert pgbouncer.query("select 1 as one") == [{"one": "1"}]
    assert marks(pgbouncer) == []
    assert abandoned.send(kind, number).result is Result.UNCHANGED


def test_nobody_is_let_go_to_a_dead_primary(abandoned, cluster, pgbouncer):
    cluster.nodes[0].kill()
    assert abandoned.send(Detach, 0).result is Result.DEFERRED
    assert abandoned.send(Attach, 1).result is Result.UNCHANGED
    assert pgbouncer.paused() == [WRITE], "they wait for the promotion"
    cluster.nodes[1].promote()
    assert abandoned.send(Attach, 2).result is Result.CHANGED, "the new primary serves reads no more"
    assert pgbouncer.paused() == [WRITE], "it leads to the old primary still"
    assert marks(pgbouncer) == [".databases.ini.held"]
    assert abandoned.send(Promote, 1).result is Result.CHANGED
    assert pgbouncer.paused() == []
    assert marks(pgbouncer) == []


def test_another_hold_takes_over_from_a_killed_guard(abandoned, brief, pgbouncer):
    assert brief.hold().result is Result.CHANGED
    assert len(guards(pgbouncer)) == 1
    assert wait_until(lambda: not pgbouncer.paused(), 4)
    assert wait_until(lambda: not guards(pgbouncer), 1)
    assert marks(pgbouncer) == []


def test_events_leave_a_hold_alone_and_an_operators_pause(manager, pgbouncer):
    assert manager.hold().result is Result.CHANGED
    for kind, number in ((Detach, 2), (Attach, 2)):
        assert manager.send(kind, number).result is Result.CHANGED
        assert pgbouncer.paused() == [WRITE]
    assert manager.view().of(manager.nodes[0]).detail == f"{WRITE} (paused)"
    (guard,) = guards(pgbouncer)
    os.kill(guard, signal.SIGTERM)
    assert wait_until(lambda: not pgbouncer.paused(), 1)
    assert wait_until(lambda: not guards(pgbouncer), 1)
    assert marks(pgbouncer) == []
    pgbouncer.console(f"PAUSE {WRITE}")
    for kind, number in ((Detach, 2), (Attach, 2)):
        assert manager.send(kind, number).result is Result.CHANGED
        assert pgbouncer.paused() == [WRITE]
    assert [f.severity for f in manager.check() if f.subject == WRITE and "paused" in f.detail] == [Severity.WARNING]


def test_a_mark_that_cannot_be_made_is_no_hindrance(brief, pgbouncer):
    (pgbouncer.directory / ".databases.ini.held").mkdir()
    try:
        assert brief.hold().result is Result.CHANGED
        assert wait_until(lambda: not pgbouncer.paused(), 4)
        assert wait_until(lambda: not guards(pgbouncer), 1)
    finally:
        (pgbouncer.directory / ".databases.ini.held").rmdir()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_service_that_it_belongs_to_is_stopped(manager, pgbouncer, number):
    assert manager.hold().result is Result.CHANGED
    (guard,) = guards(pgbouncer)
    os.kill(guard, number)
    assert wait_until(lambda: not pgbouncer.paused(), 1), "clients go first"
    assert wait_until(lambda: not guards(pgbouncer), 1)


def test_the_guard_outlives_the_session_of_the_hook(manager, pgbouncer):
    assert manager.hold().result is Result.CHANGED
    (guard,) = guards(pgbouncer)
    assert os.getsid(guard) == guard
    lifeline = os.readlink(f"/proc/{guard}/fd/0")
    assert lifeline.startswith("pipe:")
    assert links(guard).count(lifeline) == 1, "it could not hear that the hook is gone"
    assert lifeline not in links("self"), "it holds no pipe of EFM open, and the hook none to it"
    assert not os.path.exists(f"/proc/{guard}/fd/1")
    assert os.readlink(f"/proc/{guard}/fd/2") == "/dev/null"


def test_a_pgbouncer_that_restarts_is_not_paused_any_more(brief, pgbouncer):
    assert brief.hold().result is Result.CHANGED
    pgbouncer.restart()
    assert pgbouncer.paused() == []
    assert wait_until(lambda: not guards(pgbouncer), 4)


def test_a_promote_that_overtakes_the_hold_leaves_nobody_waiting(brief, pgbouncer, cluster):
    """The hold of a slow hook comes last, with a truth that is old by then."""
    old = brief.truth()
    switch_over(cluster)
    assert brief.send(Promote, 1).result is Result.CHANGED
    late = adapter.efm_lb_hold(Detach(brief.nodes[0], old), brief.balancer, time.monotonic() + 10)
    assert late.result is Result.DEFERRED
    assert pgbouncer.paused() == []
