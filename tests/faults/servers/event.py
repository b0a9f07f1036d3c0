"""EFM's part in an event in the middle of which a server may fail: each step goes on once its node is back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from efm_lb.rehearsal import sql
from efm_lb.rehearsal.cluster import Server
from efm_lb.rehearsal.hooks import Run
from efm_lb.rehearsal.stage import ServerError
from efm_lb.rehearsal.waiting import wait_until
from faults.illness import cure, is_pgpool_ill
from faults.servers.estate import Estate
from faults.watch import Watch

__all__ = ["Efm", "Event", "Promotion"]

_PATIENCE = 60.0
"""Seconds that EFM waits for a node."""


class Event(Enum):
    """What happens."""

    SWITCHOVER = "switchover"
    FAILOVER = "failover"
    REJOIN = "rejoin"
    STANDBY_STOP = "standby stop"
    STANDBY_START = "standby start"


class Promotion(NamedTuple):
    """A change of the primary.

    :param asked: when the new one was told, by ``time.monotonic()``
    :param called: when the call about it had ended
    """

    old: Server
    new: Server
    asked: float
    called: float


class _Step(NamedTuple):
    words: str
    do: Callable[[], None]


class Efm:
    """Does what EFM does to the databases, and makes its calls.

    :ivar runs: of the hook, in the last event
    :ivar promotion: the last event's, None when it had none
    """

    def __init__(self, estate: Estate, watch: Watch) -> None:
        self._estate = estate
        self._watch = watch
        self._say: Callable[[str], None] = lambda text: None
        self._failed: Server | None = None
        self._stopped: Server | None = None
        self._asked = 0.0
        self.runs: list[Run] = []
        self.promotion: Promotion | None = None

    def possible(self) -> list[Event]:
        """What can happen now."""
        if self._failed:
            return [Event.REJOIN]
        if self._stopped:
            return [Event.STANDBY_START]
        return [Event.SWITCHOVER, Event.SWITCHOVER, Event.FAILOVER, Event.FAILOVER, Event.STANDBY_STOP]

    def steps(self, event: Event, say: Callable[[str], None]) -> list[_Step]:
        """What an event consists of, in order; nothing is done yet.

        :param say: takes what comes of it, in words
        """
        self._say = say
        self.runs = []
        self.promotion = None
        self._asked = 0.0
        return {
            Event.SWITCHOVER: self._switchover,
            Event.FAILOVER: self._failover,
            Event.REJOIN: self._rejoin,
            Event.STANDBY_STOP: self._standby_stop,
            Event.STANDBY_START: self._standby_start,
        }[event]()

    def mend(self) -> None:
        """Bring back what cannot stream: a node that has WAL which its primary never had is copied anew.

        :raises ServerError: it cannot be brought back
        """
        primary = self._estate.primary()
        for node in self._estate.cluster.nodes:
            if node is primary or node in self._estate.down:
                continue
            if node.running and wait_until(node.is_streaming, timeout=6, interval=0.05):
                continue
            self._do(self._call("detach", node, "s"))
            with self._estate.hands[node]:
                if node.running:
                    node.stop("immediate")
                self._say(f"{node.name} is copied anew")
                node.rejoin(primary)
            self._do(self._call("attach", node, "s"))
        self._estate.cluster.wait_streaming()

    def cure_pgpool(self) -> bool:
        """Cure it, if that is what it needs, see `faults.illness`.

        :return: it was ill
        :raises ServerError: it could not be cured
        """
        if not is_pgpool_ill(self._estate.wrong()):
            return False
        self._say("pgpool is cured")
        cure(self._estate.pool)
        return True

    def _do(self, step: _Step) -> None:
        self._say(step.words)
        step.do()

    def _switchover(self) -> list[_Step]:
        old, (new, other) = self._estate.primary(), self._estate.standbys()
        return [
            self._call("detach", old, "p"),
            _Step(f"{old.name} is stopped", lambda: self._stop(old)),
            _Step(f"{new.name} is promoted", lambda: self._promote(new)),
            _Step(f"{other.name} follows {new.name}", lambda: self._follow(other, new)),
            self._call_about_the_new(old, new),
            _Step(f"{old.name} starts as a standby", lambda: self._start(old, new)),
            self._call("attach", old, "s"),
        ]

    def _failover(self) -> list[_Step]:
        old, (new, other) = self._estate.primary(), self._estate.standbys()
        self._failed = old
        return [
            _Step(f"{old.name}, the primary, is killed", lambda: self._kill(old)),
            self._call("detach", old, "p"),
            _Step(f"{new.name} is promoted", lambda: self._promote(new)),
            _Step(f"{other.name} follows {new.name}", lambda: self._follow(other, new)),
            self._call_about_the_new(old, new),
        ]

    def _rejoin(self) -> list[_Step]:
        old, primary = self._failed, self._estate.primary()
        assert old
        self._failed = None
        return [
            _Step(f"{old.name} is rewound and starts as a standby", lambda: self._rewind(old, primary)),
            self._call("attach", old, "s"),
        ]

    def _standby_stop(self) -> list[_Step]:
        standby = self._stopped = self._estate.standbys()[-1]
        return [
            self._call("detach", standby, "s"),
            _Step(f"{standby.name}, a standby, is stopped", lambda: self._stop(standby)),
        ]

    def _standby_start(self) -> list[_Step]:
        standby, primary = self._stopped, self._estate.primary()
        assert standby
        self._stopped = None
        return [
            _Step(f"{standby.name}, a standby, starts", lambda: self._start(standby, primary)),
            self._call("attach", standby, "s"),
        ]

    def _call(self, kind: str, node: Server, letter: str) -> _Step:
        def do() -> None:
            run = self._estate.hook(kind, node.name, letter)
            self.runs.append(run)
            self._say(f"it ended with {run.exit_code} after {run.seconds:.2f} s: {run.output}")

        return _Step(f"{kind} {node.name} {letter}", do)

    def _call_about_the_new(self, old: Server, new: Server) -> _Step:
        words, call = self._call("attach", new, "p")

        def do() -> None:
            call()
            self.promotion = Promotion(old, new, self._asked, time.monotonic())

        return _Step(words, do)

    def _kill(self, node: Server) -> None:
        with self._estate.hands[node]:
            self._estate.down.add(node)
            self._estate.crashed.add(node)
            node.kill()

    def _stop(self, node: Server) -> None:
        with self._estate.hands[node]:
            self._estate.down.add(node)
            node.stop()

    def _start(self, node: Server, primary: Server) -> None:
        with self._estate.hands[node]:
            node.follow(primary)
            self._estate.down.discard(node)
            node.start(wait=False)
        self._watch.is_in_recovery(node)
        self._wait(node)

    def _rewind(self, node: Server, primary: Server) -> None:
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                with self._estate.hands[node]:
                    if not node.running:
                        node.rejoin(primary)
                    self._estate.down.discard(node)
                break
            except (ServerError, sql.SqlError) as error:  # the primary fails meanwhile
                if time.monotonic() > until:
                    raise
                self._say(f"it is tried again: {error}")
                time.sleep(0.5)
        self._watch.is_in_recovery(node)
        self._wait(node)

    def _promote(self, node: Server) -> None:
        self._watch.leaves_recovery(node)
        self._asked = time.monotonic()
        until = self._asked + _PATIENCE
        while time.monotonic() < until:
            with contextlib.suppress(sql.SqlError):
                if node.query("select pg_is_in_recovery() as answer", timeout=2)[0]["answer"] == "f":
                    return
                node.query("select pg_promote(wait => false)", timeout=2)
            time.sleep(0.1)
        raise ServerError(f"{node.name} was not promoted; its log ends with:\n{node.process.log_tail()}")

    def _follow(self, node: Server, primary: Server) -> None:
        def follows() -> bool:
            with self._estate.hands[node], contextlib.suppress(sql.SqlError):
                node.follow(primary)
                return True
            return False

        if not wait_until(follows, _PATIENCE, interval=0.2):
            raise ServerError(f"{node.name} cannot be told to follow {primary.name}")

    def _wait(self, node: Server) -> None:
        if not wait_until(node.is_accepting, _PATIENCE, interval=0.05):
            raise ServerError(f"{node.name} does not start; its log ends with:\n{node.process.log_tail()}")
