"""A login that is begun early is closed once, whoever gives it up when."""

from __future__ import annotations

import _thread
from collections.abc import Callable, Mapping

import pytest

from efm_lb import handover, head_start
from efm_lb.handover import Login


class Connection:
    """Counts how often it is closed: libpq frees its memory each time."""

    closed = 0

    def __init__(self, keywords: Mapping[str, str], deadline: float) -> None: ...

    def close(self) -> None:
        type(self).closed += 1


class Lock:
    """A lock whose holder is interrupted right after giving it back."""

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self.acquire = self._lock.acquire
        self.then: Callable[[], None] = lambda: None

    def release(self) -> None:
        self._lock.release()
        self.then()


def test_it_is_closed_once_when_it_is_dropped_as_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice would be a crash in libpq, and no line of output."""
    lock = Lock()
    runs: list[Callable[[], None]] = []
    monkeypatch.setattr(handover, "Connection", Connection)
    monkeypatch.setattr(handover, "allocate_lock", lambda: lock)
    monkeypatch.setattr(handover, "start_new_thread", lambda run, given: runs.append(lambda: run(*given)))
    begun = Login({}, 0.0)
    lock.then = begun.drop
    runs[0]()
    assert Connection.closed == 1


def test_a_host_without_threads_is_for_the_hook_to_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(run: object, given: object) -> None:
        raise RuntimeError("can't start new thread")

    plan = {"connect_timeout": 1.0, "probe": {}, "nodes": (("db1", "127.0.0.1", 1, ()),), "balancers": ()}
    monkeypatch.setattr(handover, "start_new_thread", none_left)
    monkeypatch.setattr(head_start, "gather", lambda *given: None)
    monkeypatch.setattr(head_start.compiled, "read", lambda sources: plan)
    begun = head_start.begin(["attach", "db1", "p"], {})
    assert begun
    assert begun.logins == {}
