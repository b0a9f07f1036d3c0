"""Real servers for the tests: one PostgreSQL cluster per session, as new for each test that asks for it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.haproxy import Haproxy
from efm_lb.rehearsal.hooks import Hook, efm_lb_hook, hook_environment
from efm_lb.rehearsal.pgbouncer import Pgbouncer
from efm_lb.rehearsal.pgpool import Pgpool
from integration.real import follow_ups


@pytest.fixture(scope="session")
def standing_cluster() -> Iterator[Cluster]:
    """The session's cluster of three nodes, in whatever state the last test left it."""
    with Cluster.start(nodes=3) as cluster:
        yield cluster


@pytest.fixture
def cluster(standing_cluster: Cluster) -> Iterator[Cluster]:
    """Three nodes: ``nodes[0]`` is the primary on the first timeline, the others are its standbys."""
    standing_cluster.reset()
    yield standing_cluster
    # A follow-up watches for a promotion, and would see that of the next test.
    for pid in follow_ups(standing_cluster):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def standing_pgpool(standing_cluster: Cluster) -> Iterator[Pgpool]:
    """The session's pgpool with the recommended settings, in whatever state the last test left it."""
    standing_cluster.reset()
    with Pgpool.start(standing_cluster) as pool:
        yield pool


@pytest.fixture
def pgpool(cluster: Cluster, standing_pgpool: Pgpool) -> Pgpool:
    """A pgpool in front of `cluster`, every node attached, with the recommended settings."""
    standing_pgpool.reset()
    return standing_pgpool


@pytest.fixture
def start_pgpool(cluster: Cluster) -> Iterator[Callable[..., Pgpool]]:
    """Start further pgpools, with settings of their own: ``start_pgpool(search_primary_node_timeout=10)``."""
    with contextlib.ExitStack() as running:
        yield lambda **settings: running.enter_context(Pgpool.start(cluster, settings))


@pytest.fixture(scope="session")
def standing_pgbouncer(standing_cluster: Cluster) -> Iterator[Pgbouncer]:
    """The session's PgBouncer with the recommended settings, in whatever state the last test left it."""
    with Pgbouncer.start(standing_cluster) as pooler:
        yield pooler


@pytest.fixture
def pgbouncer(cluster: Cluster, standing_pgbouncer: Pgbouncer) -> Pgbouncer:
    """A PgBouncer in front of `cluster`: one entry leads to the primary, one to the standbys."""
    standing_pgbouncer.reset()
    return standing_pgbouncer


@pytest.fixture
def start_pgbouncer(cluster: Cluster) -> Iterator[Callable[..., Pgbouncer]]:
    """Start further ones, with settings of their own: ``start_pgbouncer(pool_mode="session")``."""
    with contextlib.ExitStack() as running:
        yield lambda port=0, **settings: running.enter_context(Pgbouncer.start(cluster, settings, port))


@pytest.fixture(scope="session")
def standing_haproxy(standing_cluster: Cluster) -> Iterator[Haproxy]:
    """The session's HAProxy with the recommended configuration, in whatever state the last test left it."""
    with Haproxy.start(standing_cluster) as haproxy:
        yield haproxy


@pytest.fixture
def haproxy(cluster: Cluster, standing_haproxy: Haproxy) -> Haproxy:
    """A HAProxy in front of `cluster`, as at first: node 0 gets the writes, the others the reads."""
    standing_haproxy.reset()
    return standing_haproxy


@pytest.fixture
def start_haproxy(cluster: Cluster) -> Iterator[Callable[..., Haproxy]]:
    """Start further HAProxies, with lines of their own."""
    with contextlib.ExitStack() as running:
        yield lambda **options: running.enter_context(Haproxy.start(cluster, **options))


@pytest.fixture
def make_hook(cluster: Cluster, tmp_path: Path) -> Callable[..., Hook]:
    """Make a hook for any pgpools, with a fresh state directory.

    ``make_hook(pool1, pool2, extra={"EFM_LB_DEADLINE": 5}, name="other-host")``
    """

    def make(*pools: Pgpool, extra: Mapping[str, object] | None = None, name: str | None = None) -> Hook:
        env_file = hook_environment(cluster, pools, name or tmp_path.name, extra)
        return efm_lb_hook(env_file)

    return make


@pytest.fixture
def hook(pgpool: Pgpool, make_hook: Callable[..., Hook]) -> Hook:
    """efm-lb for `cluster` and `pgpool`: ``hook("attach", node.name, "p")`` returns a `Run`."""
    return make_hook(pgpool)
