"""The typed events that adapters receive, and the node they are about.

An event is decided from an EFM call and the truth (see `efm_lb.decide`); it is a
wish about one node's place in a balancer, never a command sequence. Every event
carries the truth it was decided on, so that an adapter can judge the other nodes
without asking the databases again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

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


@dataclass(frozen=True, slots=True)
class Attach:
    """Put ``node`` into rotation for reads. Never moves writes.

    ``truth.role(node)`` is what the database itself says; an adapter must not give
    writes to a node because it was attached.
    """

    node: Node
    truth: Truth
    origin: Origin = Origin.HOOK


@dataclass(frozen=True, slots=True)
class Detach:
    """Take ``node`` out of rotation.

    ``truth.primary`` is the node that writes may go to instead, or None when no
    promotion is proven; an adapter may then hold back what would block its balancer.
    """

    node: Node
    truth: Truth
    origin: Origin = Origin.HOOK


@dataclass(frozen=True, slots=True)
class Promote:
    """Send writes to ``node``, which is proven to be the only writable primary.

    ``truth.standbys`` are the nodes proven to be up and in recovery: those that the
    promotion itself knocks out of a balancer are to be put back.
    """

    node: Node
    truth: Truth
    origin: Origin = Origin.HOOK


Event = Attach | Detach | Promote
