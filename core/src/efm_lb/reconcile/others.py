"""What others have done at a balancer between two looks: taken a node out that was up, moved the writes. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import inf

from efm_lb.reconcile.differences import gone
from efm_lb.reconcile.memory import LONGEST_HOLD, Memory, Out
from efm_lb.truth import Node, Role, Truth
from efm_lb.views import NodeView, View

__all__ = ["Others", "writers"]


class Others:
    """Notices what EFM, a person or another host has done, and keeps it in the balancer's `Memory`.

    :param hold: seconds that a node which was taken out while it was up stays out, the first time
    :param obeys: EFM may take out a live primary, too
    :ivar called_out: when EFM called about those nodes that its last call took out while they were up
    """

    def __init__(self, hold: float, obeys: bool) -> None:
        self.called_out: Mapping[Node, float] = {}
        self._hold = hold
        self._obeys = obeys

    def notice(
        self,
        memory: Memory,
        truth: Truth,
        before: View | None,
        view: View,
        was_gone: Collection[Node],
        now: float,
    ) -> None:
        """Keep account, at one look.

        :param before: what the balancer believed at the look before, None when it was not seen then
        :param was_gone: the nodes that served nobody at the look before: whoever took them out took out dead ones
        """
        for node in gone(truth):
            memory.out.pop(node, None)
        called = self._notice_calls(memory, truth, view, now) if memory.is_first_look else ()
        memory.is_first_look = False
        if before is None:
            return
        moved = _moved(truth, memory.timeline, before, view)
        if moved and not memory.is_own_work:
            memory.moved_to = moved
        elif memory.moved_to and not _is_hidden(truth, view, memory.moved_to):
            memory.moved_to = None
        if memory.is_own_work:
            for node in set(memory.put_in).difference(called):
                seen = view.of(node)
                if seen and seen.attached is False and truth.role(node) is Role.STANDBY:
                    self._stays_out(memory, node, Role.STANDBY, now)  # taken out again before this look
        if memory.is_unfinished:
            return
        # A balancer that moves its writes may throw standbys out on the way, also when it moves them away and back. A
        # standby that loses the writes has lost what was not its own; somebody may have meant the primary that it was.
        # Nobody has taken out a primary that is in rotation and only has no writes: a pgpool looks for its primary in
        # vain, or a haproxy.cfg is an old one.
        is_back = writers(view) == [truth.primary] and _was_promoted(truth, memory.timeline)
        moves = is_back or (bool(writers(view)) and writers(before) != writers(view))
        for seen in view.nodes:
            was, role = before.of(seen.node), truth.role(seen.node)
            taken_out = role is Role.STANDBY and not moves and was is not None and _goes_out(was, seen)
            lost_all = was is not None and was.writes and not writers(view) and seen.attached is not True
            obeyed = self._obeys and role is Role.PRIMARY and lost_all
            if role and seen.node not in (*called, *was_gone) and (taken_out or obeyed):
                # Out of the file before, and noticed then: that is the same once more.
                self._stays_out(memory, seen.node, role, now, is_same=bool(was and not was.kept))

    def _notice_calls(self, memory: Memory, truth: Truth, view: View, now: float) -> Collection[Node]:
        """Keep account of what EFM's calls have taken out while nobody looked, and tell which nodes these are."""
        found = []
        for seen in view.nodes:
            role, called = truth.role(seen.node), self.called_out.get(seen.node, -inf)
            until = called + self._hold
            is_out = seen.attached is False if role is Role.STANDBY else self._obeys and not writers(view)
            if role and is_out and until > now and seen.node not in memory.out:
                memory.out[seen.node] = Out(role, self._hold, min(until, now + self._hold))
                found.append(seen.node)
        return found

    def _stays_out(self, memory: Memory, node: Node, role: Role, now: float, is_same: bool = False) -> None:
        last = memory.out.get(node)
        is_again = last is not None and now < last.until + last.hold
        hold = min((1 if is_same else 2) * last.hold, LONGEST_HOLD) if last and is_again else self._hold
        memory.out[node] = Out(role, hold, now + hold)


def writers(view: View) -> list[Node]:
    """The nodes that get the writes."""
    return [seen.node for seen in view.nodes if seen.writes]


def _goes_out(was: NodeView, seen: NodeView) -> bool:
    """Whether a node that served reads does so no more, or not after the next reload."""
    return bool(was.attached) and not was.writes and (seen.attached is False or (was.kept and not seen.kept))


def _moved(truth: Truth, timeline: int | None, before: View, view: View) -> Node | None:
    """The node that is not heard here and that writes go to now, and went to the only live primary before.

    :param timeline: the primary's before, None when it was not known; on a newer one it was promoted since
    """
    primary = truth.primary
    if primary is None or writers(before) != [primary] or _was_promoted(truth, timeline):
        return None
    return next((node for node in writers(view) if _is_hidden(truth, view, node)), None)


def _was_promoted(truth: Truth, timeline: int | None) -> bool:
    """Whether the primary is on a newer timeline than one was before."""
    own = truth.state(truth.primary).timeline if truth.primary else None
    return own is not None and timeline is not None and own > timeline


def _is_hidden(truth: Truth, view: View, node: Node) -> bool:
    return not truth.state(node).reach.is_heard and node in writers(view)
