"""The databases: what they are, and what each host hears of them."""

from __future__ import annotations

from enum import Enum

from efm_lb.truth import Node, NodeState, Reach, Role
from faults.model.simulation import Signal, Simulation

__all__ = ["Cluster", "Database", "Life"]


class Life(Enum):
    RUNNING = "runs"
    STARTING = "starts"
    STOPPED = "is stopped"
    """Its host says that nobody listens."""
    SILENT = "is silent"
    """Frozen, or its host is dead or cut off from everybody: nobody gets an answer."""


class Database:
    """One server.

    :ivar in_recovery: a standby
    :ivar timeline: the one it is on, or follows
    :ivar promoted_at: when it left recovery last
    :ivar running: since when it has taken connections, and since when not
    """

    def __init__(self, number: int, in_recovery: bool) -> None:
        name = f"10.0.0.{number + 1}"
        self.node = Node(name, name, 5444)
        self.number = number
        self.life = Life.RUNNING
        self.in_recovery = in_recovery
        self.timeline = 1
        self.promoted_at = 0.0
        self.frozen_from: Life = Life.RUNNING
        self.running: list[tuple[float, bool]] = [(0.0, True)]

    def __str__(self) -> str:
        return self.node.name

    @property
    def serves(self) -> bool:
        return self.life is Life.RUNNING

    @property
    def is_primary(self) -> bool:
        return self.serves and not self.in_recovery

    def served_between(self, since: float, until: float) -> bool:
        """Whether it took connections at any moment of a time."""
        serves = False
        for at, serving in self.running:
            if at > until:
                break
            if at <= since:
                serves = serving
            elif serving:
                return True
        return serves


class Cluster:
    """All servers of one cluster, and the network between them and the hosts.

    :ivar cut: pairs of a host's name and a database that do not reach each other, and what the host hears instead
    :ivar was_cut: there ever was such a pair
    :ivar is_calm: there are no faults any more
    :ivar changed: whenever anything has
    :ivar writable: the one that writes belong to: of those promoted, the last one
    :ivar tells_timeline: whether standbys may be asked for the timeline that they receive
    :ivar newest: timeline that ever was
    :ivar archive: a promotion knows all timelines that ever were, and takes a new one
    """

    def __init__(self, simulation: Simulation, size: int, tells_timeline: bool, archive: bool) -> None:
        self.simulation = simulation
        self.all = [Database(number, number > 0) for number in range(size)]
        self.writable = self.all[0]
        self.cut: dict[tuple[str, Database], Reach] = {}
        self.was_cut = False
        self.is_calm = False
        self.changed = Signal()
        self.tells_timeline = tells_timeline
        self.archive = archive
        self.newest = 1
        self.last_change = simulation.now

    @property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(database.node for database in self.all)

    @property
    def primaries(self) -> list[Database]:
        return [database for database in self.all if database.is_primary]

    @property
    def standbys(self) -> list[Database]:
        return [database for database in self.all if database.serves and database.in_recovery]

    def of(self, node: Node) -> Database:
        return next(database for database in self.all if database.node == node)

    def has_changed(self, what: str) -> None:
        self.simulation.say(what)
        self.last_change = self.simulation.now
        self.simulation.notify(self.changed)

    def _lives(self, database: Database, life: Life) -> None:
        database.life = life
        database.running.append((self.simulation.now, life is Life.RUNNING))
        self.has_changed(f"{database} {life.value}")

    def stop(self, database: Database) -> None:
        self._lives(database, Life.STOPPED)

    def silence(self, database: Database) -> None:
        database.frozen_from = database.life
        self._lives(database, Life.SILENT)

    def thaw(self, database: Database) -> None:
        if database.life is Life.SILENT:
            self._lives(database, database.frozen_from)

    def start(self, database: Database, seconds: float) -> None:
        """Start it as what it was; it takes connections after ``seconds``."""
        self._lives(database, Life.STARTING)
        self.simulation.sleep(seconds)
        if database.life is Life.STARTING:
            self._lives(database, Life.RUNNING)
        elif database.life is Life.SILENT:
            database.frozen_from = Life.RUNNING

    def promote(self, database: Database) -> None:
        known = self.newest if self.archive else database.timeline
        database.timeline = known + 1
        self.newest = max(self.newest, database.timeline)
        database.in_recovery = False
        database.promoted_at = self.simulation.now
        self.writable = database
        self.has_changed(f"{database} is promoted, timeline {database.timeline}")

    def follow(self, database: Database) -> None:
        """Make it a standby of the writable one, however: it was stopped, or restarts for it."""
        database.in_recovery = True
        database.timeline = self.writable.timeline
        self.has_changed(f"{database} follows {self.writable}")

    def answer(self, host: str, database: Database) -> NodeState:
        """What a host hears when it asks now; ``seconds`` is when it was said."""
        node, now = database.node, self.simulation.now
        if (host, database) in self.cut:
            return NodeState(node, self.cut[host, database], seconds=now)
        if database.life is Life.SILENT:
            return NodeState(node, Reach.NO_RESPONSE, seconds=now)
        if database.life is Life.STOPPED:
            return NodeState(node, Reach.REFUSED, seconds=now)
        if database.life is Life.STARTING:
            return NodeState(node, Reach.REJECTING, seconds=now)
        if database.in_recovery:
            timeline = database.timeline if self.tells_timeline else None
            return NodeState(node, Reach.ACCEPTING, Role.STANDBY, timeline, seconds=now)
        return NodeState(node, Reach.ACCEPTING, Role.PRIMARY, database.timeline, seconds=now)
