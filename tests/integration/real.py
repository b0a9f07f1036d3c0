"""Events about a cluster of real servers, sent to an adapter as the core sends them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

from efm_lb import Attach, Balancer, Detach, Event, Node, NodeState, Outcome, Promote, Reach, Role, Truth
from efm_lb.follow_up import NAME as FORKED
from efm_lb.rehearsal.cluster import Cluster

__all__ = ["follow_ups", "nodes_of", "send", "told", "truth_of"]

HOOKS = {Attach: "efm_lb_attach", Detach: "efm_lb_detach", Promote: "efm_lb_promote"}


def nodes_of(cluster: Cluster) -> tuple[Node, ...]:
    return tuple(Node(server.name, server.host, server.port) for server in cluster.nodes)


def truth_of(cluster: Cluster, silent: Collection[int] = ()) -> Truth:
    """What the servers say.

    :param silent: numbers of the nodes that are frozen: asking them takes time, and the test knows
    """
    return Truth(tuple(_state(cluster, number, number in silent) for number in range(len(cluster.nodes))))


def send(adapter: ModuleType, event: Event, balancer: Balancer, seconds: float) -> Outcome:
    outcome = getattr(adapter, HOOKS[type(event)])(event, balancer, time.monotonic() + seconds)
    assert isinstance(outcome, Outcome)
    return outcome


def told(output: str, balancer: str) -> str:
    """What the report of a hook says of one balancer."""
    (line,) = [line for line in output.splitlines() if line.startswith(f"{balancer}: ")]
    return line.removeprefix(f"{balancer}: ")


def follow_ups(cluster: Cluster) -> list[int]:
    """The processes that judge a call about ``cluster`` again."""
    found = []
    for directory in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (directory / "cmdline").read_text(errors="replace").split("\0")
            is_one = "--follow-up" in words or (directory / "comm").read_text() == f"{FORKED}\n"
            if is_one and any(f"{cluster.stage.directory}/" in word for word in words):
                found.append(int(directory.name))
    return found


def _state(cluster: Cluster, number: int, silent: bool) -> NodeState:
    node = nodes_of(cluster)[number]
    if silent:
        return NodeState(node, Reach.NO_RESPONSE)
    in_recovery = cluster.nodes[number].in_recovery()
    if in_recovery is None:
        return NodeState(node, Reach.REFUSED)
    return NodeState(node, Reach.ACCEPTING, Role.STANDBY if in_recovery else Role.PRIMARY)
