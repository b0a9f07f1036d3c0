"""A load balancer that is down, restarts, or is something else: its file stays whole, and the other one is right.

A whole `efm-lb` run each, with a real HAProxy and a real PgBouncer, one of which is not what the settings say.
"""

from __future__ import annotations

import contextlib
import http.server
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from efm_lb.rehearsal.cluster import SUPERUSER, Cluster
from efm_lb.rehearsal.haproxy import READ, WRITE, Haproxy
from efm_lb.rehearsal.hooks import Hook, Run
from efm_lb.rehearsal.pgbouncer import ADMIN_USER, Pgbouncer
from efm_lb.rehearsal.pgbouncer import READ as READ_ENTRY
from efm_lb.rehearsal.pgbouncer import WRITE as WRITE_ENTRY
from efm_lb.rehearsal.waiting import wait_until
from efm_lb_haproxy.reloads import is_reloading
from integration.real import told

MakePair = Callable[..., Hook]
SOCKET = "EFM_LB_BALANCERS__EDGE1__SOCKET"
ADMIN = "EFM_LB_BALANCERS__PGB1__ADMIN"


@contextlib.contextmanager
def listening(talk: Callable[[socket.socket], None], path: Path | None = None) -> Iterator[str]:
    """A server on loopback, or on a Unix socket, that talks so to each who comes; its address."""
    if path:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
    else:
        listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                talk(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield str(path) if path else f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def nothing(connection: socket.socket) -> None:
    """Answer nothing until the other side leaves."""
    while connection.recv(4096):
        pass


def close(connection: socket.socket) -> None:
    """Leave at once."""


def a_line(connection: socket.socket) -> None:
    connection.sendall(b"220 mail.example.com ESMTP\r\n")
    connection.recv(4096)


@contextlib.contextmanager
def web_server() -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(5)


def later(seconds: float, do: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(seconds, do)
    timer.start()
    return timer


class Both:
    """A HAProxy and a PgBouncer, and what they were before."""

    def __init__(self, cluster: Cluster, haproxy: Haproxy, pgbouncer: Pgbouncer, pair: MakePair) -> None:
        self.haproxy = haproxy
        self.pgbouncer = pgbouncer
        self.node = cluster.nodes[2]
        self._pair = pair
        self.cfg = haproxy.config.read_bytes()
        self.entries = pgbouncer.entries.read_bytes()

    def detach(self, **extra: object) -> Run:
        return self._pair(self.haproxy, self.pgbouncer, **extra)("detach", self.node.name, "s")

    @property
    def haproxy_is_right(self) -> bool:
        return self.node.host not in self.haproxy.ready(READ) and self.haproxy.config.read_bytes() != self.cfg

    @property
    def pgbouncer_is_right(self) -> bool:
        right = self.node.host not in self.pgbouncer.places()[READ_ENTRY]
        return right and self.pgbouncer.entries.read_bytes() != self.entries


@pytest.fixture
def both(cluster: Cluster, haproxy: Haproxy, pgbouncer: Pgbouncer, pair: MakePair) -> Both:
    return Both(cluster, haproxy, pgbouncer, pair)


# SOCKET


@pytest.mark.parametrize(
    ("serve", "code", "message"),
    [
        (lambda _: listening(nothing), 75, "accepted the connection and did not answer in time"),
        (lambda path: listening(nothing, path / "s"), 75, "accepted the connection and did not answer in time"),
        (lambda _: listening(close), 75, "broke the connection|closed the connection without an answer"),
        (lambda path: listening(close, path / "s"), 75, "broke the connection|closed the connection without an answer"),
        (lambda _: listening(a_line), 69, "answers, but is no `stats socket` of HAProxy"),
        (lambda _: web_server(), 69, "answers, but is no `stats socket` of HAProxy"),
        (lambda path: contextlib.nullcontext(str(path)), 75, "cannot connect to .*: Connection refused"),
        (lambda path: contextlib.nullcontext(f"{path}/absent"), 75, "cannot connect to .*: No such file or directory"),
    ],
    ids=["silent", "silent path", "closing", "closing path", "mail", "web", "directory", "absent"],
)
def test_a_socket_that_is_no_haproxy(
    both: Both,
    tmp_path_factory: pytest.TempPathFactory,
    serve: Callable[[Path], contextlib.AbstractContextManager[str]],
    code: int,
    message: str,
) -> None:
    with serve(tmp_path_factory.mktemp("s")) as where:
        run = both.detach(**{SOCKET: where})
    assert run.exit_code == code, run.output
    said = told(run.output, "edge1")
    assert where in said
    assert re.search(message, said), said
    # One that says nothing may be a HAProxy that is down, which shall start right.
    is_kept = "CONFIG is right for its next start" in said
    assert (both.haproxy.config.read_bytes() != both.cfg) is is_kept
    assert is_kept is ("cannot connect" in said or "did not answer in time" in said)
    assert told(run.output, "pgb1").startswith("changed")
    assert both.pgbouncer_is_right


def test_a_socket_of_the_other_servers(both: Both, cluster: Cluster) -> None:
    for where in (cluster.nodes[0].address, f"127.0.0.1:{both.pgbouncer.port}"):
        run = both.detach(**{SOCKET: where})
        assert run.exit_code in (69, 75), run.output
        assert where in told(run.output, "edge1")
        assert "`stats socket`" in told(run.output, "edge1")
        assert both.haproxy.config.read_bytes() == both.cfg
        assert both.pgbouncer_is_right


@pytest.mark.parametrize("how", ["stopped", "frozen"])
def test_a_haproxy_that_does_not_answer(both: Both, start_haproxy: Callable[..., Haproxy], how: str) -> None:
    both.haproxy = start_haproxy()
    both.cfg = both.haproxy.config.read_bytes()
    if how == "frozen":
        both.haproxy.process.freeze()
    else:
        both.haproxy.process.kill()
    run = both.detach()
    assert run.exit_code == 75, run.output
    expected = "did not answer in time" if how == "frozen" else f"cannot connect to {both.haproxy.socket}: Connection"
    assert expected in told(run.output, "edge1")
    assert "CONFIG is right for its next start" in told(run.output, "edge1")
    assert both.haproxy.config.read_bytes() != both.cfg
    assert both.pgbouncer_is_right
    if how == "frozen":
        both.haproxy.process.thaw()
    else:
        both.haproxy.launch()
    again = both.detach()
    assert again.exit_code == 0, again.output
    assert both.haproxy_is_right


def test_a_haproxy_that_is_being_reloaded(both: Both) -> None:
    """The new worker, which has read the file as it was before, is waited for."""
    haproxy = both.haproxy
    worker = haproxy.worker() or 0
    haproxy.reload()
    assert wait_until(lambda: is_reloading(worker), 2, interval=0.0005)
    # It would be over before the hook has started.
    haproxy.process.send(signal.SIGSTOP)
    assert is_reloading(worker)
    resume = later(1, haproxy.process.thaw)
    try:
        run = both.detach()
    finally:
        resume.join()
    assert run.exit_code == 0, run.output
    assert run.seconds > 0.8, "it was waited for"
    assert haproxy.worker() not in (None, worker)
    assert both.haproxy_is_right
    assert both.pgbouncer_is_right


# ADMIN


@pytest.mark.parametrize(
    ("serve", "code", "message", "written"),
    [
        (lambda: listening(nothing), 75, "no answer in time|went silent", True),
        (lambda: listening(close), 75, "server closed the connection unexpectedly|Connection reset", True),
        (lambda: listening(a_line), 69, "is no PgBouncer", False),
        (web_server, 75, "no answer in time|went silent", True),
    ],
    ids=["silent", "closing", "mail", "web"],
)
def test_an_admin_that_is_no_pgbouncer(
    both: Both,
    serve: Callable[[], contextlib.AbstractContextManager[str]],
    code: int,
    message: str,
    written: bool,
) -> None:
    """The file is right for the day that there is one, unless it is plain that there never was."""
    with serve() as where:
        port = where.rpartition(":")[2]
        run = both.detach(**{ADMIN: f"host=127.0.0.1 port={port} user={ADMIN_USER}"})
    assert run.exit_code == code, run.output
    said = told(run.output, "pgb1")
    assert f"port={port}" in said
    assert re.search(message, said), said
    assert (both.pgbouncer.entries.read_bytes() != both.entries) == written
    assert told(run.output, "edge1").startswith("changed")
    assert both.haproxy_is_right


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({ADMIN: "host=127.0.0.1 port=x user=efm_lb"}, "is no connection string: invalid"),
        ({ADMIN: "host=127.0.0.1 prot=6432"}, 'is no connection string: invalid connection option "prot"'),
        ({"EFM_LB_BALANCERS__PGB1__PASSFILE": "/absent"}, "wants a password: .*; PASSFILE must have a line for it"),
    ],
)
def test_an_admin_that_gets_in_nowhere(both: Both, extra: dict[str, str], message: str) -> None:
    run = both.detach(**extra)
    assert run.exit_code == 69, run.output
    assert re.search(message, told(run.output, "pgb1")), run.output
    assert both.pgbouncer.entries.read_bytes() == both.entries
    assert both.haproxy_is_right


