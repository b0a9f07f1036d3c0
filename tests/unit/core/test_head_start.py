"""A login that is begun early is closed once, whoever gives it up when."""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable, Mapping

import pytest

from efm_lb import handover, head_start
from efm_lb.connection import ConnectionFailed
from efm_lb.handover import Login, logins_of


class Connection:
    """Counts how often it is closed: libpq frees its memory each time."""

    closed = 0

    def __init__(self, keywords: Mapping[str, str], deadline: float, conninfo: str) -> None: ...

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
    monkeypatch.setattr(handover, "allocate_lock", iter([_thread.allocate_lock(), lock]).__next__)
    monkeypatch.setattr(handover, "start_new_thread", lambda run, given: runs.append(lambda: run(*given)))
    begun = Login({}, 0.0)
    lock.then = begun.drop
    begun.begin()
    runs[0]()
    assert Connection.closed == 1


def test_one_that_takes_long_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A balancer that is frozen, and one whose login would have been the next."""
    begun, thawed = threading.Event(), threading.Event()

    class Frozen(Connection):
        def __init__(self, keywords: Mapping[str, str], deadline: float, conninfo: str) -> None:
            self.conninfo = conninfo
            if conninfo == "frozen":
                begun.set()
                thawed.wait(20.0)

    monkeypatch.setattr(handover, "Connection", Frozen)
    logins = logins_of([("pgb1", "frozen", {}), ("pgb2", "alive", {})], time.monotonic() + 20.0)
    assert begun.wait(20.0)
    try:
        alive = logins["pgb2"]["alive"].connection(time.monotonic() + 20.0)
        assert isinstance(alive, Frozen)
        assert alive.conninfo == "alive"
        with pytest.raises(ConnectionFailed, match="no answer in time"):
            logins["pgb1"]["frozen"].connection(time.monotonic() + 0.1)
    finally:
        thawed.set()


def test_a_host_without_threads_is_for_the_hook_to_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(run: object, given: object) -> None:
        raise RuntimeError("can't start new thread")

    plan = {
        "connect_timeout": 1.0,
        "probe": {},
        "nodes": (("db1", "127.0.0.1", 1, ()),),
        "balancers": (),
        "logins": (("pgb1", "host=x", {}),),
    }
    monkeypatch.setattr(handover, "start_new_thread", none_left)
    monkeypatch.setattr(head_start, "gather", lambda *given: None)
    monkeypatch.setattr(head_start.compiled, "read", lambda sources: plan)
    begun = head_start.begin(["attach", "db1", "p"], {})
    assert begun
    assert begun.logins == {}
    assert begun.balancers == {}
