"""Where writes go, looked at all the time from a host that no fault touches: what is wrong for a moment counts as well.

A write is acknowledged, refused by a node in recovery, or fails. What a balancer believes is read beside it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

from efm_lb.rehearsal import sql
from efm_lb.rehearsal.cluster import Server
from efm_lb.rehearsal.stage import ServerError
from faults.network.stand import Stand

__all__ = ["Samples"]

_PAUSE = 0.1
_READ_ONLY = "25006"


class _Write(NamedTuple):
    """One write through a balancer.

    :param host: the address of the node that has it, empty when none has
    :param sqlstate: why not
    """

    balancer: str
    began: float
    ended: float
    host: str
    sqlstate: str


class _Belief(NamedTuple):
    """The nodes that a balancer sent writes to."""

    balancer: str
    began: float
    hosts: tuple[str, ...]


class Samples:
    """Writes and beliefs of all balancers while the block runs."""

    def __init__(self, stand: Stand) -> None:
        self.writes: list[_Write] = []
        self.beliefs: list[_Belief] = []
        self._stand = stand
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(look, name), daemon=True)
            for name in stand.balancers
            # pgpool has one primary or none: there is nothing to see, and asking it all the time holds it up.
            for look in ([self._write] if name == "pool1" else [self._write, self._believe])
        ]

    def __enter__(self) -> Samples:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def wrong(self, new: Server, moved_at: float, reached: list[str]) -> list[str]:
        """What must never be seen, one line each.

        :param new: the node that was promoted
        :param moved_at: when the call about it had ended
        :param reached: the balancers that this call reached
        """
        lines = [f"{each.balancer} sent writes to {each.hosts} at once" for each in self.beliefs if len(each.hosts) > 1]
        first = min((write.ended for write in self.writes if write.host == new.host), default=float("inf"))
        lines += [
            f"{write.balancer} wrote to {write.host} {write.began - first:.2f} s after a write to {new.host}"
            for write in self.writes
            if write.host not in ("", new.host) and write.began > first
        ]
        lines += [
            f"{write.balancer} sent a write to a node in recovery {write.began - moved_at:.2f} s after the call"
            for write in self.writes
            if write.sqlstate == _READ_ONLY and write.began > moved_at and write.balancer in reached
        ]
        return lines

    def moved(self, new: Server) -> dict[str, float]:
        """When the first write through each balancer arrived at ``new``, by ``time.monotonic()``."""
        found: dict[str, float] = {}
        for write in self.writes:
            if write.host == new.host:
                found.setdefault(write.balancer, write.ended)
        return found

    def _repeat(self, look: Callable[[str], None], name: str) -> None:
        while not self._over.wait(_PAUSE):
            look(name)

    def _write(self, name: str) -> None:
        began = time.monotonic()
        host, sqlstate = "", ""
        try:
            host = self._stand.write(name)
        except sql.SqlError as error:
            sqlstate = error.sqlstate
        self.writes.append(_Write(name, began, time.monotonic(), host, sqlstate))

    def _believe(self, name: str) -> None:
        began = time.monotonic()
        try:
            writers = self._stand.writers(name)
        except (sql.SqlError, OSError, ServerError):
            return
        self.beliefs.append(_Belief(name, began, tuple(node.host for node in writers)))
