"""A cluster, its balancers and efm-lb, each on a host of its own, and what EFM does to them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from efm_lb.rehearsal import sql
from efm_lb.rehearsal.cluster import Cluster, Server
from efm_lb.rehearsal.haproxy import Haproxy
from efm_lb.rehearsal.hooks import BARE_ENVIRONMENT, EFM_LB, Hook, Run, hook_environment
from efm_lb.rehearsal.pgbouncer import Pgbouncer
from efm_lb.rehearsal.pgpool import Pgpool
from efm_lb.rehearsal.sshd import Sshd
from efm_lb.rehearsal.stage import ServerError
from efm_lb.rehearsal.verdict import misbeliefs
from efm_lb.rehearsal.waiting import wait_until
from faults.illness import pcp
from faults.network.hosts import Hosts
from faults.network.namespaces import NoNamespaces

__all__ = [
    "BALANCERS",
    "CONNECT_TIMEOUT",
    "DEADLINE",
    "NODES",
    "Roles",
    "Service",
    "Silence",
    "Stand",
    "open_hosts",
    "open_stand",
]

NODES = ("db1", "db2", "db3")
BALANCERS = ("pool1", "edge1", "pgb1")
"""Each is on a host of its own, which is called the same."""
DEADLINE = 7
CONNECT_TIMEOUT = 3
"""ssh has that long, too, on a machine that may be busy."""
_ADMIN_PORT = 9999
_PATIENCE = 20.0
"""Seconds that pgpool has to answer the judge.

