"""What counts as an answer, with made-up connections."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping

import pytest

from efm_lb import Node, Reach, Role
from efm_lb.connection import ConnectionFailed
from efm_lb.reconcile import vigil as module
from efm_lb.reconcile.vigil import Vigil
from efm_lb.rehearsal.waiting import wait_until

DB1, DB2 = (Node(f"db{n}", f"db{n}.example", 5444) for n in (1, 2))


class Network:
    """What the connections do.

    :ivar hangs: the hosts whose name look-up hangs
    :ivar slow: those whose databases take half a second for an answer
    """

    def __init__(self) -> None:
        self.hangs: set[str] = set()
        self.slow: set[str] = set()
        self.end = threading.Event()


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    made = Network()

    class Connection:
        def __init__(self, keywords: Mapping[str, str], deadline: float) -> None:
            if keywords["host"] in made.hangs:
                made.end.wait(60)
            self.host = keywords["host"]

        def __enter__(self) -> Connection:
            return self

        def __exit__(self, *_: object) -> None: ...

    def question(connection: Connection, deadline: float) -> tuple[Role, int]:
        if connection.host in made.hangs or made.end.is_set():
            raise ConnectionFailed("refused", "Connection refused")
        if connection.host in made.slow:
            made.end.wait(0.5)
        return Role.PRIMARY, 1

    monkeypatch.setattr(module, "Connection", Connection)
    monkeypatch.setattr(module, "question", question)
    monkeypatch.setattr(module, "library", lambda: None)
    monkeypatch.setattr(module, "POLL", 0.02)
    monkeypatch.setattr(module, "RETRY_DENIED", 0.1)
    yield made
    made.end.set()


def test_a_name_that_cannot_be_looked_up_is_waited_for_once(network: Network) -> None:
    network.hangs = {DB2.host}
    vigil = Vigil([DB1, DB2], {}, 0.1)
    assert vigil.sight(0).truth.state(DB2).reach is Reach.NO_RESPONSE
    started = time.monotonic()
    for _ in range(20):
        assert vigil.sight(0).truth.role(DB1) is Role.PRIMARY
    assert time.monotonic() - started < 10


def test_what_was_said_long_ago_counts_no_more(network: Network) -> None:
    """It refused, and since then its name cannot be looked up: it may be up for long."""
    vigil = Vigil([DB1, DB2], {}, 0.1)
    assert vigil.sight(0).truth.role(DB2) is Role.PRIMARY
    network.hangs = {DB2.host}
    assert wait_until(lambda: vigil.sight(0).truth.state(DB2).reach is Reach.REFUSED, timeout=10)
    assert wait_until(lambda: vigil.sight(0).truth.state(DB2).reach is Reach.NO_RESPONSE, timeout=10)
    assert vigil.sight(0).truth.role(DB1) is Role.PRIMARY


def test_who_says_something_anew_is_told_from_who_does_not(network: Network) -> None:
    vigil = Vigil([DB1, DB2], {}, 0.1)
    vigil.sight(0)
    assert sorted(vigil.refresh(10, ())) == [DB1, DB2]
    network.hangs = {DB2.host}
    assert wait_until(lambda: vigil.refresh(0.1, ()) == [DB1], timeout=10)


def test_who_matters_is_waited_for_as_long_as_an_answer_may_take(network: Network) -> None:
    vigil = Vigil([DB1, DB2], {}, 20.0)
    vigil.sight(0)
    network.slow = {DB2.host}
    began = time.monotonic()
    assert wait_until(lambda: vigil.refresh(0.01, ()) == [DB1], timeout=10)
    assert sorted(vigil.refresh(0.01, [DB2])) == [DB1, DB2]
    assert time.monotonic() - began < 10
