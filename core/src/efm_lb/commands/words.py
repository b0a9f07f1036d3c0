"""What is in the journal, in the words that the commands for people share."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from efm_lb.follow_up import PATIENCE
from efm_lb.history import Attempt
from efm_lb.signals import hangs_after

__all__ = ["NO_END", "RUNNING", "called", "clock", "is_by_itself", "printable", "state_of", "times"]

NO_END = "no end was written down"
RUNNING = "at work"
_SENT = 60.0
"""Seconds after which what reconcile has sent is over: it takes `efm_lb.follow_up.ATTEMPT` for it at most."""


def clock(at: datetime, beside: datetime | None = None) -> str:
    """A time as the reader's own clock shows it, to the second.

    :param beside: a time that it is shown next to: its day is not said twice
    """
    here = at.astimezone()
    is_known = beside is not None and beside.astimezone().date() == here.date()
    return here.strftime("%H:%M:%S" if is_known else "%Y-%m-%d %H:%M:%S")


def called(attempt: Attempt) -> str:
    """What was asked for, such as ``attach 10.0.0.12 primary``."""
    said = attempt.call
    if is_by_itself(attempt):
        told = attempt.decision.fields.get("told") if attempt.decision else ""
        return f"reconcile: {told}" if told else "reconcile"
    if said is None:
        return "(its beginning is not in the journal any more)"
    words = [str(said.get("kind")), str(said.get("host"))]
    if said.get("type") and said.get("kind") != "promote":
        words.append(str(said["type"]))
    if "balancer" in said:
        words.append(f"at {said['balancer']} for {attempt.sender or 'another host'}")
    return " ".join(words)


def is_by_itself(attempt: Attempt) -> bool:
    """Whether nobody called: ``efm-lb reconcile`` found something to do."""
    return bool(attempt.call and attempt.call.get("kind") == "reconcile")


def times(count: int) -> str:
    """How often: ``once``, ``2 times``."""
    return "once" if count == 1 else f"{count} times"


def state_of(attempt: Attempt, deadline: float) -> str:
    """Whether an attempt is still at work: `RUNNING` or `NO_END`.

    That its process is there does not prove it for ever: a service goes on when the disk has taken no outcome.

    :param deadline: ``EFM_LB_DEADLINE`` in seconds
    """
    age = (datetime.now(UTC) - attempt.at).total_seconds()
    return RUNNING if age < _longest(attempt, deadline) and _is_there(attempt) else NO_END


def _longest(attempt: Attempt, deadline: float) -> float:
    """Seconds that it may take; the kernel ends a hook then, and a follow-up."""
    if is_by_itself(attempt):
        return _SENT
    return hangs_after(deadline) + (PATIENCE if attempt.is_follow_up else 0.0)


def _is_there(attempt: Attempt) -> bool:
    """Whether its process is."""
    try:
        words = Path(f"/proc/{attempt.pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    # The number may be another process's by now.
    said = attempt.call or {}
    expected = b"apply" if "balancer" in said else str(said.get("kind")).encode()
    return expected in words


def printable(text: str) -> str:
    """``text`` in one line, without what a terminal would obey: a server may have said anything."""
    return "".join(c if c.isprintable() else " " if c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
