"""What happens to the databases, in the model and to real servers."""

from __future__ import annotations

from random import Random

from efm_lb.rehearsal.cluster import Cluster
from faults.model.databases import Life
from faults.twins.sides import World

__all__ = ["Databases"]


class Databases:
    """The same ones on both sides."""

    def __init__(self, world: World, real: Cluster, random: Random) -> None:
        self._world = world
        self._model = world.cluster
        self._real = real
        self._random = random

    def change(self) -> str:
        """Have something happen to one of them, which is told in words."""
        database = self._random.choice(self._model.all)
        server = self._real.nodes[database.number]
        if database.life is Life.SILENT and self._random.random() < 0.7:
            self._model.thaw(database)
            server.thaw()
            return f"{database} thaws"
        if database.life is Life.STOPPED:
            self._world.do(lambda: self._model.start(database, 0.0))
            server.start()
            return f"{database} is started"
        if database.life is Life.RUNNING and self._random.random() < 0.6:
            if database.in_recovery and self._random.random() < 0.6:
                self._model.promote(database)
                server.promote()
                return f"{database} is promoted"
            self._model.silence(database)
            server.freeze()
            return f"{database} is frozen"
        self._model.stop(database)
        server.kill()
        return f"{database} is killed"

    def end(self) -> None:
        """Let everybody run that is frozen, so that whoever waits for an answer can be ended."""
        for server in self._real.nodes:
            server.thaw()
