"""A small file system in a mount namespace of its own, which goes with the processes that are in it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import pytest

__all__ = ["NoMounts", "SmallDisk", "small_disk"]

_CLONE_FS = 0x00000200
_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_PAGE = 4096
_FILLER = ".filler"
_libc = ctypes.CDLL(None, use_errno=True)


class NoMounts(Exception):
    """This account or this machine may not mount anything; the message says why."""


class SmallDisk:
    """A tmpfs over a directory. Only what is started `inside` sees it.

    :param directory: it is there already, and empty
    :param kib: its size
    :raises NoMounts: it cannot be made
    """

    def __init__(self, directory: Path, kib: int) -> None:
        if os.geteuid() != 0:
            raise NoMounts("only root can mount a small file system: run the tests as root")
        self.directory = directory
        with _elsewhere():
            _check(_libc.unshare(_CLONE_NEWNS), "unshare")
            # What is mounted from here on must not appear outside.
            _check(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "mount --make-rprivate /")
            options = f"size={kib}k,mode=755".encode()
            _check(_libc.mount(b"none", os.fsencode(directory), b"tmpfs", 0, options), f"mount {directory}")
            self._namespace = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> SmallDisk:
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
def small_disk(directory: Path, kib: int) -> Iterator[SmallDisk]:
    """One, or a test that is skipped because it cannot be made; in CI it fails."""
    try:
        disk = SmallDisk(directory, kib)
    except NoMounts as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no small disk: {error}")
    with disk:
        yield disk


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
