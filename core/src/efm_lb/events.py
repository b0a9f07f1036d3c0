"""The typed events that adapters receive, and the node they are about.

An event is decided from an EFM call and the truth (see `efm_lb.decide`); it is a
wish about one node's place in a balancer, never a command sequence. Every event
carries the truth it was decided on, so that an adapter can judge the other nodes
without asking the databases again.
"""

from __future__ import annotations

from enum import Enum
from typing import NoReturn

from efm_lb.truth import Node, Truth

__all__ = ["Attach", "Detach", "Event", "Origin", "Promote"]


class Origin(Enum):
    """What caused an event."""

    HOOK = "hook"
    """EFM called a script hook."""
    FOLLOW_UP = "follow-up"
    """A deferred call is judged again after its grace time; nothing is held back a second time."""
    RECONCILE = "reconcile"
    """Truth and view were compared without a call."""
    OPERATOR = "operator"
    """A person asked for it."""


class Event:
    """One wish about one node; immutable, and equal to an event of the same type and content.

    Written out, because `dataclasses` would take a tenth of the hook's start-up budget.

    :param node: the node that the event is about
    :param truth: what the databases said when it was decided
    :param origin: what caused it
    """

    __slots__ = ("node", "origin", "truth")

    node: Node
    truth: Truth
    origin: Origin

    def __init__(self, node: Node, truth: Truth, origin: Origin = Origin.HOOK) -> None:
        object.__setattr__(self, "node", node)
        object.__setattr__(self, "truth", truth)
        object.__setattr__(self, "origin", origin)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"an event cannot be changed ({name})")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"an event cannot be changed ({name})")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self) or not isinstance(other, Event):
            return NotImplemented
        return (self.node, self.truth, self.origin) == (other.node, other.truth, other.origin)

    def __hash__(self) -> int:
        return hash((type(self), self.node, self.truth, self.origin))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(node={self.node!r}, truth={self.truth!r}, origin={self.origin})"

    def __str__(self) -> str:
        """What is wanted, in a few words: ``promote 10.0.0.12``."""
        return f"{type(self).__name__.lower()} {self.node.name}"


class Attach(Event):
    """Put ``node`` into rotation for reads. Never moves writes.

    ``truth.role(node)`` is what the database itself says; an adapter must not give
    writes to a node because it was attached.
    """

    __slots__ = ()


class Detach(Event):
    """Take ``node`` out of rotation.

    ``truth.primary`` is the node that writes may go to instead, or None when no
    promotion is proven; an adapter may then hold back what would block its balancer.
    """

    __slots__ = ()


class Promote(Event):
    """Send writes to ``node``, which is proven to be the only writable primary.

    ``truth.standbys`` are the nodes proven to be up and in recovery: those that the
    promotion itself knocks out of a balancer are to be put back.
    """

    __slots__ = ()
