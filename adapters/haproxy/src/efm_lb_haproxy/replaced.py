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

from efm_lb_haproxy.reloads import master_of, replaced

__all__ = ["Ended", "end_sessions", "missing_way", "socket_of"]

_AT_ONCE = 100
"""Sessions that are named in one line; HAProxy takes one of 16 kB."""
_EMPTYING = 1.5
"""Seconds that sessions get to end after they were shut down."""
_PAUSE = 0.01
_MAX_RECEIVED = 16 * 1024 * 1024


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


def socket_of(worker: int) -> str:
    """Where the master of a worker listens by ``-S``; empty when that is no Unix socket, or nowhere."""
    _, arguments = master_of(worker)
    where = arguments[arguments.index(b"-S") + 1] if b"-S" in arguments[:-1] else b""
    path = where.partition(b",")[0].removeprefix(b"unix@").decode("utf-8", "surrogateescape")
    return path if path.startswith("/") else ""


def end_sessions(worker: int, pids: tuple[int, ...], is_out: Callable[[str, str], bool], limit: float) -> Ended:
    """Shut down the sessions that replaced workers have at servers where nothing may be.

    :param worker: the one that has replaced them
    :param pids: of the replaced ones
    :param is_out: by the names of proxy and server, whether a session there must end
    :param limit: by ``time.monotonic()``
    """
    master = socket_of(worker)
    did, unknown, still_open = [], [], []
    for pid in pids:
        try:
            shut, left = _end(master, worker, pid, is_out, limit)
        except _Unasked as why:
            if _runs(worker, pid):
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


def missing_way(master: str, worker: int, limit: float) -> str:
    """Why a master does not let this process end sessions of a worker; empty when it does.

    :param master: its socket
    """
    try:
        level = _ask(master, f"@!{worker} show cli level", limit).strip()
    except _Unasked as why:
        return str(why)
    return "" if level == "admin" else f"the master at {master} answers {level[:80]!r}, and not admin"


def _runs(worker: int, pid: int) -> bool:
    return pid in replaced(worker)


def _end(master: str, worker: int, pid: int, is_out: Callable[[str, str], bool], limit: float) -> tuple[int, int]:
    """How many sessions were shut down, and how many of them are open still."""
    until = min(limit, monotonic() + _EMPTYING)
    names: set[str] = set()
    while True:
        try:
            found = [name for name, proxy, server in _sessions(master, pid, limit) if is_out(proxy, server)]
        except _Unasked:
            # It ends with the last of them, and answers nothing any more some time before.
            while names and _runs(worker, pid) and monotonic() + _PAUSE < until:
                sleep(_PAUSE)
            if names and not _runs(worker, pid):
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
                raise _Unasked(f"the master at {master} is not at level admin")


def _sessions(master: str, pid: int, limit: float) -> list[tuple[str, str, str]]:
    """The sessions of a worker: name, proxy and server."""
    answer = _ask(master, f"@!{pid} show sess", limit)
    rows = [line.split() for line in answer.splitlines() if line.startswith("0x")]
    if not rows:  # that of this very question is one
        raise _Unasked(f"the master at {master} answers {answer.strip()[:80]!r}")
    fields = [dict(word.split("=", 1) for word in row if "=" in word) for row in rows]
    return [
        (row[0].rstrip(":"), each.get("be", ""), each.get("srv", "")) for row, each in zip(rows, fields, strict=True)
    ]


def _ask(master: str, line: str, limit: float) -> str:
    if not master:
        raise _Unasked("HAProxy's -S names no Unix socket of its master")
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    received = b""
    try:
        connection.settimeout(max(limit - monotonic(), 0.001))
        connection.connect(master)
        connection.sendall(f"{line}; quit\n".encode())
        while len(received) < _MAX_RECEIVED:
            connection.settimeout(max(limit - monotonic(), 0.001))
            piece = connection.recv(262144)
            if not piece:
                break
            received += piece
    except OSError as error:
        reason = "no answer in time" if isinstance(error, TimeoutError) else error.strerror
        raise _Unasked(f"the master at {master} cannot be asked by uid {os.geteuid()} ({reason})") from None
    finally:
        connection.close()
    return received.decode("utf-8", "replace")
