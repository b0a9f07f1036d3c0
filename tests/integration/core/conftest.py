"""A hook for more than one kind of load balancer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.haproxy import Haproxy
from efm_lb.rehearsal.hooks import Hook, efm_lb_hook, hook_environment
from efm_lb.rehearsal.pgbouncer import Pgbouncer


@pytest.fixture
def pair(cluster: Cluster, tmp_path: Path) -> Callable[..., Hook]:
    """Make a hook for a HAProxy and a PgBouncer, which are balancers ``edge1`` and ``pgb1``.

    ``pair(haproxy, pgbouncer, EFM_LB_DEADLINE=5)``
    """

    def make(haproxy: Haproxy, pgbouncer: Pgbouncer, **extra: object) -> Hook:
        variables = {"EFM_LB_CONNECT_TIMEOUT": 1, **extra}
        return efm_lb_hook(hook_environment(cluster, [haproxy, pgbouncer], tmp_path.name, variables))

    return make
