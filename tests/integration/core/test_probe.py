"""Asking real servers: every way to be unreachable, and every way to log in that libpq users expect."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from efm_lb import Connection, ConnectionFailed, Node, NodeState, Reach, Role, Truth, probe
from efm_lb.background import Background
from efm_lb.probe import Probe
from efm_lb.rehearsal import sql
from efm_lb.rehearsal.cluster import PROBE_PASSWORD, PROBE_USER, Cluster, Server

TIMEOUT = 2.0
KEYWORDS = {"user": "postgres", "dbname": "postgres"}


def nodes_of(cluster: Cluster) -> list[Node]:
    return [Node(node.name, node.host, node.port) for node in cluster.nodes]


def ask(cluster: Cluster, **keywords: str) -> tuple[Truth, float]:
    started = time.monotonic()
    truth = Probe({**KEYWORDS, **keywords}, TIMEOUT).truth(nodes_of(cluster))
    return truth, time.monotonic() - started


def ask_one(server: Server, **keywords: str) -> NodeState:
    node = Node(server.name, server.host, server.port)
    return Probe({**KEYWORDS, **keywords}, TIMEOUT).truth([node]).states[0]


def test_roles_and_timelines_before_and_after_a_promotion(cluster: Cluster) -> None:
    truth, _ = ask(cluster)
    assert [state.role for state in truth.states] == [Role.PRIMARY, Role.STANDBY, Role.STANDBY]
    first = truth.states[0].timeline
    assert first is not None
    assert {state.timeline for state in truth.states} == {first}
    cluster.nodes[0].stop()
    cluster.nodes[1].promote()
    truth, _ = ask(cluster)
    assert truth.states[0].reach is Reach.REFUSED
    assert truth.states[1].role is Role.PRIMARY
    assert truth.states[1].timeline == first + 1, "known before the first checkpoint"


def test_a_process_without_file_descriptors_holds_no_node_for_dead(cluster: Cluster) -> None:
    ask(cluster)  # what is opened once only is open
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        truth, seconds = ask(cluster)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [state.reach for state in truth.states] == [Reach.DENIED] * 3, "it is not known what they are"
    assert all("Too many open files" in state.detail for state in truth.states)
    assert seconds < TIMEOUT


def test_a_process_without_threads_holds_no_node_for_dead(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Background] = []

    def limited(function: Callable[..., object], *arguments: object) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(Background(function, *arguments))

    monkeypatch.setattr(probe, "Background", limited)
    truth, _ = ask(cluster)
    assert [state.reach for state in truth.states] == [Reach.ACCEPTING, Reach.DENIED, Reach.DENIED]
    assert truth.states[1].detail == "RuntimeError: can't start new thread"


def test_a_libpq_that_cannot_be_loaded_now_is_not_one_that_is_not_installed() -> None:
    starved = (
        "import resource; from efm_lb import libpq; resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0)); libpq.load()"
    )
    done = subprocess.run([sys.executable, "-c", starved], capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr.splitlines()[-1].startswith("OSError: ")
    assert "Too many open files" in done.stderr


def test_a_node_that_stays_silent_costs_the_time_out_once(cluster: Cluster) -> None:
    """However often it is asked; one that has answered in between has all of its time again."""
    probe = Probe(KEYWORDS, TIMEOUT)
    node = nodes_of(cluster)[1]

    def seconds() -> float:
        started = time.monotonic()
        assert probe.truth([node]).states[0].reach is Reach.NO_RESPONSE
        return time.monotonic() - started

    for _ in range(2):
        cluster.nodes[1].freeze()
        try:
            assert seconds() > 0.9 * TIMEOUT
            assert seconds() < 0.6 * TIMEOUT
        finally:
            cluster.nodes[1].thaw()
        assert probe.truth([node]).states[0].reach is Reach.ACCEPTING


def test_a_frozen_node_costs_the_time_out_and_no_more(cluster: Cluster) -> None:
    cluster.nodes[0].freeze()
    try:
        truth, seconds = ask(cluster)
    finally:
        cluster.nodes[0].thaw()
    assert truth.states[0].reach is Reach.NO_RESPONSE
    assert [state.role for state in truth.states[1:]] == [Role.STANDBY, Role.STANDBY]
    assert max(state.seconds for state in truth.states[1:]) < TIMEOUT / 2
    assert seconds < TIMEOUT + 0.5


def test_a_node_without_a_server_refuses_at_once(cluster: Cluster) -> None:
    cluster.nodes[2].kill()
    truth, seconds = ask(cluster)
    assert truth.states[2].reach is Reach.REFUSED
    assert "Connection refused" in truth.states[2].detail
    assert seconds < TIMEOUT / 2


def test_a_node_that_shuts_down_is_rejecting(cluster: Cluster) -> None:
    server = cluster.nodes[2]
    # A smart shutdown waits for the session, and rejects new ones meanwhile.
    with sql.Session(server.host, server.port, "postgres") as session:
        session.execute("select 1")
        server.process.send(signal.SIGTERM)
        deadline = time.monotonic() + 5
        while (state := ask_one(server)).reach is Reach.ACCEPTING and time.monotonic() < deadline:
            time.sleep(0.02)
        assert state.reach is Reach.REJECTING
        assert "57P03" in state.detail


def test_a_name_that_does_not_resolve_is_no_answer() -> None:
    state = Probe(KEYWORDS, TIMEOUT).truth([Node("no-such-host.invalid", "no-such-host.invalid", 5432)]).states[0]
    assert state.reach is Reach.NO_RESPONSE
    assert "no-such-host.invalid" in state.detail


SILENT = "127.0.0.99"
NOBODY = "127.0.0.98"


@pytest.fixture(params=["accepted by its kernel", "a black hole"])
def silent(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """An address of a frozen server, or of one whose host is gone."""
    with socket.create_server((SILENT, cluster.nodes[0].port), backlog=0 if "hole" in request.param else 100) as server:
        waiting = []
        if "hole" in request.param:
            for _ in range(4):  # more than its queue takes: those that come later get no answer
                waiting.append(socket.socket())
                waiting[-1].setblocking(False)
                waiting[-1].connect_ex(server.getsockname())
        yield SILENT
        for each in waiting:
            each.close()


Resolve = Callable[[Mapping[str, Sequence[str]]], None]


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """Let names have the addresses that are given."""

    def resolve(names: Mapping[str, Sequence[str]]) -> None:
        def getaddrinfo(host: bytes, *rest: object) -> list[tuple[object, ...]]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 0)) for each in names[host.decode()]]

        monkeypatch.setattr("efm_lb.connection.getaddrinfo", getaddrinfo, raising=False)

    return resolve


def ask_named(server: Server, **keywords: str) -> NodeState:
    return Probe({**KEYWORDS, **keywords}, TIMEOUT).truth([Node("db1", "db.example", server.port)]).states[0]


def test_a_name_with_a_silent_address_and_one_that_answers(cluster: Cluster, silent: str, resolve: Resolve) -> None:
    server = cluster.nodes[0]
    resolve({"db.example": [silent, NOBODY, server.host]})
    state = ask_named(server)
    assert (state.reach, state.role) == (Reach.ACCEPTING, Role.PRIMARY), state.detail
    assert state.seconds < TIMEOUT


def test_a_name_of_which_no_address_answers(cluster: Cluster, silent: str, resolve: Resolve) -> None:
    server = cluster.nodes[0]
    resolve({"db.example": [silent, NOBODY]})
    state = ask_named(server)
    assert state.reach is Reach.NO_RESPONSE, "whoever is behind the silent one may live"
    assert f"{silent}: " in state.detail
    assert f'"{NOBODY}", port {server.port} failed: Connection refused' in state.detail
    resolve({"db.example": [NOBODY, NOBODY]})
    assert ask_named(server).reach is Reach.REFUSED


def test_a_refused_login_is_an_answer(cluster: Cluster, resolve: Resolve) -> None:
    server, other = cluster.nodes[:2]
    resolve({"db.example": [server.host, other.host]})
    state = ask_named(server, user="nobody-of-that-name")
    assert state.reach is Reach.DENIED
    assert other.host not in state.detail


def test_the_password_file_is_searched_for_the_name(
    cluster: Cluster, resolve: Resolve, passfile: Callable[[str], str]
) -> None:
    server = cluster.nodes[0]
    resolve({"db.example": [server.host]})
    path = passfile(f"db.example:*:*:{PROBE_USER}:{PROBE_PASSWORD}")
    assert ask_named(server, user=PROBE_USER, passfile=path).role is Role.PRIMARY


def test_a_look_up_that_hangs_leaves_the_others_answers(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def hang(*arguments: object) -> None:
        over.wait(30)
        raise OSError("given up")

    monkeypatch.setattr("efm_lb.connection.getaddrinfo", hang, raising=False)
    nodes = [Node("db.example", "db.example", 5432), *nodes_of(cluster)]
    try:
        truth = Probe(KEYWORDS, TIMEOUT).truth(nodes)
    finally:
        over.set()
    assert truth.states[0].reach is Reach.NO_RESPONSE
    assert [state.role for state in truth.states[1:]] == [Role.PRIMARY, Role.STANDBY, Role.STANDBY]


def test_a_connection_string_with_a_name(cluster: Cluster, silent: str, resolve: Resolve) -> None:
    """As PgBouncer's consoles are named."""
    server = cluster.nodes[0]
    resolve({"db.example": [silent, server.host]})
    for conninfo in (
        f"host='db.example' port={server.port} user=postgres",
        f"postgresql://postgres@db.example:{server.port}/",
    ):
        with Connection({"dbname": "postgres"}, time.monotonic() + TIMEOUT, conninfo) as connection:
            assert connection.query("SELECT 1 AS one", time.monotonic() + TIMEOUT).rows == ({"one": "1"},)


