"""A PgBouncer: its entries, the file that it reads them from, and its console.

RELOAD takes what is in the file. Sessions to where an entry led before stay for a while. PAUSE waits for transactions,
and outlives whoever sent it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from math import inf

from efm_lb_pgbouncer.console import LOGIN_RETRY, Database, Interrupted, Refused, Server
from efm_lb_pgbouncer.entries import Location, entry_of, location_of, parse
from efm_lb_pgbouncer.pooler import Pooler
from efm_lb_pgbouncer.targets import Policy, nodes_at
from faults.model import databases
from faults.model.databases import Cluster, Life
from faults.model.right import CROSSING, Watch
from faults.model.simulation import Simulation

__all__ = ["READ", "WRITE", "Pgbouncer"]

WRITE, READ = ("app", "edb"), ("app_ro",)
_RETRY = "15"


class Pgbouncer:
    """One PgBouncer.

    :ivar told_in_file: what efm-lb has written into the file, for the right reason
    :ivar entries: as SHOW DATABASES tells them
    :ivar leftovers: sessions to where an entry led before, and when they end by themselves
    :param files: the balancer's host's
    """

    kind = "pgbouncer"

    def __init__(
        self,
        name: str,
        simulation: Simulation,
        cluster: Cluster,
        watch: Watch,
        files: dict[str, bytes],
        policy: Policy,
        hold: float,
    ) -> None:
        self.name = name
        self.simulation = simulation
        self.cluster = cluster
        self.files = files
        self.policy = policy
        self._hold = hold
        self._watch = watch
        self.config = f"/{name}/databases.ini"
        readers = ",".join(database.node.host for database in cluster.all[1:])
        files[self.config] = "".join(
            [
                "[databases]\n",
                *(f"{entry} = host={cluster.all[0].node.host} port=5444 dbname={entry}\n" for entry in WRITE),
                *(f"{entry} = host={readers} port=5444 dbname=app\n" for entry in READ),
            ]
        ).encode()
        self.first_config = files[self.config]
        self.told_in_file: dict[str, Location] = {}
        self.up = True
        self.login_retry = _RETRY
        self.entries: dict[str, Database] = {}
        self.leftovers: list[tuple[Server, float]] = []
        self._over: dict[str, float] = {}
        """When the transactions of a paused entry are over, on databases that answer."""
        self._before_reload: tuple[float, dict[str, Location]] = (-inf, {})
        self._load([])

    @property
    def never_reads_primary(self) -> bool:
        return self.policy == "never"

    @property
    def writers(self) -> list[databases.Database]:
        return list(dict.fromkeys(each for name in WRITE for each in self._at(name)))

    @property
    def readers(self) -> list[databases.Database]:
        return [each for name in READ for each in self._at(name)]

    def _at(self, name: str) -> list[databases.Database]:
        return [self.cluster.of(node) for node in nodes_at(self.entries[name].location, self.cluster.nodes)]

    @property
    def told(self) -> str:
        return ", ".join(f"{name} -> {entry.location}" for name, entry in self.entries.items())

    def in_file(self, content: bytes) -> dict[str, Location]:
        parsed = parse(content)
        return {name: location_of(entry_of(name, parsed)) for name in (*WRITE, *READ)}

    def _load(self, before: Sequence[databases.Database]) -> None:
        for name, location in self.in_file(self.files[self.config]).items():
            old = self.entries.get(name)
            if old and old.location != location:
                until = self.simulation.now + self.simulation.random.choice((0.0, 0.01, 0.3, 5.0))
                for host in old.location.hosts:
                    if host not in location.hosts:
                        self.leftovers.append((Server((name, "app"), host, old.location.port, True, True), until))
            self.entries[name] = Database(location, bool(old and old.paused), False, "transaction")
        self.login_retry = _RETRY
        self._watch.touched(self, self._watch.teller)
        for database in before:
            if database not in (*self.readers, *self.writers):
                self._watch.taken_out(self, database, self._watch.event)

    def stop(self) -> None:
        self.up = False
        self.simulation.say(f"{self.name} is stopped")
        self._watch.stopped(self)

    def start(self) -> None:
        self._watch.started(self)
        self.up = True
        before = self.readers
        self.entries.clear()
        self.leftovers.clear()
        self._load(before)
        self.simulation.say(f"{self.name} starts: {self.told}")

    @property
    def kept_otherwise(self) -> list[tuple[str, databases.Database]]:
        """The entries and nodes that a reload would take in or out."""
        found = []
        for name, location in self.in_file(self.files[self.config]).items():
            kept = {self.cluster.of(node) for node in nodes_at(location, self.cluster.nodes)}
            found += [("pg_write" if name in WRITE else name, each) for each in kept ^ {*self._at(name)}]
        return found

    def put_back_file(self) -> None:
        """Somebody puts its file back as it was at first: who is out there, and was not, was taken out on purpose."""
        self.files[self.config] = self.first_config
        self._watch.touched(self, None)
        self.told_in_file.clear()
        for name, database in self.kept_otherwise:
            if name in READ and database in self.readers:
                self._watch.taken_out(self, database, None)

    def reload(self) -> None:
        """Somebody else's RELOAD."""
        if self.up:
            self._before_reload = (self.simulation.now, {name: entry.location for name, entry in self.entries.items()})
            self._load(self.readers)
            self.simulation.say(f"{self.name} reloaded: {self.told}")

    def leads(self, name: str, location: Location) -> bool:
        """Whether an entry leads there, or did until somebody else's RELOAD just now: an event has looked before it."""
        at, before = self._before_reload
        led = before.get(name) if self.simulation.now < at + CROSSING else None
        return location in (self.entries[name].location, led)

    def pooler(self) -> Pooler:
        return Pooler(
            (_Console(self),),  # type: ignore[arg-type]
            self.config,
            WRITE,
            READ,
            self.policy,
            self._hold,
            1.0,
            2.0,
        )

    def tell(self, statement: str, limit: float) -> str:
        simulation = self.simulation
        sent_with = self.files[self.config]
        simulation.pause(0.0003, 0.003)
        if not self.up:
            raise Interrupted("broke")
        simulation.say(f"-> {self.name}: {statement}")
        verb, _, rest = statement.partition(" ")
        if verb == "SET":
            name, _, value = rest.partition(" = ")
            self.login_retry = value.strip("'")
            return f"SET {name}={self.login_retry}"
        if verb == "RELOAD":
            # Nobody can look at a file and have it loaded at once.
            if self._watch.is_told(self) and self.files[self.config] == sent_with:
                for name, location in self.in_file(self.files[self.config]).items():
                    if name in WRITE and location != self.told_in_file.get(name) and not self.leads(name, location):
                        for node in nodes_at(location, self.cluster.nodes):
                            self._watch.gives_writes(self, self.cluster.of(node), by_file=True)
            self._load(self.readers)
            self._watch.writers(self)
            return "RELOAD"
        name = rest.strip('"')
        entry = self.entries[name]
        if verb == "PAUSE":
            if not entry.paused:
                self._over[name] = simulation.now + simulation.random.choice((0.001, 0.01, 0.2))
            # At once, and whatever becomes of the sender.
            self.entries[name] = entry._replace(paused=True)
            over = self._over[name]
            while simulation.now < over or any(self._is_stuck(each, over) for each in self._at(name)):
                if simulation.now >= limit:
                    raise Interrupted("no answer")
                simulation.wait(min(max(over, simulation.now + 0.05), limit))
            if not self.up:
                raise Interrupted("broke")
            return "PAUSE"
        if verb == "KILL":
            self._over[name] = -inf
            self.entries[name] = entry._replace(paused=True)
            self.leftovers = [(server, until) for server, until in self.leftovers if server.database != name]
            return "KILL"
        assert verb == "RESUME", statement
        if not entry.paused:
            raise Refused(f"database {name} is not paused")
        self.entries[name] = entry._replace(paused=False)
        return "RESUME"

    def _is_stuck(self, database: databases.Database, over: float) -> bool:
        """Whether transactions that should be over by a time cannot end."""
        return database.life is Life.SILENT and not database.served_between(over, self.simulation.now)


