"""Whatever a load balancer, or what listens in its place, answers: an error or a reading, and never for long."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import time
import tracemalloc
from collections.abc import Iterator
from unittest import mock

import pytest
from hypothesis import strategies as st

from efm_lb import Connection, ConnectionFailed, PermanentError, StatementFailed, TemporaryError
from efm_lb.probe import Probe
from efm_lb.truth import Node, Reach
from efm_lb_haproxy.check import http_checked
from efm_lb_haproxy.runtime import Look, Runtime
from efm_lb_haproxy.servers import FormatError, parse_sessions, parse_state
from efm_lb_haproxy.settings import Endpoint
from efm_lb_pgbouncer.console import Console, Refused
from efm_lb_pgpool.check import of_watchdog
from efm_lb_pgpool.members import Member
from efm_lb_pgpool.pcp import Server, Session
from faults.fuzzing import damaged, fuzzed
from unit.haproxy.haproxy_model import Model
from unit.pgbouncer.fake_console import ENTRIES, FakeConsole, failure, message, raw, texts
from unit.pgpool.fake_pcp import ALL_4_2, ALL_4_3, LOGIN, error, frame

pytestmark = pytest.mark.fault("peers that mean harm")

SLACK = 20.0
"""Seconds that a busy machine may take on top of any time-out: what hangs takes longer."""
ERRORS = (TemporaryError, PermanentError)

# PCP

PCP_SETTINGS = (
    frame(b"b", b"ArraySize\0\0\0\0\2")
    + frame(b"b", b"ProcessConfig\0auto_failback\x000\0re-attach\0")
    + frame(b"b", b"CommandComplete\0")
)
PCP_TAIL = frame(b"w", b'CommandComplete\0{"NodeCount":3}\0') + b"".join(
    frame(kind, b"CommandComplete\0") for kind in (b"a", b"c", b"d", b"d")
)
PCP_NOTICE = frame(b"N", b"SLOG\0CXX000\0Mnode 1 is \x1b[31mdown\0\0")
PCP_REFUSAL = error("ERROR", "invalid degenerate backend request", "node id : 2 status: [3]")
PCP = (
    LOGIN + ALL_4_3 + PCP_SETTINGS + PCP_TAIL,
    LOGIN + ALL_4_2 + PCP_SETTINGS + PCP_TAIL,
    LOGIN + PCP_NOTICE + ALL_4_3 + PCP_REFUSAL + PCP_TAIL,
)


def ask_pgpool(data: bytes, timeout: float, end: bool) -> list[str]:
    """Ask for everything; the problems."""
    ours, theirs = socket.socketpair()
    problems = []
    with contextlib.closing(theirs):
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        theirs.setblocking(False)
        theirs.send(data)
        if end:
            theirs.shutdown(socket.SHUT_WR)
        with Session(Server("127.0.0.1", 9898), ours, time.monotonic() + timeout) as session:  # type: ignore[arg-type]
            for ask in (
                lambda: session.log_in("pcp", "secret"),
                session.nodes,
                session.settings,
                session.watchdog,
                session.want_log,
                lambda: session.attach(1),
                lambda: session.detach(1),
                lambda: session.promote(1, True),
            ):
                try:
                    ask()
                except ERRORS as problem:
                    problems.append(str(problem))
    return problems


@fuzzed(200, 20_000, data=damaged(*PCP))
def test_pcp(data: bytes) -> None:
    began = time.monotonic()
    for problem in ask_pgpool(data, 2, end=True):
        assert problem.isprintable()
        assert len(problem) < 1000
    assert time.monotonic() - began < SLACK


@fuzzed(20, 500, data=damaged(*PCP))
def test_pcp_of_a_server_that_stays_connected(data: bytes) -> None:
    began = time.monotonic()
    ask_pgpool(data, 0.05, end=False)
    assert time.monotonic() - began < SLACK


@pytest.mark.parametrize("length", [0, 3, 4, 0xFFFF, 1 << 20, (1 << 20) + 5, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_pcp_lengths_cost_no_memory(length: int) -> None:
    tracemalloc.start()
    try:
        for head in (b"", LOGIN):
            ask_pgpool(head + b"mlEN"[:1] + length.to_bytes(4, "big"), 0.05, end=False)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["WatchdogNodes", "QuorumStatus", "NodeName", "StateName"]) | st.text(max_size=3), inner
        )
    ),
    max_leaves=9,
)


@fuzzed(200, 20_000, text=JSON.map(json.dumps) | st.text())
def test_the_watchdogs_document(text: str) -> None:
    member = Member(Server("127.0.0.1", 9898), "pcp", "secret", 1)
    assert list(of_watchdog(member, 1, text))


# HAProxy's runtime API

LINE = "show info;show servers state w;show stat w 4 -1;show servers state r;show stat r 4 -1"
HAPROXY = Model(w="RMD", r="MRC").line(LINE).encode()
HAPROXY_CHANGE = Model(w="RMD", r="MRC").line(f"show info;set server w/n1 state maint;{LINE[10:]}").encode()


@contextlib.contextmanager
def answering(data: bytes) -> Iterator[None]:
    """Whoever connects to a HAProxy is answered this."""
    theirs = []

    def connect(endpoint: Endpoint, limit: float) -> socket.socket:
        one, other = socket.socketpair()
        other.send(data)
        other.shutdown(socket.SHUT_WR)
        theirs.append(other)
        return one

    with mock.patch("efm_lb_haproxy.runtime._open", connect):
        try:
            yield
        finally:
            for each in theirs:
                each.close()


@fuzzed(300, 30_000, data=damaged(HAPROXY, HAPROXY_CHANGE, b"Unknown command\n\n", b"HTTP/1.1 200 OK\r\n\r\n"))
def test_haproxys_runtime(data: bytes) -> None:
    runtime = Runtime(Endpoint("/run/haproxy.sock"), 0.02)
    began = time.monotonic()
    with answering(data):
        for commands in ((), ("set server w/n1 state maint",)):
            with contextlib.suppress(*ERRORS):
                sent_back(runtime.look(("w", "r"), time.monotonic() + 1, commands))
        with contextlib.suppress(*ERRORS):
            runtime.ask("show env", time.monotonic() + 1)
    assert time.monotonic() - began < SLACK


def sent_back(look: Look) -> None:
    """What HAProxy calls its servers is sent back to it: one word that begins no other command."""
    for servers in look.proxies.values():
        for server in servers:
            line = f"set server {server.path} state ready"
            line.encode("ascii")
            assert len(line.split()) == 5
            assert not set(line) & set(";\n\\<")


@fuzzed(300, 30_000, data=damaged(*(part + b"\n" for part in HAPROXY.split(b"\n\n"))))
def test_haproxys_tables(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for parse in (parse_state, parse_sessions, http_checked):
        with contextlib.suppress(FormatError):
            parse(text)


# PgBouncer's console, and PostgreSQL, by libpq


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeConsole]:
    config = tmp_path_factory.mktemp("console") / "databases.ini"
    config.write_text(ENTRIES)
    with FakeConsole(config) as fake:
        yield fake


def answer_of(fake: FakeConsole, statement: str) -> bytes:
    return fake._carry_out(statement).encoded()


QUESTIONS = ("SHOW DATABASES", "SHOW SERVERS", "SHOW POOLS", "SHOW CONFIG", "SHOW VERSION")
NOTICE = message(
    b"N", b"".join(k + texts(v) for k, v in ((b"S", "NOTICE"), (b"C", "00000"), (b"M", "\x1b[2Jmade"))) + b"\0"
)
ROW = message(b"T", b"\0\1" + texts("name") + b"\0" * 18) + message(b"D", b"\0\1\0\0\0\3abc")
PROTOCOL = (
    NOTICE,
    ROW + message(b"C", texts("SHOW")) + message(b"Z", b"I"),
    failure("no such user"),
    message(b"G", b"\0\0\0"),
    message(b"H", b"\0\0\0"),
    message(b"W", b"\0\0\0"),
    message(b"I"),
    message(b"A", b"\0\0\0\1" + texts("channel", "payload")),
    message(b"S", texts("client_encoding", "LATIN1")),
    message(b"R", b"\0\0\0\5salt"),
    message(b"R", b"\0\0\0\x0a" + texts("SCRAM-SHA-256") + b"\0"),
    message(b"v", b"\0\3\0\0\0\0\0\0"),
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"",
)


def ask_console(fake: FakeConsole, login: bytes | None, answers: bytes | None, close: bool) -> list[str]:
    """Log in and ask for everything; the problems."""

    def act(data: bytes):  # type: ignore[no-untyped-def]
        def instead(fake, connection, answer):  # type: ignore[no-untyped-def]
            raw(data)(fake, connection, answer)
            if close:
                connection.shutdown(socket.SHUT_WR)

        return instead

    fake.login = [act(login)] if login is not None else []
    fake.instead = {question: [act(answers)] for question in QUESTIONS if answers is not None}
    console = Console(f"{fake.admin} sslmode=disable", "", 0.1)
    problems = []
    try:
        session = console.session(time.monotonic() + 5)
    except ERRORS as problem:
        return [str(problem)]
    with contextlib.closing(session):
        for ask in (session.databases, session.servers, session.pools, session.settings, session.version):
            try:
                ask(time.monotonic() + 5)
            except (*ERRORS, Refused) as problem:
                problems.append(str(problem))
    return problems


@fuzzed(60, 3000, "console", data=st.data(), close=st.booleans())
def test_the_consoles_answers(console: FakeConsole, data: st.DataObject, close: bool) -> None:
    originals = [answer_of(console, question) for question in QUESTIONS]
    before = most_memory()
    began = time.monotonic()
    for problem in ask_console(console, None, data.draw(damaged(*originals, *PROTOCOL)), close):
        assert problem
    assert time.monotonic() - began < 1 + SLACK
    assert most_memory() - before < 100 * 1024


@fuzzed(60, 3000, "console", data=damaged(*PROTOCOL), close=st.booleans())
def test_the_consoles_login(console: FakeConsole, data: bytes, close: bool) -> None:
    before = most_memory()
    began = time.monotonic()
    ask_console(console, data, None, close)
    assert time.monotonic() - began < 1 + SLACK
    assert most_memory() - before < 100 * 1024


def most_memory() -> int:
    """What this process has used at most, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_a_servers_notice_reaches_no_terminal(console: FakeConsole, capfd: pytest.CaptureFixture[str]) -> None:
    originals = {question: answer_of(console, question) for question in QUESTIONS}
    console.login = []
    console.instead = {question: [raw(NOTICE + originals[question])] for question in QUESTIONS}
    with contextlib.closing(
        Console(f"{console.admin} sslmode=disable", "", 2).session(time.monotonic() + 5)
    ) as session:
        assert set(session.databases(time.monotonic() + 5)) == {"app", "app_ro", "pgbouncer"}
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("answer", [ROW, b"", message(b"T", b"\0\0"), message(b"I")])
def test_a_database_that_answers_something_else_is_no_primary(console: FakeConsole, answer: bytes) -> None:
    """Such as a pooler in PostgreSQL's place, or a server that was taken over."""
    end = message(b"C", texts("SELECT")) + message(b"Z", b"I")
    node = Node("db1", "127.0.0.1", console.port)

    def talk(fake, connection, _):  # type: ignore[no-untyped-def]
        from unit.pgbouncer.fake_console import LOGIN as OK

        connection.sendall(OK)
        connection.recv(65536)
        connection.sendall(answer + end)
        connection.recv(1)

    console.login = [talk]
    (state,) = Probe({"user": "efm", "dbname": "x", "sslmode": "disable"}, 2).truth([node]).states
    assert (state.role, state.reach) == (None, Reach.DENIED)


