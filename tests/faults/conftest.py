"""The real servers of the integration tests, for the fault suite too."""

from __future__ import annotations

from integration.conftest import (
    cluster,
    haproxy,
    pgbouncer,
    pgpool,
    standing_cluster,
    standing_haproxy,
    standing_pgbouncer,
    standing_pgpool,
    start_haproxy,
)

__all__ = [
    "cluster",
    "haproxy",
    "pgbouncer",
    "pgpool",
    "standing_cluster",
    "standing_haproxy",
    "standing_pgbouncer",
    "standing_pgpool",
    "start_haproxy",
]
