"""Rounds, with made-up databases and balancers."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from types import ModuleType

import pytest

from efm_lb import Balancer, Event, Node, Outcome, Result, View, hookimpl, lock
from efm_lb.configuration import AdapterSource, Configuration, DetachLivePrimary, Reconcile
from efm_lb.reconcile.restraint import Sight
from efm_lb.reconcile.rounds import Rounds
from efm_lb.state import State, new_call
from unit.reconcile.test_differences import NODES, truth, view
from unit.threads import none_left


class Databases:
    """What they say, for as long as anybody can remember.

    :ivar silent: those that do not say it once more
    :ivar has_news: one of them has said something that nobody has heard yet
    """

    def __init__(self, letters: str) -> None:
        self.letters = letters
        self.silent: list[Node] = []
        self.has_news = False

    def sight(self, newest: int) -> Sight:
        return Sight(truth(self.letters), dict.fromkeys(NODES, -1000.0))

    def refresh(self, seconds: float, needed: Collection[Node]) -> list[Node]:
        return [node for node in NODES if node not in self.silent]

    def wait(self, until: float) -> bool:
        return self.has_news


class World:
    """One balancer, ``pool1``: what it believes, and what it is told."""

    def __init__(self, state_dir: Path) -> None:
        self.databases = Databases("xPs")
        self.view: View = view("Waa")
        self.answer = Outcome.changed("done")
        self.told: list[Event] = []
        self.told_at: list[float] = []
        self.configuration = Configuration(
            "efm",
            NODES,
            {},
            1.0,
            0.5,
            str(state_dir),
            DetachLivePrimary.DEFER,
            (Balancer("pool1", "fake", {}),),
            (AdapterSource("fake", "fake_rounds_adapter", "", "fake-dist", "1"),),
            Reconcile(settle=0.0),
        )
        self.journal = state_dir / "efm.journal"
        self.begin()

    def take(self, event: Event) -> Outcome:
        self.told.append(event)
        self.told_at.append(time.monotonic())
        return self.answer

    def begin(self) -> None:
        """Another process."""
        self.rounds = Rounds(self.configuration, self.databases)  # type: ignore[arg-type]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    module = ModuleType("fake_rounds_adapter")

    for name in ("attach", "detach", "promote"):
        setattr(module, f"efm_lb_{name}", hookimpl(specname=f"efm_lb_{name}")(lambda event: made.take(event)))
    module.efm_lb_view = hookimpl(specname="efm_lb_view")(lambda nodes: made.view)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    made = World(tmp_path)
    return made


def test_a_round_about_no_balancer(world: World) -> None:
    world.configuration = world.configuration._replace(balancers=())
    world.begin()
    assert world.rounds.play(0.0) == ((), {}, True, float("inf"))
    world.databases.letters = "xss"
    assert world.rounds.play(0.0) == (("no node is a primary",), {}, False, float("inf"))


def test_a_service_that_began_without_threads_is_right_once_there_are(world: World) -> None:
    with none_left():
        world.begin()
        assert "can't start new thread" in world.rounds.play(0.0).lines[0]
    assert [one.result for one in world.rounds.play(0.0).outcomes.values()] == [Result.CHANGED]


def test_where_nothing_is_to_be_done_and_no_node_is_a_primary_that_is_told(world: World) -> None:
    """All that can be done is done, and applications cannot write all the same."""
    world.databases.letters = "?ss"
    world.view = view("daa")
    done = world.rounds.play(0.0)
    assert done.lines == ("db1 does not tell its role: ", "no node is a primary")
    assert (done.outcomes, done.is_right) == ({}, False)


@pytest.fixture
def silent_one(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """The world, with another balancer that takes half a second to say what it believes."""
    module = ModuleType("silent_rounds_adapter")

    def look(balancer: Balancer) -> View:
        time.sleep(0.5)
        return world.view

    def take(event: Event) -> Outcome:
        return world.take(event)

    module.efm_lb_view = hookimpl(specname="efm_lb_view")(look)  # type: ignore[attr-defined]
    module.efm_lb_promote = hookimpl(specname="efm_lb_promote")(take)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    world.configuration = world.configuration._replace(
        balancers=(*world.configuration.balancers, Balancer("pool2", "silent", {})),
        adapters=(*world.configuration.adapters, AdapterSource("silent", module.__name__, "", "silent-dist", "1")),
    )
    world.begin()
    return world


def test_a_balancer_that_is_silent_keeps_no_other_waiting(silent_one: World) -> None:
    began = time.monotonic()
    done = silent_one.rounds.play(0.0)
    assert list(done.outcomes) == ["pool1", "pool2"]
    assert silent_one.told_at[0] - began < 0.5 <= silent_one.told_at[-1] - began


def test_what_is_due_at_one_balancer_does_not_wait_for_a_silent_one(silent_one: World) -> None:
    """News of a database, say; and the silent one is not asked a second time meanwhile, nor given up."""
    silent_one.databases.letters = "Pss"
    silent_one.databases.has_news = True
    began = time.monotonic()
    done = silent_one.rounds.play(0.0)
    assert time.monotonic() - began < 0.5
    assert (done.lines, done.is_right) == (("pool2: has not answered yet",), False)
    silent_one.databases.letters = "xPs"
    assert list(silent_one.rounds.play(0.0).outcomes) == ["pool1"]
    assert time.monotonic() - began < 0.5
    silent_one.view = view("dWa")
    assert until(lambda: silent_one.rounds.play(0.0).is_right, silent_one, 10), "it has its turn, too"


def until(told: Callable[[], object], world: World, seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        world.rounds.play(0.0)
        if told():
            return True
        time.sleep(0.05)
    return False


def test_a_call_that_never_ends_does_not_hold_it_up_for_ever(world: World, tmp_path: Path) -> None:
    held = lock.acquire(str(tmp_path / "efm.lock"), 0)
    try:
        assert world.rounds.play(0.0).lines[0] == "waits for a call of EFM's that is at work"
        assert world.told == []
        assert until(lambda: world.told, world, 20), "a hook goes on without it after as long, too"
    finally:
        os.close(held)


@pytest.mark.parametrize(
    "answer",
    [
        Outcome.unchanged("nothing to change"),
        Outcome.deferred("not now"),
        Outcome(Result.PERMANENT, "a.ini:3: writes follow timeline 7, and 10.0.0.2:5444 is on timeline 6"),
    ],
)
def test_what_is_sent_in_vain_fills_no_journal(world: World, answer: Outcome) -> None:
    world.answer = answer
    assert not until(lambda: len(world.told) > 8, world, 2.0), "it is tried more and more seldom"
    assert world.told
    records = world.journal.read_text().count('"record": "outcome"')
    assert records == len(set(map(str, world.told)))


def test_each_try_is_written_down_before_it_is_made(world: World) -> None:
    world.answer = Outcome(Result.TEMPORARY, "no answer")
    at_work: list[list[str]] = []

    def take(event: Event) -> Outcome:
        at_work.append(re.findall('"record": "(.*?)"', world.journal.read_text()))
        return World.take(world, event)

    world.take = take  # type: ignore[method-assign]
    assert until(lambda: len(at_work) > 2, world, 20)
    assert at_work == [
        ["call", "decision", *more] for more in ([], ["outcome", "again"], ["outcome", "again", "again"])
    ]


def test_a_failure_that_comes_back_is_written_down_again(world: World) -> None:
    def failures() -> int:
        return world.journal.read_text().count('"record": "outcome"')

    world.answer = Outcome(Result.PERMANENT, "a.ini:3: writes follow timeline 7, and 10.0.0.2:5444 is on timeline 6")
    assert until(lambda: len(world.told) > 2, world, 20)
    assert failures() == 1
    world.view = view("dWa")
    assert world.rounds.play(0.0).is_right, "somebody has made it right"
    world.view = view("Waa")
    world.told.clear()
    assert until(lambda: world.told, world, 20)
    assert failures() == 2
    assert '"exit_code": 69' in world.journal.read_text()


def test_a_primary_that_is_slow_is_waited_for_and_told_about(world: World) -> None:
    world.databases.silent = [NODES[1]]
    done = world.rounds.play(0.0)
    assert "waits for db2, to say once more what was said before anything is done" in done.lines
    assert not world.told


def test_a_primary_that_a_balancer_does_not_know_is_not_right(world: World) -> None:
    world.databases.letters = "sPs"
    world.view = view("W.a")
    done = world.rounds.play(0.0)
    assert "pool1: db2 not known to this balancer" in done.lines
    assert not done.is_right


def test_a_host_that_is_cut_off_does_not_call_that_right(world: World) -> None:
    world.databases.letters = "-P-"
    done = world.rounds.play(0.0)
    assert done.outcomes == {}
    assert not done.is_right


@pytest.mark.parametrize("letters", ["sPs", "Psx", "xPs"])
def test_nothing_is_done_by_the_last_word_of_a_primary_that_has_just_become_silent(world: World, letters: str) -> None:
    """This host may have been cut off in a switchover: the writes are elsewhere by now."""
    world.databases.letters = letters
    world.databases.silent = [NODES[letters.index("P")]]
    world.rounds.play(0.0)
    assert world.told == []
    world.databases.silent = [NODES[letters.index("x")]] if "x" in letters else []
    if letters != "Psx":
        world.rounds.play(0.0)
        assert world.told, "one that is down need not say so again"


def test_one_look_knows_what_the_one_before_has_seen(world: World) -> None:
    world.databases.letters = "Pss"
    assert world.rounds.play(0.0).is_right
    world.view = view("Wad")
    world.begin()
    assert world.rounds.play(0.0).lines == (
        "pool1: attach db3 waits: db3 was taken out while it was up: somebody wants it so",
    )
    assert world.told == []


def test_the_very_first_look_knows_efms_calls_on_this_host(world: World) -> None:
    world.databases.letters = "Pss"
    world.view = view("Wdd")
    world.begin()
    state = State(world.configuration.state_dir, "efm")  # the calls come while it starts
    state.note(NODES[2], new_call(), attached=False)
    state.note(NODES[1], new_call(), attached=True)
    lines = world.rounds.play(0.0).lines
    assert "pool1: attach db3 waits: db3 was taken out while it was up: somebody wants it so" in lines
    assert [event.node.name for event in world.told] == ["db2"]
