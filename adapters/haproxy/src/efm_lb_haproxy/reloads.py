"""Whether a HAProxy of this host is being reloaded: only its processes tell, and only while it lasts."""

from __future__ import annotations

__all__ = ["is_reloading"]


def is_reloading(worker: int) -> bool:
    """Whether a successor of the worker with this pid is starting.

    Measured with 2.6: on a reload the master starts itself anew with ``-sf <worker>`` among its arguments, 3 to 5 ms
    after the signal, reads the configuration, and has the arguments it had before again when the new worker serves,
    or when the reload failed. What is told to the old worker meanwhile is lost.

    :return: False as well where it cannot be told: another host or container, a hidden /proc, no master
    """
    try:
        with open(f"/proc/{worker}/stat", "rb") as file:
            # The second field, the name, may hold spaces and brackets; the fourth is the parent.
            parent = int(file.read().rpartition(b")")[2].split()[1])
        with open(f"/proc/{parent}/cmdline", "rb") as file:
            arguments = file.read().split(b"\0")
    except (OSError, ValueError, IndexError):
        return False
    if b"-sf" not in arguments:
        return False
    replaced = arguments[arguments.index(b"-sf") + 1 :]
    return b"%d" % worker in replaced
