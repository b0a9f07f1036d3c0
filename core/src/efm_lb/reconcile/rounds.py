"""One round: look at the databases and the balancers, and send what is wanted now."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from efm_lb import lock
from efm_lb.configuration import Configuration, DetachLivePrimary
from efm_lb.dispatch import Answer, Dispatcher
from efm_lb.events import Attach, Detach, Event, Promote
from efm_lb.follow_up import ATTEMPT
from efm_lb.maintenance import in_force
from efm_lb.outcomes import Outcome, Result
from efm_lb.reconcile.attempts import Attempts
from efm_lb.reconcile.differences import disagreement, no_primary, untold
from efm_lb.reconcile.restraint import Judgement, Restraint, Sight
from efm_lb.reconcile.vigil import Vigil
from efm_lb.state import State
from efm_lb.truth import Node, Truth
from efm_lb.views import View

__all__ = ["Round", "Rounds"]

_ORDER = (Promote, Detach, Attach)
"""Writes first, then what cannot serve, then what can."""
_REFRESH = 0.5
"""Seconds that a node has to say once more what it said, before anything is done; one that matters has longer."""
_SOON = 0.1
"""Seconds that balancers which have answered are kept waiting by those that have not, with this look or the next."""
_AGAIN = 0.5
"""Seconds until the next look when a call of EFM's was in the way."""


class Round(NamedTuple):
    """What came of one round.

    :param lines: for a person: what was done, what is wrong, and what waits for what
    :param outcomes: of what was sent, by balancer
    :param is_right: every balancer agrees with the databases, or is left alone on purpose
    :param next_look: when something that waits is due, by ``time.monotonic()``; infinite when nothing is
    """

    lines: tuple[str, ...]
    outcomes: Mapping[str, Outcome]
    is_right: bool
    next_look: float


