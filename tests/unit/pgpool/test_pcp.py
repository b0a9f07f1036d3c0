"""The client against a server that answers well, badly, slowly or not at all."""

import _socket
import contextlib
import socket
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efm_lb import PermanentError, TemporaryError
from efm_lb_pgpool.pcp import Interrupted, Refusal, Server, Session, connect
from unit.pgpool.fake_pcp import (
    ALL_4_3,
    COUNT,
    LOGIN,
    NODES_4_2,
    NODES_4_3,
    Conversation,
    FakePgpool,
    error,
    frame,
    nodes_4_3,
)

SERVER = Server("127.0.0.1", 9898)
COMPLETE_4_3 = {
    b"L": COUNT,
    b"I": lambda body: nodes_4_3(*NODES_4_3) if body == b"-1\0" else nodes_4_3(NODES_4_3[int(body[:-1])]),
}
COMPLETE_4_2 = {
    b"L": COUNT,
    b"I": lambda body: frame(b"i", b"CommandComplete\0" + NODES_4_2[int(body[:-1])]),
}


@contextlib.contextmanager
def session_to(conversation, timeout=2.0):
    with FakePgpool(conversation) as server:
        session = connect(Server("127.0.0.1", server.port), "pcp", "secret", time.monotonic() + timeout, timeout)
        with session:
            yield session


@contextlib.contextmanager
def fed(data, timeout=2.0, end=True):
    """A session whose peer has sent ``data`` already, and closed unless ``end`` is False."""
    ours, theirs = _socket.socketpair()
    try:
        theirs.sendall(data)
        if end:
            theirs.shutdown(_socket.SHUT_WR)
        with Session(SERVER, ours, time.monotonic() + timeout) as session:
            yield session
    finally:
        theirs.close()


def everything(session):
    """Ask all there is to ask."""
    session.log_in("pcp", "secret")
    session.nodes()
    session.settings()
    session.watchdog()
    session.want_log()
    session.attach(1)
    session.detach(1)
    session.promote(1, True)


SETTINGS = (
    frame(b"b", b"ArraySize\0\0\0\0\2")
    + frame(b"b", b"ProcessConfig\0auto_failback\x000\0re-attach\0")
    + frame(b"b", b"ProcessConfig\0failover_command\0\0what to run\0")
    + frame(b"b", b"CommandComplete\0")
)
WATCHDOG = frame(b"w", b'CommandComplete\0{"NodeCount":3}\0')
TAIL = b"".join(frame(kind, b"CommandComplete\0") for kind in (b"a", b"c", b"d", b"d"))
GOOD = LOGIN + ALL_4_3 + SETTINGS + WATCHDOG + TAIL


def test_reads_the_nodes_of_4_3_and_later():
    conversation = Conversation(COMPLETE_4_3)
    with session_to(conversation) as session:
        nodes = session.nodes()
        again = session.nodes(since_4_3=True)
    assert nodes.since_4_3
    assert nodes == again
    assert [(b.id, b.port, b.state) for b in nodes.backends] == [
        (0, 21432, "up/primary"),
        (1, 21433, "waiting/standby"),
        (2, 21434, "down/standby"),
    ]
    assert conversation.requests == [(b"L", b""), (b"I", b"0\0"), (b"I", b"-1\0"), (b"I", b"-1\0")]


def test_reads_the_nodes_of_4_2_and_before_without_asking_for_all():
    conversation = Conversation(COMPLETE_4_2)
    with session_to(conversation) as session:
        nodes = session.nodes()
    assert not nodes.since_4_3
    assert [b.state for b in nodes.backends] == ["up/primary", "waiting/standby", "down/standby"]
    assert conversation.requests == [(b"L", b""), (b"I", b"0\0"), (b"I", b"1\0"), (b"I", b"2\0")]


def test_the_frames_of_commands():
    done = {b"C": frame(b"c", b"CommandComplete\0")} | dict.fromkeys((b"D", b"J"), frame(b"d", b"CommandComplete\0"))
    conversation = Conversation(done)
    with session_to(conversation) as session:
        session.attach(0)
        session.detach(12)
        session.promote(1, since_4_3=True)
        session.promote(1, since_4_3=False)
    assert conversation.requests == [(b"C", b"0\0"), (b"D", b"12\0"), (b"J", b"1 \0n"), (b"J", b"1\0")]


def test_reads_settings_and_the_watchdog():
    with fed(GOOD) as session:
        session.log_in("pcp", "secret")
        session.nodes()
        assert session.settings() == {"auto_failback": "0", "failover_command": ""}
        assert session.watchdog() == '{"NodeCount":3}'


