"""A real PgBouncer in front of a rehearsal's cluster, with its two entries in a file of their own."""

from __future__ import annotations

import hashlib
import hmac
import os
import signal
from base64 import b64encode
from collections.abc import Mapping
from types import TracebackType

from efm_lb.rehearsal import programs, sql
from efm_lb.rehearsal.balancer import Belief, Entrance, State
from efm_lb.rehearsal.cluster import SUPERUSER, Cluster
from efm_lb.rehearsal.host import LOOPBACK, Host
from efm_lb.rehearsal.server_process import ServerProcess
from efm_lb.rehearsal.stage import free_port

__all__ = ["ADMIN_PASSWORD", "ADMIN_USER", "READ", "WRITE", "Pgbouncer"]

ADMIN_USER = "efm_lb"
"""The user of the console; needs `ADMIN_PASSWORD`."""
ADMIN_PASSWORD = "console-secret"
WRITE = "app"
"""The entry that leads to the primary."""
READ = "app_ro"
"""The entry that leads to the standbys."""
_HELD = 20.0
"""Seconds that a client of `WRITE` is patient: twice the time that the adapter holds it in a switchover."""

_SETTINGS: Mapping[str, object] = {
    "auth_type": "hba",
    "pool_mode": "transaction",
    "default_pool_size": 20,
    "max_client_conn": 200,
    "server_login_retry": 15,
    # Not the default: a login to a server that is frozen would take 60 s.
    "server_connect_timeout": 15,
    "ignore_startup_parameters": "extra_float_digits",
    "admin_users": ADMIN_USER,
}

_ACCESS = f"""
local all {ADMIN_USER} scram-sha-256
host all {ADMIN_USER} {{network}} scram-sha-256
local all all trust
host all all {{network}} trust
"""


