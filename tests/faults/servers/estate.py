"""The servers that are struck: three nodes, a pgpool, a HAProxy, a PgBouncer, and efm-lb for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from efm_lb.rehearsal import sql
from efm_lb.rehearsal.cluster import Cluster, Server
from efm_lb.rehearsal.hooks import efm_lb_hook, hook_environment
from efm_lb.rehearsal.pgpool import Pgpool
from efm_lb.rehearsal.stage import ServerError
from efm_lb.rehearsal.verdict import misbeliefs
from faults.watch import AnyBalancer

__all__ = ["DEADLINE", "HOLD", "PERIOD", "RIGHT", "SETTLE", "Estate"]

PERIOD = 1.0
SETTLE = 0.5
HOLD = 2.0
DETACH_AFTER = 2.0
DEADLINE = 6.0
_CONNECT_TIMEOUT = 1.0
_LONGEST_PAUSE = 8.0
"""Seconds: what failed for as long as any server is frozen is tried again after 1, 2, 4 and 8 of them."""
_BUSY = 6.0
"""Seconds more on a machine that has other things to do."""
RIGHT = PERIOD + 2 * SETTLE + DETACH_AFTER + 2 * HOLD + _LONGEST_PAUSE + DEADLINE + _BUSY
"""Seconds until everything is right again: what docs/reconcile.md says in turn, and a call that hangs."""
_SETTINGS: Mapping[str, object] = {
    "EFM_LB_RECONCILE__PERIOD": PERIOD,
    "EFM_LB_RECONCILE__SETTLE": SETTLE,
    "EFM_LB_RECONCILE__HOLD": HOLD,
    "EFM_LB_RECONCILE__DETACH_AFTER": DETACH_AFTER,
    "EFM_LB_CONNECT_TIMEOUT": _CONNECT_TIMEOUT,
    "EFM_LB_DEADLINE": DEADLINE,
    "EFM_LB_BALANCERS__PGB1__HOLD": 4,
}


class Estate:
    """The servers, and what is known of them that they do not say themselves.

    :ivar env_files: the settings on three hosts, each with a state directory of its own
    :ivar hooks: efm-lb on these hosts, as EFM runs it
    :ivar hook: the one that EFM runs now
    :ivar down: the nodes that EFM has stopped, or takes for failed: nobody starts them but EFM
    :ivar crashed: the nodes that were killed, or were away for a moment, since an event began
    :ivar hands: whoever starts or stops a node has its lock
    """

    def __init__(self, cluster: Cluster, balancers: Sequence[AnyBalancer], name: str) -> None:
        self.cluster = cluster
        self.balancers = balancers
        (self.pool,) = [each for each in balancers if isinstance(each, Pgpool)]
        self.env_files = [
            hook_environment(cluster, balancers, f"{name}.host{number}", _SETTINGS) for number in (1, 2, 3)
        ]
        self.hooks = [efm_lb_hook(file) for file in self.env_files]
        self.hook = self.hooks[0]
        self.down: set[Server] = set()
        self.crashed: set[Server] = set()
        self.hands = {node: threading.Lock() for node in cluster.nodes}

    def primary(self) -> Server:
        """The primary, once it answers.

        :raises ServerError: there is none, or more than one, for 30 s
        """
        until = time.monotonic() + 30
        while True:
            try:
                return self.cluster.primary
            except ServerError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)

    def standbys(self) -> list[Server]:
        """The nodes that are up, or will be in a moment, and are not the primary; the most advanced first."""
        primary = self.primary()
        return sorted(
            [node for node in self.cluster.nodes if node is not primary and node not in self.down],
            key=lambda node: -_received(node),
        )

    def wrong(self) -> list[str]:
        """What is wrong with any balancer, one line each."""
        return [line for each in self.balancers for line in misbeliefs(self.cluster, each)] + self._paused()

    def _paused(self) -> list[str]:
        try:
            return [f"{name} is paused" for each in self.balancers if each.alias == "pgb" for name in each.paused()]  # type: ignore[union-attr]
        except sql.SqlError as error:
            return [f"PgBouncer: {error}"]


def _received(node: Server) -> int:
    try:
        return node.received()
    except sql.SqlError:
        return -1
