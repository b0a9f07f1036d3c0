"""The journal: one JSON object per line, and never a reason not to drive the balancers."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efm_lb import history
from efm_lb.journal import HARD_LIMIT, LIMIT, LONGEST, Journal, Value, _encoded
from unit.threads import none_left

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def write(journal: Journal, what: str = "call", **fields: Value) -> Journal:
    """Record something, and wait until it is there."""
    journal.record(what, **fields)
    journal.settle(10)
    return journal


@given(values)
def test_a_record_is_json(value: object) -> None:
    encoded = _encoded(value)  # type: ignore[arg-type]
    assert json.loads(encoded) == value
    assert "\n" not in encoded


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (0.0123456, 0.012),
        (float("inf"), None),
        ("x" * (LONGEST + 1), "x" * LONGEST + "..."),
        (b"bytes", "b'bytes'"),
    ],
)
def test_what_an_adapter_says_against_its_contract_is_no_reason_to_fail(value: object, kept: object) -> None:
    assert json.loads(_encoded(value)) == kept  # type: ignore[arg-type]


def test_records_are_appended_with_time_and_call(tmp_path: Path) -> None:
    path = tmp_path / "efm.journal"
    journal = Journal(str(path), "c1")
    journal.record("call", host="db1", type=None)
    journal.record("outcome", exit_code=0, outcomes={"pool1": ["changed", "db1 out"]})
    journal.settle(10)
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first["call"] == second["call"] == "c1"
    assert first["at"].endswith("Z")
    assert first["type"] is None
    assert second["outcomes"] == {"pool1": ["changed", "db1 out"]}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert journal.failure == ""


def test_a_directory_that_is_missing_is_remembered_not_raised(tmp_path: Path) -> None:
    journal = write(Journal(str(tmp_path / "gone" / "efm.journal"), "c1"))
    assert "No such file or directory" in journal.failure


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_remembered_not_raised() -> None:
    journal = write(Journal("/dev/full", "c1"))
    assert "No space left on device" in journal.failure


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.touch()
    (tmp_path / "efm.journal").symlink_to(target)
    journal = write(Journal(str(tmp_path / "efm.journal"), "c1"))
    assert journal.failure
    assert target.read_text() == ""


def test_it_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "efm.journal"
    path.write_bytes(b"x" * LIMIT + b"\n")
    write(Journal(str(path), "c1"))
    assert not path.exists()
    assert (tmp_path / "efm.journal.1").read_bytes().startswith(b"x" * LIMIT + b'\n{"at"')
    write(Journal(str(path), "c2"))
    assert len(path.read_text().splitlines()) == 1


def in_the_way(path: Path) -> None:
    """A directory where the journal's file would be set aside: not even root can rename a file to it."""
    Path(f"{path}.1").mkdir()


def test_what_cannot_be_set_aside_is_written_to_and_said(tmp_path: Path) -> None:
    path = tmp_path / "efm.journal"
    in_the_way(path)
    path.write_bytes(b"x" * (LIMIT + 1) + b"\n")
    journal = Journal(str(path), "c1")
    for what in ("call", "outcome"):
        write(journal, what)
    assert [json.loads(line)["record"] for line in path.read_text().splitlines()[1:]] == ["call", "outcome"]
    assert journal.failure == (
        f"the journal {path}: it is too long and cannot be set aside as {path}.1 (Is a directory)"
    )


def test_what_cannot_be_set_aside_does_not_fill_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "efm.journal"
    in_the_way(path)
    path.touch()
    os.truncate(path, HARD_LIMIT + 1)
    journal = write(Journal(str(path), "c1"))
    assert path.stat().st_size == HARD_LIMIT + 1
    assert journal.failure == (
        f"not journalled: {path}: it is too long and cannot be set aside as {path}.1 (Is a directory)"
    )