class Pgbouncer:
    """One PgBouncer on one host.

    :ivar name: ``pgb1``, ``pgb2``, ...
    :ivar host: where clients connect
    :ivar port: where clients connect, and part of the socket's name
    :ivar directory: holds the socket of the console, and the files
    :ivar entries: the file with the entries, which pgbouncer.ini takes in
    :ivar admin: the console, as ADMIN wants it
    :ivar passfile: libpq's, with the console's password
    :ivar process: to be stopped, killed or frozen
    """

    alias = "pgb"
    primary_reads = False

    def __init__(self, cluster: Cluster, settings: Mapping[str, object], port: int = 0, host: Host = LOOPBACK) -> None:
        self.cluster = cluster
        self._stage = cluster.stage
        self._program = programs.pgbouncer()
        self.directory = self._stage.make_numbered_directory("pgb")
        self.name = self.directory.name
        self.host = host.address
        with host.inside():
            self.port = port or free_port(self.host)
        self.log = self._stage.directory / f"{self.name}.log"
        self.entries = self.directory / "databases.ini"
        self.admin = f"host={self.directory} port={self.port} user={ADMIN_USER}"
        self.passfile = self._stage.directory / f"{self.name}.pgpass"
        # SIGINT waits for clients, and SIGTERM does so from 1.23 on.
        self.process = ServerProcess(self._stage, host, self.name, self.log, signal.SIGQUIT)
        self._write_files(settings, host.network)

    @classmethod
    def start(
        cls,
        cluster: Cluster,
        settings: Mapping[str, object] | None = None,
        port: int = 0,
        host: Host = LOOPBACK,
    ) -> Pgbouncer:
        """Configure and start a PgBouncer for ``cluster``.

        :param settings: of pgbouncer.ini, over the recommended ones
        :param port: of another PgBouncer, to share it by so_reuseport
        :param host: where it runs
        :raises MissingProgramError: PgBouncer is not installed
        :raises ServerError: it did not start
        """
        pooler = cls(cluster, settings or {}, port, host)
        try:
            pooler.launch()
        except BaseException:
            pooler.process.close()
            raise
        return pooler

    def __enter__(self) -> Pgbouncer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.close()

    def __repr__(self) -> str:
        return f"<Pgbouncer {self.name} {self.host}:{self.port}>"

    @property
    def place(self) -> str:
        return f"PgBouncer on {self.host}:{self.port}: writes by entry {WRITE}, reads by entry {READ}"

    @property
    def writing(self) -> Entrance:
        """Where clients that write connect."""
        return Entrance(self.host, self.port, WRITE, _HELD, _HELD)

    @property
    def reading(self) -> Entrance:
        """Where clients that only read connect."""
        return Entrance(self.host, self.port, READ)

    @property
    def settings(self) -> Mapping[str, object]:
        """The settings of efm-lb for it."""
        return {
            "ADAPTER": "pgbouncer",
            "ADMIN": self.admin,
            "CONFIG": self.entries,
            "WRITE": WRITE,
            "READ": READ,
            "PASSFILE": self.passfile,
        }

    @property
    def doors(self) -> Mapping[str, str]:
        psql = f'psql "host={self.host} port={self.port} user={SUPERUSER} dbname={{}}"'
        return {
            "writers": psql.format(WRITE),
            "readers": psql.format(READ),
            "console": f'PGPASSFILE={self.passfile} psql "{self.admin} dbname=pgbouncer"',
        }

    def launch(self, timeout: float = 10.0) -> None:
        """Start it and wait until its console answers.

        :raises ServerError: it ended, or did not answer within ``timeout`` seconds
        """
        self.process.start([self._program, self.directory / "pgbouncer.ini"])
        self.process.wait_ready(self._answers, timeout)

    def restart(self) -> None:
        """Stop and start it: it reads its files anew, and is not paused."""
        self.process.stop()
        self.launch()

    def reset(self) -> None:
        """As at first: running, not paused, the entries leading to node 0 and to all others. Cheap when it is so."""
        self.process.thaw()
        self.write_entries(self.first_entries())
        if not self.process.running or any(row["paused"] != "0" for row in self.show("databases")):
            self.restart()
        else:
            self.console("RELOAD")
            for row in self.show("databases"):
                if row["name"] in (WRITE, READ):
                    # Pools that met a dead server try no other for server_login_retry.
                    self.console(f"KILL {row['name']}")
                    self.console(f"RESUME {row['name']}")

    def console(self, command: str, timeout: float = 5.0) -> list[dict[str, str | None]]:
        """Tell the console something, over the Unix socket.

        :raises sql.SqlError: no answer within ``timeout`` seconds, or an error
        """
        with self.console_session(timeout) as session:
            return session.execute(command, timeout)

    def console_session(self, timeout: float = 5.0) -> sql.Session:
        """A login to the console."""
        options = {"host": str(self.directory), "hostaddr": "", "passfile": str(self.passfile)}
        return sql.Session("", self.port, ADMIN_USER, "pgbouncer", timeout, options)

    def show(self, what: str) -> list[dict[str, str]]:
        """A SHOW command's rows, by column name."""
        return [{name: value or "" for name, value in row.items()} for row in self.console(f"SHOW {what}")]

    def places(self) -> dict[str, str]:
        """Where each entry leads to, as ``host:port``."""
        return {row["name"]: f"{row['host']}:{row['port']}" for row in self.show("databases")}

    def paused(self) -> list[str]:
        """The entries whose clients are held."""
        return [row["name"] for row in self.show("databases") if row["paused"] == "1"]

    def beliefs(self) -> list[Belief]:
        """What it believes about each node.

        :raises sql.SqlError: its console does not answer
        """
        listed = {
            row["name"]: [f"{host}:{row['port']}" for host in row["host"].split(",")] for row in self.show("databases")
        }
        found = []
        for node in self.cluster.nodes:
            entries = [name for name in (WRITE, READ) if node.address in listed[name]]
            found.append(Belief(WRITE in entries, READ in entries, f"in {' and '.join(entries) or 'no entry'}"))
        return found

    def state(self) -> State:
        """Its entries; raises as `beliefs`."""
        rows = [row for row in self.show("databases") if row["name"] in (WRITE, READ)]
        return State(
            "SHOW DATABASES",
            ("host",),
            tuple((row["name"], row["host"] + (" (paused)" if row["paused"] == "1" else "")) for row in rows),
        )

    def query(self, statement: str, entry: str = WRITE, timeout: float = 5.0) -> list[dict[str, str | None]]:
        """Run one statement through it.

        :raises sql.SqlError: no session or no answer within ``timeout`` seconds, or the statement failed
        """
        return sql.query(self.host, self.port, statement, SUPERUSER, timeout, entry)

    def first_entries(self) -> str:
        """The file with the entries as it is written at first."""
        primary, *standbys = self.cluster.nodes
        hosts = ",".join(node.host for node in standbys or [primary])
        return (
            "[databases]\n"
            f"{WRITE} = host={primary.host} port={primary.port} dbname=postgres\n"
            f"{READ} = host={hosts} port={primary.port} dbname=postgres\n"
        )

    def write_entries(self, text: str) -> None:
        """Replace the file with the entries."""
        self._stage.write(self.entries, text)

    def _answers(self) -> bool:
        try:
            return bool(self.console("SHOW VERSION", timeout=1))
        except sql.SqlError:
            return False

    def _write_files(self, overrides: Mapping[str, object], network: str) -> None:
        settings: dict[str, object] = {
            **_SETTINGS,
            "listen_addr": self.host,
            "listen_port": self.port,
            "unix_socket_dir": self.directory,
            "auth_file": self.directory / "users.txt",
            "auth_hba_file": self.directory / "hba.conf",
            **overrides,
        }
        lines = [f"%include {self.entries}\n", "[pgbouncer]\n"]
        lines += [f"{name} = {value}\n" for name, value in settings.items()]
        self._stage.write(self.directory / "pgbouncer.ini", "".join(lines))
        users = f'"{ADMIN_USER}" "{_scram_secret(ADMIN_PASSWORD)}"\n"{SUPERUSER}" ""\n'
        self._stage.write(self.directory / "users.txt", users)
        self._stage.write(self.directory / "hba.conf", _ACCESS.format(network=network))
        self.write_entries(self.first_entries())
        self.directory.chmod(0o711)
        descriptor = os.open(self.passfile, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(f"*:*:*:{ADMIN_USER}:{ADMIN_PASSWORD}\n")


def _scram_secret(password: str) -> str:
    """What the auth_file has in a password's place (PgBouncer's manual, "Authentication file format")."""
    iterations = 4096
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    client, server = (hmac.digest(salted, key, "sha256") for key in (b"Client Key", b"Server Key"))
    parts = [b64encode(part).decode() for part in (salt, hashlib.sha256(client).digest(), server)]
    return "SCRAM-SHA-256${}:{}${}:{}".format(iterations, *parts)
