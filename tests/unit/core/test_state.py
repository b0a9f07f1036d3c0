"""What calls of one host know of each other, and what they do not believe."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from efm_lb import Node, state
from efm_lb.state import State, new_call, replace

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


def test_what_was_down_was_not_taken_out_on_purpose(tmp_path: Path) -> None:
    state = State(str(tmp_path), "efm")
    first, second, third = new_call(), new_call(), new_call()
    state.note(DB1, second, attached=False, was_up=False)
    assert state.contradicted(DB1, first, attached=True)
    assert state.taken_out(DB1) is None
    state.note(DB1, third, attached=False)
    assert state.taken_out(DB1) == pytest.approx(time.time(), abs=60)


def test_an_older_call_never_takes_the_place_of_a_newer_one(tmp_path: Path) -> None:
    state = State(str(tmp_path), "efm")
    first, second = new_call(), new_call()
    state.note(DB1, second, attached=True)
    state.note(DB1, first, attached=False)
    assert state.contradicted(DB1, first, attached=False)


def test_an_older_call_that_wanted_the_same_lets_none_in_between_count(tmp_path: Path) -> None:
    state = State(str(tmp_path), "efm")
    first, second, third = new_call(), new_call(), new_call()
    state.note(DB1, third, attached=True)
    state.note(DB1, first, attached=True)
    assert state.contradicted(DB1, second, attached=False)


def test_what_is_noted_when_a_call_begins_is_older_whatever_the_clock_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock was ahead, and passes that time while the call waits for its node."""
    now = time.time_ns()
    State(str(tmp_path), "efm").note(DB1, f"{now:x}-1", attached=False)
    state = State(str(tmp_path), "efm")
    state.begin(DB1)
    call = f"{now - 1000:x}-2"
    assert not state.contradicted(DB1, call, attached=True)
    state.note(DB1, call, attached=True)
    assert state.contradicted(DB1, f"{now - 2000:x}-3", attached=False), "and it takes its place"


def test_a_note_from_the_future_is_replaced(tmp_path: Path) -> None:
    """When that time comes it would be newer than a call that is made right before."""
    state = State(str(tmp_path), "efm")
    future = time.time_ns() + 10**12
    state.note(DB1, f"{future:x}-1", attached=False)
    state.note(DB1, new_call(), attached=True)
    assert not (tmp_path / "efm.db1.call").read_text().startswith(f"{future:x}")


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


def test_a_full_disk_leaves_the_old_note_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = State(str(tmp_path), "efm")
    state.timeline = 12

    def full(descriptor: int, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        state.timeline = 13
        state.note(DB1, "f-1", attached=True)
    assert state.timeline == 12
    assert os.listdir(tmp_path) == ["efm.timeline"]


def test_what_is_written_in_pieces_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:1]))
    replace(str(tmp_path / "file"), b"several bytes", 0o640)
    assert (tmp_path / "file").read_bytes() == b"several bytes"


def test_what_a_killed_process_of_the_same_number_left_is_in_nobodys_way(tmp_path: Path) -> None:
    left = tmp_path / f"efm.timeline.{os.getpid()}.efm-lb"
    left.write_text("9")
    state = State(str(tmp_path), "efm")
    state.timeline = 12
    assert state.timeline == 12
    assert not left.exists()


def test_what_killed_processes_left_does_not_pile_up(tmp_path: Path) -> None:
    at_work = tmp_path / "efm.timeline.1.efm-lb"
    left = tmp_path / "efm.timeline.2.efm-lb"
    of_another_file = tmp_path / "efm.db1.call.3.efm-lb"
    for path in (at_work, left, of_another_file):
        path.write_text("1")
    for path in (left, of_another_file):
        os.utime(path, (time.time() - 120, time.time() - 120))
    State(str(tmp_path), "efm").timeline = 12
    assert sorted(tmp_path.iterdir()) == [of_another_file, tmp_path / "efm.timeline", at_work]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can lock another user out")
def test_what_root_notes_under_any_umask_is_for_the_directorys_owner(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    state = State(str(tmp_path), "efm")
    umask = os.umask(0o077)
    try:
        state.note(DB1, new_call(), attached=True)
        state.timeline = 12
    finally:
        os.umask(umask)
    for path in tmp_path.iterdir():
        assert (path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o777) == (12345, 12345, 0o644)


def test_without_a_directory_nothing_is_known(tmp_path: Path) -> None:
    state = State(str(tmp_path / "gone"), "efm")
    state.note(DB1, "2-1", attached=True)
    state.timeline = 3
    assert not state.contradicted(DB1, "1-1", attached=False)
    assert state.timeline == 0


def test_a_note_that_a_clock_made_in_the_future_loses_no_call(tmp_path: Path) -> None:
    """The clock was wrong at boot and was put right: the calls of the hours until then must count."""
    notes = State(str(tmp_path), "efm")
    ahead = f"{time.time_ns() + 3600 * 10**9:x}-1"
    notes.note(DB1, ahead, attached=False)
    assert not notes.contradicted(DB1, new_call(), attached=True)


def test_a_disk_that_hangs_holds_up_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = threading.Event()
    tries: list[str] = []

    def replace(path: str, content: bytes, mode: int) -> None:
        tries.append(path)
        hangs.wait(30)

    monkeypatch.setattr(state, "replace", replace)
    monkeypatch.setattr(state, "PATIENCE", 0.05)
    notes = State(str(tmp_path), "efm")
    started = time.monotonic()
    try:
        for timeline in range(1, 6):
            notes.timeline = timeline
        assert time.monotonic() - started < 20
        assert len(tries) == 1, "one thread is enough for a disk that hangs"
    finally:
        hangs.set()
