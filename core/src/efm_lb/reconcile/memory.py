"""What is remembered of the balancers from look to look, and its text for the next process.

One line for each thing, its words separated by tabs; times are seconds since 1970. A line that makes no sense means
nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import isfinite
from typing import NamedTuple

from efm_lb.truth import Node, Role
from efm_lb.views import NodeView, View

__all__ = ["LONGEST_HOLD", "Memory", "Out", "restored", "text_of"]

LONGEST_HOLD = 3600.0


class Out(NamedTuple):
    """A node that somebody has taken out.

    :param role: the one that it had; in the other one it is wanted elsewhere
    :param hold: seconds that it stays out
    """

    role: Role
    hold: float
    until: float


class Memory:
    """What is remembered of one balancer.

    :ivar is_first_look: this process has not seen it yet
    :ivar is_starting: it was away, and was back at the last look
    :ivar view: what it believed at the last look, and who has got the writes since by what was sent
    :ivar gone: the nodes that served nobody then
    :ivar timeline: the primary's, then
    :ivar is_own_work: something was sent to it since
    :ivar is_unfinished: and not all of that was done: who is out may be so because of it
    :ivar put_in: the nodes that were attached by that
    :ivar pause: seconds that it is left alone since it failed the last time, at ``failed_at``
    :ivar in_vain: events that made no difference, which alone wait for the end of the pause; empty when all do
    :ivar moved_to: the node that is not heard here and that somebody has moved the writes to
    """

    def __init__(self) -> None:
        self.is_first_look = True
        self.is_starting = False
        self.view: View | None = None
        self.gone: frozenset[Node] = frozenset()
        self.timeline: int | None = None
        self.is_own_work = self.is_unfinished = False
        self.put_in: tuple[Node, ...] = ()
        self.busy_until = 0.0
        self.pause = 0.0
        self.failed_at = self.paused_until = 0.0
        self.in_vain: frozenset[str] = frozenset()
        self.out: dict[Node, Out] = {}
        self.moved_to: Node | None = None

    def forgive(self) -> None:
        """Something has changed, there or at the databases: what failed may succeed now."""
        self.pause = self.paused_until = 0.0
        self.in_vain = frozenset()


_ATTACHED = {"in": True, "out": False, "-": None}
_WORDS = {attached: word for word, attached in _ATTACHED.items()}


def text_of(balancers: Mapping[str, Memory], down: Mapping[Node, float], since: float) -> str:
    """What the next process must know.

    :param down: since when each node is down
    :param since: of the clock that the times are by: when it was 0, in seconds since 1970
    """
    lines = [["down", node.name, f"{at + since:.0f}"] for node, at in down.items()]
    for name, memory in balancers.items():
        lines += [
            [
                *("saw", name, seen.node.name, _WORDS[seen.attached], "writes" if seen.writes else "-"),
                *([] if seen.kept else ["not kept"]),
            ]
            for seen in (memory.view.nodes if memory.view else ())
        ]
        if memory.timeline is not None:
            lines.append(["timeline", name, str(memory.timeline)])
        if memory.is_own_work:
            kind = "tried" if memory.is_unfinished else "sent"
            lines.append([kind, name, *[node.name for node in memory.put_in]])
        for node, out in memory.out.items():
            lines.append(["out", name, node.name, out.role.value, f"{out.hold:.0f}", f"{out.until + since:.0f}"])
        if memory.moved_to:
            lines.append(["moved", name, memory.moved_to.name])
    return "\n".join("\t".join(line) for line in lines)


def restored(
    text: str, names: Collection[str], nodes: Iterable[Node], now: float, since: float
) -> tuple[dict[str, Memory], dict[Node, float]]:
    """The opposite of `text_of`: the balancers' memories, and since when each node is down.

    What a clock that was wrong has written waits for nothing that is further away than it can be.

    :param names: of the balancers that there are now
    :param nodes: that there are now
    :param now: by the clock that the times are to be by
    """
    known = {node.name: node for node in nodes}
    balancers: dict[str, Memory] = {}
    down: dict[Node, float] = {}
    for kind, *words in (line.split("\t") for line in text.splitlines()):
        try:
            if kind == "down":
                node, at = words
                down[known[node]] = min(_number(at) - since, now)
            elif words[0] in names:
                _take(balancers.setdefault(words[0], Memory()), kind, words[1:], known, now, since)
        except (KeyError, ValueError, IndexError):
            continue
    for memory in balancers.values():
        memory.gone = frozenset(down)
    return balancers, down


def _take(memory: Memory, kind: str, words: Sequence[str], known: Mapping[str, Node], now: float, since: float) -> None:
    if kind == "saw":
        node, attached, writes, *kept = words
        seen = NodeView(known[node], _ATTACHED[attached], writes == "writes", "", kept != ["not kept"])
        memory.view = View((*(memory.view.nodes if memory.view else ()), seen))
    elif kind == "timeline":
        memory.timeline = int(words[0])
    elif kind in ("sent", "tried"):
        memory.is_own_work, memory.is_unfinished = True, kind == "tried"
        memory.put_in = tuple([known[node] for node in words])
    elif kind == "out":
        node, role, hold, until = words
        seconds = min(max(_number(hold), 0.0), LONGEST_HOLD)
        memory.out[known[node]] = Out(Role(role), seconds, min(_number(until) - since, now + seconds))
    elif kind == "moved":
        memory.moved_to = known[words[0]]


def _number(word: str) -> float:
    number = float(word)
    if not isfinite(number):
        raise ValueError(word)
    return number
