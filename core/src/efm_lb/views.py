"""What a balancer believes, and what ``efm-lb check`` finds: for people, not for a hook run."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from efm_lb.truth import Node

__all__ = ["Finding", "NodeView", "Severity", "View"]


class NodeView(NamedTuple):
    """What a balancer believes about one node.

    :param attached: it is in rotation; None where this balancer has no place for it unless it gets the writes
    :param writes: writes are sent to it
    :param detail: the balancer's own words, such as ``up/primary``
    :param kept: it will be so after a reload of the balancer, too
    :param beside: the nodes in place of which alone it serves reads, where the balancer still has these in rotation.
        ``attached`` is False then: it is to be looked after. Whether one of them serves, the balancer may not know
    """

    node: Node
    attached: bool | None
    writes: bool
    detail: str
    kept: bool = True
    beside: tuple[Node, ...] = ()


class View(NamedTuple):
    """What a balancer believes about the cluster's nodes; a node that it does not know is left out.

    :param strangers: backends of the balancer that are no node of the cluster, as ``host:port``
    """

    nodes: tuple[NodeView, ...]
    strangers: tuple[str, ...] = ()

    def of(self, node: Node) -> NodeView | None:
        for seen in self.nodes:
            if seen.node == node:
                return seen
        return None


class Severity(Enum):
    """How bad a finding of ``efm-lb check`` is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Finding(NamedTuple):
    """One line of ``efm-lb check``.

    :param subject: what was looked at, such as a setting's name
    :param detail: what is wrong (or right)
    :param remedy: what to do, empty when nothing
    """

    severity: Severity
    subject: str
    detail: str
    remedy: str = ""
