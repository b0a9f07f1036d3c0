"""What PgBouncer does that no manual warns of, shown on the real one, and that the adapter does not fall for it.

More of them: holding in test_hold, crashed and frozen primaries in test_switchover, the grammar of the file in the unit
tests of the entries.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from ctypes import c_void_p

import pytest

from efm_lb import (
    Attach,
    Detach,
    NodeState,
    PermanentError,
    Promote,
    Reach,
    Result,
    Role,
    Severity,
    TemporaryError,
    Truth,
    libpq,
)
from efm_lb.rehearsal import sql
from efm_lb.rehearsal.pgbouncer import READ, WRITE
from efm_lb.rehearsal.waiting import wait_until
from efm_lb_pgbouncer import adapter
from efm_lb_pgbouncer.console import Console, Session
from integration.real import send

STATES = {
    "P": (Reach.ACCEPTING, Role.PRIMARY),
    "s": (Reach.ACCEPTING, Role.STANDBY),
    "x": (Reach.NO_RESPONSE, None),
}


def as_if(manager, kind, number, letters, seconds=10.0):
    """Send an event with a truth that is not asked for: ``P`` primary, ``s`` standby, ``x`` silent."""
    states = [NodeState(node, *STATES[letter], 1) for node, letter in zip(manager.nodes, letters, strict=True)]
    return send(adapter, kind(manager.nodes[number], Truth(tuple(states))), manager.balancer, seconds)


def session(pooler, entry=WRITE):
    return sql.Session(pooler.host, pooler.port, dbname=entry, timeout=10)


def host_of(one):
    return one.execute("select host(inet_server_addr()) as host")[0]["host"]


def setting(pooler, name):
    return next(row["value"] for row in pooler.show("config") if row["key"] == name)


def version(pooler):
    return tuple(int(part) for part in pooler.show("version")[0]["version"].split()[1].split(".")[:2])


def prepared(conninfo, statement):
    """What is said of a statement that is prepared."""
    library = libpq.load()
    library.PQconnectdb.restype = library.PQprepare.restype = c_void_p
    connection = c_void_p(library.PQconnectdb(conninfo.encode()))
    try:
        library.PQclear(c_void_p(library.PQprepare(connection, b"", statement.encode(), 0, None)))
        return library.PQerrorMessage(connection).decode()
    finally:
        library.PQfinish(connection)


def errors(manager):
    return {f"{f.subject}: {f.detail}" for f in manager.check() if f.severity is Severity.ERROR}


def test_trap_15_a_reload_that_fails_answers_success(manager, manage, pgbouncer, cluster):
    """Up to 1.24. What comes before the bad line is taken, what comes after it is not."""
    before = pgbouncer.first_entries()
    first, second = before.splitlines()[1:]
    first, second = first.replace("127.0.0.11", "127.0.0.12"), second.replace("127.0.0.12", "127.0.0.11")
    pgbouncer.write_entries(f"[databases]\n{first}\nnonsense\n{second}\n")
    pgbouncer.console("RELOAD")
    port = cluster.nodes[0].port
    assert pgbouncer.places()[WRITE] == f"127.0.0.12:{port}", "this is the trap"
    assert pgbouncer.places()[READ] == f"127.0.0.12,127.0.0.13:{port}"
    with pytest.raises(PermanentError, match=r"databases.ini:3: neither a comment nor key = value"):
        manager.send(Promote, 0)

    pgbouncer.write_entries(before)
    pgbouncer.console("RELOAD")
    other = pgbouncer.directory / "other.ini"
    other.write_text(before)
    astray = manage(pgbouncer, config=str(other))
    with pytest.raises(
        PermanentError, match=f"after RELOAD .* shows {READ} as .*, not as .*other.ini: PgBouncer's log"
    ):
        astray.send(Detach, 2)


def test_trap_16_a_reload_undoes_what_set_has_done(manager, pgbouncer, cluster):
    pgbouncer.console("SET server_login_retry = 3")
    assert setting(pgbouncer, "server_login_retry") == "3"
    pgbouncer.console("RELOAD")
    assert setting(pgbouncer, "server_login_retry") == "15", "this is the trap"
    cluster.nodes[0].kill()
    with pytest.raises(sql.SqlError):
        pgbouncer.query("select 1")
    cluster.nodes[1].promote()
    assert manager.send(Promote, 1).result is Result.CHANGED
    started = time.monotonic()
    pgbouncer.query("select 1")
    assert time.monotonic() - started < 5, "it was set after the RELOAD, and not undone before clients had a server"
    assert setting(pgbouncer, "server_login_retry") == "15", "and has its own value again"


def test_trap_17_a_server_that_is_about_to_be_closed_is_none(manager, pgbouncer, cluster):
    """A login at a dead standby has failed. The other one serves all, until the RELOAD has its sessions closed."""
    gaps = []

    def read(one):
        one.execute("begin", timeout=25)
        one.execute("select 1", timeout=25)
        one.execute("commit")

    def go_on():
        for _ in range(40):
            started = time.monotonic()
            while True:  # a client may be told that logins fail, and tries again
                with contextlib.suppress(sql.SqlError):
                    pgbouncer.query("select 1", READ, timeout=25)
                    break
                time.sleep(0.02)
            gaps.append(time.monotonic() - started)
            time.sleep(0.02)

    with contextlib.ExitStack() as readers:
        while True:
            first = readers.enter_context(session(pgbouncer, READ))
            first.execute("begin")
            if host_of(first) == cluster.nodes[1].host:
                break
        cluster.nodes[2].kill()
        for _ in range(4):  # the two are tried in turns
            waiting = threading.Thread(target=read, args=(readers.enter_context(session(pgbouncer, READ)),))
            waiting.start()
            waiting.join(1)
            if waiting.is_alive():
                break
        assert waiting.is_alive(), "its login has failed"
        first.execute("commit")
        waiting.join()
        readers.close()
        going = threading.Thread(target=go_on)
        going.start()
        assert manager.send(Detach, 2).result is Result.CHANGED
        going.join()
    assert max(gaps) < 8, "and not 15"
    assert setting(pgbouncer, "server_login_retry") == "15"


def test_trap_17_a_login_that_kill_interrupts_makes_nobody_wait(manager, pgbouncer, cluster, monkeypatch):
    """It counts as one that failed, so that no other is tried for 15 s, unless that is lifted before."""
    sent = []
    waited = []
    tell = Session.command

    def log_in():
        started = time.monotonic()
        pgbouncer.query("select 1", timeout=25)
        waited.append(time.monotonic() - started)

    def command(self, statement, *arguments):
        sent.append(statement)
        if statement == f'RESUME "{WRITE}"':
            client.start()
            time.sleep(0.5)
        return tell(self, statement, *arguments)

    client = threading.Thread(target=log_in)
    with session(pgbouncer) as stuck:
        stuck.execute("begin")
        stuck.execute("select 1")
        cluster.nodes[1].promote()
        text = pgbouncer.first_entries().replace("127.0.0.12,", "").replace("127.0.0.11", "127.0.0.12")
        pgbouncer.write_entries(text)
        pgbouncer.console("RELOAD")
        monkeypatch.setattr(Session, "command", command)
        outcome = as_if(manager, Promote, 1, "xPs")
        monkeypatch.undo()
        assert outcome.detail.startswith(f"KILL {WRITE}"), "all else was right"
        client.join()
    assert sent[-3:-1] == [f'KILL "{WRITE}"', f'RESUME "{WRITE}"']
    assert waited[0] < 10
    assert setting(pgbouncer, "server_login_retry") == "15"


def test_trap_21_kill_pauses_and_resume_must_follow(manager, pgbouncer, cluster):
    pgbouncer.console(f"KILL {WRITE}")
    assert pgbouncer.paused() == [WRITE], "this is the trap"
    pgbouncer.console(f"RESUME {WRITE}")
    with session(pgbouncer) as stuck:
        stuck.execute("begin")
        assert host_of(stuck) == cluster.nodes[0].host
        cluster.nodes[1].promote()
        outcome = as_if(manager, Promote, 1, "xPs")
        assert f"KILL {WRITE} (1 sessions were left on {cluster.nodes[0].address})" in outcome.detail
        with pytest.raises(sql.SqlError, match="database removed"):
            stuck.execute("commit")
    assert pgbouncer.paused() == []
    with session(pgbouncer) as one:
        assert host_of(one) == cluster.nodes[1].host


def test_trap_21_kill_needs_a_name_and_no_pause_of_everything(manager, pgbouncer, cluster):
    with pytest.raises(sql.SqlError, match="a database is required"):
        pgbouncer.console("KILL")
    with session(pgbouncer) as stuck:
        stuck.execute("begin")
        stuck.execute("select 1")
        with pytest.raises(sql.SqlError, match="no answer"):
            pgbouncer.console("PAUSE", timeout=0.5)
        assert pgbouncer.paused() == [], "a pause of everything is shown nowhere"
        with pytest.raises(sql.SqlError, match="already suspended/paused"):
            pgbouncer.console(f"KILL {WRITE}")
        cluster.nodes[1].promote()
        with pytest.raises(TemporaryError, match=f'RELOAD, but .*KILL "{WRITE}": already suspended/paused'):
            as_if(manager, Promote, 1, "xPs")
        pgbouncer.console("RESUME")
        assert f"KILL {WRITE}" in as_if(manager, Promote, 1, "xPs").detail, "what was owed is done"
    with session(pgbouncer) as one:
        assert host_of(one) == cluster.nodes[1].host


@pytest.mark.parametrize("fast", [0, 1])
def test_trap_22_sessions_stay_on_the_old_primary_with_session_pooling(manage, start_pgbouncer, cluster, fast):
    pooler = start_pgbouncer(pool_mode="session", server_fast_close=fast, server_login_retry=1)
    manager = manage(pooler)
    warned = any(f.subject == "server_fast_close" for f in manager.check() if f.severity is Severity.WARNING)
    assert warned == (not fast)
    with session(pooler) as old:
        assert host_of(old) == cluster.nodes[0].host
        cluster.nodes[1].promote()
        if not fast:
            pooler.write_entries(pooler.first_entries().replace("127.0.0.11", "127.0.0.12"))
            pooler.console("RELOAD")
            (row,) = [row for row in pooler.show("servers") if row["database"] == WRITE]
            assert row["close_needed"] == "1"
            assert host_of(old) == cluster.nodes[0].host, "this is the trap"
        outcome = as_if(manager, Promote, 1, "xPs")
        assert outcome.result is Result.CHANGED
        assert ("KILL" in outcome.detail) == (not fast)
        with pytest.raises(sql.SqlError, match="database configuration changed" if fast else "database removed"):
            old.execute("select 1")
    with session(pooler) as new:
        assert host_of(new) == cluster.nodes[1].host


def test_trap_23_a_file_that_is_read_half_written_drops_clients(manager, pgbouncer, cluster):
    whole = pgbouncer.first_entries()
    with session(pgbouncer) as one:
        one.execute("select 1")
        pgbouncer.write_entries("")
        pgbouncer.console("RELOAD")
        with pytest.raises(sql.SqlError, match="database removed"):
            one.execute("select 1")
    pgbouncer.write_entries(whole[: whole.index("127.0.0.11") + len("127.0.0.")])
    pgbouncer.console("RELOAD")
    assert pgbouncer.places()[WRITE] == "127.0.0.:5432", "this is the trap"
    pgbouncer.write_entries(whole)
    pgbouncer.console("RELOAD")

    port = cluster.nodes[0].port
    seen = set()
    over = threading.Event()

    def reload_all_the_time():
        with pgbouncer.console_session() as console:
            while not over.is_set():
                console.execute("RELOAD")
                seen.update((row["name"], row["host"], row["port"]) for row in console.execute("SHOW DATABASES"))

    reloader = threading.Thread(target=reload_all_the_time)
    with session(pgbouncer) as writer, session(pgbouncer, READ) as reader:
        reloader.start()
        try:
            for _ in range(15):
                assert manager.send(Detach, 2).result is Result.CHANGED
                reader.execute("select 1")
                assert manager.send(Attach, 2).result is Result.CHANGED
                writer.execute("select 1")
        finally:
            over.set()
            reloader.join()
    assert {place for place in seen if place[0] != "pgbouncer"} == {
        (WRITE, "127.0.0.11", str(port)),
        (READ, "127.0.0.12", str(port)),
        (READ, "127.0.0.12,127.0.0.13", str(port)),
    }


SED = r"s/host=[A-Za-z0-9.]*/host=127.0.0.12/"
"""The published script for PgBouncer behind EFM does this, and truncates and writes the file anew."""


def test_trap_24_sed_on_host_hits_much_and_misses_some(manage, pgbouncer, cluster):
    """Hyphens, sockets, IPv6, spaces, quotes, comments, entries for reads; each as PgBouncer itself takes it."""
    port = cluster.nodes[0].port
    old = f"127.0.0.11 port={port} dbname=postgres"
    entries = {
        "hyphen": f"host=db-1.example.com port={port}",
        "socket": "host=/var/run/postgresql",
        "six": f"host=fd00::1 port={port}",
        "quoted": f"host='127.0.0.11' port={port} dbname=postgres",
        "spaces": f"host = {old}",
        "host": f"dbname=host=x host={old}",
    }
    lines = [f"{name} = {value}" for name, value in entries.items()]
    others = ["; app = host=127.0.0.11, once", f"stranger = host=192.0.2.7 port={port}"]
    text = "\n".join([pgbouncer.first_entries(), *others, *lines, ""])

    pgbouncer.write_entries(subprocess.run(["sed", SED], input=text, capture_output=True, text=True, check=True).stdout)
    pgbouncer.console("RELOAD")
    places = pgbouncer.places()
    assert places["hyphen"].startswith("127.0.0.12-1.example.com:"), "this is the trap"
    assert places["socket"] == "127.0.0.12/var/run/postgresql:5432"
    assert places["six"].startswith("127.0.0.12::1:")
    assert places[READ] == f"127.0.0.12,127.0.0.13:{port}"
    assert places["spaces"] == places["host"] == cluster.nodes[0].address, "missed"
    assert places["stranger"] == cluster.nodes[1].address, "which is another cluster's"
    assert places["quoted"] == f"127.0.0.12'127.0.0.11':{port}"

    pgbouncer.write_entries(text)
    pgbouncer.console("RELOAD")
    cluster.nodes[0].kill()
    cluster.nodes[1].promote()
    write = [WRITE, *entries]
    assert manage(pgbouncer, write=write).send(Promote, 1).result is Result.CHANGED
    places = pgbouncer.places()
    assert {name: places[name] for name in write} == dict.fromkeys(write, cluster.nodes[1].address)
    assert places["stranger"] == f"192.0.2.7:{port}"
    assert places[READ] == f"127.0.0.13:{port}"
    assert others[0] in pgbouncer.entries.read_text()


def test_trap_25_a_comment_behind_an_entry_fails_the_reload(manager, pgbouncer, cluster):
    text = pgbouncer.first_entries().replace("127.0.0.11", "127.0.0.12", 1)
    pgbouncer.write_entries(text.replace(" dbname=postgres\n", " dbname=postgres ; the primary\n", 1))
    before = pgbouncer.entries.read_bytes()
    pgbouncer.console("RELOAD")
    assert pgbouncer.places()[WRITE] == cluster.nodes[0].address, "this is the trap"
    with pytest.raises(PermanentError, match=r":2: entry app: .*a comment must have a line of its own"):
        manager.send(Promote, 0)
    assert pgbouncer.entries.read_bytes() == before


def test_trap_25_the_entry_for_everything_stays_until_a_restart(manage, start_pgbouncer, cluster):
    pooler = start_pgbouncer()
    everything = f"* = host=127.0.0.11 port={cluster.nodes[0].port}\n"
    pooler.write_entries(pooler.first_entries() + everything)
    pooler.console("RELOAD")
    with session(pooler, "postgres") as one:
        one.execute("select 1")
    found = {f.subject: f.remedy for f in manage(pooler).check() if f.severity is Severity.WARNING}
    assert "forgets it only when it is restarted" in found["*"]
    pooler.write_entries(pooler.first_entries())
    pooler.console("RELOAD")
    with session(pooler, "template1") as one:
        assert host_of(one) == cluster.nodes[0].host, "this is the trap"


def test_trap_26_a_console_over_tcp_reaches_any_one_of_several_processes(manage, cluster, start_pgbouncer):
    first = start_pgbouncer(so_reuseport=1)
    second = start_pgbouncer(first.port, so_reuseport=1)
    ini = second.directory / "pgbouncer.ini"
    ini.write_text(ini.read_text().replace(str(second.entries), str(first.entries)))
    first.directory.chmod(0o755)
    second.restart()
    both = (first, second)

    text = first.first_entries()
    first.write_entries(text.replace("127.0.0.11", "127.0.0.12"))
    over_tcp = Console(f"host=127.0.0.1 port={first.port} user=efm_lb", str(first.passfile), 5.0)
    limit = time.monotonic() + 20
    with contextlib.closing(over_tcp.session(limit)) as one:
        assert one.command("RELOAD", limit) == "RELOAD"
    told = {pooler.places()[WRITE] for pooler in both}
    assert told == {cluster.nodes[0].address, cluster.nodes[1].address}, "this is the trap: one of the two"
    first.write_entries(text)
    for pooler in both:
        pooler.console("RELOAD")
    assert any("reaches any one of the processes" in text for text in errors(manage(first, admin=[str(over_tcp)])))

    manager = manage(*both)
    assert errors(manager) == set()
    cluster.nodes[0].stop()
    cluster.nodes[1].promote()
    cluster.nodes[2].follow(cluster.nodes[1])
    outcome = manager.send(Promote, 1)
    assert outcome.result is Result.CHANGED
    for pooler in both:
        assert pooler.places()[WRITE] == cluster.nodes[1].address
        assert f"RELOAD at {pooler.admin}" in outcome.detail
    second.process.stop()
    with pytest.raises(TemporaryError, match=second.name):
        manager.send(Promote, 1, seconds=1)


def test_trap_27_a_signal_means_something_else_in_another_version(manager, pgbouncer, cluster):
    """SIGTERM is the end at once before 1.23, and waits for clients from then on. No signal is ever sent."""
    if version(pgbouncer) >= (1, 23):
        pytest.skip("there SIGTERM waits for clients")
    with session(pgbouncer) as one:
        one.execute("select 1")
        pid = pgbouncer.process.pid
        cluster.nodes[1].promote()
        assert as_if(manager, Promote, 1, "xPs").result is Result.CHANGED
        assert host_of(one) == cluster.nodes[1].host
        assert pgbouncer.process.pid == pid
        log = pgbouncer.log.read_text(errors="replace")
        assert "got SIG" not in log
        one.execute("begin")
        pgbouncer.process.send(signal.SIGTERM)
        assert wait_until(lambda: not pgbouncer.process.running, 5), "this is the trap"
        with pytest.raises(sql.SqlError):
            one.execute("commit")
    assert "got SIGTERM" in pgbouncer.log.read_text(errors="replace")


def test_trap_28_who_may_log_in_to_the_console(manage, start_pgbouncer):
    """User `pgbouncer` needs no password on the Unix socket, but only as PgBouncer's own operating system user."""
    pooler = start_pgbouncer()
    own = manage(pooler, admin=[f"host={pooler.directory} port={pooler.port} user=pgbouncer"])
    if os.geteuid() == pooler.entries.stat().st_uid:
        assert own.send(Promote, 0).result is Result.UNCHANGED
    else:
        with pytest.raises(PermanentError, match="refuses the login"):
            own.send(Promote, 0)
    over_tcp = manage(pooler, admin=[f"host=127.0.0.1 port={pooler.port} user=pgbouncer"])
    with pytest.raises(PermanentError, match=f"port={pooler.port} user=pgbouncer refuses the login"):
        over_tcp.send(Promote, 0)
    manager = manage(pooler)
    assert manager.send(Promote, 0).result is Result.UNCHANGED, "efm_lb is in admin_users"
    pooler.console("SET admin_users = 'somebody'")
    before = pooler.entries.read_text()
    with pytest.raises(PermanentError, match=r"refuses the login: .*not allowed; the user must be in admin_users"):
        manager.send(Detach, 2)
    assert pooler.entries.read_text() == before


