"""A real PostgreSQL cluster, made to be broken."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from efm_lb.rehearsal import sql
from efm_lb.rehearsal.host import Host
from efm_lb.rehearsal.programs import postgres_bindir
from efm_lb.rehearsal.server_process import ServerProcess
from efm_lb.rehearsal.stage import ServerError, Stage, free_port
from efm_lb.rehearsal.waiting import wait_until

__all__ = ["PROBE_PASSWORD", "PROBE_USER", "SUPERUSER", "TABLE", "Cluster", "Server"]

SUPERUSER = "postgres"
"""May log in without a password; the clients of the rehearsal and pgpool use it."""
PROBE_USER = "efm"
"""The role that hooks ask the databases as; needs `PROBE_PASSWORD`."""
PROBE_PASSWORD = "probe-secret"
_PORT = 5432
"""On hosts that have nothing else on them."""
TABLE = "rehearsal"
"""The table that writers insert into: ``writer`` and ``number``."""

_IN_A_HURRY = """
# fsync protects against a crash of the operating system, which is not rehearsed.
fsync = off
full_page_writes = off
"""

_SETTINGS = """
unix_socket_directories = ''
dynamic_shared_memory_type = mmap
shared_buffers = 16MB
max_connections = 200
max_wal_senders = 10
wal_level = replica
wal_keep_size = 64MB
# pg_rewind needs it to bring an old primary back.
wal_log_hints = on
hot_standby = on
wal_retrieve_retry_interval = 200ms
wal_receiver_status_interval = 1s
recovery_target_timeline = latest
autovacuum = off
timezone = UTC
log_timezone = UTC
log_line_prefix = '%m [%p] %a '
log_min_messages = log
"""

_ACCESS = f"""
host all {PROBE_USER} {{network}} scram-sha-256
host all all {{network}} trust
host replication all {{network}} trust
"""

# postgres --single takes one statement per line.
_OBJECTS = f"""
create role {PROBE_USER} login password '{PROBE_PASSWORD}'
create table {TABLE} (writer int not null, number bigint not null)
"""


class Server:
    """One database server of a cluster: EFM's node.

    :ivar name: its address, as EFM passes it in ``%h``
    :ivar number: counted from 0
    :ivar process: the postmaster and its children
    """

    def __init__(self, stage: Stage, bindir: Path, number: int, host: Host, port: int) -> None:
        self.number = number
        self.name = host.address
        self.host = host.address
        self.port = port
        self.data = stage.directory / f"node{number + 1}"
        self.log = stage.directory / f"node{number + 1}.log"
        self.process = ServerProcess(stage, host, self.address, self.log, signal.SIGINT)
        self._stage = stage
        self._bindir = bindir

    def __repr__(self) -> str:
        return f"<Server {self.address}>"

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def running(self) -> bool:
        """Its postmaster exists; it may be frozen, or not accept connections."""
        return self.process.running

    def start(self, wait: bool = True) -> None:
        """Start the server as what its data directory says, a primary or a standby.

        :param wait: return when it takes connections
        :raises ServerError: it did not, within 30 s
        """
        self.process.start(
            [
                self._bindir / "postgres",
                *("-D", self.data),
                *("-c", f"listen_addresses={self.host}"),
                *("-c", f"port={self.port}"),
                *("-c", f"cluster_name=node{self.number + 1}"),
            ]
        )
        if wait:
            self.wait_ready()

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until the server takes connections, as pg_ctl does: by its pid file, which costs the server nothing.

        :raises ServerError: it ended, or did not within ``timeout`` seconds
        """
        self.process.wait_ready(lambda: self._status() == "ready", timeout)

    def stop(self, mode: str = "fast") -> None:
        """Stop the server as ``pg_ctl stop`` does and wait for its end.

        :param mode: ``fast``, ``smart`` or ``immediate``
        :raises ServerError: it had not ended after 30 s
        """
        number = {"fast": signal.SIGINT, "smart": signal.SIGTERM, "immediate": signal.SIGQUIT}[mode]
        if not self.process.end(number, timeout=30):
            raise ServerError(f"{self.address} did not stop; its log ends with:\n{self.process.log_tail()}")

    def kill(self) -> None:
        """End the server and all its processes at once, as a crash does; the host still refuses connections."""
        self.process.kill()

    def freeze(self) -> None:
        """Stop all its processes: the kernel takes connections for it, and nothing ever answers."""
        self.process.freeze()

    def thaw(self) -> None:
        """Let a frozen server run again."""
        self.process.thaw()

    def promote(self, timeout: float = 30.0) -> None:
        """Promote a standby and wait until it is out of recovery, as ``pg_ctl promote`` does: looking every 0.1 s.

        :raises sql.SqlError: it refused
        :raises ServerError: it was not writable within ``timeout`` seconds
        """
        with sql.Session(self.host, self.port, SUPERUSER) as session:
            session.execute("select pg_promote(wait => false)")

            def promoted() -> bool:
                return session.execute("select pg_is_in_recovery() as answer")[0]["answer"] == "f"

            if not wait_until(promoted, timeout, interval=0.1):
                raise ServerError(f"{self.address} was not promoted; its log ends with:\n{self.process.log_tail()}")

    def follow(self, primary: Server) -> None:
        """Make it a standby of ``primary``: by a reload while it runs, else from its next start on."""
        source = f"host={primary.host} port={primary.port} user={SUPERUSER}"
        if self.running:
            self.query(f"alter system set primary_conninfo = '{source}'")
            self.query("select pg_reload_conf()")
            return
        self._stage.write(self.data / "postgresql.auto.conf", f"primary_conninfo = '{source}'\n")
        self._stage.write(self.data / "standby.signal", "")

    def rejoin(self, primary: Server) -> None:
        """Bring a server that is down back as a standby of ``primary``: rewound, or copied anew where that fails.

        :raises ServerError: both failed, or it did not start
        """
        source = f"host={primary.host} port={primary.port} user={SUPERUSER} dbname=postgres"
        # A new primary's control file names its timeline only after a checkpoint, and pg_rewind goes by that.
        primary.query("checkpoint")
        try:
            self._stage.run(
                [self._bindir / "pg_rewind", "--no-sync", f"--target-pgdata={self.data}", f"--source-server={source}"]
            )
        except ServerError:
            self._remove()
            copy = ["--no-sync", "--checkpoint=fast", "--wal-method=stream", f"--pgdata={self.data}"]
            self._stage.run([self._bindir / "pg_basebackup", f"--dbname={source}", *copy])
        self.follow(primary)
        self.start()

    def query(self, statement: str, timeout: float = 5.0) -> list[dict[str, Any]]:
        """Run one statement as the superuser, past any balancer.

        :raises sql.SqlError: no session or no answer within ``timeout`` seconds, or the statement failed
        """
        return sql.query(self.host, self.port, statement, SUPERUSER, timeout)

    def is_accepting(self, timeout: float = 1.0) -> bool:
        """It takes connections and answers."""
        return self.in_recovery(timeout) is not None

    def in_recovery(self, timeout: float = 1.0) -> bool | None:
        """What it says itself; None when it does not answer within ``timeout`` seconds."""
        if not self.running:
            return None
        with contextlib.suppress(sql.SqlError):
            return bool(self.query("select pg_is_in_recovery() as answer", timeout)[0]["answer"] == "t")
        return None

    def is_streaming(self) -> bool:
        """It is a standby that receives WAL from a primary."""
        with contextlib.suppress(sql.SqlError):
            rows = self.query("select 1 from pg_stat_wal_receiver where status = 'streaming'", timeout=1)
            return bool(rows)
        return False

    def received(self) -> int:
        """How much WAL it has received from its primary: a position, in bytes.

        :raises sql.SqlError: it does not answer
        """
        return int(self.query("select (pg_last_wal_receive_lsn() - '0/0')::bigint as bytes")[0]["bytes"] or 0)

    def received_at_last(self) -> int | None:
        """The same once it receives no more, its primary being gone; None while it still does, or does not answer."""
        with contextlib.suppress(sql.SqlError):
            (row,) = self.query(
                "select (pg_last_wal_receive_lsn() - '0/0')::bigint as bytes,"
                " exists (select from pg_stat_wal_receiver where status = 'streaming') as streaming",
                timeout=1,
            )
            return None if row["streaming"] == "t" else int(row["bytes"] or 0)
        return None

    def seed(self, source: Path) -> None:
        """Give the server, which is down, a fresh copy of ``source`` as its data directory."""
        self._remove()
        self._stage.run(["cp", "-a", "--reflink=auto", source, self.data])

    def _status(self) -> str:
        """The last line of postmaster.pid: starting, ready, standby (not accepting yet) or stopping."""
        with contextlib.suppress(OSError, IndexError):
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            if int(lines[0]) == self.process.pid:
                return lines[7].strip()
        return ""

    def _remove(self) -> None:
        _release_shared_memory(self.data)
        shutil.rmtree(self.data, ignore_errors=True)

    def close(self) -> None:
        """End it, whatever it is doing."""
        self.kill()
        _release_shared_memory(self.data)


