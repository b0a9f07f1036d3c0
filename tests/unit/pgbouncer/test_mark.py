"""The mark of a pause: the kernel tells whether the process that made it lives."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from efm_lb_pgbouncer.mark import is_abandoned, make, remove

HOLDER = """
import sys, time
from efm_lb_pgbouncer.mark import make
assert make(sys.argv[1]) is not None
print("made", flush=True)
time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / ".databases.ini.held")


def test_a_mark_lives_as_long_as_its_process(path: str) -> None:
    assert not is_abandoned(path)
    argv = [sys.executable, "-c", HOLDER, path]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "made\n"
            assert not is_abandoned(path)
            remove(path)
            assert os.path.exists(path), "somebody holds it"
        finally:
            process.send_signal(signal.SIGKILL)
    assert is_abandoned(path)
    assert is_abandoned(path), "looking changes nothing"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o644, "others may look as well"
    remove(path)
    assert not is_abandoned(path)
    remove(path)


def test_two_processes_share_one(path: str) -> None:
    first, second = make(path), make(path)
    assert first is not None
    assert second is not None
    os.close(first)
    assert not is_abandoned(path)
    os.close(second)
    assert is_abandoned(path)


def test_where_none_can_be_made(tmp_path: Path) -> None:
    assert make(str(tmp_path / "absent" / "mark")) is None
    assert not is_abandoned(str(tmp_path / "absent" / "mark"))
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert make(str(tmp_path / "link")) is None, "it is nobody else's file"
    assert not is_abandoned(str(tmp_path / "link"))
    assert not (tmp_path / "elsewhere").exists()
