"""Measurements with a PgBouncer: efm-lb, and the hook of today, which edits the file and has it read again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from threading import Thread

from arms import efm_lb_hook, pgbouncer_hook
from rows import Row

from efm_lb.rehearsal import sql
from efm_lb.rehearsal.clients import Writer
from efm_lb.rehearsal.cluster import TABLE, Cluster, Server
from efm_lb.rehearsal.hooks import Hook
from efm_lb.rehearsal.pgbouncer import Pgbouncer

__all__ = ["Poolers"]

ARMS = ("today", "efm-lb")
WRITERS = 8
LATE = 100
"""The first number of a writer whose transaction had begun when the primary froze."""
PATIENCE = 25.0
"""Seconds that a writer waits for an answer: a client without a time-out of its own, as most are."""
DELIBERATION = 1.0
"""Seconds from the crash to the promotion: every writer has met the dead server by then."""


@dataclass
class _Run:
    """What came of one run, in seconds and numbers."""

    errors: int
    stall: float
    lost: int
    doubled: int


class Poolers:
    """One cluster, and a new PgBouncer with eight writers for each run, in transaction pooling.

    :param say: told what is going on
    """

    def __init__(self, cluster: Cluster, runs: int, say: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._runs = runs
        self._say = say

    def pgbouncer_switchover(self) -> list[Row]:
        """A planned switchover: EFM calls detach, stops the primary, promotes, calls attach."""
        played = self._played("pgbouncer switchover", self._switchover)
        errors = Row("PgBouncer, planned switchover: client errors", "", *_both(played, "errors")).aim_value(0)
        stall = Row("PgBouncer, planned switchover: stall beyond the promotion", "s", *_both(played, "stall"))
        self._count(errors, played)
        return [errors, stall.aim_value(0.25)]

    def pgbouncer_crash(self) -> list[Row]:
        """The primary is killed; a second later another one is promoted."""
        played = self._played("pgbouncer crash", self._crash)
        stall = Row("PgBouncer, crash: stall of the last writer beyond the promotion", "s", *_both(played, "stall"))
        errors = Row("PgBouncer, crash: client errors", "", *_both(played, "errors"))
        self._count(errors, played)
        return [stall.aim_value(0.15), errors]

    def pgbouncer_frozen(self) -> list[Row]:
        """The primary freezes, another one is promoted, and it thaws: what it commits then is lost."""
        open_: dict[str, list[float]] = {arm: [] for arm in ARMS}
        sent: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for number in range(self._runs):
            for arm in ARMS:
                self._say(f"pgbouncer frozen primary {number + 1}/{self._runs} {arm}")
                with self._scene(arm, 0) as (hook, _, pooler):
                    open_[arm].append(self._frozen_transactions(hook, pooler))
                with self._scene(arm) as (hook, writers, _):
                    sent[arm].append(self._frozen(hook, writers))
        row = Row("PgBouncer, frozen primary that thaws: transactions that go on there", "", *open_.values())
        own = Row("the same, statements that are their own transaction and were in its socket", "", *sent.values())
        own.notes.append(
            "the server has them when it freezes, and runs them when it thaws: only fencing it helps there"
        )
        return [row.aim_value(0), own]

    def _switchover(self, hook: Hook, writers: list[Writer]) -> tuple[float, float]:
        old, new, other = self._cluster.nodes
        began = time.monotonic()
        hook("detach", old.name, "p")
        before = time.monotonic()
        old.stop()
        new.promote()
        other.follow(new)
        promotion = time.monotonic() - before
        hook("attach", new.name, "p")
        _go_on(writers)
        gaps = [writer.experience(began, time.monotonic()).longest_gap for writer in writers]
        return began, max(gaps) - promotion

    def _crash(self, hook: Hook, writers: list[Writer]) -> tuple[float, float]:
        old, new, other = self._cluster.nodes
        began = time.monotonic()
        old.kill()
        hook("detach", old.name, "p")
        time.sleep(DELIBERATION)
        new.promote()
        promoted = time.monotonic()
        other.follow(new)
        hook("attach", new.name, "p")
        _go_on(writers)
        firsts = [writer.first_success(promoted) or time.monotonic() for writer in writers]
        return began, max(firsts) - promoted

    def _frozen_transactions(self, hook: Hook, pooler: Pgbouncer) -> float:
        """Eight clients have begun a transaction when the primary freezes: those that it commits once it thaws."""
        entrance = pooler.writing
        with ExitStack() as open_:
            sessions = [
                open_.enter_context(sql.Session(entrance.host, entrance.port, dbname=entrance.dbname))
                for _ in range(WRITERS)
            ]
            for session in sessions:
                session.execute("begin")

            def work(number: int) -> None:
                with suppress(sql.SqlError):
                    statement = f"insert into {TABLE} (writer, number) values ({LATE + number}, 1)"
                    sessions[number].execute(statement, PATIENCE)
                    sessions[number].execute("commit", PATIENCE)

            clients = [Thread(target=work, args=(number,)) for number in range(WRITERS)]
            self._thawed(hook, lambda: [client.start() for client in clients])
            for client in clients:
                client.join()
        return float(sum(writer >= LATE for writer, _ in _rows(self._cluster.nodes[0])))

    def _frozen(self, hook: Hook, writers: list[Writer]) -> float:
        frozen = time.monotonic()
        self._thawed(hook, lambda: None)
        before = {(w.number, n) for w in writers for n, moment in w.acknowledged.items() if moment < frozen + 0.1}
        old, new, _ = self._cluster.nodes
        return float(len(_rows(old) - _rows(new) - before))

    def _thawed(self, hook: Hook, meanwhile: Callable[[], object]) -> None:
        """Freeze the primary, promote another one, tell the hook, and thaw the old one."""
        old, new, other = self._cluster.nodes
        old.freeze()
        try:
            meanwhile()
            time.sleep(0.3)
            new.promote()
            other.follow(new)
            hook("attach", new.name, "p")
            time.sleep(1)
        finally:
            old.thaw()
        time.sleep(1)

    def _played(self, what: str, play: Callable[[Hook, list[Writer]], tuple[float, float]]) -> dict[str, list[_Run]]:
        played: dict[str, list[_Run]] = {arm: [] for arm in ARMS}
        for number in range(self._runs):
            for arm in ARMS:
                self._say(f"{what} {number + 1}/{self._runs} {arm}")
                with self._scene(arm) as (hook, writers, _):
                    began, stall = play(hook, writers)
                    seen = [writer.experience(began, time.monotonic()) for writer in writers]
                    errors = sum(sum(each.texts.values()) for each in seen)
                    accounts = [writer.accounts(self._cluster.primary, began + 0.1) for writer in writers]
                    lost, doubled = sum(each.lost for each in accounts), sum(each.doubled for each in accounts)
                    played[arm].append(_Run(errors, stall, lost, doubled))
        return played

    @contextmanager
    def _scene(self, arm: str, count: int = WRITERS) -> Iterator[tuple[Hook, list[Writer], Pgbouncer]]:
        self._cluster.reset()
        with Pgbouncer.start(self._cluster) as pooler:
            entrance = pooler.writing._replace(patience=PATIENCE, login_patience=PATIENCE)
            writers = [Writer(entrance, number) for number in range(count)]
            if arm == "efm-lb":
                hook = efm_lb_hook(self._cluster, [pooler], f"bench-{pooler.name}")
            else:
                hook = pgbouncer_hook(pooler)
            try:
                for writer in writers:
                    writer.start()
                _go_on(writers)
                yield hook, writers, pooler
            finally:
                for writer in writers:
                    writer.end()

    def _count(self, row: Row, played: dict[str, list[_Run]]) -> None:
        for arm, runs in played.items():
            lost, doubled = sum(run.lost for run in runs), sum(run.doubled for run in runs)
            row.notes.append(f"{arm}: acknowledged rows lost {lost}, written twice {doubled}")


def _go_on(writers: list[Writer]) -> None:
    for writer in writers:
        writer.wait_success(PATIENCE)


def _rows(node: Server) -> set[tuple[int, int]]:
    rows = node.query(f"select writer, number from {TABLE}", timeout=30)
    return {(int(row["writer"] or 0), int(row["number"] or 0)) for row in rows}


def _both(played: dict[str, list[_Run]], field: str) -> tuple[list[float], list[float]]:
    return tuple([float(getattr(run, field)) for run in played[arm]] for arm in ARMS)  # type: ignore[return-value]