class _Console:
    connect_timeout = 2.0
    conninfo = "host=/pgb1"
    passfile = ""

    def __init__(self, pgbouncer: Pgbouncer) -> None:
        self._pgbouncer = pgbouncer

    def __str__(self) -> str:
        return self.conninfo

    def session(self, limit: float) -> _Session:
        self._pgbouncer.simulation.pause(0.001, 0.01)
        if not self._pgbouncer.up:
            raise Interrupted("refused")
        return _Session(self, self._pgbouncer)


class _Local:
    is_local = True


class _Session:
    connection = _Local()

    def __init__(self, console: _Console, pgbouncer: Pgbouncer) -> None:
        self.console = console
        self._pgbouncer = pgbouncer

    def close(self) -> None:
        return

    def _look(self) -> Pgbouncer:
        self._pgbouncer.simulation.pause(0.0003, 0.003)
        if not self._pgbouncer.up:
            raise Interrupted("broke")
        return self._pgbouncer

    def command(self, statement: str, limit: float, patience: float | None = None) -> str:
        until = limit if patience is None else min(limit, self._pgbouncer.simulation.now + patience)
        return self._pgbouncer.tell(statement, until)

    def databases(self, limit: float) -> dict[str, Database]:
        return dict(self._look().entries)

    def servers(self, limit: float) -> list[Server]:
        pgbouncer = self._look()
        return [server for server, until in pgbouncer.leftovers if until > pgbouncer.simulation.now]

    def settings(self, limit: float) -> dict[str, str]:
        return {LOGIN_RETRY: self._look().login_retry}

    def wait_connected(self, names: Iterable[str], failed: Collection[str], limit: float) -> None:
        self._look()
