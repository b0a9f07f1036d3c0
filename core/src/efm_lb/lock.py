"""One call at a time for one cluster on one host."""

from __future__ import annotations

import fcntl
import os
import time

from efm_lb.state import hand_over

__all__ = ["POLL", "acquire", "take"]

POLL = 0.02
"""Seconds between two tries."""


def acquire(path: str, patience: float, *, gives_way: bool = False) -> int:
    """Take the lock, waiting for the call that holds it.

    The kernel gives it back when the process ends, however it ends. It orders the
    calls of this host only; calls from other hosts meet at the balancer, which is
    why every step is idempotent and judged by a truth asked after the lock is held.

    :param path: the lock file; readable for all whatever the umask is, so that root's does not lock out EFM's user
    :param patience: seconds to wait
    :param gives_way: do not take it while somebody who does not give way waits for it
    :return: a file descriptor that holds the lock until it is closed
    :raises TimeoutError: another call still holds it
    :raises OSError: the file cannot be made
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        # Before Linux 6.12 O_CREAT waits for a file system that is frozen, even when the file is there.
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        descriptor = os.open(path, flags | os.O_CREAT, 0o644)
    deadline = time.monotonic() + patience
    try:
        _open_to_all(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    try:
        while not _is_taken(descriptor, gives_way):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"another call holds {path} for more than {patience:g} s")
            time.sleep(POLL)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def take(path: str, patience: float, notes: list[str], *, gives_way: bool = False) -> int | None:
    """The same for a caller that goes on without it: every step is idempotent; better two at once than none.

    :param notes: takes why there is none
    :return: None when there is none
    """
    try:
        return acquire(path, patience, gives_way=gives_way)
    except TimeoutError as error:
        notes.append(str(error))
    except OSError as error:
        notes.append(f"no lock: {error.filename}: {error.strerror}")
    return None


def _is_taken(descriptor: int, gives_way: bool) -> bool:
    """Whether the lock is held now; who does not give way is seen to wait from now on when it is not."""
    if gives_way and _is_waited_for(descriptor):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not gives_way:
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, 1)
        return False
    if not gives_way:
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1)
    return True


def _is_waited_for(descriptor: int) -> bool:
    """Whether a process has the shared lock on the first byte, which has nothing to do with the lock itself."""
    import struct

    layout = "hhlli"  # struct flock: type, whence, start, length, pid
    asked = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
    kind: int = struct.unpack(layout, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))[0]
    return kind != fcntl.F_UNLCK


def _open_to_all(descriptor: int, path: str) -> None:
    status = os.fstat(descriptor)
    # Nothing else than a lock file: somebody else's directory may hold a link to anything.
    if status.st_uid != os.geteuid() or status.st_size or status.st_nlink != 1:
        return
    if status.st_mode & 0o444 != 0o444:
        os.fchmod(descriptor, 0o644)
    hand_over(descriptor, path)
