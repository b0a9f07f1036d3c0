"""A file system in a mount namespace of its own, which goes with the processes that are in it."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import pytest

__all__ = ["Disk", "NoMounts", "real_disk", "small_disk"]

_CLONE_FS = 0x00000200
_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_PAGE = 4096
_FILLER = ".filler"
_libc = ctypes.CDLL(None, use_errno=True)


class NoMounts(Exception):
    """This account or this machine may not mount anything; the message says why."""


class Disk:
    """A file system over a directory. Only what is started `inside` sees it.

    :param directory: it is there already, and empty
    :param mount: a command that mounts it
    :raises NoMounts: it cannot be made
    """

    def __init__(self, directory: Path, mount: Sequence[str]) -> None:
        if os.geteuid() != 0:
            raise NoMounts("only root can mount a small file system: run the tests as root")
        self.directory = directory
        with _elsewhere():
            _check(_libc.unshare(_CLONE_NEWNS), "unshare")
            # What is mounted from here on must not appear outside.
            _check(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "mount --make-rprivate /")
            _run(*mount, str(directory))
            self._namespace = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> Disk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._namespace)  # the kernel unmounts it when nobody is in there any more

    @contextmanager
    def inside(self) -> Iterator[None]:
        """This thread sees it, and so does what it starts."""
        with _elsewhere():
            _enter(self._namespace)
            yield

    def fill(self, left: int = 0) -> None:
        """Leave ``left`` bytes, in whole pages."""
        with self.inside():
            self._fill(left)

    def _fill(self, left: int) -> None:
        with (self.directory / _FILLER).open("ab", buffering=0) as filler:
            with suppress(OSError):
                while filler.write(bytes(_PAGE)):
                    pass
            size = max(0, os.fstat(filler.fileno()).st_size // _PAGE * _PAGE - left)
            os.ftruncate(filler.fileno(), size)

    def clear(self) -> None:
        """There is space again."""
        with self.inside():
            (self.directory / _FILLER).unlink(missing_ok=True)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Whoever writes to it in the block waits for its end, and cannot even be killed."""
        with self.inside():
            _run("fsfreeze", "-f", str(self.directory))
        try:
            yield
        finally:
            with self.inside():
                _run("fsfreeze", "-u", str(self.directory))


@contextmanager
def small_disk(directory: Path, kib: int) -> Iterator[Disk]:
    """A tmpfs, or a test that is skipped because it cannot be made; in CI it fails."""
    with _made(directory, ["mount", "-t", "tmpfs", "-o", f"size={kib}k,mode=755", "none"]) as disk:
        yield disk


@contextmanager
def real_disk(directory: Path, image: Path) -> Iterator[Disk]:
    """An ext4, which can be `Disk.frozen`, or a test that is skipped.

    :param image: the file that it is in; it is made
    """
    with image.open("wb") as file:
        file.truncate(16 << 20)
    with _made(directory, ["sh", "-ec", 'mkfs.ext4 -q "$0"; mount -o loop "$0" "$1"', str(image)]) as disk:
        yield disk


@contextmanager
def _made(directory: Path, mount: Sequence[str]) -> Iterator[Disk]:
    try:
        disk = Disk(directory, mount)
    except NoMounts as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no disk: {error}")
    with disk:
        yield disk


def _run(*argv: str) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError as error:
        raise NoMounts(f"{argv[0]}: {error.strerror}") from None
    if done.returncode:
        raise NoMounts(f"{' '.join(argv)}: {done.stderr.strip()}")


@contextmanager
def _elsewhere() -> Iterator[None]:
    """Back where this thread was, in the end."""
    directory = os.getcwd()
    home = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        _enter(home)
        os.close(home)
        os.chdir(directory)


def _enter(namespace: int) -> None:
    # Its own root and working directory: they change with the namespace, and other threads must keep theirs.
    _check(_libc.unshare(_CLONE_FS), "unshare")
    _check(_libc.setns(namespace, _CLONE_NEWNS), "setns")


def _check(result: int, what: str) -> None:
    if result:
        raise NoMounts(f"{what}: {os.strerror(ctypes.get_errno())}")
