"""Play scenarios on real servers with clients at work, and judge how each ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from efm_lb.rehearsal.clients import Clients
from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.efm import Efm, Step
from efm_lb.rehearsal.hooks import Hook, efm_lb_hook, hook_environment
from efm_lb.rehearsal.pgpool import Pgpool
from efm_lb.rehearsal.results import ScenarioResult
from efm_lb.rehearsal.scenarios import Order, Scenario
from efm_lb.rehearsal.verdict import wait_right

__all__ = ["Play", "open_play"]

_ROLES = {True: "standby", False: "primary", None: "down"}
_AFTERWARDS = 0.3
"""Seconds that the clients go on after a scenario, so that a late cut of their sessions is seen."""
_QUIET = 1.2
"""Seconds from one scenario to the next: pgpool rests for one after each change, and nodes do not fail that fast."""


class Play:
    """Servers, clients and EFM, ready to play one scenario after the other.

    :param hooks: one per host that calls, in EFM's place
    :param watch: told each of EFM's steps once it is over
    :param patience: seconds that pgpool has to become right after EFM's last step
    :param deliberation: as `Efm`
    """

    def __init__(
        self,
        cluster: Cluster,
        pool: Pgpool,
        clients: Clients,
        hooks: Sequence[Hook],
        order: Order = Order.DOCUMENTED,
        watch: Callable[[Step], None] = lambda step: None,
        patience: float = 10.0,
        deliberation: float = 0.0,
    ) -> None:
        self.cluster = cluster
        self.pool = pool
        self.clients = clients
        self.order = order
        self._patience = patience
        self._quiet_since = 0.0
        self.efm = Efm(cluster, hooks, order, watch, deliberation)

    def scenario(self, scenario: Scenario) -> ScenarioResult:
        """Play one scenario.

        :raises ServerError: a server did not do what it was told
        """
        time.sleep(max(0.0, self._quiet_since + _QUIET - time.monotonic()))
        before = self.pool.show_pool_nodes()
        started = time.monotonic()
        steps = self.efm.play(scenario)
        # Without a detach the hook has nothing to look again for: only a call repairs what a lost call has left.
        patience = self._patience if self.efm.repairable or not self.efm.lost else 0.0
        wrong, settled = wait_right(self.cluster, self.pool, self.efm.untold, patience)
        owed: list[str] = []
        if wrong and self.efm.lost:
            owed = wrong
            steps += self.efm.make_up()
            wrong, settled = wait_right(self.cluster, self.pool, self.efm.untold, self._patience)
        self.clients.writer.wait_success(timeout=2)
        time.sleep(_AFTERWARDS)
        ended = self._quiet_since = time.monotonic()
        promoted = self.efm.promoted
        resumed = self.clients.writer.first_success(promoted) if promoted and promoted >= started else None
        return ScenarioResult(
            scenario=scenario,
            started=started,
            resumed=resumed - promoted if promoted and resumed else None,
            steps=tuple(steps),
            before=before,
            after=self.pool.show_pool_nodes(),
            roles=tuple(_ROLES[node.in_recovery()] for node in self.cluster.nodes),
            wrong=tuple(wrong),
            owed=tuple(owed),
            settled=settled,
            writing=self.clients.writing(started, ended),
            reading=self.clients.reading(started, ended),
            accounts=self.clients.accounts(self.cluster.primary, self.efm.orphaned),
        )

    def wanted(self, scenarios: Iterable[Scenario]) -> Iterator[Scenario]:
        """``scenarios`` in their order, and before each what it needs to make sense.

        Each must be played before the next is asked for.
        """
        for scenario in scenarios:
            while needed := self.efm.needs(scenario):
                yield needed
            yield scenario


@contextmanager
def open_play(
    order: Order = Order.DOCUMENTED, nodes: int = 3, watch: Callable[[Step], None] = lambda step: None
) -> Iterator[Play]:
    """Start everything that a rehearsal of efm-lb with one pgpool needs, and end it afterwards.

    :raises MissingProgramError: PostgreSQL or pgpool is not installed
    :raises ServerError: a server did not start
    """
    with ExitStack() as everything:
        cluster = everything.enter_context(Cluster.start(nodes))
        pool = everything.enter_context(Pgpool.start(cluster))
        hooks = [efm_lb_hook(hook_environment(cluster, [pool], host)) for host in ("host1", "host2")]
        clients = everything.enter_context(Clients(pool.host, pool.port))
        yield Play(cluster, pool, clients, hooks, order, watch)