class Rounds:
    """Rounds about one cluster, by one process.

    :param vigil: who asks the databases
    """

    def __init__(self, configuration: Configuration, vigil: Vigil) -> None:
        self._configuration = configuration
        self._vigil = vigil
        self._state = State(configuration.state_dir, configuration.cluster)
        obeys = configuration.detach_live_primary is DetachLivePrimary.OBEY
        self._restraint = Restraint(configuration.reconcile, obeys)
        self._clock_began = time.time() - time.monotonic()
        self._kept = self._state.reconciled
        self._recall()
        self._dispatcher = Dispatcher(configuration)
        self._attempts = Attempts(f"{configuration.state_dir}/{configuration.cluster}.journal")
        self._locked_since = float("inf")
        self._cut_short = -float("inf")
        self._behind: frozenset[str] = frozenset()

    def play(self, patience: float) -> Round:
        """Play one round: look at every balancer, and do what is to be done about those that have answered meanwhile.

        :param patience: seconds to wait for a call of EFM's that is at work
        """
        until = time.monotonic() + patience
        self._dispatcher.reimport()
        self._sight()  # the first one waits for the databases: what a balancer believes must not grow old meanwhile
        parts: list[tuple[Round, bool]] = []
        silent = set(self._dispatcher.names)
        for views in self._arriving_views():
            if views:
                parts.append(self._part(views, max(0.0, until - time.monotonic())))
                silent -= views.keys()
            elif parts and self._is_due([part for part, _ in parts]):
                self._cut_short, self._behind = time.monotonic(), frozenset(silent)
                break
        parts = parts or [self._part({}, 0.0)]  # what the databases say is told, also where there is no balancer
        if not any(is_wanted for _, is_wanted in parts):
            self._locked_since = float("inf")
        self._keep()
        rounds = [part for part, _ in parts]
        lines = [line for part in rounds for line in part.lines]
        return Round(
            tuple(dict.fromkeys(lines + [f"{name}: has not answered yet" for name in sorted(silent)])),
            {name: outcome for part in rounds for name, outcome in part.outcomes.items()},
            all(part.is_right for part in rounds) and not silent,
            min(part.next_look for part in rounds),
        )

    def _is_due(self, parts: Sequence[Round]) -> bool:
        """Whether balancers that have answered wait for the next round by now, while others are silent.

        Not in one look out of two: a balancer that is slow must have its turn, too.
        """
        now = time.monotonic()
        is_due = now >= min(part.next_look for part in parts) or self._vigil.wait(now)
        return is_due and now >= self._cut_short + 2 * self._look_time

    @property
    def _look_time(self) -> float:
        """Seconds that a balancer has to say what it believes."""
        return min(self._configuration.connect_timeout + 1, self._configuration.deadline)

    def _part(self, views: Mapping[str, Answer], patience: float) -> tuple[Round, bool]:
        """Do what is to be done about some balancers.

        :return: what came of it, and whether there was anything to be done
        """
        alone = in_force(self._configuration.state_dir, self._configuration.cluster)
        in_maintenance = [each.name for each in alone]
        sight = self._sight()
        if self._restraint.is_first_look(views):
            self._restraint.hear(self._called_out())  # as they are now: there may have been one since the start
        now = time.monotonic()
        verdicts = {
            name: self._restraint.judge(name, sight, _view(answer), now, in_maintenance)
            for name, answer in views.items()
        }
        self._attempts.forget([name for name, verdict in verdicts.items() if _view(views[name]) and not any(verdict)])
        waits = [held.until for verdict in verdicts.values() for held in verdict.held]
        wanted = {name: verdict.events for name, verdict in verdicts.items() if verdict.events}
        done: dict[str, list[tuple[Event, Outcome]]] = {}
        lines: list[str] = []
        if wanted:
            done, lines = self._act(wanted, sight, patience)
            if not done:
                waits.append(time.monotonic() + _AGAIN)  # EFM has called about it, or is about to
        for name, sent in done.items():
            last = sent[-1][1]
            attached = [event.node for event, one in sent if isinstance(event, Attach) and one.result is Result.CHANGED]
            promoted = next((event.node for event, one in sent if isinstance(event, Promote) and _is_done(one)), None)
            made_a_difference = last.result is Result.CHANGED
            in_vain = [event for event, _ in sent] if _is_done(last) else ()
            self._restraint.sent(name, made_a_difference, time.monotonic(), attached, promoted, _is_done(last), in_vain)
            waits += [time.monotonic() + last.again_after] if last.again_after is not None else []
            lines += [
                f"{name}: {event}: {one.result.value}: {one.detail}"
                for event, one in sent
                if one.result is not Result.UNCHANGED
            ]
            lines += [
                f"{each}: it got the writes all the same" for each in alone if promoted and each.name == promoted.name
            ]
        outcomes = {name: sent[-1][1] for name, sent in done.items()}
        lines += [*self._attempts.complaints, *_unsolved(sight, views, verdicts, outcomes)]
        self._attempts.complaints.clear()
        is_right = _is_right(sight, views, verdicts, outcomes)
        return Round(tuple(lines), outcomes, is_right, min(waits, default=float("inf"))), bool(wanted)

    def _recall(self) -> None:
        """Go on where the last process has ended."""
        nodes, began = self._configuration.nodes, self._clock_began
        names = [balancer.name for balancer in self._configuration.balancers]
        self._restraint.recall(self._kept, names, nodes, time.monotonic(), began)

    def _called_out(self) -> dict[Node, float]:
        calls = {node: self._state.taken_out(node) for node in self._configuration.nodes}
        return {node: at - self._clock_began for node, at in calls.items() if at is not None}

    def _keep(self) -> None:
        """Write down what the next process must know."""
        text = self._restraint.recollection(self._clock_began)
        if text != self._kept and self._state.keep_reconciled(text):
            self._kept = text

    def _turn(self, patience: float) -> tuple[int | None, list[str]]:
        """The lock of this host's calls: its descriptor, 0 when there is none to be had, None when a call holds it."""
        path = f"{self._configuration.state_dir}/{self._configuration.cluster}.lock"
        try:
            held = lock.acquire(path, patience, gives_way=True)
        except TimeoutError:
            now = time.monotonic()
            self._locked_since = min(self._locked_since, now - patience)
            if now - self._locked_since <= self._configuration.deadline + 1:
                return None, ["waits for a call of EFM's that is at work"]
            return 0, [f"no lock: {path} is held for longer than any call may take: look for a hung efm-lb"]
        except OSError as error:
            return 0, [f"no lock: {error.filename}: {error.strerror}"]
        self._locked_since = float("inf")
        return held, []

    def _act(
        self, wanted: Mapping[str, Sequence[Event]], sight: Sight, patience: float
    ) -> tuple[dict[str, list[tuple[Event, Outcome]]], list[str]]:
        """Send what is wanted, if the databases, asked anew, say what they said, and no call of EFM's is at work.

        The primary, and a node that is to be served, must say so again: a host that was just cut off from them still
        has their last word. They are asked before the lock is taken, for a call of EFM's must not wait for them.

        :return: what came of it by balancer, nothing when it was not sent, and what there is to tell
        """
        served = {event.node for events in wanted.values() for event in events if not isinstance(event, Detach)}
        needed = served.union(sight.truth.primaries)
        silent = needed.difference(self._vigil.refresh(_REFRESH, needed))
        if silent:
            names = " and ".join(sorted(node.name for node in silent))
            return {}, [f"waits for {names}, to say once more what was said before anything is done"]
        asked = time.monotonic()
        held, lines = self._turn(patience)
        try:
            is_old = time.monotonic() > asked + _REFRESH  # a call of EFM's was at work
            if held is None or is_old or _said(self._sight().truth) != _said(sight.truth):
                return {}, lines
            return self._send(wanted), lines
        finally:
            if held:
                os.close(held)

    def _sight(self) -> Sight:
        sight = self._vigil.sight(self._state.timeline)
        self._state.remember(sight.truth)
        return sight

    def _arriving_views(self) -> Iterator[Mapping[str, Answer]]:
        """Of all balancers, but those that are still being asked since the last look."""
        now = time.monotonic()
        if now >= self._cut_short + self._look_time:
            self._behind = frozenset()
        asked = self._dispatcher.among(set(self._dispatcher.names) - self._behind)
        return asked.arriving_views(self._configuration.nodes, now + self._look_time, _SOON)

    def _send(self, wanted: Mapping[str, Sequence[Event]]) -> dict[str, list[tuple[Event, Outcome]]]:
        """Send each event to all balancers that need it at once; what fails at a balancer is the last one for it."""
        deadline = time.monotonic() + min(self._configuration.deadline, ATTEMPT)
        done: dict[str, list[tuple[Event, Outcome]]] = {name: [] for name in wanted}
        distinct = dict.fromkeys(event for events in wanted.values() for event in events)
        for event in sorted(distinct, key=lambda event: _ORDER.index(type(event))):
            names = [
                name
                for name, events in wanted.items()
                if event in events and not (done[name] and done[name][-1][1].failed)
            ]
            if not names:
                continue
            attempt = self._attempts.begin(event, names)
            outcomes = self._dispatcher.among(names).send(event, deadline)
            for outcome in outcomes:
                done[outcome.balancer].append((event, outcome))
            self._attempts.end(attempt, outcomes)
        return {name: sent for name, sent in done.items() if sent}


