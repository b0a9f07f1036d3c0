"""What calls of one host know of each other, and what they do not believe."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from efm_lb import Node
from efm_lb.state import State, new_call

DB1, DB2 = Node("db1", "10.0.0.1", 5444), Node("fe80::2", "fe80::2", 5444)


def test_a_newer_call_that_was_carried_out_and_wanted_the_opposite_counts(tmp_path: Path) -> None:
    state = State(str(tmp_path), "efm")
    first, second = new_call(), new_call()
    state.note(DB1, second, attached=False)
    assert state.contradicted(DB1, first, attached=True)
    assert not state.contradicted(DB1, first, attached=False)
    assert not state.contradicted(DB1, new_call(), attached=True)
    assert not state.contradicted(DB2, first, attached=True)
    assert not State(str(tmp_path), "sales").contradicted(DB1, first, attached=True)


def test_an_older_call_never_takes_the_place_of_a_newer_one(tmp_path: Path) -> None:
    state = State(str(tmp_path), "efm")
    first, second = new_call(), new_call()
    state.note(DB1, second, attached=True)
    state.note(DB1, first, attached=False)
    assert state.contradicted(DB1, first, attached=False)


@pytest.mark.parametrize("content", ["", "nonsense", "\xff\xfe", "-", "9" * 300])
def test_a_damaged_note_loses_no_call(tmp_path: Path, content: str) -> None:
    (tmp_path / "efm.db1.call").write_text(content)
    assert not State(str(tmp_path), "efm").contradicted(DB1, "1-1", attached=True)
    (tmp_path / "efm.timeline").write_text(content)
    assert State(str(tmp_path), "efm").timeline in (0, int("9" * 200))


def test_the_timeline(tmp_path: Path) -> None:
    state = State(str(tmp_path), "efm")
    assert state.timeline == 0
    state.timeline = 12
    assert State(str(tmp_path), "efm").timeline == 12
    assert sorted(os.listdir(tmp_path)) == ["efm.timeline"]


def test_without_a_directory_nothing_is_known(tmp_path: Path) -> None:
    state = State(str(tmp_path / "gone"), "efm")
    state.note(DB1, "2-1", attached=True)
    state.timeline = 3
    assert not state.contradicted(DB1, "1-1", attached=False)
    assert state.timeline == 0