def test_trap_29_a_file_that_pgbouncer_cannot_read_leaves_it_where_it_was(manager, pgbouncer, cluster):
    if os.geteuid():
        pytest.skip("only root can write what PgBouncer cannot read")
    before = pgbouncer.entries.stat()
    assert manager.send(Detach, 2).result is Result.CHANGED
    after = pgbouncer.entries.stat()
    assert after.st_ino != before.st_ino
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)

    os.chown(pgbouncer.entries, 0, 0)
    pgbouncer.console("RELOAD")
    text = pgbouncer.entries.read_text().replace("127.0.0.11", "127.0.0.12")
    pgbouncer.entries.write_text(text)
    pgbouncer.console("RELOAD")
    assert pgbouncer.places()[WRITE] == cluster.nodes[0].address, "this is the trap"
    assert any("may not read it because of" in text for text in errors(manager))
    with pytest.raises(PermanentError, match="cannot be read by PgBouncer's user"):
        as_if(manager, Promote, 1, "xPs")


def test_trap_30_the_same_commands_again_and_again_in_one_session(manager, pgbouncer):
    """Drivers that prepare a statement which they see for the sixth time fail there."""
    conninfo = f"{pgbouncer.admin} dbname=pgbouncer passfile={pgbouncer.passfile}"
    assert "extended query protocol not supported" in prepared(conninfo, "RELOAD"), "this is the trap"
    console = Console(pgbouncer.admin, str(pgbouncer.passfile), 5.0)
    limit = time.monotonic() + 20
    with contextlib.closing(console.session(limit)) as one:
        for _ in range(10):
            assert one.command("RELOAD", limit) == "RELOAD"
            assert WRITE in one.databases(limit)
            one.servers(limit)
            one.pools(limit)


def test_trap_32_a_file_that_is_right_does_not_prove_that_pgbouncer_is(manager, pgbouncer, cluster):
    """As after a reload that failed, or whose hook was killed before it."""
    cluster.nodes[0].kill()
    cluster.nodes[1].promote()
    cluster.nodes[2].follow(cluster.nodes[1])
    right = pgbouncer.first_entries().replace("127.0.0.12,127.0.0.13", "127.0.0.13").replace("127.0.0.11", "127.0.0.12")
    pgbouncer.write_entries(right)
    assert any(f"{WRITE}: leads to {cluster.nodes[0].address}, but" in text for text in errors(manager))
    assert manager.send(Promote, 1).detail == "RELOAD"
    assert pgbouncer.places()[WRITE] == cluster.nodes[1].address
    assert pgbouncer.entries.read_text() == right
    assert manager.send(Promote, 1).result is Result.UNCHANGED
    assert errors(manager) == set()
