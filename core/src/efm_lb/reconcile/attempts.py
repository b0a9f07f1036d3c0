"""What reconcile sends, in the journal: each attempt before it is made, and what came of it.

What is sent again in vain, perhaps for weeks, takes a hundred bytes each time, and is told in full once a day and when
something else comes of it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import NamedTuple

from efm_lb.decide import Decision, Verdict
from efm_lb.events import Event
from efm_lb.journal import AT_LAST, BEFORE_ACTING, Journal, decided, outcomes_of
from efm_lb.outcomes import Outcome, Result, exit_code_of
from efm_lb.state import new_call

__all__ = ["Attempt", "Attempts"]

_DAY = 86400.0


class Attempt(NamedTuple):
    """One event that is about to be sent.

    :param call: its name in the journal
    :param is_repeated: it was sent in vain before, under the same name, to the same balancers
    """

    event: Event
    call: str
    journal: Journal
    is_repeated: bool


class _Vain(NamedTuple):
    """What made no difference at a balancer the last time.

    :param said: what came of it
    :param call: the name of the attempt that was told in full
    :param at: when that was, by ``time.monotonic()``
    """

    said: str
    call: str
    at: float


class Attempts:
    """The journal of one process.

    :param path: see `efm_lb.journal.Journal`
    :ivar complaints: what a person must know of the journal itself
    """

    def __init__(self, path: str) -> None:
        self.complaints: list[str] = []
        self._path = path
        self._repeated = Journal(path, "")
        self._in_vain: dict[tuple[str, str], _Vain] = {}

    def begin(self, event: Event, balancers: Sequence[str]) -> Attempt:
        """Record that something is about to be sent, before it is."""
        last = [self._in_vain.get((name, str(event))) for name in balancers]
        known = [each for each in last if each and time.monotonic() < each.at + _DAY]
        if known and len(known) == len(balancers):
            return Attempt(event, known[0].call, self._told_again(known[0].call), is_repeated=True)
        return self._told(event)

    def end(self, attempt: Attempt, outcomes: Sequence[Outcome]) -> None:
        """Record what came of it."""
        event = attempt.event
        said = {(outcome.balancer, str(event)): _in_vain(outcome) for outcome in outcomes}
        if not attempt.is_repeated or any(self._in_vain[key].said != words for key, words in said.items()):
            if attempt.is_repeated:
                attempt = self._told(event)
            now = time.monotonic()
            self._in_vain = {key: vain for key, vain in self._in_vain.items() if key not in said}
            self._in_vain |= {key: _Vain(words, attempt.call, now) for key, words in said.items() if words}
            attempt.journal.record("outcome", exit_code=exit_code_of(outcomes), outcomes=outcomes_of(outcomes))
            attempt.journal.settle(AT_LAST)
        if attempt.journal.failure and attempt.journal.failure not in self.complaints:
            self.complaints.append(attempt.journal.failure)

    def forget(self, balancers: Collection[str]) -> None:
        """They are right: what fails there from now on is a new failure."""
        self._in_vain = {key: vain for key, vain in self._in_vain.items() if key[0] not in balancers}

    def _told(self, event: Event) -> Attempt:
        call = new_call()
        journal = Journal(self._path, call)
        journal.record("call", kind="reconcile", host=event.node.name, type=None, follow_up=False)
        decision = Decision(Verdict.ACT, "a balancer disagrees with the databases", event)
        journal.record("decision", **decided(decision, event.truth))
        journal.settle(BEFORE_ACTING)
        return Attempt(event, call, journal, is_repeated=False)

    def _told_again(self, call: str) -> Journal:
        if not self._repeated.is_behind:  # while the disk hangs no other thread is given to it
            self._repeated = Journal(self._path, call)
            self._repeated.record("again")
            self._repeated.settle(BEFORE_ACTING)
        return self._repeated


def _in_vain(outcome: Outcome) -> str:
    """What came of something that made no difference; empty when it made one."""
    return "" if outcome.result is Result.CHANGED else f"{outcome.result.value}: {outcome.detail}"
