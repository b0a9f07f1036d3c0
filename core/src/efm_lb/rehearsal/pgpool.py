"""A real pgpool in front of a rehearsal's cluster, configured as an external failover manager needs it."""

from __future__ import annotations

import contextlib
import hashlib
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from efm_lb.rehearsal import programs, sql
from efm_lb.rehearsal.balancer import Belief, Entrance, State
from efm_lb.rehearsal.cluster import SUPERUSER, Cluster
from efm_lb.rehearsal.host import LOOPBACK, Host
from efm_lb.rehearsal.server_process import ServerProcess
from efm_lb.rehearsal.stage import ServerError, free_port
from efm_lb.rehearsal.verdict import misbeliefs

__all__ = ["PCP_PASSWORD", "PCP_USER", "Pgpool"]

PCP_USER = "pcpadm"
PCP_PASSWORD = "pcp-secret"

# What does not fight EFM: pgpool changes nothing by itself. failover_on_backend_shutdown
# is on in 4.3.0-4.3.8 and 4.4.0-4.4.5 unless it is written down, whatever the manual says.
_SETTINGS: Mapping[str, object] = {
    "backend_clustering_mode": "streaming_replication",
    "load_balance_mode": "on",
    "failover_on_backend_error": "off",
    "failover_on_backend_shutdown": "off",
    "auto_failback": "off",
    "detach_false_primary": "off",
    "failover_command": "",
    "failback_command": "",
    "follow_primary_command": "",
    "search_primary_node_timeout": 3,
    "health_check_period": 0,
    "health_check_user": SUPERUSER,
    "health_check_database": "postgres",
    "sr_check_period": 0,
    "sr_check_user": SUPERUSER,
    "sr_check_database": "postgres",
    "delay_threshold": 10_000_000,
    "enable_pool_hba": "on",
    "allow_clear_text_frontend_auth": "off",
    "num_init_children": 24,
    "max_pool": 4,
    "log_line_prefix": "%m: %a pid %p: ",
}


