"""Play scenarios on real servers with clients at work, and judge how each ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from efm_lb.rehearsal.balancer import Balancer, State
from efm_lb.rehearsal.clients import Clients
from efm_lb.rehearsal.cluster import Cluster, Server
from efm_lb.rehearsal.efm import Efm, Step
from efm_lb.rehearsal.hooks import Hook, check, efm_lb_hook, hook_environment
from efm_lb.rehearsal.kinds import Kind
from efm_lb.rehearsal.results import BalancerResult, ScenarioResult
from efm_lb.rehearsal.scenarios import Order, Scenario
from efm_lb.rehearsal.verdict import wait_right

__all__ = ["Front", "Play", "open_play"]

_ROLES = {True: "standby", False: "primary", None: "down"}
_AFTERWARDS = 0.3
"""Seconds that the clients go on after a scenario, so that a late cut of their sessions is seen."""
_QUIET = 1.2
"""Seconds from one scenario to the next: pgpool rests for one after each change, and nodes do not fail that fast."""
_READERS = {1: 4, 2: 2, 3: 2}
"""Readers of each balancer by the number of balancers: a small machine has other things to do."""
_RETRY = 0.05
"""Seconds before a client tries again: refusing some that try every few milliseconds is all that pgpool then does."""


class Front(NamedTuple):
    """A balancer in front of the cluster, and the clients that go through it."""

    balancer: Balancer
    clients: Clients


class _Judged(NamedTuple):
    """What is wrong with a balancer, and the seconds that it took to become right."""

    wrong: list[str]
    settled: float


class Play:
    """Servers, clients and EFM, ready to play one scenario after the other.

    :param hooks: one per host that calls, in EFM's place
    :param watch: told each of EFM's steps once it is over
    :param patience: seconds that the balancers have to become right after EFM's last step
    :param deliberation: as `Efm`
    """

    def __init__(
        self,
        cluster: Cluster,
        fronts: Sequence[Front],
        hooks: Sequence[Hook],
        order: Order = Order.DOCUMENTED,
        watch: Callable[[Step], None] = lambda step: None,
        patience: float = 10.0,
        deliberation: float = 0.0,
    ) -> None:
        self.cluster = cluster
        self.fronts = fronts
        self.order = order
        self._patience = patience
        self._quiet_since = 0.0
        self.efm = Efm(cluster, hooks, order, watch, deliberation)

    def scenario(self, scenario: Scenario) -> ScenarioResult:
        """Play one scenario.

        :raises ServerError: a server did not do what it was told
        """
        time.sleep(max(0.0, self._quiet_since + _QUIET - time.monotonic()))
        before = [front.balancer.state() for front in self.fronts]
        started = time.monotonic()
        steps = self.efm.play(scenario)
        judged = self._judge(self._patience, self.efm.untold)
        owed: list[tuple[str, ...]] = [()] * len(judged)
        if self.efm.lost:
            owed = [tuple(each.wrong) for each in self._judge(0.0)]
            steps += self.efm.make_up()
            wrong = [each.wrong for each in self._judge(self._patience)]
            judged = [each._replace(wrong=still) for each, still in zip(judged, wrong, strict=True)]
        for front in self.fronts:
            front.clients.writer.wait_success(timeout=2)
        time.sleep(_AFTERWARDS)
        ended = self._quiet_since = time.monotonic()
        return ScenarioResult(
            scenario=scenario,
            started=started,
            steps=tuple(steps),
            roles={node.name: _ROLES[node.in_recovery()] for node in self.cluster.nodes},
            balancers=tuple(
                self._result(front, first, verdict, lacking, started, ended)
                for front, first, verdict, lacking in zip(self.fronts, before, judged, owed, strict=True)
            ),
        )

    def wanted(self, scenarios: Iterable[Scenario]) -> Iterator[Scenario]:
        """``scenarios`` in their order, and before each what it needs to make sense.

        Each must be played before the next is asked for.
        """
        for scenario in scenarios:
            while needed := self.efm.needs(scenario):
                yield needed
            yield scenario

    def _judge(self, patience: float, excused: Collection[Server] = ()) -> list[_Judged]:
        """Look at all balancers at once until each is right, or the time is over."""

        def judge(front: Front) -> _Judged:
            return _Judged(*wait_right(self.cluster, front.balancer, excused, patience))

        with ThreadPoolExecutor(len(self.fronts)) as threads:
            return list(threads.map(judge, self.fronts))

    def _result(
        self, front: Front, before: State, judged: _Judged, owed: tuple[str, ...], started: float, ended: float
    ) -> BalancerResult:
        clients = front.clients
        promoted = self.efm.promoted
        resumed = clients.writer.first_success(promoted) if promoted and promoted >= started else None
        return BalancerResult(
            name=front.balancer.name,
            before=before,
            after=front.balancer.state(),
            wrong=tuple(judged.wrong),
            owed=owed,
            settled=judged.settled,
            resumed=resumed - promoted if promoted and resumed else None,
            writing=clients.writing(started, ended),
            reading=clients.reading(started, ended),
            accounts=clients.accounts(self.cluster.primary, self.efm.orphaned),
        )


@contextmanager
def open_play(
    kinds: Sequence[Kind],
    order: Order = Order.DOCUMENTED,
    nodes: int = 3,
    watch: Callable[[Step], None] = lambda step: None,
) -> Iterator[Play]:
    """Start everything that a rehearsal of efm-lb needs, and end it afterwards.

    :param kinds: one balancer of each is in front of the same cluster, and the hook brings all of them right
    :raises MissingProgramError: PostgreSQL or a balancer is not installed
    :raises ServerError: a server did not start
    """
    with ExitStack() as everything:
        cluster = everything.enter_context(Cluster.start(nodes))
        balancers = [everything.enter_context(kind.start(cluster)) for kind in kinds]
        env_files = [hook_environment(cluster, balancers, host) for host in ("host1", "host2")]
        for env_file in env_files:
            check(env_file)
        fronts = []
        for number, balancer in enumerate(balancers, start=1):
            clients = Clients(balancer.writing, balancer.reading, _READERS[len(balancers)], number, _RETRY)
            fronts.append(Front(balancer, everything.enter_context(clients)))
        yield Play(cluster, fronts, [efm_lb_hook(env_file) for env_file in env_files], order, watch)
