"""Calls that are made in a way in which they may fail, each at its moment of one switchover after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from faults.kill.calls import Call, Moment
from faults.kill.stand import Stand

__all__ = ["Rounds"]

_Way = TypeVar("_Way")


class Rounds(Generic[_Way]):
    """Switchovers, until all calls are made.

    :param make: makes a call in one way, and says what is wrong then
    :ivar failed: what was wrong
    """

    def __init__(self, stand: Stand, make: Callable[[Call, _Way], Iterable[str]]) -> None:
        self._stand = stand
        self._make = make
        self._waiting: dict[Moment, list[tuple[Call, _Way]]] = {moment: [] for moment in Moment}
        self.failed: list[str] = []

    def play(self, calls: Iterable[tuple[Call, _Way]]) -> None:
        """Make each call."""
        for call, way in calls:
            self._waiting[call.moment].append((call, way))
        while any(self._waiting.values()):
            self._switch_over()

    def _switch_over(self) -> None:
        if not self._next(Moment.BEFORE):
            return
        if not (self._waiting[Moment.PROMOTED] or self._waiting[Moment.REJOINED]):
            return
        self._stand.switch()
        if not self._next(Moment.PROMOTED):
            return
        self._stand.rejoin()
        if self._next(Moment.REJOINED):
            self._stand.go_round()

    def _next(self, moment: Moment) -> bool:
        """Make the next call of a moment; False when the servers are as at first, for something was wrong."""
        if self._waiting[moment]:
            call, way = self._waiting[moment].pop(0)
            wrong = list(self._make(call, way))
            if wrong:
                self.failed.append("\n    ".join((f"{call.name}, {way}", *wrong)))
                print(self.failed[-1], flush=True)
                self._stand.start_over()
                return False
        elif moment is not Moment.BEFORE:
            self._stand.efm_lb("reconcile")
        return True
