"""efm-lb: one EDB Failover Manager hook for every load balancer.

This module is the public API for adapters. Importing it is cheap on purpose: a hook
run is a fresh process during an outage.
"""

from __future__ import annotations

from pluggy import HookimplMarker

from efm_lb.balancers import Balancer, Finding, NodeView, Severity, View
from efm_lb.events import Attach, Detach, Event, Origin, Promote
from efm_lb.outcomes import Outcome, PermanentError, Result, TemporaryError
from efm_lb.truth import Node, NodeState, Reach, Role, Truth

__version__ = "0.1.0"

hookimpl = HookimplMarker("efm_lb")
"""Marks an adapter's implementation of a hook in `efm_lb.hookspecs`."""

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
]