class Cluster:
    """One primary and its standbys, all on one port: of 127.0.0.11, 127.0.0.12, and so on, or of given hosts.

    :ivar nodes: the servers; number 0 is the primary at first
    :ivar stage: where pgpool is started too
    """

    def __init__(self, stage: Stage, hosts: Sequence[Host], port: int, durable: bool, settings: str) -> None:
        self.stage = stage
        self._hosts = hosts
        self._settings = _SETTINGS + settings if durable else _SETTINGS + _IN_A_HURRY + settings
        self._bindir = postgres_bindir()
        self._seed = stage.directory / "seed"
        port = port or free_port(*(host.address for host in hosts))
        self.nodes = [Server(stage, self._bindir, number, host, port) for number, host in enumerate(hosts)]
        self._rebuilds = 0

    @classmethod
    def start(cls, nodes: int = 3, durable: bool = False, hosts: Sequence[Host] = (), settings: str = "") -> Cluster:
        """Make and start a cluster on a stage of its own; it is removed with `close` or at the end of a ``with``.

        :param nodes: how many servers
        :param durable: they write as in production, so a promotion takes its usual time
        :param hosts: one for each server, where they shall not be on loopback
        :param settings: lines of postgresql.conf, after the others
        :raises MissingProgramError: PostgreSQL is not installed
        :raises ServerError: a server did not start
        """
        stage = Stage()
        try:
            on_loopback = [Host(f"127.0.0.{11 + number}") for number in range(nodes)]
            cluster = cls(stage, hosts or on_loopback, _PORT if hosts else 0, durable, settings)
            cluster._make_seed()
            cluster.rebuild()
        except BaseException:
            stage.close()
            raise
        return cluster

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def primary(self) -> Server:
        """The only server that says it is a primary.

        :raises ServerError: none does, or more than one
        """
        primaries = [node for node in self.nodes if node.in_recovery() is False]
        if len(primaries) != 1:
            raise ServerError(f"{len(primaries)} servers say that they are the primary: {primaries}")
        return primaries[0]

    @property
    def standbys(self) -> list[Server]:
        """The servers that say they are in recovery, in their order."""
        return [node for node in self.nodes if node.in_recovery()]

    def wait_streaming(self, timeout: float = 15.0) -> None:
        """Wait until every server that is up and a standby receives WAL.

        :raises ServerError: one did not within ``timeout`` seconds
        """
        for node in self.standbys:
            if not wait_until(node.is_streaming, timeout, interval=0.02):
                raise ServerError(f"{node.address} does not stream; its log ends with:\n{node.process.log_tail()}")

    def reset(self) -> None:
        """As at first: node 0 the primary, all others its standbys, an empty table. Cheap when little has happened.

        :raises ServerError: a server did not start
        """
        for node in self.nodes:
            node.thaw()
        if not self._is_as_built():
            self.rebuild()
            return
        self.nodes[0].query(f"truncate {TABLE}")

    def rebuild(self) -> None:
        """End every server and start them all on fresh copies of the seed."""

        def copy(node: Server) -> None:
            node.kill()
            node.seed(self._seed)
            if node.number:
                node.follow(self.nodes[0])

        with ThreadPoolExecutor(len(self.nodes)) as threads:
            list(threads.map(copy, self.nodes))
        for node in self.nodes:
            node.start(wait=False)
        for node in self.nodes:
            node.wait_ready()
        self.wait_streaming()

    def close(self) -> None:
        """End the servers and everything else on the stage, and remove its directory; not when the stage is kept."""
        if not self.stage.kept:
            for node in self.nodes:
                node.close()
        self.stage.close()

    def _is_as_built(self) -> bool:
        """On the first timeline, with node 0 as the primary and all others streaming."""
        if not all(node.running for node in self.nodes):
            return False
        try:
            timeline = self.nodes[0].query("select timeline_id from pg_control_checkpoint()", timeout=2)
        except sql.SqlError:
            return False
        return (
            timeline == [{"timeline_id": "1"}]
            and self.nodes[0].in_recovery() is False
            and all(node.in_recovery() and node.is_streaming() for node in self.nodes[1:])
        )

    def _make_seed(self) -> None:
        """One data directory, shut down cleanly: a copy of it is a primary, or with standby.signal a standby of one."""
        self.stage.run(
            [
                self._bindir / "initdb",
                *("--no-sync", "--no-instructions", "--auth=trust", "--encoding=UTF8", "--locale=C"),
                *("--wal-segsize=1", f"--username={SUPERUSER}", f"--pgdata={self._seed}"),
            ]
        )
        with (self._seed / "postgresql.conf").open("a") as settings:
            settings.write(self._settings)
        network = self._hosts[0].network
        self.stage.write(self._seed / "pg_hba.conf", _ACCESS.format(network=network))
        self.stage.run([self._bindir / "postgres", "--single", "-D", self._seed, "postgres"], _OBJECTS.lstrip())


def _release_shared_memory(data: Path) -> None:
    """Remove the System V segment that a killed postmaster has left behind; its pid file names it."""
    try:
        identifier = int((data / "postmaster.pid").read_text().splitlines()[6].split()[1])
    except (OSError, IndexError, ValueError):
        return
    ipc_rmid = 0
    ctypes.CDLL(None).shmctl(identifier, ipc_rmid, None)
