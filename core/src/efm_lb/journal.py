"""The record of calls and outcomes: one JSON object per line, appended in one write."""

from __future__ import annotations

import fcntl
import os
import time

# The C function behind json.dumps for texts: importing json costs forty times what encoding a record does.
from _json import encode_basestring_ascii as _quoted
from collections.abc import Mapping, Sequence

from efm_lb.state import hand_over

__all__ = ["Journal", "Value"]

Value = None | bool | int | str | Sequence["Value"] | Mapping[str, "Value"]
"""What a record may hold."""

LIMIT = 4 * 1024 * 1024
"""Bytes after which the file is set aside as ``<name>.1``, replacing the one before."""
HARD_LIMIT = 4 * LIMIT
"""Bytes after which a file that cannot be set aside takes no more records: it must not fill the disk."""


class Journal:
    """Appends records; a failure is remembered, never raised, for the balancers come first.

    A file that is longer than `LIMIT` and cannot be set aside takes records all the same, up to `HARD_LIMIT`, and
    each call says so.

    :param path: the file, made with mode 0600
    :param call: identifies the call in all of its records
    :ivar failure: what a person must know, in words; empty when nothing
    """

    def __init__(self, path: str, call: str) -> None:
        self._path = path
        self._call = call
        self.failure = ""

    def record(self, what: str, **fields: Value) -> None:
        """Append one record.

        :param what: ``call``, ``decision`` or ``outcome``
        :param fields: JSON values; never a secret
        """
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        line = _encoded({"at": stamp, "call": self._call, "record": what, **fields}) + "\n"
        try:
            self._append(line.encode())
        except OSError as error:
            self.failure = f"not journalled: {self._path}: {error.strerror}"

    def _append(self, line: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, 0o600)
        try:
            status = os.fstat(descriptor)
            if status.st_size > LIMIT:
                self._make_room(descriptor, status)
            elif not status.st_size:
                hand_over(descriptor, self._path)
            if os.write(descriptor, line) < len(line):
                raise OSError(28, "No space left on device")
        finally:
            os.close(descriptor)

    def _make_room(self, descriptor: int, status: os.stat_result) -> None:
        try:
            self._set_aside(descriptor, status.st_ino)
        except OSError as error:
            problem = f"it is too long and cannot be set aside as {self._path}.1 ({error.strerror})"
            if status.st_size > HARD_LIMIT:
                raise OSError(error.errno, problem) from None
            self.failure = self.failure or f"the journal {self._path}: {problem}"

    def _set_aside(self, descriptor: int, inode: int) -> None:
        """Make room for a new file; this record is the last of the old one, so that no writer is left without a file.

        Of several writers that found it too long the first renames it. The others must not: by then the name may
        stand for the new file, which would take the place of all history.
        """
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            renamed = os.lstat(self._path).st_ino != inode
        except (BlockingIOError, FileNotFoundError):
            renamed = True  # just now, or in a moment
        if not renamed:
            os.rename(self._path, self._path + ".1")


def _encoded(value: Value) -> str:
    """``value`` as JSON."""
    if isinstance(value, str):
        return _quoted(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_quoted(name)}: {_encoded(item)}" for name, item in value.items()) + "}"
    return "[" + ", ".join(_encoded(item) for item in value) + "]"
