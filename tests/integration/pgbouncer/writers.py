"""Writers through a PgBouncer, each row counted afterwards."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator

from efm_lb.rehearsal.clients import Experience, Writer
from efm_lb.rehearsal.cluster import Server
from efm_lb.rehearsal.pgbouncer import Pgbouncer

__all__ = ["Writers", "writing"]


class Writers:
    """Some writers, started and each successful once.

    :ivar since: when they were all there, by ``time.monotonic()``
    """

    def __init__(self, pooler: Pgbouncer, number: int, limit: float = 20.0) -> None:
        entrance = pooler.writing._replace(patience=limit, login_patience=limit)
        self.writers = [Writer(entrance, each) for each in range(number)]
        for writer in self.writers:
            writer.start()
        for writer in self.writers:
            assert writer.wait_success()
        self.since = time.monotonic()

    def end(self) -> None:
        for writer in self.writers:
            writer.end()

    def seen(self, since: float | None = None) -> list[Experience]:
        """What each saw until now."""
        now = time.monotonic()
        return [writer.experience(since or self.since, now) for writer in self.writers]

    def errors(self) -> Counter[str]:
        """Every error that any of them saw."""
        texts: Counter[str] = Counter()
        for experience in self.seen():
            texts.update(experience.texts)
        return texts

    def longest_stall(self) -> float:
        return max(experience.longest_gap for experience in self.seen())

    def go_on(self, timeout: float = 10.0) -> bool:
        """Whether each succeeds once more."""
        return all(writer.wait_success(timeout) for writer in self.writers)

    def accounts(self, primary: Server) -> tuple[int, int]:
        """How many acknowledged rows ``primary`` lacks, and how many it has more than once."""
        found = [writer.accounts(primary) for writer in self.writers]
        return sum(each.lost for each in found), sum(each.doubled for each in found)


@contextlib.contextmanager
def writing(pooler: Pgbouncer, number: int = 8, limit: float = 20.0) -> Iterator[Writers]:
    """Writers that end with the block."""
    writers = Writers(pooler, number, limit)
    try:
        yield writers
    finally:
        writers.end()
