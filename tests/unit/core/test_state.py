"""What calls of one host know of each other, and what they do not believe."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from efm_lb import Node
from efm_lb.state import State, new_call

DB1, DB2 = Node("db1", "10.0.0.1", 5444), Node("fe80::2", "fe80::2", 5444)


def test_a_newer_call_about_the_same_node_supersedes(tmp_path: Path) -> None:
    state = State(str(tmp_path), "efm")
    first, second = new_call(), new_call()
    state.announce(DB1, first)
    assert not state.superseded(DB1, first)
    state.announce(DB1, second)
    assert state.superseded(DB1, first)
    assert not state.superseded(DB1, second)
    assert not state.superseded(DB2, first)
    assert not State(str(tmp_path), "sales").superseded(DB1, first)


def test_an_older_note_never_supersedes_a_call_that_could_not_be_noted(tmp_path: Path) -> None:
    """The disk is full: the note of the call before is still there."""
    state = State(str(tmp_path), "efm")
    state.announce(DB1, new_call())
    assert not state.superseded(DB1, new_call())


@pytest.mark.parametrize("content", ["", "nonsense", "\xff\xfe", "-", "9" * 300])
def test_a_damaged_note_loses_no_call(tmp_path: Path, content: str) -> None:
    (tmp_path / "efm.db1.call").write_text(content)
    assert not State(str(tmp_path), "efm").superseded(DB1, "f" * 300 + "-1")
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
    state.announce(DB1, "1-1")
    state.timeline = 3
    assert not state.superseded(DB1, "1-1")
    assert state.timeline == 0
