"""What calls of one cluster on one host must know of each other: small files in the state directory, written whole.

Nothing here is needed to drive a balancer, so a directory that cannot be written
costs what the files would have told and nothing else; the journal's failure is the
one that is reported.
"""

from __future__ import annotations

import os
import time
from _thread import allocate_lock

from efm_lb.background import Background

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from efm_lb.truth import Node, Truth

__all__ = [
    "TEMPORARY",
    "State",
    "hand_over",
    "in_time",
    "new_call",
    "put",
    "remove_abandoned",
    "replace",
    "write_all",
]

TEMPORARY = ".efm-lb"
"""How the name of every file ends that is there for a moment only."""
_MOMENT = 60.0
"""Seconds after which such a file is what a killed process has left: it takes milliseconds to write one."""

PATIENCE = 0.5
"""Seconds that a run may be kept waiting for a disk that hangs."""


def new_call() -> str:
    """A name for a call of now; later calls on this host have later names."""
    return f"{time.time_ns():x}-{os.getpid()}"


def _moment(call: str) -> int:
    """When a call was named, in ns; 0 for what is no name."""
    moment = call.partition("-")[0]
    try:
        return int(moment, 16)
    except ValueError:
        return 0


class State:
    """The newest call about each node that was carried out, and the newest timeline that was seen.

    :param directory: ``EFM_LB_STATE_DIR``
    :param cluster: the cluster's name, a safe file name
    """

    def __init__(self, directory: str, cluster: str) -> None:
        self._prefix = f"{directory}/{cluster}"
        self._idle = allocate_lock()
        self._older = ""

    def begin(self, node: Node) -> None:
        """A call about ``node`` is about to be named: what is noted already is older, whatever the clock said then."""
        self._older = self._read(self._call_file(node))

    def note(self, node: Node, call: str, attached: bool, was_up: bool = True) -> None:
        """Note that ``call`` was carried out: every balancer has ``node`` in rotation, or out of it.

        Not in place of a newer one: whatever it wanted, it is what older calls are measured by.

        :param was_up: the node was up when it was taken out: whoever called wanted it so
        """
        if not self._is_newer(self._read(self._call_file(node)), call):
            out = "out" if was_up else "down"
            self._write(self._call_file(node), f"{call} {'in' if attached else out}")

    def contradicted(self, node: Node, call: str, attached: bool) -> bool:
        """Whether a newer call than ``call`` was carried out that wanted the opposite: EFM's newer word counts then.

        A newer call of the same kind, and one that was not carried out, say nothing: the truth decides.
        """
        noted = self._read(self._call_file(node))
        return self._is_newer(noted, call) and noted.endswith((" out", " down") if attached else " in")

    def _is_newer(self, noted: str, call: str) -> bool:
        # A note from the future is one of a clock that was wrong.
        return noted != self._older and _moment(call) < _moment(noted) <= time.time_ns()

    def taken_out(self, node: Node) -> float | None:
        """When the newest call about ``node`` that was carried out was made, in seconds since 1970.

        None when it put the node in, or when the node was not up.
        """
        newest, _, done = self._read(self._call_file(node)).partition(" ")
        return _moment(newest) / 1e9 if done == "out" else None

    @property
    def timeline(self) -> int:
        """The newest timeline that any call on this host has seen a primary on, 0 when none has."""
        text = self._read(f"{self._prefix}.timeline")
        return int(text) if text.isascii() and text.isdigit() else 0

    @timeline.setter
    def timeline(self, timeline: int) -> None:
        self._write(f"{self._prefix}.timeline", str(timeline))

    @property
    def reconciled(self) -> str:
        """What reconcile has kept on this host, for itself; empty when nothing."""
        return self._read(f"{self._prefix}.reconcile", 1 << 20)

    def keep_reconciled(self, text: str) -> bool:
        """Keep that; whether it is written by now."""
        return self._write(f"{self._prefix}.reconcile", text)

    def remember(self, truth: Truth) -> None:
        """Keep the timeline of the truth's primary, when it is newer than the one that is kept."""
        timeline = truth.state(truth.primary).timeline if truth.primary else None
        if timeline and timeline > self.timeline:
            self.timeline = timeline

    def _call_file(self, node: Node) -> str:
        return f"{self._prefix}.{node.name.replace('/', '_')}.call"

    def _read(self, path: str, limit: int = 200) -> str:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return ""
        try:
            return os.read(descriptor, limit).decode("utf-8", "replace").strip()
        finally:
            os.close(descriptor)

    def _write(self, path: str, text: str) -> bool:
        """Write, `in_time` or later. While the disk hangs no other thread is given to it.

        :return: whether it is written by now
        """
        written: list[str] = []
        if self._idle.acquire(blocking=False):
            in_time(lambda: self._put_down(path, text, written))
        return bool(written)

    def _put_down(self, path: str, text: str, written: list[str]) -> None:
        try:
            replace(path, text.encode() + b"\n", 0o644)
            written.append(path)
        except OSError:
            return
        finally:
            self._idle.release()