Up to 4.4 a PCP connection that is left open holds it up: after a state change its main process waits for its PCP
process, and that one for its clients. A client that has gone is noticed when TCP gets through with it: it tries after
0.2, 0.6, 1.4, 3, 6, 13, 26 and 51 s. So no patience is enough while packets are lost. This one covers the 2 to 20 s
that it takes in one of five plays where a quarter of the packets of efm-lb's own connections is lost.
"""

# A server that is told to stop waits for a standby that it cannot reach, and for a client that has connected meanwhile
# and whose first packet does not come.
_SETTINGS = """
authentication_timeout = 2s
wal_sender_timeout = 2s
wal_receiver_timeout = 2s
"""


class Roles(NamedTuple):
    """The nodes by what becomes of them in a switchover or failover; their hosts are called by `Stand.host_of`."""

    old: Server
    new: Server
    other: Server


class Silence(OSError):
    """A balancer does not tell anything; what it does is not known."""


class Stand:
    """Three nodes, a pgpool, an HAProxy, a PgBouncer, clients, and a host that no fault ever touches.

    This process is on that last one: what it says of a server is so, whatever is wrong with the network. pgpool and
    HAProxy are reached over the network, PgBouncer by ``efm-lb apply`` on its host.

    :ivar balancers: by their names in the settings
    """

    def __init__(self, hosts: Hosts, undo: ExitStack) -> None:
        self.hosts = hosts
        self._undo = undo
        undo.enter_context(hosts["observer"].inside())
        self.cluster = undo.enter_context(Cluster.start(hosts=[hosts[name] for name in NODES], settings=_SETTINGS))
        # As docs/pgpool.md says: a client that has vanished would hold it up for hours.
        hosts.sysctl("pool1", tcp_keepalive_time=5, tcp_keepalive_intvl=1, tcp_keepalive_probes=3)
        self.pool = undo.enter_context(Pgpool.start(self.cluster, {"connect_timeout": 2000}, hosts["pool1"]))
        listen = f"stats socket ipv4@{hosts['edge1'].address}:{_ADMIN_PORT} level admin"
        self.edge = undo.enter_context(Haproxy.start(self.cluster, global_=listen, host=hosts["edge1"]))
        self.pgb = undo.enter_context(Pgbouncer.start(self.cluster, {"server_login_retry": 1}, host=hosts["pgb1"]))
        self.balancers: dict[str, Pgpool | Haproxy | Pgbouncer] = {
            "pool1": self.pool,
            "edge1": self.edge,
            "pgb1": self.pgb,
        }
        there = hook_environment(self.cluster, [self.pgb], "pgb1")
        directory = self.cluster.stage.directory / "ssh"
        directory.mkdir()
        command = " ".join([*EFM_LB, "apply", f"--env-file={there}"])
        self._sshd = undo.enter_context(Sshd(directory, command, hosts["pgb1"]))
        self._env_files = {name: self._environment(name) for name in (*NODES, "lb")}

    @property
    def roles(self) -> Roles:
        """The primary, and the standbys in their order."""
        primary = self.cluster.primary
        new, other = [node for node in self.cluster.nodes if node is not primary]
        return Roles(primary, new, other)

    def host_of(self, node: Server) -> str:
        """The name of a node's host."""
        return NODES[node.number]

    def efm_lb(self, host: str, *words: str) -> Run:
        """Run ``efm-lb`` on a host."""
        command = [*EFM_LB, *words, f"--env-file={self._env_files[host]}"]
        with self.hosts[host].inside():
            return Hook(lambda _: command, {"PATH": self._sshd.path})(*words)

    @contextmanager
    def reconciled(self, host: str) -> Iterator[Service]:
        """``efm-lb reconcile --watch`` at work on a host while the block runs."""
        with self.hosts[host].inside():
            service = Service(self._env_files[host], self._sshd.path)
        try:
            yield service
        finally:
            service.end()

    def writers(self, name: str) -> list[Server]:
        """The nodes that a balancer sends writes to, by its own live state.

        :raises Silence: pgpool does not answer
        :raises sql.SqlError: it does not tell
        :raises OSError: it does not tell
        """
        if name == "pool1":
            return self._pgpools_primary()
        beliefs = self.balancers[name].beliefs()
        return [node for node, belief in zip(self.cluster.nodes, beliefs, strict=True) if belief.writes]

    def _pgpools_primary(self) -> list[Server]:
        """By PCP: a client that asks waits until pgpool has reached the databases. None while pgpool tells nothing.

        A second after each change pgpool's PCP process begins anew, and who asks just then is asked to come again.
        """
        told = ""

        def is_told() -> bool:
            nonlocal told
            told = pcp(self.pool, "pcp_node_info", "-a", timeout=_PATIENCE)
            return bool(told)

        try:
            wait_until(is_told, timeout=2, interval=0.1)
        except subprocess.TimeoutExpired:
            raise Silence(f"pool1 does not answer pcp_node_info within {_PATIENCE:g} s") from None
        if not told:
            return []
        rows = [line.split() for line in told.splitlines()]
        return [
            node
            for node, (_, _, _, _, status, _, role, *_) in zip(self.cluster.nodes, rows, strict=True)
            if role == "primary" and status in ("up", "waiting")
        ]

    def write(self, name: str, timeout: float = 1.0) -> str:
        """The address of the node that a write through a balancer arrives at.

        :raises sql.SqlError: it does not
        """
        entrance = self.balancers[name].writing
        statement = "insert into rehearsal values (0, 0) returning host(inet_server_addr()) as host"
        rows = sql.query(entrance.host, entrance.port, statement, timeout=timeout, dbname=entrance.dbname)
        return str(rows[0]["host"])

    def wrong(self) -> list[str]:
        """What is wrong with any server."""
        down = [f"{node} does not stream" for node in self.roles[1:] if not node.is_streaming()]
        return down + [line for balancer in self.balancers.values() for line in misbeliefs(self.cluster, balancer)]

    def is_right(self) -> bool:
        """One primary, standbys that stream, and every balancer knows."""
        try:
            return not self.wrong()
        except (sql.SqlError, OSError, ServerError):
            return False

    def rejoin(self, primary: Server) -> None:
        """Make every other node a standby of ``primary`` that streams, whatever it is now."""
        for node in self.cluster.nodes:
            if node is primary:
                continue
            if node.in_recovery() is False:
                node.stop("immediate")
            if not node.running:
                node.rejoin(primary)
            if not wait_until(lambda node=node: _receives(node, primary), timeout=6, interval=0.1):
                # It has WAL that the new primary never had.
                node.stop("immediate")
                node.rejoin(primary)
        self.cluster.wait_streaming()

    def _environment(self, name: str) -> Path:
        extra = {
            "EFM_LB_DEADLINE": DEADLINE,
            "EFM_LB_CONNECT_TIMEOUT": CONNECT_TIMEOUT,
            "EFM_LB_RECONCILE__PERIOD": 1,
            "EFM_LB_RECONCILE__SETTLE": 0.5,
            "EFM_LB_RECONCILE__DETACH_AFTER": 1,
            # A standby that was silent in a promotion may have been thrown out for it, and that looks like a wish.
            "EFM_LB_RECONCILE__HOLD": 4,
            "EFM_LB_BALANCERS__EDGE1__SOCKET": f"{self.edge.host}:{_ADMIN_PORT}",
            "EFM_LB_BALANCERS__EDGE1__CONFIG": None,
            "EFM_LB_BALANCERS__PGB1__ADAPTER": "pgbouncer",
            "EFM_LB_BALANCERS__PGB1__HOST_SSH": self._sshd.destination,
        }
        return hook_environment(self.cluster, [self.pool, self.edge], name, extra)


def _receives(node: Server, primary: Server) -> bool:
    """A standby streams; one that cannot follow onto the new timeline does so for a moment, again and again."""
    try:
        primary.query("checkpoint")  # something to be received
        (now,) = primary.query("select ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int as tli")
        rows = node.query("select received_tli as tli from pg_stat_wal_receiver where status = 'streaming'", timeout=1)
    except sql.SqlError:
        return False
    return rows == [now]


class Service:
    """An ``efm-lb reconcile --watch`` at work."""

    def __init__(self, env_file: Path, path: str) -> None:
        self._log = env_file.with_suffix(".log")
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [*EFM_LB, "reconcile", "--watch", f"--env-file={env_file}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**BARE_ENVIRONMENT, "PATH": path},
                cwd="/",
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    def end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        finally:
            self._process.kill()


@contextmanager
def open_hosts(names: Sequence[str]) -> Iterator[Hosts]:
    """Hosts, or a test that is skipped because they cannot be made; in CI it fails."""
    try:
        hosts = Hosts(names)
    except NoNamespaces as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no hosts: {error}")
    with hosts:
        yield hosts


@contextmanager
def open_stand() -> Iterator[Stand]:
    with open_hosts((*NODES, *BALANCERS, "client", "lb", "observer")) as hosts, ExitStack() as undo:
        yield Stand(hosts, undo)
