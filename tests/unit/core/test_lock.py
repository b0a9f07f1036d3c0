"""One call at a time per cluster and host, and never a wait without end."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from efm_lb import lock
from efm_lb.lock import acquire
from efm_lb.rehearsal.waiting import wait_until


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


def test_efms_call_goes_before_those_for_whom_nobody_waits(tmp_path: Path) -> None:
    path = str(tmp_path / "efm.lock")
    held = acquire(path, 0)
    script = "import sys; from efm_lb.lock import acquire; acquire(sys.argv[1], 60)"
    with subprocess.Popen([sys.executable, "-c", script, path]) as call:
        try:
            assert wait_until(lambda: lock._is_waited_for(held), timeout=10)
            call.send_signal(signal.SIGSTOP)
            os.close(held)
            with pytest.raises(TimeoutError):
                acquire(path, 0.1, gives_way=True)
            os.close(acquire(path, 0))
        finally:
            call.kill()
    os.close(acquire(path, 0, gives_way=True))


def test_another_user_can_take_it(tmp_path: Path) -> None:
    path = tmp_path / "efm.lock"
    os.close(acquire(str(path), 0))
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444
    path.chmod(0o444)
    os.close(acquire(str(path), 0))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can lock another user out")
@pytest.mark.parametrize("locked_out", [False, True])
def test_efms_user_can_take_it_after_root_under_any_umask(tmp_path: Path, locked_out: bool) -> None:
    """Also when an earlier call of root's has left a file that nobody else can open."""
    for parent in tmp_path.parents[:3]:
        parent.chmod(0o755)
    os.chown(tmp_path, 12345, 12345)
    path = tmp_path / "efm.lock"
    if locked_out:
        path.touch(0o600)
    umask = os.umask(0o077)
    try:
        os.close(acquire(str(path), 0))
    finally:
        os.umask(umask)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12345)
    os.seteuid(12345)
    try:
        os.close(acquire(str(path), 0))
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("what", ["link", "content"])
def test_what_is_no_lock_file_is_opened_to_nobody(tmp_path: Path, what: str) -> None:
    """The directory is EFM's user's, and root runs this too: it may hold a link to a file of root's."""
    secret = tmp_path / "secret"
    secret.write_text("x" if what == "content" else "")
    secret.chmod(0o600)
    if what == "link":
        os.link(secret, tmp_path / "efm.lock")
    else:
        secret.rename(tmp_path / "efm.lock")
    os.close(acquire(str(tmp_path / "efm.lock"), 0))
    assert (tmp_path / "efm.lock").stat().st_mode & 0o777 == 0o600


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "efm.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        acquire(str(tmp_path / "efm.lock"), 0)


def test_a_file_that_is_there_is_opened_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever writes, and O_CREAT does, waits for a file system that is frozen."""
    path = str(tmp_path / "efm.lock")
    os.close(acquire(path, 0))
    seen: list[int] = []
    open_ = os.open

    def watched(path: str, flags: int, *given: int) -> int:
        seen.append(flags)
        return open_(path, flags, *given)

    monkeypatch.setattr(os, "open", watched)
    for name in ("fchmod", "fchown"):
        monkeypatch.delattr(os, name)
    os.close(acquire(path, 0))
    assert [flags & (os.O_CREAT | os.O_ACCMODE) for flags in seen] == [os.O_RDONLY]
