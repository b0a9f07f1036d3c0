"""One call at a time per cluster and host, and never a wait without end."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from efm_lb.lock import acquire


def test_the_second_call_waits_for_the_first(tmp_path: Path) -> None:
    path = str(tmp_path / "efm.lock")
    script = "import sys, time; from efm_lb.lock import acquire; acquire(sys.argv[1], 1); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout
        first.stdout.readline()
        started = time.monotonic()
        with pytest.raises(TimeoutError, match="another call holds"):
            acquire(path, 0.2)
        assert 0.2 <= time.monotonic() - started < 2
        first.kill()
        first.wait()
        os.close(acquire(path, 5))


def test_another_user_can_take_it(tmp_path: Path) -> None:
    path = tmp_path / "efm.lock"
    os.close(acquire(str(path), 0))
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444
    path.chmod(0o444)
    os.close(acquire(str(path), 0))


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "efm.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        acquire(str(tmp_path / "efm.lock"), 0)
