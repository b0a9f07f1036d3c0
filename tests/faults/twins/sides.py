"""The two sides of a comparison: a world of the model with nobody in it who judges, and what is told to either side."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import Any

from efm_lb import Attach, Detach, Event, Node, PermanentError, Promote, TemporaryError, Truth
from efm_lb.rehearsal import cluster as real
from faults.model import hosts
from faults.model.databases import Cluster, Database, Life
from faults.model.simulation import Simulation

__all__ = ["DEADLINE", "World", "answer_of", "twin_of"]

DEADLINE = 4.0
"""Seconds that an event gets on either side."""
_HOST: Any = SimpleNamespace(name="host1")


class _Nobody:
    """Looks on in the place of `faults.model.right.Watch`, and finds nothing wrong with anything."""

    teller = event = None
    obeys = False

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **named: None


class World:
    """A world of the model."""

    def __init__(self, seed: str, nodes: int) -> None:
        self.simulation = Simulation(seed)
        self.cluster = Cluster(self.simulation, nodes, tells_timeline=True, archive=True)
        self.cluster.is_calm = True  # nothing breaks that the real side does not break
        self.watch: Any = _Nobody()
        self.world = hosts.World(self.simulation, self.cluster, self.watch)
        hosts.use(self.world)

    def do(self, work: Callable[[], object]) -> str:
        """Have something done in the model, and run its time until it is done; see `answer_of`."""
        answers: list[str] = []
        task = self.simulation.spawn(lambda: answers.append(answer_of(work)), "twin", host=_HOST)
        while not task.done:
            self.simulation.run(self.simulation.now + 0.01)
        return answers[0]

    def run_while(self, is_busy: Callable[[], bool]) -> float:
        """Run the model's time as long as something is so; the seconds that it took."""
        began = self.simulation.now
        while is_busy():
            self.simulation.run(self.simulation.now + 0.01)
            assert self.simulation.now < began + 120
        return self.simulation.now - began

    @property
    def truth(self) -> Truth:
        return Truth(tuple(self.cluster.answer("host1", database) for database in self.cluster.all))

    def event(self, random: Random) -> Event:
        """An event about any node, as the databases are now."""
        kind = random.choice((Attach, Detach, Promote))
        truth = self.truth
        node = random.choice(self.cluster.all).node
        if kind is Promote and truth.primary and random.random() < 0.8:
            node = truth.primary
        return kind(node, truth)

    def change(self, random: Random) -> None:
        """Have something happen to a database of the model alone."""
        database = random.choice(self.cluster.all)
        if database.life is Life.SILENT:
            self.cluster.thaw(database)
        elif database.life is Life.STOPPED:
            if random.random() < 0.5:
                self.cluster.follow(database)
            self.do(lambda: self.cluster.start(database, 0.0))
        elif database.in_recovery and random.random() < 0.5:
            self.cluster.promote(database)
        else:
            random.choice((self.cluster.stop, self.cluster.silence))(database)

    def some(self, random: Random, lives: Life) -> Database | None:
        found = [each for each in self.cluster.all if each.life is lives]
        return random.choice(found) if found else None


def answer_of(work: Callable[[], object]) -> str:
    """What comes of telling a balancer something, as far as efm-lb makes a difference of it."""
    try:
        return str(work())
    except (TemporaryError, PermanentError) as error:
        return type(error).__name__


def twin_of(event: Event, servers: list[real.Server]) -> Event:
    """The same event about real servers."""
    nodes = [Node(server.name, server.host, server.port) for server in servers]
    states = tuple(state._replace(node=nodes[number]) for number, state in enumerate(event.truth.states))
    number = [state.node for state in event.truth.states].index(event.node)
    return type(event)(nodes[number], Truth(states, event.truth.newest), event.origin)
