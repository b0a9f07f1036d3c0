"""The timeline that a balancer's writes follow, as a comment of ours in the balancer's own file. Pure.

A host that was away, or was set up anew, does not know of a promotion that it has not seen, and no other node may
answer it. The file that it is about to change knows, for it goes where the balancer goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from efm_lb.outcomes import PermanentError
from efm_lb.truth import Node

__all__ = ["TimelineMark", "demand_not_older", "timeline_mark", "timeline_marks"]

_WORDS = b"efm-lb: writes follow timeline "
_DIGITS = b"0123456789"
_MOST_DIGITS = 10
"""A timeline is a number of 32 bits."""


class TimelineMark:
    """One mark in a file. Written out: a named tuple is made at each start, for a quarter of a millisecond.

    :param start: where it begins, the sign of the comment included
    :param end: the first byte after it
    """

    __slots__ = ("end", "start", "timeline")

    def __init__(self, start: int, end: int, timeline: int) -> None:
        self.start = start
        self.end = end
        self.timeline = timeline


def timeline_mark(sign: bytes, timeline: int) -> bytes:
    """The comment, without what ends its line.

    :param sign: what a comment begins with in that file, one byte
    """
    return b"%b %b%d" % (sign, _WORDS, timeline)


def timeline_marks(sign: bytes, content: bytes, start: int = 0, end: int | None = None) -> list[TimelineMark]:
    """The marks between two positions, wherever they stand: whether that is in a comment is for the caller to know.

    A number that can be no timeline makes none.
    """
    end = len(content) if end is None else end
    text = sign + b" " + _WORDS
    found = []
    while (start := content.find(text, start, end)) >= 0:
        number = after = start + len(text)
        while after < end and content[after] in _DIGITS:
            after += 1
        if 0 < after - number <= _MOST_DIGITS:
            found.append(TimelineMark(start, after, int(content[number:after])))
        start = after
    return found


def demand_not_older(node: Node, timeline: int, found: Iterable[tuple[str, int, int]], removal: Sequence[str]) -> None:
    """Refuse to move writes to a node on an older timeline than they follow already.

    :param timeline: the node's
    :param found: the marks: file, line, timeline
    :param removal: the command that removes the marks from the files that are put behind it
    :raises PermanentError: there is a mark of a newer timeline
    """
    newer = [mark for mark in found if mark[2] > timeline]
    if not newer:
        return
    # Not needed but here.
    from shlex import join

    path, line, newest = max(newer, key=lambda mark: mark[2])
    command = join([*removal, *dict.fromkeys(mark[0] for mark in newer)])
    raise PermanentError(
        f"{path}:{line}: writes follow timeline {newest}, and {node.address} is on timeline {timeline}: it has missed"
        " a promotion, so it gets no writes: stop it. Only where the newer timeline is gone for good (pg_upgrade,"
        f" initdb, a restore, a primary that is given up), remove the mark, and call again: {command}"
    )
