"""Is a pgpool right? Judged by the databases themselves and by a write, never by what the hook says."""

from __future__ import annotations

import time
from collections.abc import Collection

from efm_lb.rehearsal import sql
from efm_lb.rehearsal.cluster import TABLE, Cluster, Server
from efm_lb.rehearsal.pgpool import Pgpool

__all__ = ["faults", "wait_right"]


def faults(cluster: Cluster, pool: Pgpool, excused: Collection[Server] = ()) -> list[str]:
    """What is wrong with ``pool``'s idea of ``cluster``, one line each; empty when it is right.

    Right is: writes arrive at the real primary, every standby that is up is attached,
    every node that is down is not.

    :param excused: nodes that are down, and may be attached because nobody was told
    """
    wrong = []
    try:
        rows = pool.show_pool_nodes()
    except sql.SqlError as error:
        return [f"{pool.name} does not answer: {error}"]
    for node, row in zip(cluster.nodes, rows, strict=True):
        in_recovery = node.in_recovery()
        attached = row["status"] in ("up", "waiting")
        seen = f"{row['status']}/{row['role']}"
        if in_recovery is None:
            if attached and node not in excused:
                wrong.append(f"{node.name} is down, but {pool.name} has it as {seen}")
        elif not attached:
            wrong.append(f"{node.name} is up, but {pool.name} has it as {seen}")
        elif (row["role"] == "primary") == in_recovery:
            role = "standby" if in_recovery else "primary"
            wrong.append(f"{node.name} is a {role}, but {pool.name} has it as {seen}")
    return wrong or _write(cluster, pool)


def wait_right(
    cluster: Cluster, pool: Pgpool, excused: Collection[Server] = (), timeout: float = 10.0
) -> tuple[list[str], float]:
    """Look at ``pool`` until it is right or the time is over.

    :return: what is still wrong, and the seconds it took to become right
    """
    started = time.monotonic()
    while True:
        wrong = faults(cluster, pool, excused)
        seconds = time.monotonic() - started
        if not wrong or seconds >= timeout:
            return wrong, seconds
        time.sleep(0.05)


def _write(cluster: Cluster, pool: Pgpool) -> list[str]:
    primary = cluster.primary
    # A session that pgpool is about to drop is no proof of anything: try again, as a client would.
    for attempt in range(5):
        try:
            rows = pool.query(f"insert into {TABLE} values (0, 0) returning host(inet_server_addr()) as host")
        except sql.SqlError as error:
            words = f"a write through {pool.name} failed: {error}"
            time.sleep(0.05 * attempt)
        else:
            if rows[0]["host"] == primary.host:
                return []
            return [f"a write through {pool.name} arrived at {rows[0]['host']}, the primary is {primary.name}"]
    return [words]
