"""Threads that nobody waits for to begin."""

from __future__ import annotations

import threading
import time

from efm_lb.background import Background


def test_its_end_is_waited_for_and_seen() -> None:
    told: list[str] = []
    go = threading.Event()

    def tell(first: str, second: str) -> None:
        assert go.wait(10)
        told.extend((first, second))

    running = Background(tell, "one", "two")
    running.wait(time.monotonic() + 0.01)
    assert running.is_running
    assert not told
    go.set()
    running.wait()
    assert not running.is_running
    assert told == ["one", "two"]


def test_several_may_wait_for_it_with_a_limit_and_without() -> None:
    go = threading.Event()
    running = Background(go.wait, 10)
    ended: list[float] = []

    def wait(until: float) -> None:
        running.wait(until)
        ended.append(until)

    waiting = [Background(wait, until) for until in (time.monotonic() + 10, float("inf"), time.monotonic() - 1)]
    waiting[2].wait()
    assert len(ended) == 1, "time was up for it before"
    go.set()
    for each in waiting:
        each.wait()
    assert len(ended) == 3


def test_one_that_raises_has_ended_too() -> None:
    def leave() -> None:
        raise SystemExit

    running = Background(leave)
    running.wait()
    assert not running.is_running
