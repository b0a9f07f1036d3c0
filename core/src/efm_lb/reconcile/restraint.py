"""Which differences are acted on now, and which must wait: without I/O, and with the clock as an argument.

Several hosts may run this at once, and hooks run beside it. They do not fight, because each acts on the same truth,
takes no step that is taken already, and keeps still while anybody else is at it:

- A node whose state has just changed is about to be called about: `Reconcile.settle` seconds belong to EFM's hook.
- A standby that is down may only be restarted: it is left in for `Reconcile.detach_after` seconds.
- A view that has changed since the look before is somebody's work in progress: so much time again, unless the balancer
  was just back then and may still have been starting.
- A standby that was taken out while it is up was taken out on purpose, by EFM, a person or another host that sees it
  down: it is left out for `Reconcile.hold` seconds, twice as long each time.
- A balancer that failed is left alone for a while, twice as long each time, until it is started again, or somebody
  else changes something there, or the databases say something new; what only made no difference there, as to take out
  the last one of a list that cannot be empty, holds up nothing else.
- A host that hears less than a majority of the nodes, or none, may itself be what is cut off: it changes nothing. A
  node that refuses is not heard: what cuts a host off may refuse in its place.
- Writes that were moved away from a live primary, to a node that is not heard here, were moved by somebody who sees
  more: unless this host hears a majority, or that node was an older primary when it was last heard; then it is an old
  file that sends the writes there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from math import inf
from typing import NamedTuple

from efm_lb.configuration import Reconcile
from efm_lb.events import Detach, Event, Promote
from efm_lb.reconcile.differences import differences, gone
from efm_lb.reconcile.memory import Memory, restored, text_of
from efm_lb.reconcile.others import Others, writers
from efm_lb.truth import Node, Role, Truth
from efm_lb.views import View

__all__ = ["Held", "Judgement", "Restraint", "Sight"]

_FIRST_PAUSE = 1.0
"""Seconds without a try after a balancer's first failure."""
_LONGEST_PAUSE = 60.0


class Sight(NamedTuple):
    """What is known of the databases.

    :param since: when each node's answer became what it is, by the clock that `Restraint` is given
    """

    truth: Truth
    since: Mapping[Node, float]

    @property
    def heard(self) -> int:
        """The nodes whose servers say anything at all."""
        return sum(state.reach.is_heard for state in self.truth.states)

    @property
    def is_majority(self) -> bool:
        return self.heard * 2 > len(self.truth.states)


