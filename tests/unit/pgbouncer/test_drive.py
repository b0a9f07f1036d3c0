"""Whatever a console answers: the file stays whole, clients are let go, and the reason is told."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import time
from contextlib import ExitStack

import pytest

from efm_lb import Attach, Detach, PermanentError, Promote, Result, Severity, TemporaryError, Truth
from efm_lb.handover import logins_of
from efm_lb.rehearsal.waiting import wait_until
from efm_lb_pgbouncer import adapter, drive, guard
from efm_lb_pgbouncer.console import Console, Session
from unit.pgbouncer.fake_console import (
    ENTRIES,
    NODES,
    READY,
    RETRY,
    FakeConsole,
    balancer,
    close,
    cut,
    failure,
    hang,
    message,
    raw,
    refuse,
    reordered,
    texts,
    truth,
    with_value,
    without,
)

HOOKS = {Attach: adapter.efm_lb_attach, Detach: adapter.efm_lb_detach, Promote: adapter.efm_lb_promote}
PROMOTE = Promote(NODES[1], truth("sPs"))
LIFTED = f"{(1 + os.getpid() % 900) / 1e6:f}"
SET = f"SET server_login_retry = '{(1.5 + os.getpid() % 900) / 1e6:.7f}'"
DETACH = Detach(NODES[2], truth("Pss"))
MOVED = ENTRIES.replace("app = host=10.0.0.1", "; efm-lb: writes follow timeline 1\napp = host=10.0.0.2").replace(
    "10.0.0.2,10.0.0.3", "10.0.0.3"
)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "databases.ini"
    path.write_text(ENTRIES)
    return path


@pytest.fixture
def fake(config):
    with FakeConsole(config) as fake:
        yield fake


def send(fake, event, seconds=5.0, **settings):
    return HOOKS[type(event)](event, balancer(fake, **settings), time.monotonic() + seconds)


def hold(fake, seconds=5.0, **settings):
    event = Detach(NODES[0], truth("Pss"))
    return adapter.efm_lb_hold(event, balancer(fake, **{"hold": 1, **settings}), time.monotonic() + seconds)


def moved(fake):
    return fake.config.read_text() != ENTRIES and fake.places["app"] == ("10.0.0.2", "5444")


def is_retry_back(fake):
    """What lets clients go after a KILL that failed may lift it for a moment as well."""
    return wait_until(lambda: fake.retry == RETRY and not guards(fake), 5)


def test_a_promotion(fake):
    fake.servers = [("app", "10.0.0.1", 5444)]
    outcome = send(fake, PROMOTE)
    assert outcome.result is Result.CHANGED
    assert moved(fake)
    assert fake.sent == ["RELOAD", SET, 'KILL "app"', 'RESUME "app"', "RELOAD"]
    assert send(fake, PROMOTE).result is Result.UNCHANGED


def test_what_is_left_on_the_old_primary_when_all_else_is_right(fake):
    send(fake, PROMOTE)
    fake.sent.clear()
    fake.servers = [("app", "10.0.0.1", 5444)]
    assert send(fake, PROMOTE).detail.startswith("KILL app (1 sessions were left on 10.0.0.1:5444)")
    assert fake.sent == [SET, 'KILL "app"', 'RESUME "app"', "RELOAD"]


def test_trap_27_columns_that_moved_and_new_ones(fake):
    fake.servers = [("app", "10.0.0.1", 5444)]
    fake.instead = {f"SHOW {what}": [reordered] * 9 for what in ("DATABASES", "SERVERS", "POOLS", "CONFIG", "VERSION")}
    assert send(fake, PROMOTE).result is Result.CHANGED
    assert moved(fake)


@pytest.mark.parametrize(("databases", "looks"), [("xPs", 3), ("sPs", 1)])
def test_whose_login_may_have_failed_is_given_time_to_come_again(fake, monkeypatch, databases, looks):
    """The old primary is down, or it is a standby by now, and logged everybody in."""
    fake.pools = ["app"]
    told = []
    pools = Session.pools
    monkeypatch.setattr(Session, "pools", lambda *given: told.append(fake.retry) or pools(*given))
    monkeypatch.setattr("efm_lb_pgbouncer.console._CONNECTED", 0.1)
    assert send(fake, Promote(NODES[1], truth(databases))).result is Result.CHANGED
    assert len(told) >= looks
    assert looks > 1 or len(told) == 1
    assert RETRY not in told, "and until then logins are tried at once"
    assert fake.retry == RETRY


LACKING = [
    *(("DATABASES", column) for column in ("name", "host", "port", "paused", "disabled", "pool_mode")),
    *(("SERVERS", column) for column in ("database", "user", "state", "addr", "port", "close_needed")),
    *(("POOLS", column) for column in ("database", "user", "cl_waiting")),
    ("CONFIG", "key"),
]


@pytest.mark.parametrize(("what", "column"), LACKING)
def test_a_column_that_is_not_there(fake, what, column):
    fake.servers = [("app", "10.0.0.1", 5444)]
    fake.pools = ["app"]
    fake.instead[f"SHOW {what}"] = [without(column)] * 9
    with pytest.raises(PermanentError, match=f"port={fake.port} .*: SHOW {what} has no column {column}: is this PgB"):
        send(fake, PROMOTE)
    assert fake.config.read_text() == MOVED
    assert fake.retry == RETRY, "what was only for the moment is taken back"
    assert fake.paused == set()
    fake.instead.clear()
    send(fake, PROMOTE)
    assert moved(fake)


@pytest.mark.parametrize(
    ("what", "column", "value"),
    [("DATABASES", "port", "x"), ("DATABASES", "port", "5432,5433"), ("SERVERS", "port", "x")],
)
def test_a_text_where_a_number_belongs(fake, what, column, value):
    fake.servers = [("app", "10.0.0.1", 5444)]
    fake.instead[f"SHOW {what}"] = [with_value(column, value)] * 9
    with pytest.raises(PermanentError, match=f"SHOW {what}: {column} is {value!r}, which is no number"):
        send(fake, PROMOTE)
    assert fake.config.read_text() == MOVED
    assert fake.retry == RETRY


@pytest.mark.parametrize("column", ["name", "host", "port", "pool_mode", "paused", "disabled"])
def test_nulls(fake, column):
    fake.instead["SHOW DATABASES"] = [with_value(column, None)]
    assert send(fake, PROMOTE).result is Result.CHANGED
    assert moved(fake)


@pytest.mark.parametrize("what", ["DATABASES", "SERVERS", "POOLS"])
@pytest.mark.parametrize("size", [0, 1, 4, 5, 30, 150, 250, 400])
def test_an_answer_that_is_cut_off_is_asked_for_anew(fake, what, size):
    fake.servers = [("app", "10.0.0.1", 5444)]
    fake.instead[f"SHOW {what}"] = [cut(size)]
    assert send(fake, PROMOTE).result is Result.CHANGED
    assert moved(fake)
    assert fake.retry == RETRY
    assert fake.sent[-1] == "RELOAD"


def test_an_answer_that_is_always_cut_off(fake):
    fake.instead["SHOW DATABASES"] = [cut(30)] * 999
    started = time.monotonic()
    with pytest.raises(TemporaryError, match=f"app -> 10.0.0.2:5444.*but .*port={fake.port} .*: SHOW DATABASES: "):
        send(fake, PROMOTE, seconds=1)
    assert time.monotonic() - started < 3, "the deadline was 1 s"
    assert fake.config.read_text() == MOVED
    assert fake.sent == []


@pytest.mark.parametrize(
    "command", ["RELOAD", pytest.param(SET, id="SET"), 'KILL "app"', 'RESUME "app"', "SHOW SERVERS", "SHOW POOLS"]
)
@pytest.mark.parametrize("act", [close, cut(3)])
def test_a_connection_that_breaks_in_the_middle(fake, command, act):
    """The command was carried out: nothing is left as it was only for the moment."""
    fake.servers = [("app", "10.0.0.1", 5444)]
    fake.instead[command] = [act]
    assert send(fake, PROMOTE).result is Result.CHANGED
    assert moved(fake)
    assert fake.paused == set()
    assert is_retry_back(fake)


@pytest.mark.parametrize("command", ["RELOAD", pytest.param(SET, id="SET"), "SHOW SERVERS", "SHOW POOLS"])
def test_a_command_that_hangs_costs_the_connect_time_out(fake, command):
    fake.servers = [("app", "10.0.0.1", 5444)]
    fake.instead[command] = [hang]
    started = time.monotonic()
    assert send(fake, PROMOTE).result is Result.CHANGED
    assert 0.4 < time.monotonic() - started < 3
    assert moved(fake)
    assert fake.retry == RETRY


def test_a_command_that_always_hangs(fake):
    fake.instead["RELOAD"] = [hang] * 99
    started = time.monotonic()
    with pytest.raises(TemporaryError, match=f"port={fake.port} .*: RELOAD: took the login and went silent"):
        send(fake, DETACH, seconds=2)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("command", "text"),
    [
        pytest.param(SET, "unknown parameter", id="SET"),
        ('KILL "app"', "already suspended/paused"),
        ('RESUME "app"', "no such database: app"),
    ],
)
def test_a_command_that_is_refused_after_the_first_reload(fake, command, text):
    fake.servers = [("app", "10.0.0.1", 5444)]
    fake.instead[command] = [refuse(text)]
    with pytest.raises(TemporaryError, match=f"RELOAD, but .*port={fake.port} .*{text}"):
        send(fake, PROMOTE)
    assert is_retry_back(fake)
    send(fake, PROMOTE)
    assert moved(fake)
    assert fake.paused == set()


def test_a_reload_that_fails_and_says_so(fake):
    """1.25 and newer."""

    def fail(fake, connection, answer):
        fake.places["app"] = ("10.0.0.1", "5444")
        connection.sendall(failure("RELOAD failed, see logs") + READY)

    fake.instead["RELOAD"] = [fail] * 9
    with pytest.raises(PermanentError, match=r"RELOAD failed, see logs; after RELOAD .* shows app as 10.0.0.1:5444"):
        send(fake, PROMOTE)
    assert fake.config.read_text() == MOVED
    fake.instead.clear()
    assert send(fake, PROMOTE).result is Result.CHANGED


def test_a_reload_that_stops_behind_the_entries_and_does_not_say_so(fake):
    """Up to 1.24: the entries are loaded, and the settings behind them stay as they are."""

    def stop(fake, connection, answer):
        fake.retry = LIFTED if SET in fake.sent else RETRY
        connection.sendall(answer.encoded())

    fake.instead["RELOAD"] = [stop] * 9
    with pytest.raises(PermanentError, match=f"port={fake.port} .* does not load its configuration to the end"):
        send(fake, PROMOTE)
    assert moved(fake)
    assert fake.retry == RETRY


def test_one_of_two_processes_that_answers_nonsense(config):
    with FakeConsole(config) as first, FakeConsole(config) as second:
        first.instead["SHOW DATABASES"] = [without("host")] * 9
        with pytest.raises(PermanentError, match=f"RELOAD at .*port={second.port}.*but .*port={first.port}"):
            HOOKS[Promote](PROMOTE, balancer(first, second), time.monotonic() + 5)
        assert second.places["app"] == ("10.0.0.2", "5444"), "the other one is right"


def test_what_went_wrong_before_the_deadline_cut_the_last_try_short(fake):
    fake.instead["SHOW DATABASES"] = [cut(30), hang]
    patient = balancer(fake)._replace(connect_timeout=20)
    with pytest.raises(TemporaryError, match=r"went silent; before: .*SHOW DATABASES: server closed the connection"):
        adapter.efm_lb_promote(PROMOTE, patient, time.monotonic() + 2)


def test_data_that_nobody_asked_for(fake):
    """Copy data would be waited for without end."""
    fake.instead["SHOW DATABASES"] = [raw(message(b"H", struct.pack("!bh", 0, 0)))] * 99
    started = time.monotonic()
    with pytest.raises(TemporaryError, match=f"port={fake.port} .*SHOW DATABASES"):
        send(fake, PROMOTE, seconds=3)
    assert time.monotonic() - started < 3.5


# The file


def test_a_file_that_changes_between_read_and_write_is_read_anew(fake, config, monkeypatch):
    replace_file = drive.replace_file
    interferences = [ENTRIES + "; theirs\n"]

    def interfere(path, expected, content):
        if interferences:
            config.write_text(interferences.pop())
        replace_file(path, expected, content)

    monkeypatch.setattr(drive, "replace_file", interfere)
    assert send(fake, PROMOTE).result is Result.CHANGED
    assert config.read_text() == MOVED + "; theirs\n"


def on_timeline(timeline, letters="sPs"):
    """A promote of the second node, on a timeline of its own."""
    first, second, third = truth(letters).states
    return Promote(NODES[1], Truth((first, second._replace(timeline=timeline), third)))


def test_the_file_remembers_the_timeline(fake, config):
    send(fake, on_timeline(7))
    assert config.read_text() == MOVED.replace("timeline 1", "timeline 7")
    assert send(fake, on_timeline(7)).result is Result.UNCHANGED


def test_a_file_that_is_right_is_not_written_because_of_a_timeline(fake, config):
    config.write_text(MOVED)
    fake.load()
    assert send(fake, on_timeline(7)).result is Result.UNCHANGED
    assert config.read_text() == MOVED


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("hook", [adapter.efm_lb_promote, adapter.efm_lb_plan])
def test_an_older_timeline_gets_no_writes(fake, config, hook, moved):
    """Also when nothing would change: it is told by day, and not at the next failover."""
    marked = (MOVED if moved else ENTRIES.replace("app =", "; efm-lb: writes follow timeline 1\napp =")).replace(
        "timeline 1", "timeline 7"
    )
    config.write_text(marked)
    fake.load()
    with pytest.raises(PermanentError) as caught:
        hook(on_timeline(6), balancer(fake), time.monotonic() + 5)
    assert str(caught.value) == (
        f"{config}:3: writes follow timeline 7, and 10.0.0.2:5444 is on timeline 6: it has missed a promotion, so it"
        " gets no writes: stop it. Only where the newer timeline is gone for good (pg_upgrade, initdb, a restore, a"
        " primary that is given up), remove the mark, and call again: sed -i --follow-symlinks"
        f" '/^; efm-lb: writes follow timeline [0-9]*$/d' {config}"
    )
    assert config.read_text() == marked
    assert fake.sent == [], "nothing was said to PgBouncer"


def test_the_command_of_the_refusal_is_all_that_it_takes(fake, config):
    config.write_text(MOVED.replace("timeline 1", "timeline 7"))
    fake.load()
    with pytest.raises(PermanentError) as caught:
        send(fake, on_timeline(6))
    subprocess.run(str(caught.value).rpartition("call again: ")[2], shell=True, check=True)
    assert send(fake, on_timeline(6)).result is Result.UNCHANGED


@pytest.mark.parametrize("timeline", [7, 8])
def test_the_same_timeline_and_a_newer_one_go_through(fake, config, timeline):
    config.write_text(ENTRIES.replace("app =", "; efm-lb: writes follow timeline 7\napp ="))
    assert send(fake, on_timeline(timeline)).result is Result.CHANGED
    assert config.read_text() == MOVED.replace("timeline 1", f"timeline {timeline}")


def test_a_timeline_that_is_not_known_goes_through_and_leaves_the_mark(fake, config):
    config.write_text(ENTRIES.replace("app =", "; efm-lb: writes follow timeline 7\napp ="))
    assert send(fake, on_timeline(None)).result is Result.CHANGED
    assert config.read_text() == MOVED.replace("timeline 1", "timeline 7")


def test_a_detach_that_moves_writes_is_fenced_as_well(fake, config):
    config.write_text(ENTRIES.replace("app =", "; efm-lb: writes follow timeline 7\napp ="))
    promote = on_timeline(6, "xPs")
    with pytest.raises(PermanentError, match=r"writes follow timeline 7, and 10\.0\.0\.2:5444 is on timeline 6"):
        send(fake, Detach(NODES[0], promote.truth))
    assert send(fake, Detach(NODES[0], on_timeline(8, "xPs").truth)).result is Result.CHANGED
    assert config.read_text() == MOVED.replace("timeline 1", "timeline 8")


def test_the_mark_of_any_entry_of_writes_counts_and_those_of_others_do_not(fake, config):
    marks = [b"; efm-lb: writes follow timeline %d\n" % timeline for timeline in (9, 5, 7)]
    text = b"[databases]\n%bapp_ro = host=10.0.0.3 port=5444\n%bapp = host=10.0.0.2 port=5444\n" % (marks[0], marks[1])
    config.write_bytes(text + marks[2] + b"edb = host=10.0.0.2 port=5444\n")
    fake.load()
    for timeline in (5, 6):
        with pytest.raises(PermanentError, match=r":6: writes follow timeline 7, and"):
            send(fake, on_timeline(timeline), write=["app", "edb"])
    assert send(fake, on_timeline(8), write=["app", "edb"]).result is Result.UNCHANGED


def test_a_file_that_never_stops_changing(fake, config, monkeypatch):
    replace_file = drive.replace_file
    numbers = iter(range(100))

    def interfere(path, expected, content):
        config.write_text(f"{ENTRIES}; {next(numbers)}\n")
        replace_file(path, expected, content)

    monkeypatch.setattr(drive, "replace_file", interfere)
    with pytest.raises(TemporaryError, match="was changed by somebody else meanwhile"):
        send(fake, PROMOTE)
    assert config.read_text() == f"{ENTRIES}; 2\n", "three tries, and theirs is whole"
    assert fake.sent == [], "PgBouncer is told nothing that no file says"


def test_a_file_that_another_event_writes_before_the_reload_is_judged_anew(fake, config):
    """Two hosts at once: what the other one wrote is no failure, and is not undone."""

    def write(fake, connection, answer):
        config.write_text(MOVED.replace("host=10.0.0.3", "host=10.0.0.1"))
        fake.load()
        connection.sendall(answer.encoded())

    fake.instead["RELOAD"] = [write]
    outcome = send(fake, PROMOTE)
    assert outcome.result is Result.CHANGED
    assert config.read_text() == MOVED.replace("host=10.0.0.3", "host=10.0.0.1")
    assert fake.places["app_ro"] == ("10.0.0.1", "5444")


def test_a_file_that_others_write_without_end_is_no_failure_for_good(fake, config):
    def write(fake, connection, answer):
        config.write_text(ENTRIES)
        fake.load()
        connection.sendall(answer.encoded())

    fake.instead["RELOAD"] = [write] * 99
    with pytest.raises(TemporaryError, match="was changed by somebody else meanwhile"):
        send(fake, PROMOTE)


def test_writes_that_another_event_moved_meanwhile_are_not_moved_back(fake, config):
    """The other one has asked the databases later, or knows better: this one does not know."""
    other = MOVED.replace("app = host=10.0.0.2", "app = host=10.0.0.3")

    def write(fake, connection, answer):
        config.write_text(other)
        fake.load()
        connection.sendall(answer.encoded())

    fake.instead["RELOAD"] = [write]
    with pytest.raises(TemporaryError, match="was changed by somebody else meanwhile"):
        send(fake, PROMOTE)
    assert config.read_text() == other


def test_an_old_file_that_is_put_back_before_the_reload_is_not_loaded(fake, config, monkeypatch):
    replace_file = drive.replace_file

    def put_back(path, expected, content):
        replace_file(path, expected, content)
        config.write_text(ENTRIES)

    monkeypatch.setattr(drive, "replace_file", put_back)
    with pytest.raises(TemporaryError, match="was changed by somebody else meanwhile"):
        send(fake, PROMOTE)
    assert fake.sent == []


def test_an_old_file_that_is_put_back_while_logins_come_again_is_not_loaded(fake, config):
    def put_back(fake, connection, answer):
        config.write_text(ENTRIES)
        connection.sendall(answer.encoded())

    fake.servers = [("app", "10.0.0.1", 5444)]
    fake.instead['RESUME "app"'] = [put_back]
    with pytest.raises(TemporaryError, match="was changed by somebody else meanwhile"):
        send(fake, PROMOTE)
    assert fake.places["app"] == ("10.0.0.2", "5444")
    assert fake.retry == RETRY


def test_a_hold_of_which_another_host_has_let_go_half_is_none(fake, config):
    config.write_text(ENTRIES + "edb = host=10.0.0.1 port=5444\n")
    fake.load()

    def resume(fake, connection, answer):
        fake.paused.discard("app")
        connection.sendall(answer.encoded())

    fake.instead['PAUSE "edb"'] = [resume]
    with pytest.raises(TemporaryError, match="not held: somebody else has let the clients of app go meanwhile"):
        hold(fake, write=["app", "edb"])
    assert fake.paused == set()


@pytest.mark.parametrize("is_loaded", [True, False])
def test_writes_that_another_event_is_moving_are_not_taken_for_an_old_file(fake, config, is_loaded):
    """That one has asked later: the new primary was still a standby when this one did."""

    def load(fake, connection, answer):
        fake.load()
        connection.sendall(answer.encoded())

    config.write_text(MOVED)
    fake.instead["SHOW DATABASES"] = [load] if is_loaded else []
    send(fake, Detach(NODES[0], truth("xss")))
    assert ("app = host=10.0.0.2 " in config.read_text()) is is_loaded, "what nobody loads is an old file"
    assert fake.places["app"] == ("10.0.0.2" if is_loaded else "10.0.0.1", "5444")


def test_what_another_event_lifts_at_the_same_time_is_not_taken_for_a_failed_reload(fake):
    def lift(fake, connection, answer):
        fake.retry = "0.000999"
        connection.sendall(answer.encoded())

    fake.instead["RELOAD"] = [lift, lift]
    assert send(fake, PROMOTE).result is Result.CHANGED


def test_an_old_file_is_not_loaded_on_the_way(fake, config):
    """Somebody has put it back and has not loaded it: a detach of a standby would send writes to another one."""
    send(fake, PROMOTE)
    config.write_text(ENTRIES)
    outcome = send(fake, Detach(NODES[2], truth("sPs")))
    assert outcome.result is Result.CHANGED
    assert fake.places["app"] == ("10.0.0.2", "5444")
    assert "app = host=10.0.0.2 " in config.read_text()


@pytest.mark.parametrize("event", [Attach(NODES[2], truth("xPs")), Detach(NODES[2], truth("xPx"))])
def test_an_old_file_takes_no_writes_from_the_primary_to_a_dead_node(fake, config, event):
    """It names the primary of some time ago, which is down now."""
    send(fake, PROMOTE)
    config.write_text(ENTRIES)
    assert send(fake, event).result is Result.CHANGED
    assert fake.places["app"] == ("10.0.0.2", "5444")
    assert "app = host=10.0.0.2 " in config.read_text()


def test_an_old_file_moves_no_writes_while_no_primary_is_proven(fake, config):
    """The primary is silent, and another node is about to be promoted: the entry stays where it was."""
    send(fake, PROMOTE)
    config.write_text(ENTRIES)
    assert send(fake, Detach(NODES[1], truth("xxs"))).result is Result.CHANGED
    assert fake.places == {"app": ("10.0.0.2", "5444"), "app_ro": ("10.0.0.3", "5444")}
    assert "app = host=10.0.0.2 " in config.read_text()


@pytest.mark.parametrize(
    ("host", "databases"),
    [pytest.param("10.0.0.1", "Psx", id="the primary"), pytest.param("10.0.0.9", "xPx", id="no node")],
)
def test_a_file_that_somebody_has_changed_on_purpose_is_loaded(fake, config, host, databases):
    send(fake, PROMOTE)
    config.write_text(ENTRIES.replace("host=10.0.0.1 ", f"host={host} "))
    assert send(fake, Detach(NODES[2], truth(databases))).result is Result.CHANGED
    assert fake.places["app"] == (host, "5444")


def test_what_cannot_be_written_is_tried_once(fake, config, monkeypatch):
    calls = []

    def fail(*arguments):
        calls.append(arguments)
        raise TemporaryError("cannot replace it: No space left on device")

    monkeypatch.setattr(drive, "replace_file", fail)
    with pytest.raises(TemporaryError, match="No space left"):
        send(fake, PROMOTE)
    assert len(calls) == 1
    assert config.read_text() == ENTRIES
    assert fake.sent == []


# The login


@pytest.mark.parametrize(
    ("reply", "kind", "said"),
    [
        (failure("not allowed", "FATAL"), PermanentError, "refuses the login.*must be in admin_users"),
        (failure("no such user", "FATAL", "28000"), PermanentError, "refuses the login.*must be in admin_users"),
        (message(b"R", struct.pack("!i", 3)), PermanentError, "wants a password.*PASSFILE must have a line"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", PermanentError, "is no PgBouncer: .*but received H"),
        (failure('database "pgbouncer" does not exist', "FATAL", "3D000"), PermanentError, "is no PgBouncer: .*3D000"),
        (message(b"R", struct.pack("!i", 99)), TemporaryError, "authentication method 99 not supported"),
        (failure("the server is shutting down", "FATAL", "57P01"), TemporaryError, "shutting down"),
    ],
)
def test_logins_that_fail(fake, reply, kind, said):
    fake.login = [raw(reply)] * 999
    with pytest.raises(kind, match=f"port={fake.port} .*{said}"):
        send(fake, DETACH, seconds=3)
    if kind is PermanentError:
        assert fake.config.read_text() == ENTRIES, "nothing is changed by halves"
    assert fake.sent == []


@pytest.mark.parametrize("act", [close, hang, raw(b"R\0")])
def test_a_login_that_fails_once_is_tried_again(fake, act):
    fake.login = [act]
    assert send(fake, PROMOTE).result is Result.CHANGED
    assert moved(fake)


# Holding


@pytest.fixture
def no_guard_is_left(fake):
    """Whatever the test did, what lets clients go ends by itself."""
    yield
    deadline = time.monotonic() + 8
    while guards(fake) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = guards(fake)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def guards(fake):
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                words = file.read().decode().split("\0")
            with open(f"/proc/{name}/stat") as file:
                state = file.read().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if "efm_lb_pgbouncer.guard" in words and fake.admin in words and state != "Z":
            found.append(int(name))
    return found


def has_ended(pid):
    """Also of what nobody has waited for yet. Its command line is gone before its files are closed."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def released(fake, seconds=5.0):
    deadline = time.monotonic() + seconds
    while fake.paused and time.monotonic() < deadline:
        time.sleep(0.02)
    return not fake.paused


