"""Workers that a reload has replaced, and that go on with the sessions they have: only their master leads to them.

Measured with 2.6: such a worker answers `Proxy is disabled.` to `shutdown sessions server`, but shows its sessions,
and ends each that is named. It ends when its last session does, or by `hard-stop-after`.
"""

from __future__ import annotations

import _socket
import os
from collections.abc import Callable
from time import monotonic, sleep
from typing import NamedTuple

__all__ = ["Ended", "Master", "end_sessions", "master_of", "missing_way", "replaced"]

_AT_ONCE = 100
"""Sessions that are named in one line; HAProxy takes one of 16 kB."""
_EMPTYING = 1.5
"""Seconds that sessions get to end after they were shut down."""
_PAUSE = 0.01
_MAX_RECEIVED = 16 * 1024 * 1024


class Master(NamedTuple):
    """The master of a worker.

    :param socket: where it listens by ``-S``; empty when that is no Unix socket, or nowhere
    """

    pid: int
    socket: str


class Ended(NamedTuple):
    """What became of the sessions of replaced workers, in words.

    :param did: what was shut down
    :param unknown: whom nobody could ask
    :param open: what was shut down and did not end
    """

    did: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    open: tuple[str, ...] = ()


class _Unasked(Exception):
    """The master does not lead to the worker; says why."""


def master_of(worker: int) -> Master | None:
    """The master of a worker of this host. None when there is none, or when it cannot be told, as in a container."""
    try:
        parent = _status(worker).parent
        with open(f"/proc/{parent}/cmdline", "rb") as file:
            words = file.read().decode("utf-8", "surrogateescape").split("\0")
    except (OSError, ValueError, IndexError):
        return None
    if not os.path.basename(words[0]).startswith("haproxy"):
        return None
    where = words[words.index("-S") + 1] if "-S" in words[:-1] else ""
    path = where.partition(",")[0].removeprefix("unix@")
    return Master(parent, path if path.startswith("/") else "")


def replaced(worker: int, master: Master) -> tuple[int, ...]:
    """The workers of ``master`` that are older than ``worker``."""
    try:
        with open(f"/proc/{master.pid}/task/{master.pid}/children", "rb") as file:
            pids = [int(word) for word in file.read().split()]
    except (OSError, ValueError):
        return ()
    if len(pids) < 2:
        return ()
    own = _status(worker)
    found = []
    for pid in pids:
        try:
            status = _status(pid)
        except (OSError, ValueError, IndexError):
            continue
        # A newer one is being started, and one with another name is a `program`.
        if pid != worker and status.begun < own.begun and status.name == own.name and status.state != b"Z":
            found.append(pid)
    return tuple(found)


def end_sessions(worker: int, is_out: Callable[[str, str], bool], limit: float) -> Ended:
    """Shut down the sessions that workers before ``worker`` have at servers where nothing may be.

    :param is_out: by the names of proxy and server, whether a session there must end
    :param limit: by ``time.monotonic()``
    """
    master = master_of(worker)
    if master is None:
        return Ended()
    did, unknown, still_open = [], [], []
    for pid in replaced(worker, master):
        try:
            shut, left = _end(master, pid, is_out, limit)
        except _Unasked as why:
            if _runs(pid):
                unknown.append(
                    f"worker {pid}, which a reload has replaced, may have sessions that are left: {why};"
                    f" `kill {pid}` ends them"
                )
            continue
        if shut:
            did.append(f"{shut} sessions of worker {pid}, which a reload has replaced, are shut down")
        if left:
            still_open.append(
                f"{left} sessions of worker {pid}, which a reload has replaced, have not ended; `kill {pid}` ends them"
            )
    return Ended(tuple(did), tuple(unknown), tuple(still_open))


def missing_way(master: Master, worker: int, limit: float) -> str:
    """Why ``master`` does not let this process end sessions of a worker; empty when it does."""
    try:
        level = _ask(master, f"@!{worker} show cli level", limit).strip()
    except _Unasked as why:
        return str(why)
    return "" if level == "admin" else f"the master at {master.socket} answers {level[:80]!r}, and not admin"


class _Status(NamedTuple):
    name: bytes
    state: bytes
    parent: int
    begun: int


def _status(pid: int) -> _Status:
    with open(f"/proc/{pid}/stat", "rb") as file:
        # The second field, the name, may hold spaces and brackets.
        before, _, after = file.read().rpartition(b")")
    fields = after.split()
    return _Status(before.partition(b"(")[2], fields[0], int(fields[1]), int(fields[19]))


def _runs(pid: int) -> bool:
    try:
        return _status(pid).state != b"Z"
    except (OSError, ValueError, IndexError):
        return False


def _end(master: Master, pid: int, is_out: Callable[[str, str], bool], limit: float) -> tuple[int, int]:
    """How many sessions were shut down, and how many of them are open still."""
    until = min(limit, monotonic() + _EMPTYING)
    names: set[str] = set()
    while True:
        try:
            found = [name for name, proxy, server in _sessions(master, pid, limit) if is_out(proxy, server)]
        except _Unasked:
            # It ends with the last of them, and answers nothing any more some time before.
            while names and _runs(pid) and monotonic() + _PAUSE < until:
                sleep(_PAUSE)
            if names and not _runs(pid):
                return len(names), 0
            raise
        if not found or (names and monotonic() + _PAUSE >= until):
            return len(names), len(found)
        if names:
            sleep(_PAUSE)
        names |= set(found)
        for start in range(0, len(found), _AT_ONCE):
            commands = [f"@!{pid} shutdown session {name}" for name in found[start : start + _AT_ONCE]]
            if "Permission denied" in _ask(master, "; ".join(commands), limit):
                raise _Unasked(f"the master at {master.socket} is not at level admin")


def _sessions(master: Master, pid: int, limit: float) -> list[tuple[str, str, str]]:
    """The sessions of a worker: name, proxy and server."""
    answer = _ask(master, f"@!{pid} show sess", limit)
    rows = [line.split() for line in answer.splitlines() if line.startswith("0x")]
    if not rows:  # that of this very question is one
        raise _Unasked(f"the master at {master.socket} answers {answer.strip()[:80]!r}")
    fields = [dict(word.split("=", 1) for word in row if "=" in word) for row in rows]
    return [
        (row[0].rstrip(":"), each.get("be", ""), each.get("srv", "")) for row, each in zip(rows, fields, strict=True)
    ]


def _ask(master: Master, line: str, limit: float) -> str:
    if not master.socket:
        raise _Unasked("HAProxy's -S names no Unix socket of its master")
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    received = b""
    try:
        connection.settimeout(max(limit - monotonic(), 0.001))
        connection.connect(master.socket)
        connection.sendall(f"{line}; quit\n".encode())
        while len(received) < _MAX_RECEIVED:
            connection.settimeout(max(limit - monotonic(), 0.001))
            piece = connection.recv(262144)
            if not piece:
                break
            received += piece
    except OSError as error:
        reason = "no answer in time" if isinstance(error, TimeoutError) else error.strerror
        raise _Unasked(f"the master at {master.socket} cannot be asked by uid {os.geteuid()} ({reason})") from None
    finally:
        connection.close()
    return received.decode("utf-8", "replace")
