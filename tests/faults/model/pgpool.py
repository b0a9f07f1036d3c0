"""A pgpool: its main process that does one thing after the other, its search for the primary, and its PCP port.

What it does is measured and read in the source of 4.3: a reply means "queued"; an attach, and a detach of what it
calls primary, make it search; a search waits for a silent node without end; a promote throws every other node out and
asks no database; each change takes about a second in which the next one waits; when it starts, PCP is refused until its
first search is over.
"""

from __future__ import annotations

from efm_lb import Event
from efm_lb_pgpool.frames import Notice
from efm_lb_pgpool.members import Member, Members
from efm_lb_pgpool.node_info import PRIMARY, STANDBY, Backend
from efm_lb_pgpool.pcp import Interrupted, Nodes, Refusal, Server
from faults.model.databases import Cluster, Database, Life
from faults.model.right import Watch
from faults.model.simulation import Simulation, Task

__all__ = ["Pgpool"]

_QUEUE = 10
_BUSY = 1.0
_DOWN, _UP = 3, 2


class Pgpool:
    """One pgpool.

    :param search_timeout: search_primary_node_timeout, in seconds; 0 is for ever
    """

    kind = "pgpool"
    never_reads_primary = False

    def __init__(self, name: str, simulation: Simulation, cluster: Cluster, watch: Watch, search_timeout: int) -> None:
        self.name = name
        self.simulation = simulation
        self.cluster = cluster
        self.watch = watch
        self._search_timeout = search_timeout
        self.up = self.listens = True
        self.attached = [True for _ in cluster.all]
        self.primary: int | None = 0
        self.restarts_listener_at = 0.0
        self._searches_since: float | None = None
        self._queue: list[tuple[str, int, Task | None, Event | None]] = []
        self._teller: Task | None = None
        self._event: Event | None = None
        self._main: Task | None = None
        self.hangs_on: Database | None = None

    @property
    def backends(self) -> tuple[Backend, ...]:
        return tuple(
            [
                Backend(
                    database.number,
                    database.node.host,
                    database.node.port,
                    _UP if self.attached[database.number] else _DOWN,
                    PRIMARY if self.primary == database.number else STANDBY,
                )
                for database in self.cluster.all
            ]
        )

    @property
    def searches_in_vain(self) -> float:
        """Seconds that it looks for its primary in vain: now, and for what is queued, which nobody can take back.

        As long as no database changes any more, and nobody tells it anything.
        """
        timeout, attached = self.search_timeout, list(self.attached)
        primary = self.primary
        seconds = 0.0

        def search() -> float:
            nonlocal primary
            primary = next((each.number for each in self.cluster.primaries if attached[each.number]), None)
            return 0.0 if primary is not None or not any(attached) else timeout

        if self._searches_since is not None:
            seconds = max(0.0, min(search(), self._searches_since + timeout - self.simulation.now))
        for verb, number, *_ in self._queue:
            if verb == "promote":
                if attached[number] and primary != number:
                    primary, attached = number, [other == number for other in range(len(attached))]
            elif attached[number] is (verb == "detach"):
                attached[number] = verb == "attach"
                if verb == "attach" or primary in (None, number):
                    seconds += search()
        return seconds

    @property
    def writers(self) -> list[Database]:
        return [self.cluster.all[self.primary]] if self.primary is not None and self.attached[self.primary] else []

    @property
    def readers(self) -> list[Database]:
        return [database for database in self.cluster.all if self.attached[database.number]]

    def stop(self) -> None:
        self.up = self.listens = False
        self._searches_since = None
        self._queue.clear()
        if self._main:
            self.simulation.kill(self._main)
            self._main = self.hangs_on = None
        self.simulation.say(f"{self.name} is stopped")
        self.watch.stopped(self)

    def start(self) -> None:
        """With the states that it had; it searches for its primary."""
        self.watch.started(self)
        self.up = True
        if not any(self.attached):
            self.attached = [True for _ in self.attached]
        self.primary = self._teller = self._event = None
        self.watch.touched(self, None)
        self.simulation.say(f"{self.name} starts")

        def first() -> None:
            self._search()
            self.listens = True

        self._begin(first)

    def tell(self, verb: str, number: int) -> Notice | None:
        """Take a request, from PCP.

        :return: what only the log says
        """
        simulation = self.simulation
        simulation.say(f"-> {self.name}: pcp_{verb}_node {number}")
        if verb == "detach" and not self.attached[number]:
            raise Refusal(_SERVER, Notice("ERROR", f"node id : {number} status: [3] is not valid for failover"))
        if verb == "promote" and self.primary == number:
            raise Refusal(_SERVER, Notice("FATAL", "specified node is already primary node"))
        if verb == "promote" and not self.attached[number]:
            return Notice("LOG", f"invalid promote backend request, node id : {number} status: [3] not valid")
        if len(self._queue) < _QUEUE:
            if verb == "promote":
                self.watch.gives_writes(self, self.cluster.all[number])
            self._queue.append((verb, number, self.watch.teller, self.watch.event))
        if not self._main:
            self._begin(lambda: None)
        return None

    def by_hand(self, verb: str, number: int) -> None:
        """Somebody else sends a command."""
        if self.listens and (verb != "detach" or self.attached[number]):
            self._queue.append((verb, number, None, None))
            if not self._main:
                self._begin(lambda: None)

    def _begin(self, first: object) -> None:
        def work() -> None:
            first()  # type: ignore[operator]
            while self._queue:
                self.simulation.pause(0.005, 0.08)
                verb, number, self._teller, self._event = self._queue.pop(0)
                if self._carry_out(verb, number):
                    self.simulation.sleep(_BUSY)
                    self.restarts_listener_at = self.simulation.now
            self._main = None

        self._main = self.simulation.spawn(work, f"{self.name} main")

    def _carry_out(self, verb: str, number: int) -> bool:
        """Whether it changed anything."""
        if verb == "attach":
            if self.attached[number]:
                return False
            self._set(number, True)
            self._search()
        elif verb == "detach":
            if not self.attached[number]:
                return False
            self._set(number, False)
            if self.primary in (None, number):
                self._search()
        else:
            if not self.attached[number] or self.primary == number:
                return False
            self.primary = number
            self.watch.touched(self, self._teller)
            for other in range(len(self.attached)):
                if other != number:
                    self._set(other, False)
            self.simulation.say(f"primary {number}, all others down")
        return True

    def _set(self, number: int, attached: bool) -> None:
        if self.attached[number] and not attached:
            # One that had the writes may have been meant as the primary that it was.
            event = None if self.primary == number else self._event
            self.watch.taken_out(self, self.cluster.all[number], event)
        self.attached[number] = attached
        self.watch.touched(self, self._teller)
        self.simulation.say(f"node {number} {'up' if attached else 'down'}")

    def _search(self) -> None:
        simulation = self.simulation
        began = self._searches_since = simulation.now
        while True:
            found = self._found()
            if found is not None or not any(self.attached):
                break
            if self._search_timeout and simulation.now - began >= self._search_timeout:
                break
            simulation.sleep(1.0)
        self._searches_since = None
        self.primary = found
        self.watch.touched(self, self._teller)
        simulation.say(f"has found primary {found}")

    def _found(self) -> int | None:
        """The primary that pgpool would choose: of two, the last one where a standby is attached, else the first."""
        out: list[int] = []
        standbys = 0
        for database in self.cluster.all:
            if not self.attached[database.number]:
                continue
            self.simulation.pause(0.001, 0.02)
            while database.life is Life.SILENT:
                self.hangs_on = database
                self.simulation.wait(float("inf"), self.cluster.changed)
            self.hangs_on = None
            if database.is_primary:
                out.append(database.number)
            elif database.serves:
                standbys += 1
        if not out:
            return None
        return out[-1] if standbys else out[0]

    def members(self) -> Members:
        return Members((_Member(self),))

    @property
    def search_timeout(self) -> int:
        return self._search_timeout