def test_a_login_that_was_refused_when_it_was_begun_is_made_anew(fake):
    """It is not known how long ago that was."""
    fake.login = [refuse("not allowed", severity="FATAL")]
    begun = logins_of([("pgb1", fake.admin, {"dbname": "pgbouncer"})], time.monotonic() + 5)["pgb1"]
    assert wait_until(lambda: not fake.login, 5)
    with_login = balancer(fake)._replace(begun=begun)
    outcome = adapter.efm_lb_promote(PROMOTE, with_login, time.monotonic() + 5)
    assert outcome.result is Result.CHANGED
    assert begun == {}


@pytest.mark.usefixtures("no_guard_is_left")
class TestHold:
    def test_it_holds_and_lets_go(self, fake):
        assert hold(fake).result is Result.CHANGED
        assert fake.paused == {"app"}
        assert released(fake)
        assert wait_until(lambda: not guards(fake), 5)
        lifted, back = "SET server_login_retry = 0", "SET server_login_retry = '15'"
        assert fake.sent == ['PAUSE "app"', lifted, 'RESUME "app"', back]

    @pytest.mark.parametrize(
        ("act", "said"),
        [
            (hang, "transactions of app did not end in time"),
            (close, 'not held: .*PAUSE "app": server closed the connection'),
            (cut(3), 'not held: .*PAUSE "app": server closed the connection'),
            (refuse("already suspended/paused"), "PAUSE app: already suspended/paused"),
            (raw(message(b"C", texts("WAIT_CLOSE")) + READY), "did not wait"),
            (refuse("admin access needed"), "must be in admin_users"),
        ],
    )
    def test_a_pause_that_fails_holds_nobody(self, fake, act, said):
        fake.instead['PAUSE "app"'] = [act]
        with pytest.raises(TemporaryError, match=said):
            hold(fake)
        assert fake.paused == set()

    def test_it_is_watched_over_while_another_host_pauses_and_lets_go(self, fake):
        """Between the PAUSEs of a hook it looks as if all were over."""
        left = []

        def pause(fake, connection, answer):
            for paused in ({"app"}, set()):
                fake.paused = paused
                time.sleep(0.3)
            left.append(len(guards(fake)))
            fake.paused = {"app"}
            connection.sendall(answer.encoded())

        fake.instead['PAUSE "app"'] = [pause]
        assert hold(fake, hold=4).result is Result.CHANGED
        assert left == [1]
        assert fake.paused == {"app"}
        assert released(fake, 8)

    @pytest.mark.parametrize("is_reached", [True, False])
    def test_nobody_is_held_when_the_other_process_is_killed(self, fake, is_reached):
        def pause(fake, connection, answer):
            (pid,) = guards(fake)
            os.kill(pid, signal.SIGKILL)
            assert wait_until(lambda: has_ended(pid), 5)
            fake.login = [] if is_reached else [refuse("not allowed", severity="FATAL")]
            connection.sendall(answer.encoded())

        fake.instead['PAUSE "app"'] = [pause]
        with pytest.raises(TemporaryError, match="not held: the process that lets clients go was killed") as raised:
            hold(fake)
        untold = f"{fake.admin} could not be told to RESUME: the next call or reconcile does it"
        assert (untold in str(raised.value)) is not is_reached
        assert fake.sent == ['PAUSE "app"', *(['RESUME "app"'] if is_reached else [])]

    def test_a_resume_that_is_refused(self, fake):
        fake.instead['PAUSE "app"'] = [refuse("already suspended/paused")]
        fake.instead['RESUME "app"'] = [refuse("no")]
        with pytest.raises(TemporaryError, match="could not be told to RESUME: it will be, in time"):
            hold(fake)

    def test_it_is_told_to_end_while_the_hook_pauses(self, fake):
        """It lets go at once, and again of what is paused after that: HOLD does not matter any more."""
        left = []

        def pause(fake, connection, answer):
            (pid,) = guards(fake)
            os.kill(pid, signal.SIGTERM)
            assert released(fake)
            time.sleep(0.3)
            left.append(len(guards(fake)))
            fake.paused = {"app"}
            connection.sendall(answer.encoded())

        fake.instead['PAUSE "app"'] = [pause]
        assert hold(fake, hold=60).result is Result.CHANGED
        assert left == [1]
        assert released(fake)

    def test_after_a_kill_nothing_is_left_to_watch_over(self, fake):
        fake.servers = [("app", "10.0.0.1", 5444)]
        assert "KILL app" in send(fake, PROMOTE).detail
        assert wait_until(lambda: not guards(fake), 2)

    def test_a_kill_whose_resume_fails(self, fake):
        fake.servers = [("app", "10.0.0.1", 5444)]

        def fail(fake, connection, answer):
            fake.paused = {"app"}
            refuse("no")(fake, connection, answer)

        fake.instead['RESUME "app"'] = [fail]
        with pytest.raises(TemporaryError, match="RESUME app: no"):
            send(fake, PROMOTE)
        assert released(fake, 2), "at once"

    def test_a_hold_is_left_alone_by_what_else_this_process_starts(self, fake):
        """Whoever else had its pipe open would keep it from hearing that its hook is gone."""
        names, mark = ["app"], f"{fake.config}.held"
        console = Console(fake.admin, "", 1.0)
        first, second = (guard.start([console], names, 30.0, mark, time.monotonic() + 10) for _ in range(2))
        assert {first.pid, second.pid} == {*guards(fake)}
        first.leave()
        assert wait_until(lambda: guards(fake) == [second.pid], 5)
        second.leave()
        assert wait_until(lambda: not guards(fake), 5)

    def test_a_console_that_lets_nobody_in_after_the_pause(self, fake):
        """What was paused is let go by the other process, whatever the hook is told."""

        def pause(fake, connection, answer):
            # The other process may log in too, and before the hook does.
            fake.login = [refuse("not allowed", severity="FATAL")] * 2
            hang(fake, connection, answer)

        fake.instead['PAUSE "app"'] = [pause]
        with pytest.raises(TemporaryError, match="could not be told to RESUME"):
            hold(fake)
        assert released(fake, 1), "at once, and not after HOLD"

    def test_columns_that_are_lost_after_the_pause(self, fake):
        def pause(fake, connection, answer):
            fake.instead["SHOW DATABASES"] = [without("host")]
            connection.sendall(answer.encoded())

        fake.instead['PAUSE "app"'] = [pause]
        with pytest.raises(TemporaryError, match="has no column host"):
            hold(fake)
        assert fake.paused == set()

    @pytest.mark.parametrize(
        "act", [close, hang, cut(0), cut(30), without("paused"), with_value("port", "x"), refuse("no")]
    )
    def test_the_guard_gets_over_answers_that_make_no_sense(self, fake, act):
        assert hold(fake).result is Result.CHANGED
        fake.instead["SHOW DATABASES"] = [act] * 3
        assert released(fake)

    @pytest.mark.parametrize("act", [close, hang, cut(2), refuse("no")])
    def test_the_guard_resumes_until_it_is_done(self, fake, act):
        def again(fake, connection, answer):
            fake.paused.add("app")
            act(fake, connection, answer)

        fake.instead['RESUME "app"'] = [again] * 2
        assert hold(fake).result is Result.CHANGED
        assert released(fake, 8)

    @pytest.mark.parametrize("what", ["SHOW CONFIG", "SET server_login_retry = 0", "SHOW POOLS"])
    @pytest.mark.parametrize("act", [close, hang, cut(2), refuse("no")])
    def test_the_guard_resumes_whatever_becomes_of_the_rest(self, fake, what, act):
        assert hold(fake).result is Result.CHANGED
        fake.instead[what] = [act] * 3
        assert released(fake, 8)

    def test_a_guard_that_cannot_log_in(self, fake):
        def without_another(fake, connection, answer):
            fake.login = [refuse("not allowed", severity="FATAL")]
            connection.sendall(answer.encoded())

        fake.instead["SHOW DATABASES"] = [without_another]
        with pytest.raises(TemporaryError, match=r"lets clients go is not there: .*refuses the login"):
            hold(fake)
        assert fake.sent == [], "nothing is paused without it"


