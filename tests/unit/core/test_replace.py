"""A configuration file is replaced as a whole or not at all, and stays the same file to everybody else."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from efm_lb import PermanentError, TemporaryError, read_file, replace, replace_file
from efm_lb.rehearsal.waiting import wait_until

OLD, NEW = b"old\n", b"new\n"
NOBODY = 65534


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "etc" / "balancer.cfg"
    path.parent.mkdir()
    path.write_bytes(OLD)
    return path


def intact(file: Path, content: bytes = OLD) -> bool:
    return file.read_bytes() == content and os.listdir(file.parent) == [file.name]


def is_open(descriptor: int) -> bool:
    return os.path.lexists(f"/proc/self/fd/{descriptor}")


def as_nobody(function: Callable[[], None]) -> str:
    """What ``function`` raises as an ordinary user, as ``Type: text``, empty when nothing."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        told = ""
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            function()
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        finally:
            os.write(writer, told.encode())
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as stream:
        return stream.read()


root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def test_the_content_is_replaced(file: Path) -> None:
    replace_file(str(file), OLD, NEW)
    assert intact(file, NEW)
    assert read_file(str(file)) == NEW


def test_whoever_has_the_old_file_open_keeps_it_whole(file: Path) -> None:
    with file.open("rb") as reader:
        replace_file(str(file), OLD, NEW)
        assert reader.read() == OLD


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o444 | 0o200, 0o2755])
def test_the_mode_stays(file: Path, mode: int) -> None:
    file.chmod(mode)
    replace_file(str(file), OLD, NEW)
    assert file.stat().st_mode & 0o7777 == mode


@root_only
def test_owner_and_group_stay(file: Path) -> None:
    os.chown(file, 12345, 23456)
    file.chmod(0o640)
    replace_file(str(file), OLD, NEW)
    assert (file.stat().st_uid, file.stat().st_gid, file.stat().st_mode & 0o777) == (12345, 23456, 0o640)


def test_extended_attributes_stay(file: Path) -> None:
    try:
        os.setxattr(file, "user.note", b"mine")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    replace_file(str(file), OLD, NEW)
    assert os.getxattr(file, "user.note") == b"mine"