_SERVER = Server("pgpool", 9898)


class _Member(Member):
    def __init__(self, pgpool: Pgpool) -> None:
        super().__init__(_SERVER, "efm_lb", "", 2.0)
        self._pgpool = pgpool

    def session(self, deadline: float) -> _Session:  # type: ignore[override]
        pgpool, simulation = self._pgpool, self._pgpool.simulation
        simulation.pause(0.001, 0.01)
        if not pgpool.listens:
            raise Interrupted("refused")
        if simulation.now - pgpool.restarts_listener_at < 0.05 and simulation.random.random() < 0.3:
            raise Interrupted("reset")
        return _Session(pgpool)


class _Session:
    def __init__(self, pgpool: Pgpool) -> None:
        self._pgpool = pgpool
        self.deadline = 0.0
        self.notices: list[Notice] = []

    def __enter__(self) -> _Session:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def close(self) -> None:
        return

    def nodes(self, since_4_3: bool = False) -> Nodes:
        self._pgpool.simulation.pause(0.0003, 0.003)
        if not self._pgpool.listens:
            raise Interrupted("broke")
        self._seen = self._pgpool.backends
        return Nodes(self._seen, True)

    def want_log(self) -> None:
        return

    def watchdog(self) -> str | None:
        return None

    def settings(self) -> dict[str, str]:
        return {"search_primary_node_timeout": str(self._pgpool.search_timeout)}

    def attach(self, number: int) -> None:
        self._tell("attach", number)

    def detach(self, number: int) -> None:
        self._tell("detach", number)

    def promote(self, number: int, since_4_3: bool) -> None:
        self._tell("promote", number)

    def _tell(self, verb: str, number: int) -> None:
        self._pgpool.simulation.pause(0.001, 0.005)
        if not self._pgpool.listens:
            raise Interrupted("broke")
        is_primary = [backend.id for backend in self._seen if backend.is_primary] in ([], [number])
        if verb == "attach" or (verb == "detach" and is_primary):
            attached = [self._pgpool.cluster.all[backend.id] for backend in self._seen if backend.attached]
            self._pgpool.watch.makes_search(self._pgpool, self._pgpool.cluster.all[number], attached)
        notice = self._pgpool.tell(verb, number)
        if notice:
            self.notices.append(notice)
