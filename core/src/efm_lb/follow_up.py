"""A deferred call is judged again by a process of its own, until nothing is left of it.

EFM calls once and never again: a primary that is left in place because a promotion is
expected must not stay for ever when none comes. The hook itself must not wait for
that, since EFM may wait for the hook before it promotes.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from efm_lb.errors import EX_OK, EX_SOFTWARE, EX_TEMPFAIL
from efm_lb.events import Detach
from efm_lb.outcomes import Result
from efm_lb.report import Report

__all__ = ["ATTEMPT", "NAME", "PATIENCE", "is_carried_out", "judge_until_done", "owed", "start"]

PATIENCE = 60.0
"""Seconds after which a follow-up ends: nobody waits for it, and a promotion may take its time."""
ATTEMPT = 3.0
"""Seconds that the balancers have each time the call is judged: EFM's own calls may be waiting for the lock."""
_PAUSE = 0.5
"""Seconds until the call is judged once more, twice as long each time."""
_LONGEST_PAUSE = 4.0
_ENDING = 0.01
"""Seconds that threads which are done may take to end."""
NAME = "efm-lb-followup"
"""What ``ps`` and ``top`` call a fork that judges a call again; 15 characters are the most that Linux keeps."""


def owed(report: Report) -> float | None:
    """The seconds after which a deferred call must be judged again, None when nothing is owed."""
    seconds = [outcome.again_after for outcome in report.outcomes]
    if report.decision:
        seconds.append(report.decision.again_after)
    return max((each for each in seconds if each is not None), default=None)


def start(seconds: float, call: str, run: Callable[[Sequence[str]], int]) -> None:
    """Run this same command again, in a process and a session of its own, to judge ``call`` after ``seconds``.

    It inherits none of EFM's pipes, outlives the hook and EFM's agent, and ends by itself.

    A fork has everything imported, and looks out for the promotion at once: while clients of a dead primary keep the
    processors busy, a new interpreter takes 0.15 s to get that far. But in a fork a lock that another thread holds
    stays locked for ever: where a thread is left, such as a hung adapter's, a new interpreter is started.

    :param run: runs a command line, and returns the exit code
    :raises OSError: it could not be started
    """
    options = ["--follow-up", f"{seconds:g}", "--call", call]
    if _is_only_thread():
        if os.fork() == 0:
            _run_on([*sys.argv[1:], *options], run)
        return
    argv = [sys.executable, *sys.orig_argv[1:], *options]
    null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
    os.posix_spawn(sys.executable, argv, os.environ, file_actions=null, setsid=True)


def _is_only_thread() -> bool:
    """Whether this process has no other thread, be it of Python's or of a library's."""
    until = time.monotonic() + _ENDING
    try:
        while len(os.listdir("/proc/self/task")) > 1:
            if time.monotonic() > until:
                return False
            time.sleep(0.001)
    except OSError:
        return False
    return True


def _run_on(argv: Sequence[str], run: Callable[[Sequence[str]], int]) -> NoReturn:
    """What a fork does; it never returns to what its parent was doing."""
    code = EX_SOFTWARE
    try:
        os.setsid()
        _close_files()
        _take_name()
        code = run(argv)
    finally:
        os._exit(code)


def _close_files() -> None:
    """Nothing is read, written or kept open for anybody any more."""
    for number in range(3):  # first of all: there may be no number left for another one
        _close(number)
    os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):  # the limit on them may be a thousand million
        if int(name) > 2:
            _close(int(name))
    for number in (1, 2):
        os.dup2(0, number)


def _close(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError:
        return


def _take_name() -> None:
    """Its command line is its parent's, and a person who looks must be able to tell them apart."""
    try:
        with open("/proc/self/comm", "w") as comm:
            comm.write(NAME)
    except OSError:
        return


def is_carried_out(report: Report) -> bool:
    """Whether every balancer is proven to be as the call wants it, and nothing is left for later."""
    if report.decision and report.decision.hold:
        return False  # clients are held back, and nobody is taken out
    done = (Result.CHANGED, Result.UNCHANGED)
    return report.exit_code == EX_OK and bool(report.outcomes) and all(each.result in done for each in report.outcomes)


def judge_until_done(seconds: float, judge: Callable[[float], Report], is_promoted: Callable[[float], bool]) -> Report:
    """Judge a call after ``seconds``, or as soon as a promotion is seen, and again while something is left of it.

    What is left: a balancer failed temporarily or waits for another call, two primaries were visible, or a dead primary
    was detached and no other one is there yet.

    :param judge: judges the call once; takes the seconds that a node which is on its way may be waited for
    :param is_promoted: waits until the given ``time.monotonic()``, or until a new primary is seen, and says whether it
        was
    :return: what came of it the last time
    """
    again_at = time.monotonic() + seconds
    until = time.monotonic() + PATIENCE
    pause = _PAUSE
    seen = is_promoted(again_at)
    while True:
        report = judge(max(0.0, until - time.monotonic()))
        now = time.monotonic()
        event = report.decision and report.decision.event
        is_awaited = isinstance(event, Detach) and not event.truth.primary
        is_left = report.exit_code == EX_TEMPFAIL or owed(report) is not None
        if is_left or (seen and is_awaited):
            due = now + pause
            pause = min(2 * pause, _LONGEST_PAUSE)
        elif now < again_at and not is_carried_out(report):
            due = again_at  # a promotion was seen, but the old primary is still there: that was not the moment yet
        elif is_awaited:
            due = until
        else:
            return report
        if due > until:
            return report._replace(exit_code=EX_TEMPFAIL) if is_left else report
        if is_awaited and not seen:
            seen = is_promoted(due)
            if due == until and not seen:
                return report
        else:
            # The truth does not agree with what was seen, or a promotion is not what is missing.
            time.sleep(due - now)
            seen = False
