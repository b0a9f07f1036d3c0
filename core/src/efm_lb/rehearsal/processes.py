"""Processes by their own pids: a server and its children, stopped, frozen and ended as one."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from itertools import pairwise

from efm_lb.rehearsal.waiting import wait_until

__all__ = ["end_hooks", "end_tree", "signal_tree", "started_at", "tree"]


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
    _signal(tree(pid), number)


def end_tree(pid: int) -> None:
    """Kill ``pid`` and all its descendants so that none of them can say goodbye to a client or start another.

    When it returns their ports are closed: a process that is killed holds them until the kernel is through with it.
    """
    stopped: set[int] = set()
    while left := [member for member in tree(pid) if member not in stopped]:  # until none has started another one
        _signal(left, signal.SIGSTOP)
        stopped.update(left)
    members = {member: started_at(member) for member in stopped}
    _signal(stopped, signal.SIGKILL)
    wait_until(lambda: not any(start and started_at(member) == start for member, start in members.items()), timeout=5)


def end_hooks(directory: str) -> None:
    """Kill what hooks have left running for later: every efm-lb process whose command line names ``directory``.

    A follow-up and the process that lets held clients go are in sessions of their own, and nobody knows their pids.
    """
    for name in os.listdir("/proc"):
        if name.isdigit() and _is_hook(_words(int(name)), directory.encode()):
            end_tree(int(name))


def started_at(pid: int) -> str | None:
    """The kernel's start time of a process, which tells it from a later one with its pid; None when it has ended."""
    fields = _stat(pid)
    return fields[19] if fields and fields[0] not in "ZX" else None


def _signal(members: Iterable[int], number: signal.Signals) -> None:
    for member in members:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, number)


def _is_hook(words: list[bytes], directory: bytes) -> bool:
    modules = [module for option, module in pairwise(words) if option == b"-m"]
    is_efm_lb = any(module in (b"efm_lb", b"efm_lb_pgbouncer.guard") for module in modules)
    return is_efm_lb and any(directory in word for word in words)


def _words(pid: int) -> list[bytes]:
    """The command line of a process, empty when it has ended."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third (state) on."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The second field, the name, may hold spaces and brackets.
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
