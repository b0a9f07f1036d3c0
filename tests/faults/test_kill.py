"""Kill at every step: the hook, its follow-up, ``apply``, reconcile, and the process that lets held clients go.

Each is killed before every system call that changes a file, takes a lock, sends a message or starts a process, and also
right after each message to a balancer. Killed before the next of them, it has received the answer to the last one. Then
``efm-lb reconcile`` runs once, or the service that was killed is started anew, and everything must hold: no torn file,
no lost call, no pooler left paused, every balancer right. What is half done is nobody's wish.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

import pytest

from efm_lb.rehearsal.pgbouncer import WRITE
from efm_lb.rehearsal.waiting import wait_until
from faults.kill.calls import CALLS, FURTHER, Call, Moment
from faults.kill.stand import CONSOLE, SSH, START, Killed, Point, Stand, Step, open_stand
from faults.kill.strike import judged, strike

pytestmark = pytest.mark.fault("efm-lb killed at a step")
SEED = int(os.environ.get("EFM_LB_SEED", "1"))
SAMPLED = 4
"""Points of each moment in ``make test``, and of two calls at most."""
_CALLS_OF = {moment: [call for call in (*CALLS, *FURTHER) if call.moment is moment] for moment in Moment}
_UNREACHED = 0.05
"""The part of the points that may not be reached, twice in a row: threads take their steps in no certain order."""


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with open_stand() as stand:
        yield stand


@pytest.fixture(scope="module")
def far_stand() -> Iterator[Stand]:
    """PgBouncer is on another host."""
    with open_stand({"EFM_LB_CONNECT_TIMEOUT": 8}, by_ssh=True) as stand:
        yield stand


def points_of(call: Call, steps: Iterable[Step]) -> list[Point]:
    """Where it is killed. Of the further calls not at every question to a database or a balancer, but at the first."""
    points = []
    for step in steps:
        is_question = call in FURTHER and step.is_message and not step.is_change
        if step.is_again or (is_question and not (step.nth == 1 and step.name.startswith("connect "))):
            continue
        points += [Point(step), Point(step, "after")] if step.is_told else [Point(step)]
    return points


class StartedOver(Exception):
    """Something was wrong, so the servers are as at first again."""


class Campaign:
    """Calls that are killed in one switchover after the other.

    :ivar points: where each call can be killed, once it was made undisturbed
    :ivar failed: what was wrong, with the point
    :ivar reached: how often a call was killed at its point
    :ivar unreached: points at which nobody was killed, because the call has passed by them, also a second time
    """

    def __init__(self, stand: Stand) -> None:
        self._stand = stand
        self._waiting: dict[Moment, list[tuple[Call, Point | None]]] = {moment: [] for moment in Moment}
        self.points: list[tuple[Call, Point]] = []
        self.failed: list[str] = []
        self.reached = 0
        self.unreached: list[str] = []
        self._missed: set[tuple[Call, Point]] = set()
        self._runs: Counter[str] = Counter()
        self._leftovers: Counter[str] = Counter()
        self._longest_hold = 0.0

    def play(self, strikes: Iterable[tuple[Call, Point | None]]) -> None:
        """Make each call, and kill it at its point, if it has one."""
        for call, point in strikes:
            self._waiting[call.moment].append((call, point))
        while any(self._waiting.values()):
            with suppress(StartedOver):
                self._switch_over()

    def report(self) -> str:
        lines = [f"{name}: {runs} runs" for name, runs in self._runs.items()]
        lines += [f"not reached: {each}" for each in self.unreached]
        lines.append(f"temporary files that were left: {dict(self._leftovers)}")
        lines.append(f"longest time until nothing was paused: {self._longest_hold:.1f} s")
        return "\n".join(lines)

    def _switch_over(self) -> None:
        self._next(Moment.BEFORE)
        if not any(self._waiting[moment] for moment in Moment if moment is not Moment.BEFORE):
            return
        self._promote()
        self._stand.rejoin()
        self._next(Moment.REJOINED)
        if self._waiting[Moment.LOST]:
            self._stand.lose()
            self._next(Moment.LOST)
            self._stand.find()
        self._stand.go_round()

    def _promote(self) -> None:
        if self._waiting[Moment.LEAVING]:
            self._next(Moment.LEAVING)
        elif self._waiting[Moment.STOPPED]:
            self._stand.old.stop()
            self._next(Moment.STOPPED)
        elif self._waiting[Moment.RETIRED]:
            self._stand.retire()
            self._stand.old.stop()
            self._next(Moment.RETIRED)
            self._stand.recall()
        else:
            self._stand.switch()
            self._next(Moment.PROMOTED)

    def _next(self, moment: Moment) -> None:
        if self._waiting[moment]:
            self._strike(*self._waiting[moment].pop(0))
        elif moment is not Moment.BEFORE:
            self._stand.efm_lb("reconcile")

    def _strike(self, call: Call, point: Point | None) -> None:
        result = strike(self._stand, call, point)
        if point is None:
            self.points += [(call, each) for each in points_of(call, result.killed.steps)]
        self._runs[call.name] += 1
        self.reached += result.killed.reached
        if point and not result.killed.reached:
            self._miss(call, point)
        self._leftovers.update(re.sub(r"\d+(-\d+)?(?=\.)", "*", name) for name in result.leftovers)
        self._longest_hold = max(self._longest_hold, result.held)
        if result.wrong:
            self.failed.append("\n    ".join((f"{call.name}, killed {point or 'nowhere'}", *result.wrong)))
            print(self.failed[-1], flush=True)
            self._stand.start_over()
            raise StartedOver

    def _miss(self, call: Call, point: Point) -> None:
        if (call, point) in self._missed:
            self.unreached.append(f"{call.name}, {point}")
        else:
            self._missed.add((call, point))
            self._waiting[call.moment].append((call, point))


def recorded(stand: Stand, calls: Iterable[Call] = (*CALLS, *FURTHER)) -> Campaign:
    """Each call made once, undisturbed."""
    campaign = Campaign(stand)
    campaign.play([(call, None) for call in calls])
    assert not campaign.failed, "\n".join(campaign.failed)
    assert {call.name for call, _ in campaign.points} == {call.name for call in calls}
    return campaign


def kill(campaign: Campaign, points: Sequence[tuple[Call, Point]], tried: Callable[[int], None]) -> None:
    print(f"{len(points)} of {len(campaign.points)} points", flush=True)
    campaign.play(points)
    print(campaign.report())
    tried(campaign.reached)
    assert not campaign.failed, "\n".join(campaign.failed)
    assert len(campaign.unreached) <= max(2, _UNREACHED * len(points)), "\n".join(campaign.unreached)


def test_killed_at_some_steps(stand: Stand, tried: Callable[[int], None]) -> None:
    print(f"EFM_LB_SEED={SEED}")
    chance = random.Random(SEED)
    calls = [call for moment in Moment for call in chance.sample(_CALLS_OF[moment], min(2, len(_CALLS_OF[moment])))]
    campaign = recorded(stand, calls)
    chosen = []
    for moment in Moment:
        chosen += chance.sample([each for each in campaign.points if each[0].moment is moment], SAMPLED)
    kill(campaign, chosen, tried)


def test_killed_after_another_host_has_paused_and_let_go(stand: Stand, tried: Callable[[int], None]) -> None:
    """To the process that lets clients go, that must not have been the end of a hold which is only about to begin."""
    tried(1)
    call, seen = CALLS[0], []

    def pause_and_let_go() -> None:
        assert wait_until(stand.is_guarded, 10)
        for statement in ("PAUSE", "RESUME"):
            stand.pgbouncer.console(f"{statement} {WRITE}")
            time.sleep(0.2)
        seen.append(stand.is_guarded())

    def make() -> Killed:
        other = threading.Thread(target=pause_and_let_go)
        other.start()
        try:
            # The hook hears of the process that it has started when the other host is done.
            point = Point(Step(f"send {CONSOLE}: PAUSE", 1, ""), "after")
            hold = {"EFM_LB_BALANCERS__PGB1__HOLD": "20"}
            return stand.traced(*call.words(stand), kill=point, slow={START: 3.0}, settings=hold)
        finally:
            other.join()

    result = judged(stand, call, make)
    assert seen == [True]
    assert result.killed.reached
    assert result.wrong == ()


@pytest.mark.long
def test_killed_at_every_step(stand: Stand, tried: Callable[[int], None]) -> None:
    print(f"EFM_LB_SEED={SEED}")
    campaign = recorded(stand)
    kill(campaign, random.Random(SEED).sample(campaign.points, len(campaign.points)), tried)
    stand.age_leftovers()
    for _ in stand.cluster.nodes:
        campaign.play([(call, None) for call in CALLS if call.words(stand)[0] in ("attach", "detach")])
    assert stand.leftovers() == []


@pytest.mark.long
def test_killed_at_each_message_to_ssh(far_stand: Stand, tried: Callable[[int], None]) -> None:
    """What ssh was given is done there all the same, while reconcile is at work here already."""
    campaign = recorded(far_stand, [call for call in CALLS if not (call.of or call.is_apply)])
    # ssh is started first; what is started later depends on how busy the machine is.
    steps = [*((SSH, nth) for nth in range(1, 6)), (START, 1)]
    points = [(call, point) for call, point in campaign.points if point.step[:2] in steps]
    assert {call.name for call, point in points if point.step.name == SSH} == {call.name for call, _ in campaign.points}
    kill(campaign, points, tried)
