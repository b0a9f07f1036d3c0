"""Threads that nobody waits for to begin."""

from __future__ import annotations

import threading
import time

import pytest

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
    running.wait(time.monotonic() + 10)
    assert not running.is_running


def test_a_wait_that_a_signal_breaks_off_lets_the_next_one_through() -> None:
    running = Background(int)
    running.wait()

    class Taken:
        """The lock, and a signal's handler that raises when it has just been taken."""

        def __init__(self) -> None:
            self._lock = running._running

        def acquire(self, timeout: float) -> bool:
            assert self._lock.acquire(timeout=timeout)
            raise KeyboardInterrupt

        def release(self) -> None:
            self._lock.release()

    lock, running._running = running._running, Taken()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        running.wait()
    running._running = lock
    began = time.monotonic()
    running.wait(began + 10)
    assert time.monotonic() - began < 5
    assert not lock.locked()
