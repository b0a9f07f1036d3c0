"""Events sent to the adapter as the core sends them, with the truth read from the real servers."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from efm_lb import (
    Attach,
    Balancer,
    Detach,
    Finding,
    Origin,
    Outcome,
    Promote,
    Truth,
    View,
)
from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.pgbouncer import READ, WRITE, Pgbouncer
from efm_lb_pgbouncer import adapter
from integration.real import nodes_of, send, truth_of


class Manager:
    """Sends events about one cluster to one balancer.

    :ivar silent: numbers of the nodes that are frozen: asking them takes time, and the test knows
    """

    def __init__(self, cluster: Cluster, *poolers: Pgbouncer, **settings: object) -> None:
        self.cluster = cluster
        self.pooler = poolers[0]
        self.nodes = nodes_of(cluster)
        self.silent: set[int] = set()
        self.balancer = Balancer(
            "pgb1",
            "pgbouncer",
            {
                "admin": [pooler.admin for pooler in poolers],
                "config": str(poolers[0].entries),
                "write": [WRITE],
                "read": [READ],
                "passfile": str(poolers[0].passfile),
                **settings,
            },
            connect_timeout=1.0,
        )

    def truth(self) -> Truth:
        return truth_of(self.cluster, self.silent)

    def send(
        self, kind: type[Attach | Detach | Promote], number: int, origin: Origin = Origin.HOOK, seconds: float = 10.0
    ) -> Outcome:
        event = kind(self.nodes[number], self.truth(), origin)
        return send(adapter, event, self.balancer, seconds)

    def hold(self, number: int = 0, seconds: float = 10.0) -> Outcome | None:
        return adapter.efm_lb_hold(Detach(self.nodes[number], self.truth()), self.balancer, time.monotonic() + seconds)

    def plan(self, kind: type[Attach | Detach | Promote], number: int) -> tuple[str, ...]:
        event = kind(self.nodes[number], self.truth())
        return tuple(adapter.efm_lb_plan(event, self.balancer, time.monotonic() + 5))

    def view(self) -> View:
        return adapter.efm_lb_view(self.nodes, self.balancer, time.monotonic() + 5)

    def check(self) -> list[Finding]:
        return list(adapter.efm_lb_check(self.truth(), self.balancer, time.monotonic() + 5))

    def belief(self) -> str:
        """Per node ``+`` attached or ``-`` detached, and P where writes go: ``P+ + -``."""
        return " ".join(("P" if seen.writes else "") + ("+" if seen.attached else "-") for seen in self.view().nodes)


@pytest.fixture
def manage(cluster: Cluster) -> Callable[..., Manager]:
    return lambda *poolers, **settings: Manager(cluster, *poolers, **settings)


@pytest.fixture
def manager(cluster: Cluster, pgbouncer: Pgbouncer) -> Manager:
    return Manager(cluster, pgbouncer)
