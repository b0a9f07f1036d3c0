"""A pgpool of the model and a real one: PCP's commands, its search for the primary, and its restart."""

from __future__ import annotations

import contextlib
import time
from random import Random

from efm_lb import TemporaryError
from efm_lb.rehearsal.pgpool import PCP_PASSWORD, PCP_USER
from efm_lb.rehearsal.pgpool import Pgpool as RealPgpool
from efm_lb.rehearsal.stage import ServerError
from efm_lb.rehearsal.waiting import wait_until
from efm_lb_pgpool import drive
from efm_lb_pgpool.members import Member
from efm_lb_pgpool.node_info import Backend
from efm_lb_pgpool.pcp import Interrupted, Server
from efm_lb_pgpool.steps import Command
from faults.model.databases import Life
from faults.model.pgpool import Pgpool
from faults.twins.sides import World, answer_of

__all__ = ["SEARCH", "PgpoolTwins", "Words"]

SEARCH = 1
"""Seconds of search_primary_node_timeout on both sides."""
_MORE = 0.2
"""Seconds that a real one gets beyond the time that the model takes, before it is looked at."""
_PATIENCE = 15.0
"""Seconds beyond that in which it must be so."""
_TRIES = 20
_PAUSE = 0.05

Words = tuple[str, int]
Belief = tuple[tuple[bool, bool], ...] | None
"""Of each backend: attached, and called primary. None when PCP does not answer."""


class PgpoolTwins:
    """One of each.

    :ivar model_answer: to the first of what was told last; the others meet it at work
    """

    def __init__(self, world: World, real: RealPgpool, random: Random) -> None:
        self._world = world
        self._random = random
        self._real = real
        self._model = Pgpool(real.name, world.simulation, world.cluster, world.watch, SEARCH)
        world.world.balancers.append(self._model)
        self._member = Member(Server(real.host, real.pcp_port), PCP_USER, PCP_PASSWORD, 2.0)
        self.model_answer = self.real_answer = ""
        self._expected: Belief = self._model_belief()

    @property
    def name(self) -> str:
        return self._real.name

    def facts(self) -> list[tuple[object, ...]]:
        """What PCP tells of either side, beside its nodes, that efm-lb goes by."""
        found: list[tuple[object, ...]] = []
        self._world.do(lambda: found.append(_facts(self._model.members().all[0], float("inf"))))
        return [*found, _facts(self._member, time.monotonic() + 5.0)]

    def chosen(self) -> tuple[Words, ...]:
        """What to do next: one command, several at once, or a restart."""
        if self._random.random() < 0.08:
            return (("restart", 0),)
        count = self._random.choice((1, 1, 1, 2, 3))
        chosen: list[Words] = []
        for _ in range(count):
            number = self._random.randrange(len(self._world.cluster.all))
            # Whether the others are taken is not to depend on how far pgpool is with those before.
            verbs = ("attach",) if ("attach", number) in chosen else ("attach", "detach")
            if not chosen:
                verbs = ("attach", "attach", "attach", "detach", "detach", "promote")
            chosen.append((self._random.choice(verbs), number))
        return tuple(chosen)

    def tell_model(self, words: tuple[Words, ...]) -> None:
        """Do it in the model, without waiting for it."""
        self.model_answer = ""
        if not words:
            return
        if words[0][0] == "restart":
            self._model.stop()
            self._model.start()
            return
        member = self._model.members().all[0]
        answers = [self._world.do(lambda each=each: _tell(member, *each, float("inf"), self._pause)) for each in words]
        self.model_answer = answers[0]

    def _pause(self) -> None:
        self._world.simulation.sleep(_PAUSE)

    @property
    def is_idle(self) -> bool:
        stuck = self._model.hangs_on
        return self._model._main is None or (stuck is not None and stuck.life is Life.SILENT)

    def is_over(self) -> None:
        """The model has done it."""
        self._expected = self._model_belief()

    def tell_real(self, words: tuple[Words, ...]) -> None:
        self.real_answer = ""
        if not words:
            return
        if words[0][0] == "restart":
            self._real.process.kill()
            with contextlib.suppress(ServerError):
                self._real.launch(timeout=0.1)  # whether it finds a primary is what is to be seen
            return
        answers = [
            answer_of(lambda each=each: _tell(self._member, *each, time.monotonic() + 5.0, lambda: time.sleep(_PAUSE)))
            for each in words
        ]
        self.real_answer = answers[0]

    def difference(self, began: float, seconds: float) -> str:
        """What differs, in words; empty when nothing does.

        :param began: when the real one was told, by ``time.monotonic()``
        :param seconds: how long the model took
        """
        time.sleep(max(0.0, began + seconds + _MORE - time.monotonic()))
        if self.model_answer != self.real_answer:
            return f"{self.name}: the model answered {self.model_answer}, pgpool {self.real_answer}"
        if wait_until(lambda: self._real_belief() == self._expected, _PATIENCE, 0.1):
            return ""
        return f"{self.name}: the model believes {self._expected}, pgpool {self._real_belief()}"

    def _model_belief(self) -> Belief:
        return _belief(self._model.backends) if self._model.listens else None

    def _real_belief(self) -> Belief:
        try:
            return _belief(self._member.nodes(time.monotonic() + 1.0).backends)
        except TemporaryError:
            return None


def _facts(member: Member, deadline: float) -> tuple[object, ...]:
    with member.session(deadline) as session:
        return session.nodes().since_4_3, session.settings()["search_primary_node_timeout"], session.watchdog()


def _belief(backends: tuple[Backend, ...]) -> Belief:
    return tuple((backend.attached, backend.is_primary) for backend in backends)


def _tell(member: Member, verb: str, number: int, deadline: float, pause: object) -> str:
    """Send a command as efm-lb does.

    :raises TemporaryError: it was not taken
    """
    for _ in range(_TRIES):
        try:
            session = member.session(deadline)
        except TemporaryError:  # its listener restarts, or it has not found a primary since it was started
            pause()  # type: ignore[operator]
            continue
        with session:
            try:
                backends = session.nodes().backends
            except Interrupted:
                pause()  # type: ignore[operator]
                continue
            drive._send(Command(verb, backends[number]), session, True)  # type: ignore[arg-type]
            return "taken"
    return "no answer"