class Held(NamedTuple):
    """A difference that is not acted on now.

    :param until: when it may be; infinite when that is not a matter of time
    :param is_wish: it is left alone because a person wants it so
    """

    event: Event
    why: str
    until: float = inf
    is_wish: bool = False


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
        self._balancers: dict[str, Memory] = {}
        self._primaries: dict[Node, int] = {}
        self._down: dict[Node, float] = {}
        self._others = Others(policy.hold, obeys)

    def recall(
        self,
        text: str,
        names: Collection[str],
        nodes: Iterable[Node],
        now: float,
        since: float,
    ) -> None:
        """Go on where another process has ended.

        :param text: its `recollection`
        :param names: of the balancers that there are
        :param now: by this one's clock
        :param since: when that clock was 0, in seconds since 1970
        """
        self._balancers, self._down = restored(text, names, nodes, now, since)

    def is_first_look(self, names: Iterable[str]) -> bool:
        """Whether one of these balancers was never looked at by this process."""
        return any(name not in self._balancers or self._balancers[name].is_first_look for name in names)

    def hear(self, called_out: Mapping[Node, float]) -> None:
        """Know of EFM's calls while nobody looked. One from before its node went down says nothing any more.

        :param called_out: when it called about those nodes that its last call took out while they were up, by this
            process' clock
        """
        self._others.called_out = {node: at for node, at in called_out.items() if at > self._down.get(node, -inf)}

    def recollection(self, since: float) -> str:
        """What another process must know to go on."""
        return text_of(self._balancers, self._down, since)

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
        self._remember_primaries(sight.truth)
        self._remember_outages(sight)
        memory = self._balancers.setdefault(name, Memory())
        before, memory.view = memory.view, view
        was_gone, memory.gone = memory.gone, frozenset(gone(sight.truth))
        if view is None:
            memory.out.clear()  # what it believes when it comes back is nobody's wish
            memory.forgive()
            return Judgement()
        was_starting, memory.is_starting = memory.is_starting, before is None and not memory.is_first_look
        self._others.notice(memory, sight.truth, before, view, was_gone, now)
        primary = sight.truth.primary
        memory.timeline = sight.truth.state(primary).timeline if primary else None
        if before is not None and _believed(view) != _believed(before) and not memory.is_own_work:
            memory.busy_until = now if was_starting else now + self._policy.settle
            memory.forgive()
        memory.is_own_work = memory.is_unfinished = False
        wanted = differences(sight.truth, view)
        if not wanted:
            memory.pause = 0.0
            return Judgement()
        why_none = self._none_at_all(name, sight, in_maintenance)
        if why_none:
            is_wish = name in in_maintenance
            return Judgement((), tuple([Held(event, why_none, is_wish=is_wish) for event in wanted]))
        if any(self._since(event, sight) > memory.failed_at for event in wanted):
            memory.forgive()
        held: list[Held] = []
        events: list[Event] = []
        for event in wanted:
            why, until = self._objection(memory, event, sight, now, in_maintenance)
            if held and isinstance(held[0].event, Promote):
                why, until = f"first {held[0].event.node.name} gets the writes", held[0].until
            if why and until > now:
                held.append(Held(event, why, until, event.node.name in in_maintenance))
            else:
                events.append(event)
        return Judgement(tuple(events), tuple(held))

    def sent(
        self,
        name: str,
        is_right: bool,
        now: float,
        attached: Collection[Node] = (),
        promoted: Node | None = None,
        is_done: bool = True,
        in_vain: Collection[Event] = (),
    ) -> None:
        """Note what came of what was sent to a balancer.

        :param is_right: it made a difference; sending again what makes none helps nobody
        :param attached: the nodes that were put in
        :param promoted: the node that has the writes by now
        :param is_done: all of it was proven; else who is out may be so because of it
        :param in_vain: what made no difference, where that is all that went wrong
        """
        memory = self._balancers.setdefault(name, Memory())
        memory.is_own_work, memory.is_unfinished = True, not is_done
        memory.put_in = tuple(attached)
        # Writes that another node had may have gone by way of a third one, which somebody else had promoted there.
        if promoted and memory.view and not set(writers(memory.view)) - {promoted}:
            memory.view = _with_writes(promoted, memory.view)
        memory.pause = 0.0 if is_right else min(max(_FIRST_PAUSE, 2 * memory.pause), _LONGEST_PAUSE)
        memory.failed_at, memory.paused_until = now, now + memory.pause
        memory.in_vain = frozenset(map(str, in_vain))

    def _none_at_all(self, name: str, sight: Sight, in_maintenance: Collection[str]) -> str:
        """Why nothing may be done about a balancer at all, empty when something may."""
        if name in in_maintenance:
            return f"{name} is in maintenance"
        count = len(sight.truth.states)
        if not sight.heard or (self._policy.majority and count > 2 and not sight.is_majority):
            return f"this host reaches {sight.heard} of {count} nodes: it may be what is cut off"
        return ""

    def _objection(
        self, memory: Memory, event: Event, sight: Sight, now: float, in_maintenance: Collection[str]
    ) -> tuple[str, float]:
        """Why an event is not sent now, and until when; an empty text for no reason at all."""
        node = event.node
        if node.name in in_maintenance and not isinstance(event, Promote):  # writes must never stay on a dead primary
            return f"{node.name} is in maintenance", inf
        settled = self._since(event, sight) + self._policy.settle
        elsewhere = memory.moved_to
        if (
            isinstance(event, Promote)
            and elsewhere
            and not (sight.is_majority or self._was_older_primary(elsewhere, sight.truth.state(node).timeline))
        ):
            return f"somebody has moved the writes to {elsewhere.name}, which does not answer here", inf
        newer = self._newer(sight.truth, node) if isinstance(event, Promote) else ""
        if newer:
            return newer, inf
        if settled > now:
            return f"{node.name} has just changed: that is for EFM's own call", settled
        if isinstance(event, Detach) and not self._was_primary(memory, node):
            returned = self._down[node] + self._policy.detach_after
            if returned > now:
                return f"{node.name} is down, and may only be restarted", returned
        if memory.busy_until > now:
            return "somebody else has just changed something there", memory.busy_until
        if memory.paused_until > now and (not memory.in_vain or str(event) in memory.in_vain):
            return "it failed before", memory.paused_until
        out = memory.out.get(node)
        if not isinstance(event, Detach) and out and out.role is sight.truth.role(node) and out.until > now:
            return f"{node.name} was taken out while it was up: somebody wants it so", out.until
        return "", now

    def _since(self, event: Event, sight: Sight) -> float:
        """Since when the databases say what makes an event wanted."""
        if isinstance(event, Detach):
            return self._down[event.node]
        primary = sight.truth.primary
        return max(sight.since[event.node], sight.since[primary] if primary else 0.0)

    def _remember_primaries(self, truth: Truth) -> None:
        """Keep who was a primary, and on which timeline, until it answers anything else: it may only be restarted."""
        for state in truth.states:
            if state.role is Role.PRIMARY and state.timeline is not None:
                self._primaries[state.node] = state.timeline
            elif state.role:
                self._primaries.pop(state.node, None)

    def _remember_outages(self, sight: Sight) -> None:
        """Keep since when a node is down: while it starts it answers one thing after the other."""
        self._down = {node: self._down.get(node, sight.since[node]) for node in gone(sight.truth)}

    def _was_primary(self, memory: Memory, node: Node) -> bool:
        seen = memory.view.of(node) if memory.view else None
        return node in self._primaries or bool(seen and seen.writes)

    def _was_older_primary(self, node: Node, timeline: int | None) -> bool:
        """Whether it was a primary when it was last heard of, on an older timeline than this one."""
        was = self._primaries.get(node)
        return was is not None and timeline is not None and was < timeline

    def _newer(self, truth: Truth, node: Node) -> str:
        """Who was a primary on a newer timeline when it was last heard of; empty when nobody was."""
        own = truth.state(node).timeline
        for other, timeline in self._primaries.items():
            if own is not None and timeline > own:
                return (
                    f"{other.name} was a primary on timeline {timeline} when it last answered, {node.name} is on {own}"
                )
        return ""


def _believed(view: View) -> frozenset[tuple[Node, bool | None, bool, bool]]:
    return frozenset((seen.node, seen.attached, seen.writes, seen.kept) for seen in view.nodes)


def _with_writes(node: Node, view: View) -> View:
    """The view once a node has got the writes that nobody had."""
    nodes = [seen._replace(attached=True, writes=True, kept=True) if seen.node == node else seen for seen in view.nodes]
    return view._replace(nodes=tuple(nodes))