def test_a_user_who_is_no_admin_any_more(both: Both, start_pgbouncer: Callable[..., Pgbouncer]) -> None:
    both.pgbouncer = start_pgbouncer()
    ini = both.pgbouncer.directory / "pgbouncer.ini"
    ini.write_text(ini.read_text().replace(f"admin_users = {ADMIN_USER}", "admin_users = someone_else"))
    both.pgbouncer.console("RELOAD")
    both.entries = both.pgbouncer.entries.read_bytes()
    run = both.detach()
    assert run.exit_code == 69, run.output
    assert re.search("refuses the login: .*not allowed; the user must be in admin_users", told(run.output, "pgb1"))
    assert both.pgbouncer.entries.read_bytes() == both.entries
    assert both.haproxy_is_right


def test_a_user_who_may_only_look(both: Both, start_pgbouncer: Callable[..., Pgbouncer]) -> None:
    both.pgbouncer = start_pgbouncer(admin_users="someone_else", stats_users=ADMIN_USER)
    before = both.pgbouncer.places()
    run = both.detach()
    assert run.exit_code == 69, run.output
    said = told(run.output, "pgb1")
    assert f"{both.pgbouncer.admin}: RELOAD: admin access needed: the user must be in admin_users" in said
    assert both.pgbouncer.places() == before
    assert both.haproxy_is_right


