"""Clients of a balancer, and what they suffer: the application's view of a scenario."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from types import TracebackType
from typing import NamedTuple

from efm_lb.rehearsal import sql
from efm_lb.rehearsal.balancer import Entrance
from efm_lb.rehearsal.cluster import TABLE, Server

__all__ = ["Accounts", "Clients", "Experience", "Reader", "Writer"]

PAUSE = 0.005
"""Seconds between two statements of a writer, and by default before another try after a refused session."""
READ_PAUSE = 0.02
GAP = 0.1
"""Seconds without a success that count as an outage."""


class _Trouble(NamedTuple):
    moment: float
    kind: str
    text: str


@dataclass(frozen=True)
class Experience:
    """What one client or several saw in a span of time. All times in seconds.

    :param done: statements that succeeded
    :param longest_gap: the longest time between two successes, up to the end of the span
    :param total_gaps: the sum of all gaps of 0.1 s and more
    :param recovered: the last statement of the span succeeded
    :param cuts: established sessions that were cut
    :param refused: connection attempts that failed
    :param errors: statements that failed in a session that went on
    :param texts: how often each error text was seen
    """

    done: int = 0
    longest_gap: float = 0.0
    total_gaps: float = 0.0
    recovered: bool = True
    cuts: int = 0
    refused: int = 0
    errors: int = 0
    texts: dict[str, int] = field(default_factory=dict)


class _Client(threading.Thread):
    """A session through the balancer, made again whenever it is cut."""

    def __init__(self, name: str, entrance: Entrance, pause: float, retry: float) -> None:
        super().__init__(name=name, daemon=True)
        self._entrance = entrance
        self._pause = pause
        self._retry = retry
        self._is_refused = False
        self._over = threading.Event()
        self._successes: list[float] = []
        self._troubles: list[_Trouble] = []

    def run(self) -> None:
        session: sql.Session | None = None
        while not self._over.is_set():
            session = self._step(session)
            self._over.wait(self._retry if self._is_refused else self._pause)
        if session:
            session.close()

    def leave(self) -> None:
        """Stop after the current statement."""
        self._over.set()

    def end(self) -> None:
        """Stop after the current statement and wait for it."""
        self.leave()
        self.join(self._entrance.login_patience + self._entrance.patience + 1)

    def wait_success(self, timeout: float = 10.0) -> bool:
        """Wait until one more statement has succeeded."""
        before = len(self._successes)
        deadline = time.monotonic() + timeout
        while len(self._successes) == before and time.monotonic() < deadline:
            time.sleep(PAUSE)
        return len(self._successes) > before

    def first_success(self, since: float) -> float | None:
        """When the first statement after ``since`` succeeded, None when none did."""
        return next((moment for moment in list(self._successes) if moment > since), None)

    def experience(self, since: float, until: float) -> Experience:
        """What this client saw between two moments of ``time.monotonic()``."""
        moments = [moment for moment in list(self._successes) if moment <= until]
        inside = [moment for moment in moments if moment >= since]
        earlier = moments[len(moments) - len(inside) - 1] if len(inside) < len(moments) else since
        edges = [earlier, *inside, until]
        gaps = [later - sooner for sooner, later in pairwise(edges)]
        troubles = [trouble for trouble in list(self._troubles) if since <= trouble.moment <= until]
        kinds = Counter(trouble.kind for trouble in troubles)
        last_trouble = troubles[-1].moment if troubles else since
        return Experience(
            done=len(inside),
            longest_gap=max(gaps),
            total_gaps=sum(gap for gap in gaps if gap >= GAP),
            recovered=bool(inside) and inside[-1] >= last_trouble,
            cuts=kinds["cut"],
            refused=kinds["refused"],
            errors=kinds["error"],
            texts=dict(Counter(trouble.text for trouble in troubles).most_common()),
        )

    def _step(self, session: sql.Session | None) -> sql.Session | None:
        self._is_refused = False
        try:
            session = session or self._log_in()
        except sql.SqlError as error:
            self._is_refused = True
            self._note("refused", error)
            return None
        try:
            self._work(session)
        except sql.SqlError as error:
            self._note("cut" if error.cut else "error", error)
            return None if error.cut else session
        self._successes.append(time.monotonic())
        return session

    def _log_in(self) -> sql.Session:
        entrance = self._entrance
        return sql.Session(entrance.host, entrance.port, dbname=entrance.dbname, timeout=entrance.login_patience)

    def _work(self, session: sql.Session) -> None:
        raise NotImplementedError

    def _note(self, kind: str, error: sql.SqlError) -> None:
        self._troubles.append(_Trouble(time.monotonic(), kind, f"{error.sqlstate} {error}".strip()))


@dataclass(frozen=True)
class Accounts:
    """Acknowledged rows against the rows that the primary has.

    :param acknowledged: rows whose insert was acknowledged
    :param lost_to_replication: missing, but acknowledged before a crashed primary was replaced:
        asynchronous replication loses those, whatever the balancer does
    :param lost: missing without that excuse: written to a server that is not the primary any more
    :param doubled: rows that exist more than once
    """

    acknowledged: int
    lost_to_replication: int
    lost: int
    doubled: int


class Writer(_Client):
    """Inserts an increasing number every 5 ms; a number whose insert was not acknowledged is not tried again."""

    def __init__(self, entrance: Entrance, number: int = 1, retry: float = PAUSE) -> None:
        super().__init__(f"writer {number}", entrance, PAUSE, retry)
        self.number = number
        self.acknowledged: dict[int, float] = {}
        """When each acknowledged row was acknowledged."""
        self._next = 0

    def _work(self, session: sql.Session) -> None:
        self._next += 1
        session.execute(f"insert into {TABLE} values ({self.number}, {self._next})", self._entrance.patience)
        self.acknowledged[self._next] = time.monotonic()

    def accounts(self, primary: Server, orphaned: float | None = None) -> Accounts:
        """Compare what was acknowledged so far with what ``primary`` has.

        :param orphaned: rows acknowledged before this moment of ``time.monotonic()`` may have died with a
            crashed primary; None when none crashed
        :raises sql.SqlError: the primary does not answer
        """
        acknowledged = dict(self.acknowledged)
        rows = primary.query(f"select number from {TABLE} where writer = {self.number}", timeout=30)
        found = Counter(int(row["number"]) for row in rows)
        missing = [number for number in acknowledged if number not in found]
        excused = [number for number in missing if orphaned is not None and acknowledged[number] <= orphaned]
        return Accounts(
            acknowledged=len(acknowledged),
            lost_to_replication=len(excused),
            lost=len(missing) - len(excused),
            doubled=sum(1 for count in found.values() if count > 1),
        )


class Reader(_Client):
    """Reads every 20 ms, in one session for as long as that lives, or in a new session each time."""

    def __init__(self, entrance: Entrance, number: int, new_sessions: bool, retry: float) -> None:
        super().__init__(f"reader {number}", entrance, READ_PAUSE, retry)
        self._new_sessions = new_sessions

    def _work(self, session: sql.Session) -> None:
        session.execute(f"select number from {TABLE} limit 1", self._entrance.patience)
        if self._new_sessions:
            session.close()

    def _step(self, session: sql.Session | None) -> sql.Session | None:
        session = super()._step(session)
        return None if self._new_sessions else session


class Clients:
    """The clients of one balancer: a writer and some readers, half of them with a new session for each read.

    :param number: of the writer, another one for each balancer of a cluster
    :param retry: seconds that each waits after a refused session before it tries again
    """

    def __init__(
        self, writing: Entrance, reading: Entrance, readers: int = 4, number: int = 1, retry: float = PAUSE
    ) -> None:
        self.writer = Writer(writing, number, retry)
        self.readers = [Reader(reading, each, new_sessions=each % 2 == 1, retry=retry) for each in range(readers)]

    def __enter__(self) -> Clients:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind:
            # Somebody wants to leave now, and a statement may be held for long.
            self.leave()
        else:
            self.end()

    def start(self) -> None:
        """Start them and wait until each has succeeded once."""
        for client in (self.writer, *self.readers):
            client.start()
        for client in (self.writer, *self.readers):
            client.wait_success()

    def leave(self) -> None:
        """Tell them to stop."""
        for client in (self.writer, *self.readers):
            client.leave()

    def end(self) -> None:
        """Stop them, and wait for their statements."""
        self.leave()
        for client in (self.writer, *self.readers):
            client.end()

    def writing(self, since: float, until: float) -> Experience:
        """What the writer saw."""
        return self.writer.experience(since, until)

    def reading(self, since: float, until: float) -> Experience:
        """What the readers saw together; the gaps are those of the worst of them."""
        seen = [reader.experience(since, until) for reader in self.readers]
        texts: Counter[str] = Counter()
        for experience in seen:
            texts.update(experience.texts)
        return Experience(
            done=sum(experience.done for experience in seen),
            longest_gap=max((experience.longest_gap for experience in seen), default=0.0),
            total_gaps=max((experience.total_gaps for experience in seen), default=0.0),
            recovered=all(experience.recovered for experience in seen),
            cuts=sum(experience.cuts for experience in seen),
            refused=sum(experience.refused for experience in seen),
            errors=sum(experience.errors for experience in seen),
            texts=dict(texts.most_common()),
        )

    def accounts(self, primary: Server, orphaned: float | None = None) -> Accounts:
        """The writer's: see `Writer.accounts`."""
        return self.writer.accounts(primary, orphaned)