def test_what_is_no_name_is_not_looked_up(cluster: Cluster, resolve: Resolve) -> None:
    server = cluster.nodes[0]
    resolve({})
    deadline = time.monotonic() + TIMEOUT
    keywords = {**KEYWORDS, "port": str(server.port)}
    for host in ({"host": server.host}, {"host": "db.example", "hostaddr": server.host}):
        Connection({**keywords, **host}, deadline).close()
    for host in ("/nonexistent", "::1", "db1.example,db2.example"):
        with pytest.raises(ConnectionFailed):
            Connection({**keywords, "host": host}, deadline)


def test_a_server_that_speaks_something_else_is_not_taken_for_a_database() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                connection.recv(100)

        thread = threading.Thread(target=greet)
        thread.start()
        port = server.getsockname()[1]
        state = Probe(KEYWORDS, TIMEOUT).truth([Node("x", "127.0.0.1", port)]).states[0]
        thread.join()
    assert state.role is None


@pytest.fixture
def passfile(tmp_path: Path) -> Callable[[str], str]:
    def write(line: str) -> str:
        path = tmp_path / "pgpass"
        path.write_text(line + "\n")
        path.chmod(0o600)
        return str(path)

    return write


def test_scram_with_a_password_file(cluster: Cluster, passfile: Callable[[str], str]) -> None:
    path = passfile(f"*:*:*:{PROBE_USER}:{PROBE_PASSWORD}")
    truth, _ = ask(cluster, user=PROBE_USER, passfile=path)
    assert truth.primary == nodes_of(cluster)[0]


