"""A HAProxy: its servers, the file that it comes up with, and its runtime API.

The commands of one line are carried out one after the other, and those of another connection in between (measured with
2.6: it takes connections in turns, also with one thread). A reload takes a while: the new worker has the file as it was
when the reload began, and what is told to the old worker meanwhile is lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from efm_lb_haproxy.config import server_lines
from efm_lb_haproxy.runtime import Interrupted, Look, Unreachable
from efm_lb_haproxy.servers import Server
from efm_lb_haproxy.settings import Endpoint, Reads, Setup
from faults.model.databases import Cluster, Database
from faults.model.right import Watch
from faults.model.simulation import Simulation, Task

__all__ = ["READ", "WRITE", "Haproxy"]

WRITE, READ = "pg_write", "pg_read"
_MAINT, _BY_CONFIG, _DRAIN = 1, 4, 8


class Haproxy:
    """One HAProxy.

    :ivar servers: by ``proxy/name``
    :param files: the balancer's host's
    """

    kind = "haproxy"

    def __init__(
        self, name: str, simulation: Simulation, cluster: Cluster, watch: Watch, files: dict[str, bytes], reads: Reads
    ) -> None:
        self.name = name
        self.simulation = simulation
        self.cluster = cluster
        self.files = files
        self.reads = reads
        self._watch = watch
        self.config = f"/{name}/haproxy.cfg"
        files[self.config] = self._first_config()
        self.first_config = files[self.config]
        self.up = True
        self.pid = 100
        self.reloading: Task | None = None
        self.servers: dict[str, Server] = {}
        self._load(files[self.config])

    @property
    def never_reads_primary(self) -> bool:
        return self.reads is Reads.NEVER

    @property
    def writers(self) -> list[Database]:
        return [self._database(server) for server in self.servers.values() if server.proxy == WRITE and server.ready]

    @property
    def readers(self) -> list[Database]:
        return [self._database(server) for server in self.servers.values() if server.proxy == READ and server.ready]

    @property
    def kept_otherwise(self) -> list[tuple[str, Database]]:
        """The proxies and nodes that a reload would take in or out."""
        is_kept = self._kept
        changed = [server for path, server in self.servers.items() if is_kept[path] is not server.ready]
        return [(server.proxy, self._database(server)) for server in changed]

    @property
    def _kept(self) -> dict[str, bool]:
        """Whether its file has each server in."""
        found = {}
        for proxy, lines in re.findall(r"^listen (\S+)\n((?: .*\n)*)", self.files[self.config].decode(), re.MULTILINE):
            for name, rest in re.findall(r"^ +server (\S+)(.*)", lines, re.MULTILINE):
                found[f"{proxy}/{name}"] = "disabled" not in rest.partition("#")[0].split()
        return found

    def put_back_file(self) -> None:
        """Somebody puts its file back as it was at first: who is out there, and was not, was taken out on purpose."""
        before = self._kept
        self.files[self.config] = self.first_config
        self._watch.touched(self, None)
        for path, is_in in self._kept.items():
            if before[path] and not is_in and self.servers[path].proxy == READ:
                self._watch.taken_out(self, self._database(self.servers[path]), None)

    def _database(self, server: Server) -> Database:
        return next(each for each in self.cluster.all if each.node.host == server.host)

    def _first_config(self) -> bytes:
        text = ""
        for proxy in (WRITE, READ):
            text += f"listen {proxy}\n"
            for database in self.cluster.all:
                is_out = (proxy == WRITE) != (database.number == 0)
                if proxy == READ and database.number == 0:
                    is_out = self.reads is not Reads.ALWAYS
                out = " disabled" * is_out
                text += f"    server n{database.number} {database.node.address}{out}\n"
        return text.encode()

    def _load(self, content: bytes) -> None:
        before, wrote = self.readers, self.writers
        self.servers = {
            f"{line.proxy}/{line.name}": Server(
                line.proxy,
                line.name,
                line.host,
                line.port or 0,
                "-",
                0 if line.disabled else 2,
                _MAINT | _BY_CONFIG if line.disabled else 0,
            )
            for line in server_lines(content)
        }
        self._watch.touched(self, None)
        self._watch.writers(self)
        for database in before:
            if database not in self.readers:
                self._watch.taken_out(self, database, None)
        for database in wrote:
            # A live primary that was taken out of the file, as the operator allows, while no HAProxy ran.
            if self._watch.obeys and not database.in_recovery and database not in (*self.writers, *self.readers):
                self._watch.taken_out(self, database, None)

    def stop(self) -> None:
        self.up = False
        if self.reloading:
            self.simulation.kill(self.reloading)
            self.reloading = None
        self.simulation.say(f"{self.name} is stopped")
        self._watch.stopped(self)

    def start(self) -> None:
        self._watch.started(self)
        self.up = True
        self.pid += 1
        self._load(self.files[self.config])
        self.simulation.say(f"{self.name} starts: {self.told}")

    @property
    def told(self) -> str:
        return ", ".join(f"{path} {server.state}" for path, server in self.servers.items())

    def reload(self) -> None:
        """Begin a reload."""
        if not self.up or self.reloading:
            return

        def work() -> None:
            content = self.files[self.config]
            self.simulation.pause(0.06, 0.14)
            self.pid += 1
            self.reloading = None
            self._load(content)
            self.simulation.say(f"{self.name} reloaded: {self.told}")

        self.simulation.say(f"{self.name} reloads")
        self.reloading = self.simulation.spawn(work, f"{self.name} reload")

    def setup(self) -> Setup:
        return Setup(
            "EFM_LB_BALANCERS__EDGE1__",
            Endpoint(f"/{self.name}/admin.sock"),
            2.0,
            (self.config,),
            (WRITE,),
            (READ,),
            self.reads,
            "none",
        )

    def look(self, proxies: Iterable[str], commands: tuple[str, ...]) -> Look:
        """One request."""
        simulation = self.simulation
        simulation.pause(0.0003, 0.005)
        if not self.up:
            raise Unreachable("cannot connect")
        pid, worker = self.pid, self.servers
        breaks = bool(commands) and not self.cluster.is_calm and simulation.random.random() < 0.02
        for command in commands[: simulation.random.randrange(len(commands))] if breaks else commands:
            if not self.up:
                raise Interrupted("broke the connection")
            self._carry_out(command, worker)
            if worker is self.servers:
                self._watch.writers(self)
            simulation.pause(0.00001, 0.0001)
        told = {proxy: tuple([server for server in worker.values() if server.proxy == proxy]) for proxy in proxies}
        simulation.pause(0.0003, 0.005)
        if not self.up or breaks:
            raise Interrupted("broke the connection")
        return Look(pid, False, "2.6", told)

    def carry_out(self, command: str) -> None:
        """What a person types."""
        if self.up:
            self._carry_out(command, self.servers, by_hand=True)

    def _carry_out(self, command: str, worker: dict[str, Server], by_hand: bool = False) -> None:
        """
        :param worker: the servers of the one that the connection is to: after a reload it is not the one for clients
        """
        self.simulation.say(f"-> {self.name}: {command}{' (told to the old worker)' * (worker is not self.servers)}")
        words = command.split()
        path = words[3] if words[0] == "shutdown" else words[2]
        server = worker[path]
        database = self._database(server)
        before = server.ready
        if words[0] == "shutdown":
            server = server._replace(sessions=0)
        elif words[-1] == "ready":
            server = server._replace(operational=2, admin=server.admin & _BY_CONFIG, sessions=1)
        elif words[-1] == "up":
            if not server.in_maintenance:
                server = server._replace(operational=2)
        elif words[-1] == "maint":
            server = server._replace(operational=0, admin=(server.admin & _BY_CONFIG) | _MAINT)
        elif words[-1] == "drain":
            server = server._replace(operational=2, admin=(server.admin & _BY_CONFIG) | _DRAIN)
        else:
            raise AssertionError(command)
        if server.ready and words[0] == "set" and server.proxy == WRITE and not by_hand:
            self._watch.gives_writes(self, database)
        worker[path] = server
        if worker is not self.servers:
            return
        self._watch.touched(self, None if by_hand else self._watch.teller)
        if before and not server.ready and self._goes_out(server, database):
            self._watch.taken_out(self, database, None if by_hand else self._watch.event)

    def _goes_out(self, server: Server, database: Database) -> bool:
        """Whether a server that is ready no more was the last one of a primary, or one for reads of a standby."""
        if database.in_recovery:
            return server.proxy == READ
        return database not in (*self.writers, *self.readers)