def test_numbers_that_are_none(console: FakeConsole) -> None:
    for number in ("9" * 5000, "-1", "1_0", "٣", "0x10", " 7"):
        data = answer_of(console, "SHOW DATABASES").replace(
            b"\0\0\0\x045444", len(number.encode()).to_bytes(4, "big") + number.encode()
        )
        fixed = b""
        while data:  # the lengths of the rows
            kind, length = data[:1], int.from_bytes(data[1:5], "big")
            fixed, data = fixed + data[: length + 1], data[length + 1 :]
            if kind == b"Z":
                break
        problems = ask_console(console, None, fixed, False)
        assert problems


def test_the_connection_survives_what_it_is_told(console: FakeConsole) -> None:
    """A refused statement, with a megabyte of words."""
    console.login = []
    console.instead = {"SHOW VERSION": [raw(failure("x" * 1_000_000) + message(b"Z", b"I"))]}
    keywords = {
        "host": "127.0.0.1",
        "port": str(console.port),
        "user": "efm_lb",
        "dbname": "pgbouncer",
        "sslmode": "disable",
    }
    with (
        Connection(keywords, time.monotonic() + 5) as connection,
        pytest.raises((StatementFailed, ConnectionFailed)),
    ):
        connection.query("SHOW VERSION", time.monotonic() + 5)
