"""``efm-lb history show``: one call from beginning to end, for somebody who was woken up by it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from efm_lb.commands.history import document, node_of, reading_of, warn
from efm_lb.commands.words import RUNNING, called, clock, is_by_itself, printable, state_of, times
from efm_lb.configuration import Configuration
from efm_lb.errors import EX_OK, EX_SOFTWARE, EX_TEMPFAIL, EX_UNAVAILABLE, CallError
from efm_lb.history import Attempt, PastCall, folded, past_calls
from efm_lb.truth import Reach

__all__ = ["CHAPTERS", "explain", "find"]

LAST = "last"
_LATE = 10.0
"""Seconds after which a follow-up that has left no record will leave none any more."""
_REACHED = {
    Reach.REJECTING: "is up, but takes no connections: it is starting or stopping",
    Reach.DENIED: "is up, but refused the login or the question",
    Reach.FULL: "is up, but has no connection slot left",
    Reach.REFUSED: "is down: nobody listens there",
    Reach.NO_RESPONSE: "is silent: its host is down, cut off or frozen",
}
_VERDICTS = {
    "act": "act",
    "defer": "do nothing now, rightly",
    "fail": "do nothing, for it cannot be told what is right",
    "refuse": "do nothing, as the settings say",
    "wait": "wait",
}
CHAPTERS = {
    "R1": "More than one writable primary",
    "R2": "An old primary",
    "R6": "Not done",
    "R7": "Not done",
    "R11": "The node",
    "R12": "The node",
    "R15": "Deferred",
    "R16": "Deferred",
    "R18": "The node",
    "R20": "Deferred",
    "R22": "The node",
}
"""The heading of docs/runbook.md that helps with a rule whose decision was not the end of it."""


def explain(configuration: Configuration, name: str, options: Sequence[str], as_json: bool) -> int:
    """Print everything about one call.

    :param name: of the call, or the beginning of it that no other call has, or ``last``
    :param options: the options that name the same settings, for the commands that are recommended
    :return: 0
    :raises CallError: there is no such call, or several
    :raises NotReadableError: this user may not read the journal
    """
    reading = reading_of(configuration)
    calls = past_calls(reading.records)
    call = find(calls, name)
    if as_json:
        print(json.dumps(document(configuration, reading, [call]), indent=2))
        return EX_OK
    later = calls[calls.index(call) + 1 :]
    now = datetime.now().astimezone()
    for line in _lines(call, later, configuration, options, now):
        print(printable(line))
    warn(reading.damages)
    return EX_OK


def find(calls: Sequence[PastCall], name: str) -> PastCall:
    """The call that is called so.

    :raises CallError: there is none, or several
    """
    if not calls:
        raise CallError("no call is in the journal of this host")
    if name == LAST:
        return calls[-1]
    found = [call for call in calls if call.name == name] or [call for call in calls if call.name.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(call.name for call in found[-5:])
        raise CallError(f"{len(found)} calls begin with {name}, the newest are {names}")
    raise CallError(f"no call {name} is in the journal of this host: see efm-lb history --limit 0")


def _lines(
    call: PastCall, later: Sequence[PastCall], configuration: Configuration, options: Sequence[str], now: datetime
) -> Iterator[str]:
    yield f"call {call.name} of cluster {configuration.cluster}; times are {now:UTC%z}"
    for group in folded(call.attempts):
        yield ""
        yield from _told(group, configuration.deadline)
    yield ""
    yield "What to do now"
    for line in _advice(call, later, configuration, options, now):
        yield f"  {line}"


def _told(group: Sequence[Attempt], deadline: float) -> Iterator[str]:
    """One attempt, or several of a follow-up that came to the same: the last one, with a count."""
    attempt = group[-1]
    said = attempt.call or {}
    if attempt.is_follow_up:
        count = (
            "" if len(group) == 1 else f", {len(group)} times with the same result, the last time at {_time(attempt)}"
        )
        yield f"{_time(group[0])}  The follow-up judged the call again{count}"
    elif "balancer" in said:
        yield f"{_time(attempt)}  {attempt.sender or 'Another host'} asked: {said.get('kind')} {said.get('host')}"
        yield f"  of load balancer {said['balancer']}, which is on this host"
    elif is_by_itself(attempt):
        yield f"{_time(attempt)}  Nobody called: efm-lb reconcile found something to do"
    elif said:
        letter = "" if said.get("type") or said.get("kind") == "promote" else ", without saying what the node is"
        yield f"{_time(attempt)}  EFM, or somebody by hand, called: {called(attempt)}{letter}"
    else:
        yield f"{_time(attempt)}  {called(attempt)}"
    yield from _databases(attempt)
    yield from _decision(attempt)
    yield from _balancers(attempt)
    yield from _end(attempt, deadline)


def _databases(attempt: Attempt) -> Iterator[str]:
    decided = attempt.decision.fields if attempt.decision else {}
    truth: Mapping[str, Mapping[str, Any]] = decided.get("truth") or (attempt.call or {}).get("truth") or {}
    if not truth:
        return
    yield "  The databases had said to that host:" if attempt.sender else "  The databases said:"
    width = max(map(len, truth))
    for name, state in truth.items():
        yield f"    {name.ljust(width)}  {_state(state)}"
    newest = decided.get("newest") or 0
    if newest > max((state.get("timeline") or 0 for state in truth.values()), default=0):
        yield f"    this host has seen a primary on timeline {newest} before"


def _state(state: Mapping[str, Any]) -> str:
    seconds = f" ({state.get('seconds') or 0:.2f} s)"
    if state.get("role"):
        timeline = state.get("timeline")
        return f"is a {state['role']}" + (f", timeline {timeline}" if timeline else "") + seconds
    try:
        words = _REACHED[Reach(state.get("reach"))]
    except (KeyError, ValueError):
        words = str(state.get("reach"))
    detail = state.get("detail")
    return words + seconds + (f": {detail}" if detail else "")


def _decision(attempt: Attempt) -> Iterator[str]:
    if attempt.decision is None:
        return
    decision = attempt.decision.fields
    verdict = str(decision.get("verdict"))
    rule = f" (rule {decision['rule']} of docs/how-it-decides.md)" if decision.get("rule") else ""
    yield f"  Decision: {_VERDICTS.get(verdict, verdict)}{rule}"
    yield f"    because {decision.get('reason')}"
    if decision.get("shortfall"):
        yield f"    not done: {decision['shortfall']}"
    if decision.get("held"):
        yield "  Load balancers that can were asked to hold new work back:"
    elif decision.get("told"):
        who = "Those that disagreed were" if is_by_itself(attempt) else "Every load balancer was"
        yield f"  {who} {'told' if attempt.outcome else 'to be told'}: {decision['told']}"
    else:
        yield "  No load balancer was told anything."


def _balancers(attempt: Attempt) -> Iterator[str]:
    width = max(map(len, attempt.told), default=0)
    for name, each in attempt.told.items():
        again = each.get("again_after")
        owed = f" (to be asked again after {again:g} s)" if again is not None else ""
        took = f"in {each.get('seconds') or 0:.2f} s"
        yield f"    {name.ljust(width)}  {each.get('result')} {took}: {each.get('detail')}{_by(each)}{owed}"


def _by(outcome: Mapping[str, Any]) -> str:
    """Whose failure it is, unless the detail begins with that."""
    by = outcome.get("by")
    return f" [{by}]" if by and not str(outcome.get("detail")).startswith(by) else ""


def _end(attempt: Attempt, deadline: float) -> Iterator[str]:
    if attempt.outcome is None:
        is_running = state_of(attempt, deadline) == RUNNING
        yield f"  It is still at work, as process {attempt.pid}." if is_running else "  No end of it was written down."
        return
    for note in attempt.notes:
        yield f"  Note: {note}"
    seconds = attempt.outcome.fields.get("seconds")
    took = f" after {seconds:.2f} s" if seconds is not None else ""
    code = "" if attempt.exit_code is None else f" with exit code {attempt.exit_code}"
    yield f"  It ended at {attempt.outcome.at.astimezone():%H:%M:%S}{took}{code}."
    if attempt.again:
        last = clock(attempt.last_at, attempt.at)
        yield f"  It was tried again {times(len(attempt.again))}, the last time at {last}."
        yield "  What comes of that is written down when it is something else than before."
    if attempt.again_after is not None and not attempt.is_follow_up:
        yield f"  Owed: a follow-up is to judge the call again by {_due(attempt).astimezone():%H:%M:%S}."


def _due(attempt: Attempt) -> datetime:
    ended = attempt.outcome.at if attempt.outcome else attempt.at
    return ended + timedelta(seconds=attempt.again_after or 0.0)


def _advice(
    call: PastCall, later: Sequence[PastCall], configuration: Configuration, options: Sequence[str], now: datetime
) -> Iterator[str]:
    attempt = call.attempts[-1]
    words = " ".join(map(shlex.quote, options))
    look = f"efm-lb status{' ' * bool(words)}{words}"
    node = node_of(call, configuration)
    newer = next((each for each in reversed(later) if node and node_of(each, configuration) == node), None)
    if _is_over(call, now):
        yield "Nothing: every load balancer was proven right, or rightly left alone."
        return
    if newer:
        yield "The node was called about again since. Look at that call first:"
        yield f"    efm-lb history show {newer.name}{' ' * bool(words)}{words}"
    if attempt.outcome is None and state_of(attempt, configuration.deadline) == RUNNING:
        yield f"Nothing yet: it is at work, as process {attempt.pid}."
        return
    if attempt.outcome is None:
        yield "The process was killed, the host lost power, or the disk, full or hung, took no record of its end."
        if attempt.decision or "balancer" in (attempt.call or {}):
            yield "What the load balancers were told is not known."
        else:
            yield "No decision is recorded either: most probably no load balancer was told anything."
            yield "After a power loss, or where the disk was full or hung, one may have been told all the same."
    elif attempt.exit_code is None:
        yield "The journal of the host that asked has the same call, and what the other load balancers did."
    elif attempt.exit_code == EX_OK and attempt.is_follow_up:
        if state_of(attempt, configuration.deadline) == RUNNING:
            yield f"Nothing yet: the follow-up, process {attempt.pid}, will judge the call again."
            return
        yield "The follow-up has ended, and a load balancer is still not told."
    elif attempt.exit_code == EX_OK and now < _due(attempt) + timedelta(seconds=_LATE):
        yield "Nothing yet: the follow-up will judge the call again, and record it here. Look again in a moment."
        return
    elif attempt.exit_code == EX_OK:
        yield "The follow-up that was owed is not in the journal: it was killed, or the host was restarted."
    elif attempt.exit_code == EX_TEMPFAIL:
        yield "Something failed that may succeed when the call is made again."
    elif attempt.exit_code == EX_UNAVAILABLE:
        yield "Somebody has to change something first: the lines above say what."
    elif attempt.exit_code == EX_SOFTWARE:
        yield "That is a bug: report it, with all of this. Until then, make the load balancers right by hand."
    yield from _chapter(attempt)
    yield "See how things are now; it changes nothing:"
    yield f"    {look}"
    again = _command(call.attempts, words)
    if again:
        yield "When it shows that something is wrong, do the same again; it is safe to do it twice:"
        yield f"    {again}"


def _is_over(call: PastCall, now: datetime) -> bool:
    attempts = list(call.attempts)
    if "balancer" in (attempts[-1].call or {}):  # one for each balancer: the last one says nothing about the others
        return all(attempt.outcome and not attempt.notes and not _failed(attempt) for attempt in attempts)
    return attempts[-1].exit_code == EX_OK and attempts[-1].again_after is None


def _failed(attempt: Attempt) -> bool:
    return any(str(each.get("result", "")).startswith("failed") for each in attempt.told.values())


def _chapter(attempt: Attempt) -> Iterator[str]:
    rule = str(attempt.decision.fields.get("rule", "")) if attempt.decision else ""
    chapter = CHAPTERS.get(rule)
    if attempt.outcome and chapter:
        yield f'docs/runbook.md, "{chapter}", says more.'


def _command(attempts: Iterable[Attempt], words: str) -> str:
    """The command line that makes the call again; empty where another host must."""
    said = next((attempt.call for attempt in attempts if attempt.call), None)
    if said is None or "balancer" in said:
        return ""
    letter = {"primary": "p", "standby": "s"}.get(str(said.get("type")), "")
    if said.get("kind") == "reconcile":
        return f"efm-lb reconcile{' ' * bool(words)}{words}"
    parts = [str(said.get("kind")), shlex.quote(str(said.get("host"))), letter, words]
    return " ".join(["efm-lb", *filter(None, parts)])


def _time(attempt: Attempt) -> str:
    at = attempt.at.astimezone()
    return f"{clock(attempt.at)}.{at.microsecond // 1000:03d}"
