"""Nodes and balancers that an operator has taken into his own hands."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efm_lb import Balancer, Node, lock
from efm_lb.commands import maintenance as commands
from efm_lb.commands.maintenance import clear, seconds_of, set_
from efm_lb.configuration import Configuration, DetachLivePrimary
from efm_lb.errors import CallError, NotNowError, NotReadableError
from efm_lb.maintenance import Maintenance, in_force, write

DB2 = Maintenance("db2", 2000.0, 1000.0, "anna", "new disk")
POOL = Maintenance("pool1", 3000.0, 1000.0)


def test_what_is_written_is_in_force_until_its_time_is_over(tmp_path: Path) -> None:
    write(str(tmp_path), "efm", [POOL, DB2])
    assert in_force(str(tmp_path), "efm", 1500.0) == (DB2, POOL)
    assert in_force(str(tmp_path), "efm", 2500.0) == (POOL,)
    assert in_force(str(tmp_path), "efm", 3500.0) == ()
    assert in_force(str(tmp_path), "other", 1500.0) == ()


def test_a_clock_that_was_wrong_keeps_nothing_in_maintenance_for_long(tmp_path: Path) -> None:
    """It was set for 1000 seconds, and the clock was ahead."""
    write(str(tmp_path), "efm", [DB2])
    assert in_force(str(tmp_path), "efm", 500.0) == (DB2,)
    assert in_force(str(tmp_path), "efm", -500.0) == ()


@given(st.text(), st.text())
def test_no_text_of_a_person_is_taken_for_another_entry(by: str, reason: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        write(directory, "efm", [DB2._replace(by=by, reason=reason), POOL])
        assert [each.name for each in in_force(directory, "efm", 1500.0)] == ["db2", "pool1"]


@pytest.mark.parametrize(
    "content", [b"", b"db2\n", b"db2\tx\ty\tz\tw\n", b"\xff\xfe\n", b"db2\tnan\t0\t\t\n", b"db2\tinf\t0\t\t\n"]
)
def test_a_line_that_makes_no_sense_means_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "efm.maintenance").write_bytes(content)
    assert in_force(str(tmp_path), "efm", 1500.0) == ()


def test_a_directory_in_its_place_means_nothing(tmp_path: Path) -> None:
    (tmp_path / "efm.maintenance").mkdir()
    assert in_force(str(tmp_path), "efm", 1500.0) == ()


@pytest.mark.parametrize(
    ("span", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1d", 86400), ("30d", 2592000)]
)
def test_spans(span: str, seconds: int) -> None:
    assert seconds_of(span) == seconds


@pytest.mark.parametrize("span", ["", "2", "h", "2w", "-2h", "0h", "31d", "2.5h", "2 h", "²h", "9" * 30 + "d"])
def test_spans_that_make_no_sense(span: str) -> None:
    with pytest.raises(CallError, match=r"--for .*: expected a number and s, m, h or d"):
        seconds_of(span)


@pytest.mark.parametrize("moment", ["inf", "-inf", "nan", "1e300", "253402300800", "-1"])
def test_a_time_that_no_clock_can_show_means_nothing(tmp_path: Path, moment: str) -> None:
    (tmp_path / "efm.maintenance").write_text(f"db1\t{moment}\t0\t\t\ndb2\t9000\t{moment}\t\t\n")
    assert in_force(str(tmp_path), "efm", 1500.0) == ()


def configured(state_dir: Path) -> Configuration:
    return Configuration(
        "efm",
        tuple(Node(f"db{n}", f"10.0.0.{n}", 5444) for n in range(1, 9)),
        {},
        1.0,
        0.5,
        str(state_dir),
        DetachLivePrimary.DEFER,
        (Balancer("pool1", "fake", {}),),
        (),
    )


def test_what_several_set_and_clear_at_the_same_moment_is_all_done(tmp_path: Path) -> None:
    """Each process reads what is set and writes it anew, with its own."""
    configuration = configured(tmp_path)
    set_(configuration, "pool1", "1h", "")
    ready = multiprocessing.get_context("fork").Barrier(9)
    works = [lambda n=n: set_(configuration, f"db{n}", "1h", "") for n in range(1, 9)]
    processes = [in_child(ready, work) for work in [*works, lambda: clear(configuration, "pool1")]]
    assert [os.waitpid(pid, 0)[1] for pid in processes] == [0] * 9
    assert [each.name for each in in_force(str(tmp_path), "efm")] == [f"db{n}" for n in range(1, 9)]


def in_child(ready: Barrier, work: Callable[[], object]) -> int:
    """Do it in a process of its own, at the moment when all others do."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        ready.wait(30)
        work()
        code = 0
    finally:
        os._exit(code)


def test_who_does_not_end_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_PATIENCE", 0.1)
    held = lock.acquire(f"{tmp_path}/efm.maintenance.lock", 1)
    try:
        with pytest.raises(
            NotNowError, match=r"another efm-lb maintenance holds .*efm\.maintenance\.lock for more than"
        ):
            set_(configured(tmp_path), "db2", "1h", "")
    finally:
        os.close(held)
    assert in_force(str(tmp_path), "efm") == ()


def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        NotReadableError, match="none cannot be written: No such file or directory: do it as EFM's user"
    ):
        set_(configured(tmp_path / "none"), "db2", "1h", "")


@pytest.mark.parametrize("name", ["db2", "DB2", "10.0.0.2", "pool1", "POOL1"])
def test_it_is_cleared_by_any_name_by_which_it_can_be_set(tmp_path: Path, name: str) -> None:
    configuration = configured(tmp_path)
    set_(configuration, name, "1h", "")
    assert len(in_force(str(tmp_path), "efm")) == 1
    clear(configuration, name)
    assert in_force(str(tmp_path), "efm") == ()