@pytest.mark.parametrize("line", [f"*:*:*:{PROBE_USER}:mistaken", "elsewhere:*:*:*:x"])
def test_a_wrong_or_missing_password_is_denied_and_named(
    cluster: Cluster, passfile: Callable[[str], str], line: str
) -> None:
    truth, seconds = ask(cluster, user=PROBE_USER, passfile=passfile(line))
    for state in truth.states:
        assert state.reach is Reach.DENIED
        assert "password" in state.detail
        assert "mistaken" not in state.detail
    assert seconds < TIMEOUT


@pytest.fixture
def access(cluster: Cluster) -> Iterator[Callable[[str], Server]]:
    """Let the primary ask for something else, by the first line of its pg_hba.conf."""
    server = cluster.nodes[0]
    file = server.data / "pg_hba.conf"
    before = file.read_text()

    def put(line: str) -> Server:
        file.write_text(f"{line}\n{before}")
        server.query("select pg_reload_conf()")
        time.sleep(0.3)
        return server

    yield put
    file.write_text(before)
    for name in ("ssl", "password_encryption"):
        server.query(f"alter system reset {name}")
    server.query("select pg_reload_conf()")


def test_md5(access: Callable[[str], Server], passfile: Callable[[str], str]) -> None:
    server = access("host all md5user 127.0.0.0/8 md5")
    server.query("set password_encryption = 'md5'; create role md5user login password 'old-school'")
    try:
        state = ask_one(server, user="md5user", passfile=passfile("*:*:*:md5user:old-school"))
    finally:
        server.query("drop role md5user")
    assert state.role is Role.PRIMARY


