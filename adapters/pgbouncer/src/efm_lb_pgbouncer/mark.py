"""A file beside CONFIG that tells a pause of ours from an operator's, also when the process that lets go was killed.

The process of `efm_lb_pgbouncer.guard` makes it before anything is paused, holds a lock on it, and removes it when
nothing is paused any more. The kernel ends the lock with the process: a mark without one is that of a pause which
nobody ends.
"""

from __future__ import annotations

import fcntl
import os

__all__ = ["is_abandoned", "make", "remove"]


def make(path: str) -> int | None:
    """Make the mark, and lock it for as long as this process lives.

    :return: the descriptor; None where no file can be made, which costs what the mark would have told
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # somebody looks at it just now
        os.close(descriptor)
        return None
    return descriptor


def is_abandoned(path: str) -> bool:
    """Whether the mark is there and no process holds it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def remove(path: str) -> None:
    """Remove the mark, unless a process holds it."""
    if is_abandoned(path):
        try:
            os.unlink(path)
        except OSError:
            return
