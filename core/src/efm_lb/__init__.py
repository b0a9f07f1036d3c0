"""efm-lb: one EDB Failover Manager hook for every load balancer.

This module is the public API for adapters. Importing it is cheap on purpose: a hook
run is a fresh process during an outage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from efm_lb.balancers import Balancer
from efm_lb.events import Attach, Detach, Event, Origin, Promote
from efm_lb.outcomes import Outcome, PermanentError, Result, TemporaryError
from efm_lb.truth import Node, NodeState, Reach, Role, Truth

if TYPE_CHECKING:
    from efm_lb.hookspecs import hookimpl
    from efm_lb.replace import read_file, replace_file
    from efm_lb.views import Finding, NodeView, Severity, View

__version__ = "0.1.0"

__all__ = [
    "Attach",
    "Balancer",
    "Detach",
    "Event",
    "Finding",
    "Node",
    "NodeState",
    "NodeView",
    "Origin",
    "Outcome",
    "PermanentError",
    "Promote",
    "Reach",
    "Result",
    "Role",
    "Severity",
    "TemporaryError",
    "Truth",
    "View",
    "hookimpl",
    "read_file",
    "replace_file",
]


def __getattr__(name: str) -> object:
    """Load what not every hook run needs when it is first asked for (PEP 562)."""
    if name == "hookimpl":
        from efm_lb.hookspecs import hookimpl

        return hookimpl
    if name in ("Finding", "NodeView", "Severity", "View"):
        from efm_lb import views

        return getattr(views, name)
    if name in ("read_file", "replace_file"):
        from efm_lb import replace

        return getattr(replace, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
