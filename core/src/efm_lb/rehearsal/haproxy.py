"""A real HAProxy in front of a rehearsal's cluster, configured as an external failover manager needs it."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from efm_lb.rehearsal import programs, sql
from efm_lb.rehearsal.balancer import Belief, Entrance, State
from efm_lb.rehearsal.cluster import SUPERUSER, Cluster
from efm_lb.rehearsal.host import LOOPBACK, Host
from efm_lb.rehearsal.server_process import ServerProcess
from efm_lb.rehearsal.stage import ServerError, free_port
from efm_lb.rehearsal.waiting import wait_until

__all__ = ["READ", "WRITE", "Haproxy"]

WRITE = "pg_write"
READ = "pg_read"

_HEAD = """\
global
    stats socket {socket} mode 600 level admin expose-fd listeners
    stats timeout 10s
{global_}
defaults
    mode tcp
    timeout connect 2s
    timeout client 1h
    timeout server 1h
    timeout server-fin 1s
    option abortonclose
{defaults}
"""

_PROXY = """\
listen {name}
    bind {host}:{port}
    default-server on-marked-down shutdown-sessions
    {elsewhere}
{lines}
"""
# One server is ready for writes: a client is told at once that it is gone. Of those for reads another one is tried.
_ELSEWHERE = {WRITE: "retries 0", READ: "option redispatch 1"}


class Haproxy:
    """One HAProxy on one host, as a master with a worker.

    :ivar name: ``edge1``, ``edge2``, ...
    :ivar host: of both ports
    :ivar write_port: where clients that write connect
    :ivar read_port: where clients that only read connect
    :ivar socket: the admin socket, where hooks connect
    :ivar master_socket: the command line of the master
    :ivar config: haproxy.cfg
    :ivar process: to be stopped, killed or frozen
    """

    alias = "edge"
    primary_reads = False

    def __init__(
        self,
        cluster: Cluster,
        server: str = "",
        proxy: str = "",
        defaults: str = "",
        global_: str = "",
        master: bool = True,
        host: Host = LOOPBACK,
    ) -> None:
        self.cluster = cluster
        self._stage = cluster.stage
        self._program = programs.haproxy()
        self._master = master
        self.directory = self._stage.make_numbered_directory("edge")
        self.name = self.directory.name
        self.host = host.address
        with host.inside():
            self.write_port = free_port(self.host)
            self.read_port = free_port(self.host)
        self.socket = self.directory / "admin.sock"
        self.master_socket = self.directory / "master.sock"
        self.config = self.directory / "haproxy.cfg"
        self.log = self._stage.directory / f"{self.name}.log"
        self.process = ServerProcess(self._stage, host, self.name, self.log, signal.SIGTERM)
        self._text = self._configuration(server, proxy, defaults, global_)
        self.write_config(self._text)

    @classmethod
    def start(cls, cluster: Cluster, **options: str | bool | Host) -> Haproxy:
        """Configure and start a HAProxy for ``cluster``: node 0 gets the writes, the others the reads.

        :param options: ``server``: words added to each server line; ``proxy``, ``defaults``, ``global_``: lines for
            these sections; ``master=False``: without a master process; ``host``: where it runs
        :raises MissingProgramError: HAProxy is not installed
        :raises ServerError: it did not start
        """
        haproxy = cls(cluster, **options)  # type: ignore[arg-type]
        try:
            haproxy.launch()
        except BaseException:
            haproxy.process.close()
            raise
        return haproxy

    def __enter__(self) -> Haproxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.close()

    def __repr__(self) -> str:
        return f"<Haproxy {self.name} {self.host}:{self.write_port}>"

    @property
    def place(self) -> str:
        return f"HAProxy on {self.host}: writes on port {self.write_port}, reads on port {self.read_port}"

    @property
    def writing(self) -> Entrance:
        """Where clients that write connect."""
        return Entrance(self.host, self.write_port)

    @property
    def reading(self) -> Entrance:
        """Where clients that only read connect."""
        return Entrance(self.host, self.read_port)

    @property
    def settings(self) -> Mapping[str, object]:
        """The settings of efm-lb for it."""
        return {"ADAPTER": "haproxy", "SOCKET": self.socket, "CONFIG": self.config, "WRITE": WRITE, "READ": READ}

    @property
    def doors(self) -> Mapping[str, str]:
        psql = f'psql "host={self.host} port={{}} user={SUPERUSER} dbname=postgres"'
        return {
            "writers": psql.format(self.write_port),
            "readers": psql.format(self.read_port),
            "socket": f"echo 'show servers state' | socat stdio {self.socket}",
        }

    def write_config(self, text: str) -> None:
        """Replace haproxy.cfg; it is read at the next start or reload."""
        self._stage.write(self.config, text)

    def launch(self, timeout: float = 10.0) -> None:
        """Start it and wait until it answers.

        :raises ServerError: it ended, or did not answer within ``timeout`` seconds
        """
        mode = ["-W", "-S", str(self.master_socket)] if self._master else []
        self.process.start([self._program, *mode, "-db", "-f", self.config])
        self.process.wait_ready(self._answers, timeout)

    def reload(self) -> None:
        """Have the master read the configuration anew, as systemctl does; returns before it has."""
        self.process.send(signal.SIGUSR2)

    def wait_reloaded(self, worker: int, timeout: float = 5.0) -> int:
        """Wait until a worker other than ``worker`` answers, and the master as well.

        The signal for another reload would be lost if it came before (3 of 12, 2.6).

        :return: the new worker's pid
        :raises ServerError: none did within ``timeout`` seconds
        """
        if not wait_until(lambda: self.worker() not in (None, worker) and self._answers(), timeout):
            raise ServerError(f"{self.name} was not reloaded; its log ends with:\n{self.process.log_tail()}")
        return self.worker() or 0

    def worker(self) -> int | None:
        """The pid of the worker that answers, None when none does."""
        with contextlib.suppress(OSError):
            facts = dict(line.split(": ", 1) for line in self.command("show info").splitlines() if ": " in line)
            if "Pid" in facts and facts.get("Stopping") == "0":
                return int(facts["Pid"])
        return None

    def reset(self) -> None:
        """As at first: started anew with the configuration that it was made with."""
        self.process.stop()
        self.write_config(self._text)
        self.launch()

    def command(self, line: str, timeout: float = 5.0) -> str:
        """What the admin socket answers to one line.

        :raises OSError: no answer within ``timeout`` seconds
        """
        return _talk(self.socket, line, timeout)

    def master_command(self, line: str, timeout: float = 5.0) -> str:
        """What the master answers to one line; ``@!<pid>`` before a command passes it to that worker.

        :raises OSError: no answer within ``timeout`` seconds
        """
        # It does not listen while it reloads.
        wait_until(self._answers, timeout)
        return _talk(self.master_socket, f"{line}; quit", timeout)

    def servers(self, proxy: str) -> dict[str, str]:
        """The state of each server of a proxy by the host of its node: ready, drain, maint or down.

        :raises OSError: no answer
        """
        rows = [line.split() for line in self.command(f"show servers state {proxy}").splitlines()]
        header = next(row[1:] for row in rows if row[:1] == ["#"])
        told = [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]
        return {row["srv_addr"]: _server_state(row["srv_op_state"], int(row["srv_admin_state"])) for row in told}

    def ready(self, proxy: str = WRITE) -> list[str]:
        """The hosts of the nodes that new connections go to; raises as `servers`."""
        return [host for host, state in self.servers(proxy).items() if state == "ready"]

    def beliefs(self) -> list[Belief]:
        """What it believes about each node; raises as `servers`."""
        write, read = self.servers(WRITE), self.servers(READ)
        return [
            Belief(
                write[node.host] == "ready",
                read[node.host] == "ready",
                f"{write[node.host]} in {WRITE}, {read[node.host]} in {READ}",
            )
            for node in self.cluster.nodes
        ]

    def state(self) -> State:
        """The servers of both proxies; raises as `servers`."""
        write, read = self.servers(WRITE), self.servers(READ)
        return State(
            "show servers state",
            (WRITE, READ),
            tuple(
                (f"n{node.number + 1} {node.host}", write[node.host], read[node.host]) for node in self.cluster.nodes
            ),
        )

    def query(self, statement: str, proxy: str = WRITE, timeout: float = 5.0) -> list[dict[str, str | None]]:
        """Run one statement through this HAProxy.

        :raises sql.SqlError: no session or no answer within ``timeout`` seconds, or the statement failed
        """
        port = self.write_port if proxy == WRITE else self.read_port
        return sql.query(self.host, port, statement, timeout=timeout)

    def _answers(self) -> bool:
        """Its worker answers, and its master, which listens a little later."""
        if self.worker() is None:
            return False
        if not self._master:
            return True
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.master_socket))
            return True
        return False

    def _configuration(self, server: str, proxy: str, defaults: str, global_: str) -> str:
        def lines(disabled: list[int]) -> str:
            found = [f"    {proxy}"] if proxy else []
            for node in self.cluster.nodes:
                words = f"server n{node.number + 1} {node.address} {server}".rstrip()
                found.append(f"    {words}{' disabled' if node.number in disabled else ''}")
            return "\n".join(found)

        others = [node.number for node in self.cluster.nodes if node.number]
        head = _HEAD.format(socket=self.socket, global_=f"    {global_}", defaults=f"    {defaults}")
        proxies = [(WRITE, self.write_port, others), (READ, self.read_port, [0])]
        return head + "".join(
            _PROXY.format(name=name, host=self.host, port=port, elsewhere=_ELSEWHERE[name], lines=lines(disabled))
            for name, port, disabled in proxies
        )


def _server_state(operational: str, administrative: int) -> str:
    """A server's state in a word; the numbers are those of ``show servers state``."""
    # The bit 4 is only that it was disabled in the configuration once.
    if administrative & (1 | 2 | 32):
        return "maint"
    if administrative & (8 | 16):
        return "drain"
    return "ready" if operational in ("1", "2") else "down"


def _talk(path: Path, line: str, timeout: float) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        connection.connect(str(path))
        connection.sendall(f"{line}\n".encode())
        received = b""
        while piece := connection.recv(65536):
            received += piece
    return received.decode()
