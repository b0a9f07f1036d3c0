"""The system's log, for failures that are told to nobody else."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["complain"]


def complain(lines: Iterable[str]) -> None:
    """Write ``lines`` to the system's log, as errors; where there is none, nothing happens."""
    try:
        import syslog
    except (ImportError, OSError):  # a Python without it, or no file descriptor left to read it
        return
    syslog.openlog("efm-lb", syslog.LOG_PID, syslog.LOG_DAEMON)
    for line in lines:
        syslog.syslog(syslog.LOG_ERR, line)