def test_no_watchdog():
    off = error("ERROR", "PCP: informing watchdog info failed", "watchdog is not enabled")
    with session_to(Conversation({b"W": off})) as session:
        assert session.watchdog() is None


def test_notices_are_collected_and_a_refusal_keeps_the_words_of_pgpool():
    notice = b"SLOG\0CXX000\0Mwill be handled by watchdog\0\0"
    refusal = error("ERROR", "invalid degenerate backend request", "node id : 2 status: [3] is not valid for failover")
    with session_to(Conversation({b"D": frame(b"N", notice) + refusal})) as session:
        with pytest.raises(Refusal, match="not valid for failover"):
            session.detach(2)
        assert [n.message for n in session.notices] == ["will be handled by watchdog"]


@pytest.mark.parametrize(("user", "password"), [("pcp", "wrong"), ("other", "secret"), ("pcp", "")])
def test_a_refused_login_is_permanent_and_tells_no_password(user, password):
    with FakePgpool(Conversation({})) as server, pytest.raises(PermanentError, match="refuses the login") as caught:
        connect(Server("127.0.0.1", server.port), user, password, time.monotonic() + 2, 2)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "banner",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"N\0\0\0\4",
        b"R\0\0\0\x08\0\0\0\0",
        b"m\0\0\0\5a",
    ],
)
def test_another_protocol_is_named_as_such(banner):
    with fed(banner) as session, pytest.raises(TemporaryError, match=r"127\.0\.0\.1:9898 does not speak PCP"):
        session.log_in("pcp", "secret")


@pytest.mark.parametrize("answer", [b"S", b"N"])
def test_postgresqls_own_port_is_found_out_at_once(answer):
    """PostgreSQL, pgpool's port for clients and PgBouncer hang up on PCP's first message without a word."""

    def postgresql(connection):
        if connection.recv(8) == b"\0\0\0\x08\x04\xd2\x16\x2f":
            connection.sendall(answer)
            connection.recv(1)

    with FakePgpool(postgresql) as server, pytest.raises(TemporaryError, match="PostgreSQL's protocol") as caught:
        connect(Server("127.0.0.1", server.port), "pcp", "secret", time.monotonic() + 2, 2)
    assert not isinstance(caught.value, Interrupted), "asking again is of no use"
    assert f"127.0.0.1:{server.port}" in str(caught.value)


@pytest.mark.parametrize("answer", [b"", frame(b"N", b"SLOG\0"), error("FATAL", "invalid packet length")])
def test_a_pgpool_that_restarts_its_listener_is_asked_again(answer):
    def restarting(connection):
        if connection.recv(8)[:1] != b"M":
            connection.sendall(answer)

    with FakePgpool(restarting) as server, pytest.raises(Interrupted):
        connect(Server("127.0.0.1", server.port), "pcp", "secret", time.monotonic() + 2, 2)


def test_a_server_that_closes_at_once_is_asked_about():
    with fed(b"") as session, pytest.raises(Interrupted, match=r"closed the connection.*is it pgpool's pcp_port"):
        session.log_in("pcp", "secret")


def test_a_connection_that_breaks_at_any_byte():
    for end in range(len(GOOD)):
        with fed(GOOD[:end]) as session, pytest.raises(TemporaryError):
            everything(session)


def test_nothing_is_missing_from_the_whole():
    with fed(GOOD) as session:
        everything(session)


@pytest.mark.parametrize("end", [0, 3, 9, 12, len(LOGIN), len(LOGIN) + 7, len(LOGIN + ALL_4_3) - 1])
def test_a_server_that_falls_silent_costs_no_more_than_the_deadline(end):
    started = time.monotonic()
    with (
        fed(GOOD[:end], timeout=0.1, end=False) as session,
        pytest.raises(TemporaryError, match="did not answer in time"),
    ):
        everything(session)
    assert time.monotonic() - started < 0.5


def test_a_silent_server_costs_the_connect_timeout_only():
    def silent(connection):
        connection.recv(1 << 16)
        connection.settimeout(3)
        connection.recv(1)

    started = time.monotonic()
    with FakePgpool(silent) as server, pytest.raises(TemporaryError, match="did not answer in time"):
        connect(Server("127.0.0.1", server.port), "pcp", "secret", time.monotonic() + 30, 0.2)
    assert time.monotonic() - started < 1


