"""The journal: one JSON object per line, and never a reason not to drive the balancers."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efm_lb.journal import HARD_LIMIT, LIMIT, Journal, _encoded

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values)
def test_a_record_is_json(value: object) -> None:
    encoded = _encoded(value)  # type: ignore[arg-type]
    assert json.loads(encoded) == value
    assert "\n" not in encoded


def test_records_are_appended_with_time_and_call(tmp_path: Path) -> None:
    path = tmp_path / "efm.journal"
    journal = Journal(str(path), "c1")
    journal.record("call", host="db1", type=None)
    journal.record("outcome", exit_code=0, outcomes={"pool1": ["changed", "db1 out"]})
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first["call"] == second["call"] == "c1"
    assert first["at"].endswith("Z")
    assert first["type"] is None
    assert second["outcomes"] == {"pool1": ["changed", "db1 out"]}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert journal.failure == ""


def test_a_directory_that_is_missing_is_remembered_not_raised(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "gone" / "efm.journal"), "c1")
    journal.record("call")
    assert "No such file or directory" in journal.failure


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_remembered_not_raised() -> None:
    journal = Journal("/dev/full", "c1")
    journal.record("call")
    assert "No space left on device" in journal.failure


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.touch()
    (tmp_path / "efm.journal").symlink_to(target)
    journal = Journal(str(tmp_path / "efm.journal"), "c1")
    journal.record("call")
    assert journal.failure
    assert target.read_text() == ""


def test_it_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "efm.journal"
    path.write_bytes(b"x" * (LIMIT + 1))
    Journal(str(path), "c1").record("call")
    assert not path.exists()
    assert (tmp_path / "efm.journal.1").read_bytes().startswith(b"x" * (LIMIT + 1) + b'{"at"')
    Journal(str(path), "c2").record("call")
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
        journal.record(what)
    assert [json.loads(line)["record"] for line in path.read_text().splitlines()[1:]] == ["call", "outcome"]
    assert journal.failure == (
        f"the journal {path}: it is too long and cannot be set aside as {path}.1 (Is a directory)"
    )


def test_what_cannot_be_set_aside_does_not_fill_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "efm.journal"
    in_the_way(path)
    path.touch()
    os.truncate(path, HARD_LIMIT + 1)
    journal = Journal(str(path), "c1")
    journal.record("call")
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
            Journal(str(path), call).record("call")
        return status

    monkeypatch.setattr(os, "fstat", late)
    second = Journal(str(path), "c2")
    second.record("call")
    assert second.failure == ""
    history, *records = (tmp_path / "efm.journal.1").read_text().splitlines()
    assert history == "x" * (LIMIT + 1)
    assert [json.loads(record)["call"] for record in records] == ["c1", "c2"]
    new = path.read_text().splitlines() if path.exists() else []
    assert [json.loads(record)["call"] for record in new] == between[1:]


def test_a_writer_that_is_setting_it_aside_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "efm.journal"
    path.write_bytes(b"x" * (LIMIT + 1))
    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        Journal(str(path), "c1").record("call")
    assert path.read_text().endswith('"record": "call"}\n')
    assert not (tmp_path / "efm.journal.1").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what another user may not write")
def test_root_does_not_lock_out_the_owner_of_the_directory(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    path = tmp_path / "efm.journal"
    Journal(str(path), "c1").record("call")
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12345)
