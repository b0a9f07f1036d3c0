"""Is a balancer right? Judged by the databases themselves and by a write and a read, never by what the hook says."""

from __future__ import annotations

import time
from collections.abc import Collection

from efm_lb.rehearsal import sql
from efm_lb.rehearsal.balancer import Balancer, Entrance
from efm_lb.rehearsal.cluster import TABLE, Cluster, Server

__all__ = ["faults", "misbeliefs", "wait_right"]

_WRITE = f"insert into {TABLE} values (0, 0) returning host(inet_server_addr()) as host"
_READ = "select host(inet_server_addr()) as host"


def faults(cluster: Cluster, balancer: Balancer, excused: Collection[Server] = ()) -> list[str]:
    """What is wrong with ``balancer``, one line each; empty when it is right.

    Right is: writes arrive at the real primary, every standby that is up serves reads,
    no node that is down is in rotation.

    :param excused: nodes about which nobody was told: one that is down may be in rotation, a standby may be out of it
    """
    wrong = misbeliefs(cluster, balancer, excused)
    if wrong:
        return wrong
    wrong = _arrives(balancer, balancer.writing, "write", _WRITE, [cluster.primary])
    if not wrong and not excused:
        up = [node for node in cluster.nodes if node.in_recovery() is not None]
        wrong = _arrives(balancer, balancer.reading, "read", _READ, up)
    return wrong


def misbeliefs(cluster: Cluster, balancer: Balancer, excused: Collection[Server] = ()) -> list[str]:
    """What is wrong with what ``balancer`` believes, one line each; nothing is sent through it."""
    try:
        beliefs = dict(zip(cluster.nodes, balancer.beliefs(), strict=True))
    except (sql.SqlError, OSError) as error:
        return [f"{balancer.name} does not answer: {error}"]
    roles = {node: node.in_recovery() for node in cluster.nodes}
    standby_reads = any(beliefs[node].reads for node, in_recovery in roles.items() if in_recovery)
    wrong = []
    for node, believed in beliefs.items():
        in_recovery = roles[node]
        seen = f"{balancer.name} has it as {believed.words}"
        if in_recovery is None:
            if (believed.writes or believed.reads) and node not in excused:
                wrong.append(f"{node.name} is down, but {seen}")
        elif not (believed.writes or believed.reads):
            if not (in_recovery and node in excused):
                wrong.append(f"{node.name} is up, but {seen}")
        elif in_recovery and (believed.writes or not believed.reads):
            wrong.append(f"{node.name} is a standby, but {seen}")
        elif not in_recovery and not believed.writes:
            wrong.append(f"{node.name} is a primary, but {seen}")
        elif not in_recovery and not excused and believed.reads != (balancer.primary_reads or not standby_reads):
            there = "standbys serve reads" if standby_reads else "no standby serves reads"
            wrong.append(f"{node.name} is the primary and {there}, but {seen}")
    return wrong


def wait_right(
    cluster: Cluster, balancer: Balancer, excused: Collection[Server] = (), timeout: float = 10.0
) -> tuple[list[str], float]:
    """Look at ``balancer`` until it is right or the time is over.

    :return: what is still wrong, and the seconds it took to become right
    """
    started = time.monotonic()
    while True:
        wrong = faults(cluster, balancer, excused)
        seconds = time.monotonic() - started
        if not wrong or seconds >= timeout:
            return wrong, seconds
        time.sleep(0.05)


def _arrives(
    balancer: Balancer, entrance: Entrance, what: str, statement: str, expected: Collection[Server]
) -> list[str]:
    # A session that pgpool is about to drop is no proof of anything: try again, as a client would.
    for attempt in range(5):
        try:
            rows = sql.query(entrance.host, entrance.port, statement, dbname=entrance.dbname)
        except sql.SqlError as error:
            words = f"a {what} through {balancer.name} failed: {error}"
            time.sleep(0.05 * attempt)
        else:
            host = rows[0]["host"]
            if host in [node.host for node in expected]:
                return []
            names = " or ".join(node.name for node in expected)
            return [f"a {what} through {balancer.name} arrived at {host}, not at {names}"]
    return [words]