def test_a_slow_drip_does_not_outlast_the_deadline():
    def drip(connection):
        for byte in GOOD:
            connection.sendall(bytes([byte]))
            time.sleep(0.01)

    started = time.monotonic()
    with FakePgpool(drip) as server, pytest.raises(TemporaryError, match="did not answer in time"):
        connect(Server("127.0.0.1", server.port), "pcp", "secret", time.monotonic() + 30, 0.2)
    assert time.monotonic() - started < 1


def test_endless_notices_end():
    def shout(connection):
        connection.sendall(LOGIN)
        while True:
            connection.sendall(frame(b"N", b"M" + b"x" * 60_000 + b"\0\0"))

    with FakePgpool(shout) as server:
        session = connect(Server("127.0.0.1", server.port), "pcp", "secret", time.monotonic() + 30, 2)
        with session, pytest.raises(Interrupted, match="more than"):
            session.nodes()


def test_a_reset_is_an_interruption():
    def reset(connection):
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with FakePgpool(reset) as server, pytest.raises(Interrupted):
        connect(Server("127.0.0.1", server.port), "pcp", "secret", time.monotonic() + 2, 2)


@pytest.mark.parametrize(
    "reply",
    [
        frame(b"l", b"CommandComplete\x000\0"),
        frame(b"l", b"CommandComplete\x00129\0"),
        frame(b"l", b"CommandComplete\0-1\0"),
        frame(b"l", b"CommandComplete\0many\0"),
        frame(b"l", b"CommandComplete\0"),
        COUNT + nodes_4_3(),
        COUNT + nodes_4_3(NODES_4_3[0]) + nodes_4_3(*NODES_4_3[:2]),
        COUNT + nodes_4_3(*NODES_4_3),
        COUNT + frame(b"i", b"CommandComplete\0"),
        b"l\xff\xff\xff\xff",
        frame(b"i", b"CommandComplete\0"),
    ],
)
def test_an_answer_out_of_step_is_an_interruption(reply):
    with fed(LOGIN + reply) as session:
        session.log_in("pcp", "secret")
        with pytest.raises(Interrupted):
            session.nodes()


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=400))
def test_random_bytes_are_an_error_of_the_adapter(data):
    with fed(data) as session, pytest.raises((TemporaryError, PermanentError)):
        everything(session)


@settings(max_examples=500, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=8), st.integers(0, 8))
def test_a_damaged_answer_is_an_error_of_the_adapter_or_harmless(at, damage, removed):
    with fed(GOOD[:at] + damage + GOOD[at + removed :]) as session:
        problem = problem_of(session)
    assert len(problem) < 1000
    assert problem.isprintable()


def problem_of(session):
    """The adapter's error, empty when there is none."""
    try:
        everything(session)
    except (TemporaryError, PermanentError) as error:
        return str(error)
    return ""


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(b"mrlibwacdEN"), st.binary(max_size=40)), max_size=12))
def test_any_messages_are_an_error_of_the_adapter_or_harmless(messages):
    stream = LOGIN + b"".join(frame(bytes([kind]), body) for kind, body in messages)
    with fed(stream) as session, contextlib.suppress(TemporaryError, PermanentError):
        everything(session)


def test_no_one_listens():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(TemporaryError, match=f"cannot connect to 127.0.0.1:{port}: Connection refused"):
        connect(Server("127.0.0.1", port), "pcp", "secret", time.monotonic() + 2, 2)


def test_unix_socket(tmp_path):
    path = tmp_path / ".s.PGSQL.9898"
    with pytest.raises(TemporaryError, match=f"cannot connect to {path}"):
        connect(Server(str(tmp_path), 9898), "pcp", "secret", time.monotonic() + 2, 2)
    with pytest.raises(TemporaryError, match="too long"):
        connect(Server("/" + "d" * 200, 9898), "pcp", "secret", time.monotonic() + 2, 2)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 70, "a..b", "é" * 70, "a b"])
def test_a_name_that_does_not_resolve(host):
    with pytest.raises((TemporaryError, PermanentError)):
        connect(Server(host, 9898), "pcp", "secret", time.monotonic() + 2, 2)


@pytest.mark.parametrize("user", ["u" * 300, "ü"])
def test_odd_users(user):
    with FakePgpool(Conversation({})) as server, pytest.raises(PermanentError):
        connect(Server("127.0.0.1", server.port), user, "secret", time.monotonic() + 2, 2)


def test_the_names_of_servers():
    assert str(Server("10.0.0.1", 9898)) == "10.0.0.1:9898"
    assert str(Server("::1", 9898)) == "[::1]:9898"
    assert str(Server("/run/pgpool", 9898)) == "/run/pgpool/.s.PGSQL.9898"
