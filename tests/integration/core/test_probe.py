"""Asking real servers: every way to be unreachable, and every way to log in that libpq users expect."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from efm_lb import Node, NodeState, Reach, Role, Truth
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
        assert server.process
        server.process.terminate()
        deadline = time.monotonic() + 5
        while (state := ask_one(server)).reach is Reach.ACCEPTING and time.monotonic() < deadline:
            time.sleep(0.02)
        assert state.reach is Reach.REJECTING
        assert "57P03" in state.detail


def test_a_name_that_does_not_resolve_is_no_answer() -> None:
    state = Probe(KEYWORDS, TIMEOUT).truth([Node("no-such-host.invalid", "no-such-host.invalid", 5432)]).states[0]
    assert state.reach is Reach.NO_RESPONSE
    assert "no-such-host.invalid" in state.detail


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
    """A self-signed certificate for ``host``, its key beside it."""
    certificate = directory / f"{name}.crt"
    subprocess.run(
        [
            *("openssl", "req", "-new", "-x509", "-nodes", "-days", "2", "-newkey", "rsa:2048"),
            *("-subj", f"/CN={name}", "-addext", f"subjectAltName=IP:{host}"),
            *("-keyout", str(directory / f"{name}.key"), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate


def test_tls(access: Callable[[str], Server], tmp_path: Path) -> None:
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
