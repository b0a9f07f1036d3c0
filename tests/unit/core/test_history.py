"""What the journal holds is read back whatever a crash has left of it, and put together to calls."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efm_lb.errors import NotReadableError
from efm_lb.history import PastCall, folded, past_calls, read
from efm_lb.journal import Journal, Value


def write(path: Path, call: str, what: str = "call", **fields: Value) -> bytes:
    """Record something; the line."""
    journal = Journal(str(path), call)
    journal.record(what, **fields)
    journal.settle(10)
    assert not journal.failure
    return path.read_bytes().splitlines(keepends=True)[-1]


def names(path: Path) -> list[str]:
    return [record.call for record in read(str(path)).records]


def calls(path: Path) -> tuple[PastCall, ...]:
    return past_calls(read(str(path)).records)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "efm.journal"


def test_what_was_recorded_is_read(path: Path) -> None:
    write(path, "c1", host='"at": {"at": "', detail="Grüße\n\x00\udc80")
    ((record,), damages) = read(str(path))
    assert not damages
    assert (record.call, record.what, record.pid) == ("c1", "call", os.getpid())
    assert record.fields["host"] == '"at": {"at": "'
    assert record.fields["detail"] == "Grüße\n\x00\udc80"
    assert record.at.tzinfo is not None


def test_a_journal_that_is_not_there_holds_nothing(path: Path) -> None:
    assert read(str(path)) == ((), ())


def test_cut_off_at_any_byte_it_loses_that_record_alone(path: Path) -> None:
    first, second = write(path, "c1"), write(path, "c2")
    for kept in range(len(second)):
        path.write_bytes(first + second[:kept])
        records, damages = read(str(path))
        is_whole = kept == len(second) - 1
        assert [record.call for record in records] == ["c1"] + ["c2"] * is_whole, kept
        assert len(damages) == (0 < kept < len(second) - 1), kept
        write(path, "c3")
        assert names(path) == ["c1"] + ["c2"] * is_whole + ["c3"], kept
    path.write_bytes(first + second[:10])
    (damage,) = read(str(path)).damages
    assert str(damage) == f"{path}:2: cut off: it is being written, or the host lost power"


def test_a_record_glued_to_a_torn_one_is_read(path: Path) -> None:
    """A writer looked at the end of the file before another one was killed there."""
    first, second = write(path, "c1"), write(path, "c2")
    path.write_bytes(first[:-5] + second)
    records, (damage,) = read(str(path))
    assert [record.call for record in records] == ["c2"]
    assert str(damage) == f"{path}:1: damaged"


def test_zeros_in_place_of_what_the_host_did_not_keep(path: Path) -> None:
    first = write(path, "c1")
    path.write_bytes(first + bytes(300))
    write(path, "c2")
    records, (damage,) = read(str(path))
    assert [record.call for record in records] == ["c1", "c2"]
    assert damage.line == 2


@given(st.data())
def test_a_changed_byte_is_never_taken_for_a_record(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("journal") / "efm.journal"
    line = write(path, "c1", host="db1", exit_code=0)
    at = data.draw(st.integers(0, len(line) - 2))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte not in (line[at], 10)))
    path.write_bytes(line[:at] + bytes([byte]) + line[at + 1 :] + line)
    records, damages = read(str(path))
    assert len(records) == len(damages) == 1


@pytest.mark.parametrize(
    "body", [b'{"at": "yesterday", "call": "c", "pid": 1, "record": "call"', b'{"at": "2026"', b'{"at": "']
)
def test_what_another_program_sealed_is_damage_too(path: Path, body: bytes) -> None:
    path.write_bytes(body + b', "crc": "%08x"}\n' % zlib.crc32(body))
    records, damages = read(str(path))
    assert not records
    assert len(damages) == 1


def test_the_file_that_was_set_aside_comes_first(path: Path) -> None:
    write(path, "c1")
    path.rename(f"{path}.1")
    write(path, "c2")
    assert names(path) == ["c1", "c2"]


def test_a_file_that_is_set_aside_meanwhile_is_neither_missed_nor_read_twice(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, "c1")
    open_ = os.open

    def rotate(name: str, *given: int) -> int:
        if name.endswith(".1"):
            monkeypatch.setattr(os, "open", open_)
            path.rename(name)
            write(path, "c2")
        return open_(name, *given)

    monkeypatch.setattr(os, "open", rotate)
    assert names(path) == ["c1", "c2"]


def test_what_is_no_file_is_not_read(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(NotReadableError, match="not a regular file"):
        read(str(path))


# Calls


def test_records_become_calls(path: Path) -> None:
    write(path, "c1", "call", kind="detach", host="db1", follow_up=False)
    write(path, "c1", "decision", verdict="act", reason="db1 is down")
    write(path, "c1", "outcome", exit_code=0, again_after=2.0, outcomes={"pool1": {"result": "deferred"}}, notes=["x"])
    write(path, "c2", "call", kind="attach", host="db2", follow_up=False)
    write(path, "c1", "call", kind="detach", host="db1", follow_up=True)
    write(path, "c1", "decision", verdict="act", reason="db1 is down")
    first, second = calls(path)
    assert (first.name, second.name) == ("c1", "c2")
    made, followed = first.attempts
    assert (made.exit_code, made.again_after, made.notes, dict(made.told)) == (
        0,
        2.0,
        ("x",),
        {"pool1": {"result": "deferred"}},
    )
    assert (made.is_follow_up, followed.is_follow_up) == (False, True)
    assert followed.decision
    assert followed.outcome is None
    assert second.attempts[0].decision is None
    assert first.said["host"] == "db1"


def test_what_several_processes_write_at_once_for_one_call_is_kept_apart(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a host that has the balancers, for a hook that drives them all at once."""
    for what in ("call", "outcome"):
        for pid, balancer in ((11, "pgb1"), (12, "pgb2")):
            monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
            write(path, "c1", what, **{"balancer": balancer} if what == "call" else {"outcomes": {balancer: {}}})
    (call,) = calls(path)
    assert [(attempt.pid, list(attempt.told)) for attempt in call.attempts] == [(11, ["pgb1"]), (12, ["pgb2"])]


def test_a_call_whose_beginning_is_gone_is_shown_with_what_is_left(path: Path) -> None:
    write(path, "c1", "decision", reason="db1 is down")
    write(path, "c1", "outcome", exit_code=0)
    (call,) = calls(path)
    (attempt,) = call.attempts
    assert attempt.call is None
    assert attempt.exit_code == 0
    assert call.said == {}


def test_follow_ups_that_came_to_the_same_are_one_with_a_count(path: Path) -> None:
    def attempt(result: str, seconds: float, follow_up: bool = True) -> None:
        write(path, "c1", "call", follow_up=follow_up)
        write(path, "c1", "outcome", exit_code=75, outcomes={"pool1": {"result": result, "seconds": seconds}})

    attempt("failed temporarily", 0.1, follow_up=False)
    for seconds in (0.1, 0.2, 0.3):
        attempt("failed temporarily", seconds)
    attempt("changed", 0.1)
    attempt("failed temporarily", 0.1)
    (call,) = calls(path)
    assert [len(group) for group in folded(call.attempts)] == [1, 3, 1, 1]