@pytest.mark.parametrize(
    ("user", "message"), [(ADMIN_USER, "refuses the login"), (SUPERUSER, "is no PgBouncer: .*3D000")]
)
def test_a_database_server_instead_of_pgbouncer(both: Both, cluster: Cluster, user: str, message: str) -> None:
    node = cluster.nodes[0]
    run = both.detach(**{ADMIN: f"host={node.host} port={node.port} user={user}"})
    assert run.exit_code == 69, run.output
    assert re.search(f"port={node.port} .*{message}", told(run.output, "pgb1")), run.output
    assert both.pgbouncer.entries.read_bytes() == both.entries
    assert both.haproxy_is_right


@pytest.mark.parametrize("how", ["stopped", "frozen"])
def test_a_pgbouncer_that_does_not_answer(both: Both, how: str) -> None:
    """The file decides what it does when it starts, so that is right already."""
    if how == "frozen":
        both.pgbouncer.process.freeze()
    else:
        both.pgbouncer.process.stop()
    run = both.detach()
    assert run.exit_code == 75, run.output
    said = told(run.output, "pgb1")
    assert f"but {both.pgbouncer.admin}: " in said
    assert re.search("no answer in time|went silent" if how == "frozen" else "Connection refused|No such file", said)
    assert both.haproxy_is_right
    if how == "frozen":
        both.pgbouncer.process.thaw()
    else:
        both.pgbouncer.launch()
    again = both.detach()
    assert again.exit_code == 0, again.output
    assert both.pgbouncer_is_right


def test_a_pgbouncer_that_restarts_during_a_promotion(
    both: Both, cluster: Cluster, pair: MakePair, haproxy: Haproxy, pgbouncer: Pgbouncer
) -> None:
    old, new, other = cluster.nodes
    hook = pair(haproxy, pgbouncer)
    old.kill()
    new.promote()
    other.follow(new)
    pgbouncer.process.stop()
    start = later(1, pgbouncer.launch)
    try:
        run = hook("attach", new.name, "p")
    finally:
        start.join()
    assert run.exit_code == 0, run.output
    assert told(run.output, "pgb1").startswith("changed")
    assert pgbouncer.places()[WRITE_ENTRY] == new.address
    assert pgbouncer.query("select pg_is_in_recovery() as standby") == [{"standby": "f"}]
    assert haproxy.ready(WRITE) == [new.host]
