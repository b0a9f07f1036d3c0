"""A HAProxy of the model and a real one: the runtime API, reloads, restarts, and the file that efm-lb keeps."""

from __future__ import annotations

import re
import time
from random import Random

from efm_lb.rehearsal.haproxy import READ, WRITE
from efm_lb.rehearsal.haproxy import Haproxy as RealHaproxy
from efm_lb.rehearsal.waiting import wait_until
from efm_lb_haproxy.config import server_lines
from efm_lb_haproxy.drive import drive
from efm_lb_haproxy.reloads import is_reloading
from efm_lb_haproxy.runtime import Look, Runtime
from efm_lb_haproxy.settings import Endpoint, Reads, Setup
from faults.model.haproxy import Haproxy
from faults.model.hosts import installed
from faults.twins.sides import DEADLINE, World, answer_of, twin_of

__all__ = ["HaproxyTwins"]

_PROXIES = (WRITE, READ)
_RELOADED = 0.3
"""Seconds of the model's in which a reload is over."""
_VERBS = ("state ready", "state ready", "state maint", "state drain", "health up", "sessions")

Words = tuple[str, ...]


class HaproxyTwins:
    """One of each, with the same policy for reads."""

    def __init__(self, world: World, real: RealHaproxy, random: Random) -> None:
        self._world = world
        self._random = random
        self._real = real
        self._reads = random.choice(tuple(Reads))
        self._model = Haproxy("edge1", world.simulation, world.cluster, world.watch, world.world.files, self._reads)
        world.world.balancers.append(self._model)
        self._runtime = Runtime(Endpoint(str(real.socket)), 2.0)
        self._setup = Setup(
            "", self._runtime.endpoint, 2.0, (str(real.config),), (WRITE,), (READ,), self._reads, "none"
        )
        self._first = real.config.read_text()
        if self._reads is Reads.ALWAYS:  # as the model's
            head, read = self._first.split(f"listen {READ}\n")
            self._first = f"{head}listen {READ}\n{read.replace(' disabled', '')}"
            real.write_config(self._first)
            self._restart_real()

    def step(self) -> tuple[str, str, str]:
        """Do something on both sides.

        :return: what it was, and the answers of the model and of the real one
        """
        does = self._random.choice(
            [self._command] * 4 + [self._event] * 4 + [self._reload, self._told_during_reload, self._restart]
            + [self._put_back]
        )  # fmt: skip
        return does()

    def _command(self) -> tuple[str, str, str]:
        words = self._commands()
        return "; ".join(words), self._tell_model(words), self._tell_real(words)[1]

    def _commands(self) -> Words:
        def command() -> str:
            verb = self._random.choice(_VERBS)
            path = f"{self._random.choice(_PROXIES)}/n{self._random.randrange(len(self._world.cluster.all))}"
            return f"shutdown sessions server {path}" if verb == "sessions" else f"set server {path} {verb}"

        return tuple(command() for _ in range(self._random.choice((1, 1, 2, 3))))

    def _tell_model(self, words: Words) -> str:
        return self._world.do(lambda: bool(self._model.look(_PROXIES, words).refusals))

    def _tell_real(self, words: Words) -> tuple[int, str]:
        """The worker that answered, and what."""
        twins = tuple(re.sub(r"/n([0-9])", lambda found: f"/n{int(found[1]) + 1}", each) for each in words)
        look = self._look(twins)
        return look.pid, str(bool(look.refusals))

    def _look(self, commands: Words = ()) -> Look:
        return self._runtime.look(_PROXIES, time.monotonic() + 5.0, commands)

    def _event(self) -> tuple[str, str, str]:
        event = self._world.event(self._random)
        for path, server in self._model.servers.items():
            self._model.servers[path] = server._replace(sessions=0)  # the real one has no clients
        with installed():
            model = self._world.do(lambda: drive(event, self._model.setup(), self._deadline()).result.value)
        nodes = self._real.cluster.nodes
        real = answer_of(lambda: drive(twin_of(event, nodes), self._setup, time.monotonic() + DEADLINE).result.value)
        return f"{type(event).__name__} {event.node.name} {_roles(event)}", model, real

    def _deadline(self) -> float:
        return self._world.simulation.now + DEADLINE

    def _reload(self) -> tuple[str, str, str]:
        worker = self._real.worker() or 0
        self._model.reload()
        self._pass(_RELOADED)
        self._begin_reload(worker)
        self._real.wait_reloaded(worker)
        return "reload", "", ""

    def _begin_reload(self, worker: int) -> None:
        """Send the real one the signal for a reload until it reloads: soon after its start it is lost."""
        for _ in range(5):
            self._real.reload()
            if wait_until(lambda: is_reloading(worker) or self._real.worker() not in (None, worker), 1.0, 0.0005):
                return

    def _told_during_reload(self) -> tuple[str, str, str]:
        """Whichever worker the real one was that took it: so it is in the model."""
        words = self._commands()
        worker = self._real.worker() or 0
        self._begin_reload(worker)
        told, real = self._tell_real(words)
        self._real.wait_reloaded(worker)
        self._model.reload()
        if told != worker:
            self._pass(_RELOADED)
        model = self._tell_model(words)
        self._pass(_RELOADED)
        return f"{'; '.join(words)}, to the {'old' if told == worker else 'new'} worker in a reload", model, real

    def _restart(self) -> tuple[str, str, str]:
        self._model.stop()
        self._model.start()
        self._restart_real()
        return "killed and started", "", ""

    def _restart_real(self) -> None:
        self._real.process.kill()
        self._real.launch()

    def _put_back(self) -> tuple[str, str, str]:
        self._model.put_back_file()
        self._real.write_config(self._first)
        return "its file is put back", "", ""

    def _pass(self, seconds: float) -> None:
        self._world.simulation.run(self._world.simulation.now + seconds)

    def beliefs(self) -> tuple[object, object]:
        """What the model and the real one believe, with what their files say."""
        looks: list[Look] = []
        self._world.do(lambda: looks.append(self._model.look(_PROXIES, ())))
        files = self._world.world.files[self._model.config], self._real.config.read_bytes()
        hosts = [node.host for node in self._world.cluster.nodes], [node.host for node in self._real.cluster.nodes]
        model, real = (
            (_servers(look, names), _lines(file, names))
            for look, file, names in zip((looks[0], self._look()), files, hosts, strict=True)
        )
        return model, real


def _roles(event: object) -> list[str]:
    return [(state.role or state.reach).value for state in event.truth.states]  # type: ignore[attr-defined]


def _servers(look: Look, hosts: list[str]) -> list[tuple[str, int, int, int, bool]]:
    """Open sessions are left out: they are the clients' doing."""
    return [
        (server.proxy, hosts.index(server.host), server.operational, server.admin, server.ready)
        for proxy in _PROXIES
        for server in look.proxies[proxy]
    ]


def _lines(content: bytes, hosts: list[str]) -> list[tuple[str, int, bool, list[str]]]:
    """What the file says of each server, and which timelines it says that writes follow."""
    texts = content.decode().splitlines()
    return [
        (
            line.proxy,
            hosts.index(line.host),
            line.disabled,
            re.findall("writes follow timeline ([0-9]+)", texts[line.number - 1]),
        )
        for line in server_lines(content)
    ]
