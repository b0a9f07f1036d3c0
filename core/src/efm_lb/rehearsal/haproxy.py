"""A real HAProxy in front of a rehearsal's cluster, configured as an external failover manager needs it."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from efm_lb.rehearsal import programs, sql
from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.server_process import ServerProcess
from efm_lb.rehearsal.stage import ServerError, free_port
from efm_lb.rehearsal.waiting import wait_until

__all__ = ["READ", "WRITE", "Haproxy"]

WRITE = "pg_write"
READ = "pg_read"
_HOST = "127.0.0.1"

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
{defaults}
"""

_PROXY = """\
listen {name}
    bind 127.0.0.1:{port}
    default-server on-marked-down shutdown-sessions
{lines}
"""


class Haproxy:
    """One HAProxy on 127.0.0.1, as a master with a worker.

    :ivar name: ``haproxy1``, ``haproxy2``, ...
    :ivar host: of both ports
    :ivar write_port: where clients that write connect
    :ivar read_port: where clients that only read connect
    :ivar socket: the admin socket, where hooks connect
    :ivar master_socket: the command line of the master
    :ivar config: haproxy.cfg
    :ivar process: to be stopped, killed or frozen
    """

    host = _HOST

    def __init__(
        self,
        cluster: Cluster,
        server: str = "",
        proxy: str = "",
        defaults: str = "",
        global_: str = "",
        master: bool = True,
    ) -> None:
        self.cluster = cluster
        self._stage = cluster.stage
        self._program = programs.haproxy()
        self._master = master
        self.directory = self._stage.make_numbered_directory("haproxy")
        self.name = self.directory.name
        self.write_port = free_port(_HOST)
        self.read_port = free_port(_HOST)
        self.socket = self.directory / "admin.sock"
        self.master_socket = self.directory / "master.sock"
        self.config = self.directory / "haproxy.cfg"
        self.log = self._stage.directory / f"{self.name}.log"
        self.process = ServerProcess(self._stage, self.name, self.log, signal.SIGTERM)
        self._text = self._configuration(server, proxy, defaults, global_)
        self.write_config(self._text)

    @classmethod
    def start(cls, cluster: Cluster, **options: str | bool) -> Haproxy:
        """Configure and start a HAProxy for ``cluster``: node 0 gets the writes, the others the reads.

        :param options: ``server``: words added to each server line; ``proxy``, ``defaults``, ``global_``: lines for
            these sections; ``master=False``: without a master process
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

    def variables(self, name: str = "EDGE") -> Mapping[str, object]:
        """The settings of efm-lb for it, as balancer ``name``."""
        balancer = f"EFM_LB_BALANCERS__{name}__"
        return {
            f"{balancer}ADAPTER": "haproxy",
            f"{balancer}SOCKET": self.socket,
            f"{balancer}CONFIG": self.config,
            f"{balancer}WRITE": WRITE,
            f"{balancer}READ": READ,
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

    def servers(self, proxy: str) -> dict[str, bool]:
        """Whether each server of a proxy takes new connections, by the host of its node."""
        rows = [line.split() for line in self.command(f"show servers state {proxy}").splitlines()]
        header = next(row[1:] for row in rows if row[:1] == ["#"])
        told = [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]
        # 4 is only that it was disabled in the configuration once.
        return {
            row["srv_addr"]: row["srv_op_state"] in ("1", "2") and not int(row["srv_admin_state"]) & ~4 for row in told
        }

    def ready(self, proxy: str = WRITE) -> list[str]:
        """The hosts of the nodes that new connections go to."""
        return [host for host, ready in self.servers(proxy).items() if ready]

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
        write = _PROXY.format(name=WRITE, port=self.write_port, lines=lines(others))
        return head + write + _PROXY.format(name=READ, port=self.read_port, lines=lines([0]))


def _talk(path: Path, line: str, timeout: float) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        connection.connect(str(path))
        connection.sendall(f"{line}\n".encode())
        received = b""
        while piece := connection.recv(65536):
            received += piece
    return received.decode()
