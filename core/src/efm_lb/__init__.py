"""efm-lb: one EDB Failover Manager hook for every load balancer.

This module is the public API for adapters. Importing it is cheap on purpose: a hook
run is a fresh process during an outage.
"""

from __future__ import annotations

TYPE_CHECKING = False  # without importing typing, which a hook run has no time for before it asks the databases
if TYPE_CHECKING:
    from efm_lb.balancers import Balancer
    from efm_lb.connection import Connection, ConnectionFailed, Reply, StatementFailed
    from efm_lb.events import Attach, Detach, Event, Origin, Promote
    from efm_lb.fence import TimelineMark, demand_not_older, timeline_mark, timeline_marks
    from efm_lb.handover import Login
    from efm_lb.hookspecs import hookimpl
    from efm_lb.outcomes import Outcome, PermanentError, Result, TemporaryError
    from efm_lb.replace import read_file, replace_file
    from efm_lb.truth import Node, NodeState, Reach, Role, Truth
    from efm_lb.views import Finding, NodeView, Severity, View

__version__ = "0.1.0"

__all__ = [
    "Attach",
    "Balancer",
    "Connection",
    "ConnectionFailed",
    "Detach",
    "Event",
    "Finding",
    "Login",
    "Node",
    "NodeState",
    "NodeView",
    "Origin",
    "Outcome",
    "PermanentError",
    "Promote",
    "Reach",
    "Reply",
    "Result",
    "Role",
    "Severity",
    "StatementFailed",
    "TemporaryError",
    "TimelineMark",
    "Truth",
    "View",
    "demand_not_older",
    "hookimpl",
    "read_file",
    "replace_file",
    "timeline_mark",
    "timeline_marks",
]


_HOMES = {
    "balancers": ("Balancer",),
    "connection": ("Connection", "ConnectionFailed", "Reply", "StatementFailed"),
    "events": ("Attach", "Detach", "Event", "Origin", "Promote"),
    "fence": ("TimelineMark", "demand_not_older", "timeline_mark", "timeline_marks"),
    "handover": ("Login",),
    "hookspecs": ("hookimpl",),
    "outcomes": ("Outcome", "PermanentError", "Result", "TemporaryError"),
    "replace": ("read_file", "replace_file"),
    "truth": ("Node", "NodeState", "Reach", "Role", "Truth"),
    "views": ("Finding", "NodeView", "Severity", "View"),
}


def __getattr__(name: str) -> object:
    """Load what is asked for when it is first asked for (PEP 562)."""
    for home, names in _HOMES.items():
        if name in names:
            value: object = getattr(__import__(f"efm_lb.{home}", fromlist=[name]), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