def _view(answer: Answer) -> View | None:
    return answer.value if isinstance(answer.value, View) else None


def _said(truth: Truth) -> list[tuple[object, ...]]:
    return [state[1:4] for state in truth.states]


def _is_done(outcome: Outcome) -> bool:
    return outcome.result in (Result.CHANGED, Result.UNCHANGED)


def _unsolved(
    sight: Sight, views: Mapping[str, Answer], verdicts: Mapping[str, Judgement], outcomes: Mapping[str, Outcome]
) -> list[str]:
    """What is wrong and was not acted on, and why."""
    lines = []
    if not sight.truth.primary:
        lines += [f"{node} {what}" for node, what in untold(sight.truth).items()]
        lines.append(no_primary(sight.truth))
    for name, answer in views.items():
        if answer.failure:
            lines.append(f"{name}: {answer.failure.detail}")
        lines += [f"{name}: {held.event} waits: {held.why}" for held in verdicts[name].held]
        view = _view(answer)
        if view and name not in outcomes and not verdicts[name].held:
            lines += [f"{name}: {node} {what}" for node, what in disagreement(sight.truth, view).items()]
    return lines


def _is_right(
    sight: Sight, views: Mapping[str, Answer], verdicts: Mapping[str, Judgement], outcomes: Mapping[str, Outcome]
) -> bool:
    for name, answer in views.items():
        outcome = outcomes.get(name)
        if answer.failure or (outcome and not _is_done(outcome)):
            return False
        if verdicts[name].events and not outcome:
            return False
        if any(not held.is_wish for held in verdicts[name].held):
            return False
        view, primary = _view(answer), sight.truth.primary
        if view and primary and view.of(primary) is None:
            return False
    return bool(sight.truth.primary)
