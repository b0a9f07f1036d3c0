"""Processes by their own pids: a server and its children, stopped, frozen and ended as one."""

from __future__ import annotations

import contextlib
import os
import signal

__all__ = ["end_tree", "signal_tree", "started_at", "tree"]


def tree(pid: int) -> list[int]:
    """``pid`` and all its descendants, parents first."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat(int(name))):
            children.setdefault(int(fields[1]), []).append(int(name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


def signal_tree(pid: int, number: signal.Signals) -> None:
    """Send a signal to ``pid`` and all its descendants."""
    for member in tree(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, number)


def end_tree(pid: int) -> None:
    """Kill ``pid`` and all its descendants so that none of them can say goodbye to a client or start another."""
    signal_tree(pid, signal.SIGSTOP)
    signal_tree(pid, signal.SIGSTOP)
    signal_tree(pid, signal.SIGKILL)


def started_at(pid: int) -> str | None:
    """The kernel's start time of a process, which tells it from a later one with its pid; None when it has ended."""
    fields = _stat(pid)
    return fields[19] if fields and fields[0] not in "ZX" else None


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third (state) on."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The second field, the name, may hold spaces and brackets.
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