# What only looks


@pytest.mark.parametrize(
    ("what", "act"),
    [
        *(("DATABASES", act) for act in (close, cut(30), cut(200), without("host"), with_value("port", "x"))),
        *(
            (what, act)
            for what in ("CONFIG", "VERSION")
            for act in (close, cut(10), refuse("no"), raw(b"HTTP/1.1 400"))
        ),
        ("CONFIG", without("key")),
        ("VERSION", without("version")),
    ],
)
def test_check_tells_what_the_console_answers(fake, what, act):
    fake.instead[f"SHOW {what}"] = [act] * 99
    with pytest.raises((TemporaryError, PermanentError), match=f"port={fake.port} .*SHOW {what}"):
        adapter.efm_lb_check(truth("Pss"), balancer(fake), time.monotonic() + 1)
    assert fake.sent == []


@pytest.mark.parametrize(("timeline", "complains"), [(2, True), (1, False)])
def test_what_a_file_remembers_is_told_before_the_next_promote_is_refused(fake, config, timeline, complains):
    """The truth is on timeline 1."""
    config.write_text(ENTRIES.replace("app =", f"; efm-lb: writes follow timeline {timeline}\napp ="))
    found = adapter.efm_lb_check(truth("Pss"), balancer(fake), time.monotonic() + 5)
    told = [each.detail for each in found if each.severity is Severity.ERROR and each.subject == str(config)]
    assert [f"{config}:3: writes follow timeline 2, and 10.0.0.1:5444 is on timeline 1" in each for each in told] == (
        [True] if complains else []
    )
    found = adapter.efm_lb_check(truth("sss"), balancer(fake), time.monotonic() + 5)
    assert not [each for each in found if "timeline" in each.detail], "no primary is proven"