def in_time(work: Callable[[], None]) -> bool:
    """Have something done by a disk, which may hang, and wait for it no longer than `PATIENCE`.

    :param work: raises nothing; it goes on by itself when it takes longer
    :return: whether it is done
    """
    try:
        running = Background(work)
    except RuntimeError:  # no more threads for this user
        work()
        return True
    running.wait(time.monotonic() + PATIENCE)
    return not running.is_running


def replace(path: str, content: bytes, mode: int) -> None:
    """Put ``content`` in place of a file's, whole or not at all.

    :param mode: the file's, whatever the umask is; root's file belongs to the directory's owner, see `hand_over`
    :raises OSError: it could not be written; the file is as it was, and nothing lies beside it
    """

    def finish(descriptor: int) -> None:
        os.fchmod(descriptor, mode)
        hand_over(descriptor, path)

    remove_abandoned(f"{path}.")
    put(f"{path}.{os.getpid()}{TEMPORARY}", path, content, finish)


def put(partial: str, path: str, content: bytes, finish: Callable[[int], None]) -> None:
    """Put ``content`` in place of a file's by way of another file beside it.

    :param partial: the other file, which is this process's own; one that a process of the same number left is removed
    :param finish: called with its descriptor when it is written; it has mode 0600 until then
    :raises OSError: it could not be written; the file is as it was, and nothing lies beside it. The same is true for
        whatever ``finish`` raises
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(partial, flags, 0o600)
    except FileExistsError:  # left by a process of the same number that was killed
        os.unlink(partial)
        descriptor = os.open(partial, flags, 0o600)
    try:
        try:
            write_all(descriptor, content)
            finish(descriptor)
        finally:
            os.close(descriptor)
        os.rename(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def remove_abandoned(prefix: str) -> None:
    """Remove the files for a moment that killed processes have left, so that they do not pile up.

    :param prefix: their path, as far as it is the same for all processes
    """
    directory, start = os.path.split(prefix)
    try:
        for name in os.listdir(directory):
            if name.startswith(start) and name.endswith(TEMPORARY):
                path = os.path.join(directory, name)
                if time.time() - os.lstat(path).st_mtime > _MOMENT:
                    os.unlink(path)
    except OSError:  # another process has just done it, or this one may not
        return


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of ``content``, in as many pieces as it takes. Raises OSError; a part may be written then."""
    while content:
        content = content[os.write(descriptor, content) :]


def hand_over(descriptor: int, path: str) -> None:
    """Give a new file of root's to the user whose directory it is in, EFM's, so that it locks nobody out.

    Does nothing for another user than root, nor where the file system does not allow it.
    """
    if os.geteuid():
        return
    try:
        owner, own = os.stat(os.path.dirname(path)), os.fstat(descriptor)
        if (own.st_uid, own.st_gid) != (owner.st_uid, owner.st_gid):
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
    except OSError:
        return