class Pgpool:
    """One pgpool on one host.

    :ivar name: ``pool1``, ``pool2``, ...
    :ivar host: of both ports
    :ivar port: where clients connect
    :ivar pcp_port: where hooks connect
    :ivar pcp_passfile: a pcp password file, owned by this process' account
    :ivar process: to be stopped, killed or frozen
    """

    alias = "pool"
    primary_reads = True
    pcp_user = PCP_USER

    def __init__(self, cluster: Cluster, settings: Mapping[str, object], host: Host = LOOPBACK) -> None:
        self.cluster = cluster
        self._stage = cluster.stage
        self._program = programs.pgpool()
        self.directory = self._stage.make_numbered_directory("pool")
        self.name = self.directory.name
        self.host = host.address
        with host.inside():
            self.port = free_port(self.host)
            self.pcp_port = free_port(self.host)
        self.log = self._stage.directory / f"{self.name}.log"
        self.process = ServerProcess(self._stage, host, self.name, self.log, signal.SIGINT, _release_shared_memory)
        self.pcp_passfile = self._stage.directory / f"{self.name}.pcppass"
        self._write_files(settings, host.network)

    @classmethod
    def start(cls, cluster: Cluster, settings: Mapping[str, object] | None = None, host: Host = LOOPBACK) -> Pgpool:
        """Configure and start a pgpool for ``cluster``.

        :param settings: of pgpool.conf, over the recommended ones
        :param host: where it runs
        :raises MissingProgramError: pgpool is not installed
        :raises ServerError: it did not start
        """
        pool = cls(cluster, settings or {}, host)
        try:
            pool.launch(discard_status=True)
        except BaseException:
            pool.process.close()
            raise
        return pool

    def __enter__(self) -> Pgpool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.close()

    def __repr__(self) -> str:
        return f"<Pgpool {self.name} {self.host}:{self.port}>"

    @property
    def place(self) -> str:
        return f"pgpool on {self.host}:{self.port}, PCP on port {self.pcp_port}"

    @property
    def writing(self) -> Entrance:
        """Where clients that write connect, and those that read: pgpool tells one from the other."""
        return Entrance(self.host, self.port)

    @property
    def reading(self) -> Entrance:
        return self.writing

    @property
    def settings(self) -> Mapping[str, object]:
        """The settings of efm-lb for it."""
        return {
            "ADAPTER": "pgpool",
            "HOST": self.host,
            "PORT": self.pcp_port,
            "USER": self.pcp_user,
            "PASSFILE": self.pcp_passfile,
        }

    @property
    def doors(self) -> Mapping[str, str]:
        pcp = f"pcp_node_info -h {self.host} -p {self.pcp_port} -U {self.pcp_user} -w"
        return {
            "clients": f'psql "host={self.host} port={self.port} user={SUPERUSER} dbname=postgres"',
            "PCP": f"PCPPASSFILE={self.pcp_passfile} {pcp}",
        }

    def launch(self, discard_status: bool = False, timeout: float = 15.0) -> None:
        """Start it and wait until it serves clients and has found the primary, if there is one.

        :param discard_status: forget which nodes were down (``pgpool -D``)
        :raises ServerError: it ended, or did not serve within ``timeout`` seconds
        """
        directory = self.directory
        self.process.start(
            [
                self._program,
                "-n",
                *(["-D"] if discard_status else []),
                *("-f", directory / "pgpool.conf"),
                *("-F", directory / "pcp.conf"),
                *("-a", directory / "pool_hba.conf"),
            ]
        )
        # It serves before it has looked for the primary.
        primary = any(node.in_recovery() is False for node in self.cluster.nodes)
        self.process.wait_ready(lambda: self._serves(primary), timeout, 0.02)

    def restart(self, discard_status: bool = False) -> None:
        """Stop and start it; it remembers which nodes were down, unless ``discard_status``."""
        self.process.stop()
        self.launch(discard_status)

    def reset(self) -> None:
        """As at first: running, every node attached, the true primary known. Cheap when it is so already."""
        self.process.thaw()
        if not self.process.running:
            self.launch(discard_status=True)
        elif not self.is_right():
            self.restart(discard_status=True)

    def query(self, statement: str, timeout: float = 5.0) -> list[dict[str, str | None]]:
        """Run one statement through this pgpool.

        :raises sql.SqlError: no session or no answer within ``timeout`` seconds, or the statement failed
        """
        return sql.query(self.host, self.port, statement, timeout=timeout)

    def show_pool_nodes(self, timeout: float = 5.0) -> list[dict[str, str]]:
        """What ``show pool_nodes`` says, one dictionary by column name per node, in their order.

        Asked again while pgpool drops sessions, as it does after each change.

        :raises sql.SqlError: no answer within ``timeout`` seconds
        :raises ServerError: pgpool has ended
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                rows = self.query("show pool_nodes", max(0.2, deadline - time.monotonic()))
            except sql.SqlError:
                if self.process.pid and not self.process.running:
                    raise ServerError(f"{self.name} has ended; its log ends with:\n{self.process.log_tail()}") from None
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.02)
            else:
                return [{name: value or "" for name, value in row.items()} for row in rows]

    def attached(self) -> list[str]:
        """The hosts of the nodes in rotation: up, or waiting for their first client."""
        return [row["hostname"] for row in self.show_pool_nodes() if row["status"] in ("up", "waiting")]

    def primary(self) -> str | None:
        """The host of the node that it sends writes to, None when it has none."""
        for row in self.show_pool_nodes():
            if row["role"] == "primary" and row["status"] in ("up", "waiting"):
                return row["hostname"]
        return None

    def is_right(self) -> bool:
        """Writes go to the real primary, and exactly the servers that answer are attached."""
        return not misbeliefs(self.cluster, self)

    def beliefs(self) -> list[Belief]:
        """What it believes about each node.

        :raises sql.SqlError: as `show_pool_nodes`
        :raises ServerError: as `show_pool_nodes`
        """
        found = []
        for row in self.show_pool_nodes():
            attached = row["status"] in ("up", "waiting")
            found.append(Belief(attached and row["role"] == "primary", attached, f"{row['status']}/{row['role']}"))
        return found

    def state(self) -> State:
        """What ``show pool_nodes`` says; raises as that."""
        rows = self.show_pool_nodes()
        return State(
            "show pool_nodes",
            ("status", "role"),
            tuple((f"{row['node_id']} {row['hostname']}", row["status"], row["role"]) for row in rows),
        )

    def _serves(self, primary: bool) -> bool:
        with contextlib.suppress(sql.SqlError):
            rows = self.query("show pool_nodes", timeout=1)
            return not primary or any(row["role"] == "primary" for row in rows)
        return False

    def _write_files(self, overrides: Mapping[str, object], network: str) -> None:
        settings: dict[str, object] = {
            **_SETTINGS,
            "listen_addresses": self.host,
            "port": self.port,
            "pcp_listen_addresses": self.host,
            "pcp_port": self.pcp_port,
            "socket_dir": self.directory,
            "pcp_socket_dir": self.directory,
            "pid_file_name": self.directory / "pgpool.pid",
            "logdir": self.directory,
            "work_dir": self.directory,
        }
        for node in self.cluster.nodes:
            settings |= {
                f"backend_hostname{node.number}": node.host,
                f"backend_port{node.number}": node.port,
                f"backend_weight{node.number}": 1,
                f"backend_data_directory{node.number}": node.data,
                f"backend_flag{node.number}": "ALLOW_TO_FAILOVER",
            }
        settings |= overrides
        lines = (f"{name} = '{value}'\n" for name, value in settings.items())
        self._stage.write(self.directory / "pgpool.conf", "".join(lines))
        self._stage.write(self.directory / "pool_hba.conf", f"local all all trust\nhost all all {network} trust\n")
        digest = hashlib.md5(PCP_PASSWORD.encode(), usedforsecurity=False).hexdigest()
        self._stage.write(self.directory / "pcp.conf", f"{PCP_USER}:{digest}\n")
        self.pcp_passfile.touch(mode=0o600)
        self.pcp_passfile.write_text(f"*:*:{PCP_USER}:{PCP_PASSWORD}\n")


def _release_shared_memory(pid: int) -> None:
    """Remove the System V segments that a killed pgpool has left behind; the kernel knows who made them."""
    try:
        segments = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    except OSError:
        return
    made = [fields[1] for fields in map(str.split, segments) if fields[4] == str(pid)]
    if made:
        subprocess.run(["ipcrm", *(f"--shmem-id={identifier}" for identifier in made)], check=False, timeout=10)