@pytest.mark.parametrize("between", [["c1"], ["c1", "c3"]])
def test_of_two_writers_that_find_it_too_long_one_sets_it_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: list[str]
) -> None:
    """The second one has opened the file and looked at its size when others write."""
    path = tmp_path / "efm.journal"
    path.write_bytes(b"x" * (LIMIT + 1) + b"\n")
    fstat = os.fstat

    def late(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        monkeypatch.setattr(os, "fstat", fstat)
        for call in between:
            write(Journal(str(path), call))
        return status

    monkeypatch.setattr(os, "fstat", late)
    second = write(Journal(str(path), "c2"))
    assert second.failure == ""
    history, *records = (tmp_path / "efm.journal.1").read_text().splitlines()
    assert history == "x" * (LIMIT + 1)
    assert [json.loads(record)["call"] for record in records] == ["c1", "c2"]
    new = path.read_text().splitlines() if path.exists() else []
    assert [json.loads(record)["call"] for record in new] == between[1:]


def test_a_writer_that_is_setting_it_aside_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "efm.journal"
    path.write_bytes(b"x" * LIMIT + b"\n")
    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        write(Journal(str(path), "c1"))
    assert [record.what for record in history.read(str(path)).records] == ["call"]
    assert not (tmp_path / "efm.journal.1").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what another user may not write")
def test_root_does_not_lock_out_the_owner_of_the_directory(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    path = tmp_path / "efm.journal"
    write(Journal(str(path), "c1"))
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12345)


# What a crash leaves


def test_a_record_behind_a_torn_one_is_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "efm.journal"
    write(Journal(str(path), "c1"))
    whole = path.read_bytes()
    for kept in range(1, len(whole)):
        path.write_bytes(whole[:kept])
        write(Journal(str(path), "c2"))
        lines = path.read_bytes().splitlines()
        assert [json.loads(line)["call"] for line in lines[1:]] == ["c2"], kept


def test_several_writers_lose_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "efm.journal")

    def writer(number: int) -> None:
        journal = Journal(path, f"c{number}")
        for what in ("call", "decision", "outcome") * 10:
            journal.record(what, filling="x" * 1500)
        journal.settle(60)
        assert journal.failure == ""

    writers = [threading.Thread(target=writer, args=(number,)) for number in range(8)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    reading = history.read(path)
    assert not reading.damages
    for number in range(8):
        found = [record.what for record in reading.records if record.call == f"c{number}"]
        assert found == ["call", "decision", "outcome"] * 10


def test_what_must_outlive_the_host_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(stat.S_ISDIR(os.fstat(descriptor).st_mode)))
    path = tmp_path / "efm.journal"
    sizes = []
    for what in ("call", "decision", "outcome"):
        write(Journal(str(path), "c1"), what)
        sizes.append(path.stat().st_size)
    assert synced == [sizes[0], True, sizes[2]], "the call, its new file's name, the outcome"


# A disk that hangs, and one that is full


def test_a_disk_that_hangs_keeps_nobody_waiting(tmp_path: Path) -> None:
    """Opening a pipe that nobody reads from takes for ever, like a write to a file system that hangs."""
    path = tmp_path / "efm.journal"
    os.mkfifo(path)
    blocked = threading.Event()
    open_ = os.open

    def hang(*given: object) -> int:
        blocked.set()
        return open_(path, os.O_WRONLY)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "open", hang)
        journal = Journal(str(path), "c1")
        began = time.monotonic()
        journal.record("call")
        journal.record("decision")
        journal.settle(0.1)
        assert time.monotonic() - began < 5
        assert blocked.wait(10)
        assert journal.failure == f"not journalled: {path}: the disk has not taken it in time"
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    journal.settle(10)
    os.close(reader)


def test_where_no_thread_can_be_started_it_is_written_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "efm.journal"
    with none_left():
        journal = Journal(str(path), "c1")
        for what in ("call", "outcome"):
            journal.record(what)
        journal.settle(1)
    assert [record.what for record in history.read(str(path)).records] == ["call", "outcome"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_disk_that_was_full_for_a_while_costs_the_records_of_that_while(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        path = tmp_path / "efm.journal"
        journal = write(Journal(str(path), "before"))
        filling = tmp_path / "filling"
        with pytest.raises(OSError, match="No space"):
            filling.write_bytes(b"x" * 65536)
        full = Journal(str(path), "full")
        for _ in range(5):
            write(full, filling="x" * 1500)
        assert "No space left on device" in full.failure
        filling.unlink()
        write(Journal(str(path), "after"))
        assert journal.failure == ""
        reading = history.read(str(path))
        assert {reading.records[0].call, reading.records[-1].call} == {"before", "after"}
        assert len(reading.damages) == 1, "what the disk took of a record before it was full"
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
