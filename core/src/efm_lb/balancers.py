"""A configured balancer, and what it believes about the nodes (its view)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

from efm_lb.truth import Node

__all__ = ["Balancer", "Finding", "NodeView", "Severity", "View"]


class Balancer(NamedTuple):
    """One running balancer, as configured by ``EFM_LB_BALANCERS__<NAME>__*``.

    :param name: lower-case ``<NAME>``
    :param adapter: the entry-point name of the adapter that speaks to it
    :param settings: the adapter's own settings, coerced and validated by its schema, defaults filled in
    :param connect_timeout: seconds that a connect or a login may take (``EFM_LB_CONNECT_TIMEOUT``)
    """

    name: str
    adapter: str
    settings: Mapping[str, Any]
    connect_timeout: float = 2.0


class NodeView(NamedTuple):
    """What a balancer believes about one node.

    :param attached: it is in rotation
    :param writes: writes are sent to it
    :param detail: the balancer's own words, such as ``up/primary``
    """

    node: Node
    attached: bool
    writes: bool
    detail: str


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
