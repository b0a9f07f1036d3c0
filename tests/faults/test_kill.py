"""Kill at every step: the hook, ``apply``, reconcile, and the process that lets held clients go.

Each is killed before every system call that changes a file, takes a lock, sends or receives a message or starts a
process, and also right after each message to a balancer. Then ``efm-lb reconcile`` runs once, and everything must hold:
no torn file, no lost call, no pooler left paused, every balancer right.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest

from faults.kill.calls import CALLS, Call, Moment
from faults.kill.stand import Point, Stand, Step, open_stand
from faults.kill.strike import strike

SEED = int(os.environ.get("EFM_LB_SEED", "1"))
SAMPLED = 24
"""Points of ``make test``."""


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with open_stand() as stand:
        yield stand


def points_of(steps: Sequence[Step]) -> list[Point]:
    points = []
    for step in steps:
        points += [Point(step), Point(step, "after")] if step.is_told else [Point(step)]
    return points


class Campaign:
    """Points of several calls, one switchover after the other."""

    def __init__(self, stand: Stand, calls: Sequence[Call]) -> None:
        self._stand = stand
        self._calls = calls
        self.failed: list[str] = []
        self.tried: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        self.leftovers: Counter[str] = Counter()
        self.longest_hold = 0.0

    def record(self) -> Mapping[Call, list[Point]]:
        """Each call undisturbed, and the points at which it can be killed."""
        found: dict[Call, list[Point]] = {}
        waiting = self._by_moment({call: [None] for call in self._calls})
        self._play(waiting, lambda call, point: found.setdefault(call, points_of(self._strike(call, point))))
        return found

    def kill(self, points: Mapping[Call, Sequence[Point]]) -> None:
        self._play(self._by_moment(points), self._strike)

    def _by_moment(
        self, points: Mapping[Call, Sequence[Point | None]]
    ) -> dict[Moment, list[tuple[Call, Point | None]]]:
        waiting: dict[Moment, list[tuple[Call, Point | None]]] = {moment: [] for moment in Moment}
        for call, some in points.items():
            waiting[call.moment] += [(call, point) for point in some]
        return waiting

    def _play(
        self,
        waiting: dict[Moment, list[tuple[Call, Point | None]]],
        do: Callable[[Call, Point | None], object],
    ) -> None:
        def next_one(moment: Moment) -> None:
            if waiting[moment]:
                do(*waiting[moment].pop(0))
            elif moment is not Moment.BEFORE:
                self._stand.efm_lb("reconcile")

        while any(waiting.values()):
            next_one(Moment.BEFORE)
            self._stand.switch()
            next_one(Moment.PROMOTED)
            self._stand.rejoin()
            next_one(Moment.REJOINED)
            self._stand.go_round()

    def _strike(self, call: Call, point: Point | None) -> tuple[Step, ...]:
        result = strike(self._stand, call, point)
        self.tried[call.name] += 1
        self.missed[call.name] += point is not None and not result.killed.reached
        self.leftovers.update(result.leftovers)
        self.longest_hold = max(self.longest_hold, result.held)
        if result.wrong:
            where = f"{call.name}, killed {point}" if point else f"{call.name}, undisturbed"
            self.failed.append("\n    ".join((where, *result.wrong)))
            print(self.failed[-1], flush=True)
        return result.killed.steps

    def report(self) -> str:
        lines = [f"{name}: {count} runs, {self.missed[name]} points not reached" for name, count in self.tried.items()]
        lines += [
            f"left behind: {dict(self.leftovers)}",
            f"longest time until nothing was paused: {self.longest_hold:.1f} s",
        ]
        return "\n".join(lines)


def run(
    stand: Stand, calls: Sequence[Call], chosen: Callable[[Sequence[tuple[Call, Point]]], Sequence[tuple[Call, Point]]]
) -> None:
    campaign = Campaign(stand, calls)
    recorded = campaign.record()
    assert set(recorded) == set(calls)
    points: dict[Call, list[Point]] = {}
    for call, point in chosen([(call, point) for call, some in recorded.items() for point in some]):
        points.setdefault(call, []).append(point)
    campaign.kill(points)
    print(campaign.report())
    assert not campaign.failed, "\n".join(campaign.failed)


def test_killed_at_some_steps(stand: Stand) -> None:
    print(f"EFM_LB_SEED={SEED}")
    chance = random.Random(SEED)
    run(stand, CALLS, lambda points: chance.sample(points, SAMPLED))


@pytest.mark.long
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_killed_at_every_step(stand: Stand, call: Call) -> None:
    run(stand, [call], lambda points: points)