def test_check_goes_on_with_the_other_process(config):
    with ExitStack() as stack:
        first, second = (stack.enter_context(FakeConsole(config)) for _ in range(2))
        first.instead["SHOW DATABASES"] = [with_value("port", "x")]
        found = adapter.efm_lb_check(truth("Pss"), balancer(first, second), time.monotonic() + 2)
    (error,) = [finding for finding in found if finding.severity is Severity.ERROR]
    assert "port is 'x'" in error.detail
    assert any(finding.subject == second.admin and "answers" in finding.detail for finding in found)


def test_the_view_and_the_plan_of_a_console_that_answers_nonsense(fake):
    for hook, arguments in ((adapter.efm_lb_view, NODES), (adapter.efm_lb_plan, PROMOTE)):
        for act, kind in ((without("host"), PermanentError), (with_value("port", "x"), PermanentError)):
            fake.instead["SHOW DATABASES"] = [act]
            with pytest.raises(kind, match=f"port={fake.port} "):
                hook(arguments, balancer(fake), time.monotonic() + 2)
        fake.instead["SHOW DATABASES"] = [cut(30)]
        with pytest.raises(TemporaryError, match=f"port={fake.port} "):
            hook(arguments, balancer(fake), time.monotonic() + 2)


def test_nobody_there(fake, config):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    given = balancer(fake, admin=[f"host=127.0.0.1 port={port} user=efm_lb"])
    with pytest.raises(TemporaryError, match=f"port={port} .*Connection refused"):
        adapter.efm_lb_detach(DETACH, given, time.monotonic() + 1)
    assert "10.0.0.2 port" in config.read_text(), "the file says already what is right when it starts"
