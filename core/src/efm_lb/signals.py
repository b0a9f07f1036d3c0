"""SIGTERM and SIGINT end a hook run with a line and an exit code, at any moment and only once.

Until a run has begun, `efm_lb_main` sees to that.
"""

from __future__ import annotations

# The C functions behind `signal`, without the enumerations that it builds at import.
from _signal import ITIMER_REAL, SIG_IGN, SIGINT, SIGTERM, setitimer, signal  # type: ignore[import-not-found]

__all__ = ["HANGS", "Terminated", "end_after", "hangs_after", "ignore", "raise_terminated"]

HANGS = 60.0
"""Seconds, besides ten times the deadline, after which a run hangs, whatever holds it: it must not keep the lock."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGINT came; whatever was being done is left to the next call."""


def raise_terminated() -> None:
    """From now on the first of the signals raises `Terminated` in the main thread; those after it are ignored."""
    for number in (SIGTERM, SIGINT):
        signal(number, _terminate)


def end_after(seconds: float) -> None:
    """Let the kernel end this process then (SIGALRM), wherever it hangs and without a word; never for 0."""
    setitimer(ITIMER_REAL, seconds)


def hangs_after(deadline: float) -> float:
    """Seconds after which a run that has ``deadline`` seconds for its work hangs."""
    return HANGS + 10 * deadline


def ignore() -> None:
    """From now on the run is as good as over: let it say so."""
    for number in (SIGTERM, SIGINT):
        signal(number, SIG_IGN)


def _terminate(number: int, frame: object) -> None:
    ignore()
    raise Terminated
