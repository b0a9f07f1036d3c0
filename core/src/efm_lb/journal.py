"""The record of calls and outcomes: one JSON object per line, each with a checksum, appended in one write.

`efm_lb.history` reads it.
"""

from __future__ import annotations

import fcntl
import os
import time
import zlib

# The C function behind json.dumps for texts: importing json costs forty times what encoding a record does.
from _json import encode_basestring_ascii as _quoted
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from efm_lb.background import Background
from efm_lb.state import hand_over

if TYPE_CHECKING:
    from efm_lb.decide import Decision
    from efm_lb.outcomes import Outcome
    from efm_lb.truth import Truth

__all__ = ["AT_LAST", "BEFORE_ACTING", "Journal", "Value", "decided", "outcomes_of", "said"]

Value = None | bool | int | float | str | Sequence["Value"] | Mapping[str, "Value"]
"""What a record may hold."""

LIMIT = 4 * 1024 * 1024
"""Bytes after which the file is set aside as ``<name>.1``, replacing the one before."""
HARD_LIMIT = 4 * LIMIT
"""Bytes after which a file that cannot be set aside takes no more records: it must not fill the disk."""
LONGEST = 2000
"""Characters of a text that are kept: nobody knows what an adapter has to say."""
BEFORE_ACTING = 0.1
"""Seconds that the balancers may be kept waiting for the disk, once the databases have answered."""
AT_LAST = 1.0
"""Seconds that the end of a run may be kept waiting for it."""


class Journal:
    """Appends records; a failure is remembered, never raised, for the balancers come first.

    Each record is written by a thread of its own, after the one before it. A disk that hangs, perhaps the very one that
    the failover is about, holds up that thread and nobody else; `settle` waits for it, and not for long.

    The page cache keeps what a killed process has written; fdatasync is for a host that loses power. It takes
    0.3 to 1 ms on an idle SSD with ext4 or XFS, often 5 ms on a busy one, and as long as it likes while a checkpoint is
    written. The call's is hidden behind the question to the databases, which takes longer. A decision waits for none:
    it would be the balancers that wait. The outcome's comes when they are done.

    A file that is longer than `LIMIT` and cannot be set aside takes records all the same, up to `HARD_LIMIT`, and
    each call says so.

    :param path: the file, made with mode 0600
    :param call: identifies the call in all of its records
    """

    def __init__(self, path: str, call: str) -> None:
        self._path = path
        self._call = call
        self._last: Background | None = None
        self._failure = ""

    @property
    def is_behind(self) -> bool:
        """The disk has not taken all of it yet."""
        return bool(self._last and self._last.is_running)

    @property
    def failure(self) -> str:
        """What a person must know, in words; empty when nothing."""
        if self.is_behind:
            return self._failure or f"not journalled: {self._path}: the disk has not taken it in time"
        return self._failure

    def record(self, what: str, **fields: Value) -> None:
        """Append one record, soon.

        :param what: ``call``, ``decision`` or ``outcome``; ``again`` for what is done once more, as in that call
        :param fields: JSON values; never a secret
        """
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        body = _encoded({"at": stamp, "call": self._call, "pid": os.getpid(), "record": what, **fields})[:-1].encode()
        line = body + b', "crc": "%08x"}\n' % zlib.crc32(body)
        given = (line, what != "decision", self._last)
        try:
            self._last = Background(self._write, *given)
        except RuntimeError:  # no more threads for this user
            self._write(*given)

    def settle(self, patience: float) -> None:
        """Wait until all records are where they belong, for ``patience`` seconds at most."""
        if self._last:
            self._last.wait(time.monotonic() + patience)

    def _write(self, line: bytes, durable: bool, before: Background | None) -> None:
        if before:
            before.wait()
        try:
            self._append(line, durable)
        except OSError as error:
            self._failure = f"not journalled: {self._path}: {error.strerror}"

    def _append(self, line: bytes, durable: bool) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, 0o600)
        try:
            status = os.fstat(descriptor)
            is_new = not status.st_size
            if status.st_size > LIMIT:
                self._make_room(descriptor, status)
            elif is_new:
                hand_over(descriptor, self._path)
            if not is_new and os.pread(descriptor, 1, status.st_size - 1) != b"\n":
                # The host lost power in the middle of a record, or the disk was full: this one must not become a part
                # of that. Another writer's may still be under way, and then an empty line comes of it, which is none.
                line = b"\n" + line
            if os.write(descriptor, line) < len(line):
                raise OSError(28, "No space left on device")
            if durable:
                os.fdatasync(descriptor)
                if is_new:
                    self._keep_name()
        finally:
            os.close(descriptor)

    def _keep_name(self) -> None:
        """A file is no more durable than its name."""
        directory = os.open(os.path.dirname(self._path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _make_room(self, descriptor: int, status: os.stat_result) -> None:
        try:
            self._set_aside(descriptor, status.st_ino)
        except OSError as error:
            problem = f"it is too long and cannot be set aside as {self._path}.1 ({error.strerror})"
            if status.st_size > HARD_LIMIT:
                raise OSError(error.errno, problem) from None
            self._failure = self._failure or f"the journal {self._path}: {problem}"

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


def said(truth: Truth) -> Value:
    """What each database said, by the node's name."""
    return {
        state.node.name: {
            "reach": state.reach.value,
            "role": state.role and state.role.value,
            "timeline": state.timeline,
            "detail": state.detail,
            "seconds": state.seconds,
        }
        for state in truth.states
    }


def decided(decision: Decision, truth: Truth | None) -> dict[str, Value]:
    """The fields of a ``decision``.

    :param truth: None when the databases were not asked
    """
    event = decision.event or decision.hold
    return {
        "verdict": decision.verdict.value,
        "rule": decision.rule,
        "reason": decision.reason,
        "shortfall": decision.shortfall,
        "told": str(event) if event else None,
        "held": decision.hold is not None,
        "again_after": decision.again_after,
        "newest": truth and truth.newest,
        "truth": truth and said(truth),
    }


def outcomes_of(outcomes: Sequence[Outcome]) -> Value:
    """What came of it, by the balancer's name."""
    return {
        each.balancer: {
            "result": each.result.value,
            "detail": each.detail,
            "seconds": each.seconds,
            "again_after": each.again_after,
            **({"by": each.by} if each.failed else {}),
        }
        for each in outcomes
    }


def _encoded(value: Value) -> str:
    """``value`` as JSON."""
    if isinstance(value, str):
        return _quoted(value if len(value) <= LONGEST else value[:LONGEST] + "...")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(round(value, 3)) if value - value == 0 else "null"  # JSON knows no infinity
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_quoted(name)}: {_encoded(item)}" for name, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_encoded(item) for item in value) + "]"
    return _quoted(repr(value)[:LONGEST])  # an adapter's, against its contract
