"""A deferred call is judged again, once, by a process of its own.

EFM calls once and never again: a primary that is left in place because a promotion is
expected must not stay for ever when none comes. The hook itself must not wait for
that, since EFM may wait for the hook before it promotes.
"""

from __future__ import annotations

import os
import sys

from efm_lb.report import Report

__all__ = ["owed", "start"]


def owed(report: Report) -> float | None:
    """The seconds after which a deferred call must be judged again, None when nothing is owed."""
    seconds = [outcome.again_after for outcome in report.outcomes]
    if report.decision:
        seconds.append(report.decision.again_after)
    return max((each for each in seconds if each is not None), default=None)


def start(seconds: float, call: str) -> None:
    """Start this same command again, in a session of its own, to judge ``call`` after ``seconds``.

    It inherits none of EFM's pipes, outlives the hook and EFM's agent, and ends by itself.

    :raises OSError: it could not be started
    """
    argv = [sys.executable, *sys.orig_argv[1:], "--follow-up", f"{seconds:g}", "--call", call]
    null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
    os.posix_spawn(sys.executable, argv, os.environ, file_actions=null, setsid=True)
