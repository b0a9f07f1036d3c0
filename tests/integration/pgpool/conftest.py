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
from efm_lb.probe import Probe
from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.pgpool import Pgpool
from efm_lb_pgpool import adapter
from integration.real import nodes_of, send, truth_of


class Manager:
    """Sends events about one cluster to one balancer.

    :ivar silent: numbers of the nodes that are frozen: asking them takes time, and the test knows
    """

    def __init__(self, cluster: Cluster, *pools: Pgpool) -> None:
        self.cluster = cluster
        self.nodes = nodes_of(cluster)
        self.silent: set[int] = set()
        self.balancer = Balancer(
            "pool1",
            "pgpool",
            {
                "host": [f"{pool.host}:{pool.pcp_port}" for pool in pools],
                "port": 9898,
                "user": pools[0].pcp_user,
                "passfile": str(pools[0].pcp_passfile),
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

    def plan(self, kind: type[Attach | Detach | Promote], number: int) -> tuple[str, ...]:
        event = kind(self.nodes[number], self.truth())
        return tuple(adapter.efm_lb_plan(event, self.balancer, time.monotonic() + 5))

    def view(self) -> View:
        return adapter.efm_lb_view(self.nodes, self.balancer, time.monotonic() + 5)

    def check(self) -> list[Finding]:
        return list(
            adapter.efm_lb_check(
                self.truth(),
                self.balancer,
                lambda user, dbname: Probe({"user": user, "dbname": dbname}, timeout=1).truth(self.nodes),
                time.monotonic() + 5,
            )
        )

    def belief(self) -> str:
        """Per node ``+`` attached or ``-`` detached, and P where writes go: ``P+ + -``."""
        return " ".join(("P" if seen.writes else "") + ("+" if seen.attached else "-") for seen in self.view().nodes)


@pytest.fixture
def manage(cluster: Cluster) -> Callable[..., Manager]:
    return lambda *pools: Manager(cluster, *pools)


@pytest.fixture
def manager(cluster: Cluster, pgpool: Pgpool) -> Manager:
    return Manager(cluster, pgpool)
