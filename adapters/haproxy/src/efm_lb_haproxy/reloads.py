"""Reloads of a HAProxy of this host, one that is in flight and those before: only its processes tell."""

from __future__ import annotations

__all__ = ["is_reloading", "master_of", "replaced"]

_PROGRAMS = (b"haproxy", b"hapee")
"""What HAProxy's process is called, and that of HAProxy Enterprise."""


def is_reloading(worker: int) -> bool:
    """Whether a successor of the worker with this pid is starting.

    Measured with 2.6: on a reload the master starts itself anew with ``-sf <worker>`` among its arguments, 3 to 5 ms
    after the signal, reads the configuration, and has the arguments it had before again when the new worker serves,
    or when the reload failed. What is told to the old worker meanwhile is lost.

    :return: False as well where it cannot be told: another host or container, a hidden /proc, no master
    """
    _, arguments = master_of(worker)
    if b"-sf" not in arguments:
        return False
    return b"%d" % worker in arguments[arguments.index(b"-sf") + 1 :]


def master_of(worker: int) -> tuple[int, list[bytes]]:
    """The master of a worker, and its arguments; 0 and none where there is none, or where it cannot be told."""
    try:
        name, _, parent, _ = _status(worker)
        # The number may be that of a process in a container, and another one's on this host.
        if not name.startswith(_PROGRAMS) or _status(int(parent))[0] != name:
            return 0, []
        with open(f"/proc/{int(parent)}/cmdline", "rb") as file:
            return int(parent), file.read().split(b"\0")
    except (OSError, ValueError, IndexError):
        return 0, []


def replaced(worker: int) -> tuple[int, ...]:
    """The workers that reloads before have replaced by the one with this pid, and that run still.

    :return: none as well where it cannot be told, as for `is_reloading`
    """
    master, _ = master_of(worker)
    if not master:
        return ()
    try:
        with open(f"/proc/{master}/task/{master}/children", "rb") as file:
            pids = [int(word) for word in file.read().split()]
        if len(pids) < 2:
            return ()
        name, _, _, begun = _status(worker)
    except (OSError, ValueError, IndexError):
        return ()
    found = []
    for pid in pids:
        try:
            status = _status(pid)
        except (OSError, ValueError, IndexError):
            continue
        # A newer one is being started, and one with another name is a `program`.
        if pid != worker and status[0] == name and status[1] != b"Z" and int(status[3]) < int(begun):
            found.append(pid)
    return tuple(found)


def _status(pid: int) -> tuple[bytes, bytes, bytes, bytes]:
    """A process' name, its state, its parent, and when it was started."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        # The second field, the name, may hold spaces and brackets.
        before, _, after = file.read().rpartition(b")")
    fields = after.split()
    return before.partition(b"(")[2], fields[0], fields[1], fields[19]
