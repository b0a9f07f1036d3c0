"""Which differences are acted on now, and which must wait: without I/O, and with the clock as an argument.

Several hosts may run this at once, and hooks run beside it. They do not fight, because each acts on the same truth,
takes no step that is taken already, and keeps still while anybody else is at it:

- A node whose state has just changed is about to be called about: `Reconcile.settle` seconds belong to EFM's hook.
- A view that has changed since the look before is somebody's work in progress: so much time again.
- A standby that was taken out while it is up was taken out on purpose, by EFM, a person or another host that sees it
  down: it is left out for `Reconcile.hold` seconds, twice as long each time.
- A balancer that failed is left alone for a while, twice as long each time.
- A host that sees less than a majority of the nodes may itself be what is cut off: it changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from efm_lb.configuration import Reconcile
from efm_lb.events import Detach, Event, Promote
from efm_lb.reconcile.differences import differences
from efm_lb.truth import Node, Reach, Role, Truth
from efm_lb.views import View

__all__ = ["Held", "Judgement", "Restraint", "Sight"]

_FIRST_PAUSE = 1.0
"""Seconds without a try after a balancer's first failure."""
_LONGEST_PAUSE = 60.0
_LONGEST_HOLD = 3600.0


class Sight(NamedTuple):
    """What is known of the databases.

    :param since: when each node's answer became what it is, by the clock that `Restraint` is given
    """

    truth: Truth
    since: Mapping[Node, float]

    @property
    def answers(self) -> int:
        """The nodes that answer anything at all, if only that nobody listens there."""
        return sum(state.reach is not Reach.NO_RESPONSE for state in self.truth.states)


class Held(NamedTuple):
    """A difference that is not acted on now.

    :param until: when it may be; infinite when that is not a matter of time
    """

    event: Event
    why: str
    until: float = float("inf")


class Judgement(NamedTuple):
    """What is to be done about one balancer.

    :param events: to send, in this order
    :param held: what is not
    """

    events: tuple[Event, ...] = ()
    held: tuple[Held, ...] = ()


class Restraint:
    """Judges the differences of all balancers, look after look.

    :param policy: ``EFM_LB_RECONCILE__*``
    :param obeys: EFM may take out a live primary, too: ``EFM_LB_DETACH_LIVE_PRIMARY`` is ``obey``
    """

    def __init__(self, policy: Reconcile, obeys: bool = False) -> None:
        self._policy = policy
        self._obeys = obeys
        self._balancers: dict[str, _Memory] = {}

    def judge(
        self,
        name: str,
        sight: Sight,
        view: View | None,
        now: float,
        in_maintenance: Collection[str] = (),
    ) -> Judgement:
        """Judge one balancer at one look.

        :param view: None when it could not be had
        :param in_maintenance: the names of the nodes and balancers that are a person's business now
        """
        memory = self._balancers.setdefault(name, _Memory())
        before, memory.view = memory.view, view
        if view is None:
            memory.out.clear()  # what it believes when it comes back is nobody's wish
            return Judgement()
        self._notice(memory, sight, before, view, now)
        if before is not None and _believed(view) != _believed(before) and not memory.is_own_work:
            memory.busy_until = now + self._policy.settle
        memory.is_own_work = False
        wanted = differences(sight.truth, view)
        if not wanted:
            memory.pause = 0.0
            return Judgement()
        why_none = self._none_at_all(name, sight, in_maintenance)
        if why_none:
            return Judgement((), tuple([Held(event, why_none) for event in wanted]))
        held: list[Held] = []
        events: list[Event] = []
        for event in wanted:
            why, until = self._objection(memory, event, sight, now, in_maintenance)
            if held and isinstance(held[0].event, Promote):
                why, until = f"first {held[0].event.node.name} gets the writes", held[0].until
            if why and until > now:
                held.append(Held(event, why, until))
            else:
                events.append(event)
        return Judgement(tuple(events), tuple(held))

    def sent(self, name: str, is_right: bool, now: float) -> None:
        """Note what came of what was sent to a balancer."""
        memory = self._balancers.setdefault(name, _Memory())
        memory.is_own_work = True
        memory.pause = 0.0 if is_right else min(max(_FIRST_PAUSE, 2 * memory.pause), _LONGEST_PAUSE)
        memory.paused_until = now + memory.pause

    def _none_at_all(self, name: str, sight: Sight, in_maintenance: Collection[str]) -> str:
        """Why nothing may be done about a balancer at all, empty when something may."""
        if name in in_maintenance:
            return f"{name} is in maintenance"
        count = len(sight.truth.states)
        if self._policy.majority and count > 2 and sight.answers * 2 <= count:
            return f"this host reaches {sight.answers} of {count} nodes: it may be what is cut off"
        return ""

    def _objection(
        self, memory: _Memory, event: Event, sight: Sight, now: float, in_maintenance: Collection[str]
    ) -> tuple[str, float]:
        """Why an event is not sent now, and until when; an empty text for no reason at all."""
        node = event.node
        if node.name in in_maintenance:
            return f"{node.name} is in maintenance", float("inf")
        settled = sight.since[node] + self._policy.settle
        if not isinstance(event, Detach) and sight.truth.primary:
            settled = max(settled, sight.since[sight.truth.primary] + self._policy.settle)
        if settled > now:
            return f"{node.name} has just changed: that is for EFM's own call", settled
        if memory.busy_until > now:
            return "somebody else has just changed something there", memory.busy_until
        if memory.paused_until > now:
            return "it failed before", memory.paused_until
        out = memory.out.get(node)
        if not isinstance(event, Detach) and out and out.role is sight.truth.role(node) and out.until > now:
            return f"{node.name} was taken out while it was up: somebody wants it so", out.until
        return "", now

    def _notice(self, memory: _Memory, sight: Sight, before: View | None, view: View, now: float) -> None:
        """Keep account of the nodes that were taken out while they were up."""
        for node in _gone(sight.truth):
            memory.out.pop(node, None)
        if before is None or memory.is_own_work:
            return
        # A balancer that moves its writes may throw standbys out on the way.
        moves = bool(_writers(view)) and _writers(before) != _writers(view)
        for seen in view.nodes:
            was, role = before.of(seen.node), sight.truth.role(seen.node)
            taken_out = role is Role.STANDBY and not moves and was and was.attached and seen.attached is False
            obeyed = self._obeys and role is Role.PRIMARY and was and was.writes and not _writers(view)
            if role and (taken_out or obeyed):
                last = memory.out.get(seen.node)
                hold = min(2 * last.hold, _LONGEST_HOLD) if last else self._policy.hold
                memory.out[seen.node] = _Out(role, hold, now + hold)


class _Out(NamedTuple):
    """A node that somebody has taken out.

    :param role: the one that it had; in the other one it is wanted elsewhere
    """

    role: Role
    hold: float
    until: float


class _Memory:
    """What is remembered of one balancer."""

    def __init__(self) -> None:
        self.view: View | None = None
        self.is_own_work = False
        self.busy_until = 0.0
        self.pause = 0.0
        self.paused_until = 0.0
        self.out: dict[Node, _Out] = {}


def _believed(view: View) -> frozenset[tuple[Node, bool | None, bool]]:
    return frozenset((seen.node, seen.attached, seen.writes) for seen in view.nodes)


def _writers(view: View) -> list[Node]:
    return [seen.node for seen in view.nodes if seen.writes]


def _gone(truth: Truth) -> Iterable[Node]:
    return [state.node for state in truth.states if state.reach is not Reach.ACCEPTING]