def test_a_role_that_may_not_see_the_timeline_still_tells_who_is_primary(cluster: Cluster) -> None:
    """Hardened servers take such functions away from PUBLIC."""
    server = cluster.nodes[0]
    server.query("create role modest login")
    server.query("revoke execute on function pg_control_checkpoint() from public")
    try:
        state = ask_one(server, user="modest")
    finally:
        server.query("grant execute on function pg_control_checkpoint() to public")
        server.query("drop role modest")
    assert (state.reach, state.role, state.timeline) == (Reach.ACCEPTING, Role.PRIMARY, None)


def test_a_bug_does_not_make_a_node_look_dead(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("ouch")

    monkeypatch.setattr("efm_lb.probe.Connection", fail)
    state = ask_one(cluster.nodes[0])
    assert state.reach is Reach.DENIED
    assert "a bug in efm-lb: ZeroDivisionError: ouch" in state.detail


def make_certificate(name: str, host: str, directory: Path) -> Path:
    """A self-signed certificate for ``host`` and for the name db.example, its key beside it."""
    certificate = directory / f"{name}.crt"
    subprocess.run(
        [
            *("openssl", "req", "-new", "-x509", "-nodes", "-days", "2", "-newkey", "rsa:2048"),
            *("-subj", f"/CN={name}", "-addext", f"subjectAltName=IP:{host},DNS:db.example"),
            *("-keyout", str(directory / f"{name}.key"), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate


def test_tls(access: Callable[[str], Server], tmp_path: Path, resolve: Resolve) -> None:
    server = access("hostssl all tls 127.0.0.0/8 trust\nhostnossl all tls 127.0.0.0/8 reject")
    server.query("create role tls login")
    try:
        rejected = ask_one(server, user="tls", sslmode="disable")
        assert rejected.reach is Reach.DENIED
        assert "pg_hba.conf rejects" in rejected.detail
        without = ask_one(server, user="tls", sslmode="require")
        assert without.reach is Reach.DENIED
        assert "does not support SSL" in without.detail
        certificate = make_certificate("server", server.host, tmp_path)
        for suffix in ("crt", "key"):
            path = shutil.copy(tmp_path / f"server.{suffix}", server.data)
            os.chown(path, server.data.stat().st_uid, server.data.stat().st_gid)
            os.chmod(path, 0o600)
        server.query("alter system set ssl = on")
        server.query("select pg_reload_conf()")
        time.sleep(0.3)
        for keywords in (
            {},
            {"sslmode": "require"},
            {"sslmode": "verify-full", "sslrootcert": str(certificate)},
        ):
            assert ask_one(server, user="tls", **keywords).role is Role.PRIMARY, keywords
        # It is the name that the certificate must be for, whatever addresses it has.
        resolve({"db.example": [server.host], "other.example": [server.host]})
        verified = {"user": "tls", "sslmode": "verify-full", "sslrootcert": str(certificate)}
        assert ask_named(server, **verified).role is Role.PRIMARY
        named = Probe({**KEYWORDS, **verified}, TIMEOUT).truth([Node("db1", "other.example", server.port)])
        assert named.states[0].reach is Reach.DENIED
        assert 'does not match host name "other.example"' in named.states[0].detail
        stranger = make_certificate("stranger", server.host, tmp_path)
        denied = ask_one(server, user="tls", sslmode="verify-full", sslrootcert=str(stranger))
        assert denied.reach is Reach.DENIED
        assert "certificate" in denied.detail
    finally:
        server.query("drop role tls")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.chmod(0o644), "has mode 0644: libpq ignores it; chmod 0600 it"),
        (lambda path: path.unlink(), "No such file or directory"),
        (lambda path: path.write_text("*:*:*:somebody:x\n"), "has no line for it"),
    ],
)
def test_a_password_file_that_libpq_passes_over_is_named(
    cluster: Cluster, passfile: Callable[[str], str], spoil: Callable[[Path], object], words: str
) -> None:
    path = passfile(f"*:*:*:{PROBE_USER}:{PROBE_PASSWORD}")
    spoil(Path(path))
    truth, _ = ask(cluster, user=PROBE_USER, passfile=path)
    for state in truth.states:
        assert state.reach is Reach.DENIED
        assert f"EFM_LB_PROBE__PASSFILE {path}" in state.detail
        assert words in state.detail