@pytest.mark.skipif(not shutil.which("setfacl"), reason="needs setfacl")
def test_access_lists_stay_and_the_directorys_default_does_not_slip_in(file: Path) -> None:
    done = subprocess.run(["setfacl", "-m", "u:12345:r", file], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(done.stderr)
    before = os.getxattr(file, "system.posix_acl_access")
    subprocess.run(["setfacl", "-d", "-m", "u:54321:rw", file.parent], check=True)
    replace_file(str(file), OLD, NEW)
    assert os.getxattr(file, "system.posix_acl_access") == before
    os.removexattr(file, "system.posix_acl_access")
    replace_file(str(file), NEW, OLD)
    assert "system.posix_acl_access" not in os.listxattr(file)


def test_a_symbolic_link_stays_one(file: Path, tmp_path: Path) -> None:
    link, second = tmp_path / "link.cfg", tmp_path / "second.cfg"
    link.symlink_to(os.path.relpath(file, tmp_path))
    second.symlink_to(link)
    replace_file(str(second), OLD, NEW)
    assert second.is_symlink()
    assert link.is_symlink()
    assert intact(file, NEW)


def test_a_file_that_changed_meanwhile_is_refused(file: Path) -> None:
    file.write_bytes(b"theirs\n")
    with pytest.raises(TemporaryError, match="was changed by somebody else"):
        replace_file(str(file), OLD, NEW)
    assert intact(file, b"theirs\n")


def test_a_file_that_changes_while_the_new_one_is_written_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        fsync(descriptor)
        file.write_bytes(b"theirs\n")

    monkeypatch.setattr(replace.os, "fsync", slow)
    with pytest.raises(TemporaryError, match="was changed by somebody else"):
        replace_file(str(file), OLD, NEW)
    assert intact(file, b"theirs\n")


def test_another_file_in_its_place_is_refused_although_it_says_the_same(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def swap(descriptor: int) -> None:
        fsync(descriptor)
        other = file.with_name("other")
        other.write_bytes(OLD)
        other.rename(file)

    monkeypatch.setattr(replace.os, "fsync", swap)
    with pytest.raises(TemporaryError, match="was changed by somebody else"):
        replace_file(str(file), OLD, NEW)
    assert intact(file)


def test_a_directory_that_hangs_keeps_nobody_waiting(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new file is whole and in its place by then, and whoever replaced it has a balancer to tell."""
    fsync, goes_on = os.fsync, threading.Event()
    flushed: list[int] = []

    def hang(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            goes_on.wait(20)
            flushed.append(descriptor)
        fsync(descriptor)

    monkeypatch.setattr(replace.os, "fsync", hang)
    replace_file(str(file), OLD, NEW)
    assert flushed == []
    assert intact(file, NEW)
    goes_on.set()
    assert wait_until(lambda: bool(flushed) and not is_open(flushed[0]), timeout=20)


@pytest.mark.parametrize("call", ["write", "fsync", "rename", "fchmod"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EBUSY])
def test_whatever_fails_the_old_file_is_whole_and_nothing_is_left(
    file: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(replace.os, call, fail)
        with pytest.raises(TemporaryError, match=f"cannot replace .*balancer.cfg: {re.escape(os.strerror(number))}"):
            replace_file(str(file), OLD, NEW)
    assert intact(file)


def test_what_killed_processes_left_does_not_pile_up(file: Path) -> None:
    at_work = file.with_name(f".{file.name}.1-1.efm-lb")
    left = [file.with_name(f".{file.name}.{name}.efm-lb") for name in ("2-1", "3-1.check")]
    somebody_elses = file.with_name(f".{file.name}.swp")
    for path in (at_work, *left, somebody_elses):
        path.write_bytes(b"half")
    for path in (*left, somebody_elses):
        os.utime(path, (time.time() - 120, time.time() - 120))
    replace_file(str(file), OLD, NEW)
    assert sorted(file.parent.iterdir()) == sorted([file, at_work, somebody_elses])


def test_a_left_over_of_a_killed_process_is_no_hindrance(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    put = replace.put

    def remember(partial: str, path: str, content: bytes, finish: Callable[[int], None]) -> None:
        names.append(partial)
        Path(partial).write_bytes(b"half")
        put(partial, path, content, finish)

    monkeypatch.setattr(replace, "put", remember)
    replace_file(str(file), OLD, NEW)
    assert intact(file, NEW)
    assert all(Path(name).name.startswith(".") and not name.endswith(".cfg") for name in names)


@pytest.mark.parametrize("function", [lambda p: read_file(p), lambda p: replace_file(p, OLD, NEW)])
def test_what_is_no_file(tmp_path: Path, function: Callable[[str], object]) -> None:
    with pytest.raises(TemporaryError, match=r"absent.cfg: No such file"):
        function(str(tmp_path / "absent.cfg"))
    (tmp_path / "loop.cfg").symlink_to(tmp_path / "loop.cfg")
    with pytest.raises(TemporaryError, match=r"loop.cfg: Too many levels"):
        function(str(tmp_path / "loop.cfg"))
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(PermanentError, match=f"{path} is no regular file"):
            function(str(path))
    huge = tmp_path / "huge.cfg"
    huge.touch()
    os.truncate(huge, 1 << 40)
    with pytest.raises(PermanentError, match="is larger than"):
        function(str(huge))


@pytest.fixture
def public() -> Iterator[Path]:
    """A file in a directory that an ordinary user can get to, which pytest's own are not."""
    directory = Path(tempfile.mkdtemp(prefix="efm-lb-test-", dir="/tmp"))
    directory.chmod(0o755)
    path = directory / "balancer.cfg"
    path.write_bytes(OLD)
    yield path
    shutil.rmtree(directory)


@root_only
def test_a_directory_that_may_not_be_written_to(public: Path) -> None:
    os.chown(public, NOBODY, NOBODY)
    told = as_nobody(lambda: replace_file(str(public), OLD, NEW))
    assert told.startswith("TemporaryError: cannot replace"), told
    assert f"Permission denied; uid {NOBODY} must be able to write it and its directory" in told
    assert intact(public)


@root_only
def test_a_file_that_may_not_be_written_to(public: Path) -> None:
    public.parent.chmod(0o777)
    told = as_nobody(lambda: replace_file(str(public), OLD, NEW))
    assert told.startswith("TemporaryError: cannot replace"), told
    assert intact(public)


@root_only
def test_an_owner_that_cannot_be_kept(public: Path) -> None:
    public.parent.chmod(0o777)
    public.chmod(0o666)
    told = as_nobody(lambda: replace_file(str(public), OLD, NEW))
    assert told.startswith("PermanentError: "), told
    assert "belongs to uid 0, gid 0" in told
    assert intact(public)
    os.chown(public, NOBODY, NOBODY)
    assert as_nobody(lambda: replace_file(str(public), OLD, NEW)) == ""
    assert intact(public, NEW)


MOUNTED = """
import sys
from efm_lb import TemporaryError, replace_file
try:
    replace_file(sys.argv[1], open(sys.argv[1], "rb").read(), b"x" * int(sys.argv[2]))
except TemporaryError as error:
    print(error)
"""


def in_a_mount_namespace(script: str, *arguments: object) -> str:
    done = subprocess.run(
        ["unshare", "-m", "sh", "-ec", script, "sh", sys.executable, MOUNTED, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr}")
    return done.stdout


@root_only
def test_a_full_disk(tmp_path: Path) -> None:
    told = in_a_mount_namespace(
        'mount -t tmpfs -o size=64k none "$3"; printf "old\\n" > "$3/a.cfg"; "$1" -c "$2" "$3/a.cfg" 1000000;'
        ' cat "$3/a.cfg"; ls -A "$3"',
        tmp_path,
    )
    assert told.splitlines() == [f"cannot replace {tmp_path}/a.cfg: No space left on device", "old", "a.cfg"]


@root_only
def test_a_file_that_is_mounted_by_itself(file: Path) -> None:
    told = in_a_mount_namespace('mount --bind "$3" "$3"; "$1" -c "$2" "$3" 10', file)
    assert "Device or resource busy; a file that is mounted by itself cannot be renamed" in told
    assert intact(file)


@root_only
def test_a_read_only_file_system(file: Path) -> None:
    told = in_a_mount_namespace(
        'mount --bind "$4" "$4"; mount -o remount,ro,bind "$4"; "$1" -c "$2" "$3" 10', file, file.parent
    )
    assert "Read-only file system; uid 0 must be able to write it" in told
    assert intact(file)
