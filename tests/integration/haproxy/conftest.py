"""Events sent to the adapter as the core sends them, with the truth read from the real servers."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from efm_lb import Attach, Balancer, Detach, NodeState, Origin, Outcome, Promote, Reach, Role, Truth, View
from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.haproxy import READ, WRITE, Haproxy
from efm_lb_haproxy import adapter
from integration.real import nodes_of, send, truth_of


class Manager:
    """Sends events about one cluster to one HAProxy.

    :ivar silent: numbers of the nodes that are frozen: asking them takes time, and the test knows
    """

    def __init__(self, cluster: Cluster, haproxy: Haproxy, **settings: object) -> None:
        self.cluster = cluster
        self.haproxy = haproxy
        self.nodes = nodes_of(cluster)
        self.silent: set[int] = set()
        given = {
            "socket": str(haproxy.socket),
            "config": [str(haproxy.config)],
            "write": [WRITE],
            "read": [READ],
            "read_includes_primary": "fallback",
            **settings,
        }
        given = {name: value for name, value in given.items() if value is not None}
        self.balancer = Balancer("edge", "haproxy", given, connect_timeout=1.0)

    def truth(self) -> Truth:
        return truth_of(self.cluster, self.silent)

    def send(
        self,
        kind: type[Attach | Detach | Promote],
        number: int,
        origin: Origin = Origin.HOOK,
        seconds: float = 10.0,
        truth: Truth | None = None,
    ) -> Outcome:
        event = kind(self.nodes[number], truth or self.truth(), origin)
        return send(adapter, event, self.balancer, seconds)

    def view(self) -> View:
        return adapter.efm_lb_view(self.nodes, self.balancer, time.monotonic() + 5)

    def belief(self) -> str:
        """Per node ``W`` for writes and ``r`` for reads, ``-`` for neither: ``W r r``; asked past the adapter."""
        write, read = self.haproxy.ready(WRITE), self.haproxy.ready(READ)
        return " ".join(("W" * (n.host in write) + "r" * (n.host in read)) or "-" for n in self.nodes)

    def as_if(self, letters: str) -> Truth:
        """A truth that is not asked for: ``P`` primary, ``s`` standby, ``x`` refuses."""
        states = {
            "P": (Reach.ACCEPTING, Role.PRIMARY),
            "s": (Reach.ACCEPTING, Role.STANDBY),
            "x": (Reach.REFUSED, None),
        }
        return Truth(tuple(NodeState(n, *states[c], 1) for n, c in zip(self.nodes, letters, strict=True)))


@pytest.fixture
def manage(cluster: Cluster) -> Callable[..., Manager]:
    return lambda haproxy, **settings: Manager(cluster, haproxy, **settings)


@pytest.fixture
def manager(cluster: Cluster, haproxy: Haproxy) -> Manager:
    return Manager(cluster, haproxy)
