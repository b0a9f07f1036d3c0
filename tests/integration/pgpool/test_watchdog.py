"""Three pgpools in one watchdog cluster, on one host."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from efm_lb import Attach, Detach, PermanentError, Promote, Result, Severity, TemporaryError
from efm_lb.rehearsal.pgpool import Pgpool
from efm_lb.rehearsal.stage import free_port
from efm_lb_pgpool.members import members_of

HOST = "127.0.0.1"


def watchdog_settings(count):
    """Per pgpool: its own ports, and those of all (pgpool_node_id is set by file)."""
    ports = [free_port(HOST) for _ in range(4 * count)]
    shared = {"use_watchdog": "on", "wd_lifecheck_method": "heartbeat", "wd_interval": 2, "wd_heartbeat_deadtime": 4}
    shared |= {"wd_heartbeat_keepalive": 1, "enable_consensus_with_half_votes": "on"}
    for i in range(count):
        shared |= {
            f"hostname{i}": HOST,
            f"pgpool_port{i}": ports[i],
            f"wd_port{i}": ports[count + i],
            f"heartbeat_hostname{i}": HOST,
            f"heartbeat_port{i}": ports[2 * count + i],
        }
    return [shared | {"port": ports[i], "pcp_port": ports[3 * count + i]} for i in range(count)]


@pytest.fixture
def watchdog_cluster(cluster):
    pools = []
    try:
        for number, settings in enumerate(watchdog_settings(3)):
            pool = Pgpool(cluster, settings)
            pools.append(pool)
            pool.port, pool.pcp_port = settings["port"], settings["pcp_port"]
            (pool.directory / "pgpool_node_id").write_text(f"{number}\n")
        # each waits for the others before it serves
        with ThreadPoolExecutor(len(pools)) as threads:
            list(threads.map(lambda pool: pool.launch(discard_status=True, timeout=40), pools))
        yield pools
    finally:
        for pool in pools:
            pool.process.close()


def states(manager):
    """The watchdog's states as the first member that answers tells them."""
    members = members_of(manager.balancer)
    members.nodes(time.monotonic() + 5)
    with members.current.session(time.monotonic() + 5) as session:
        document = session.watchdog()
    return sorted(node["StateName"] for node in json.loads(document)["WatchdogNodes"])


def wait_for(manager, expected, seconds=40):
    """A pgpool may refuse connections for a moment while it joins the others; by the end it must not."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            seen = states(manager)
        except TemporaryError as error:
            seen = str(error)
        if seen == expected:
            return
        assert time.monotonic() < deadline, seen
        time.sleep(0.2)


def test_a_watchdog_cluster(watchdog_cluster, manage, cluster):
    pools = watchdog_cluster
    manager = manage(*pools)
    singles = [manage(pool) for pool in pools]
    for single in singles:
        wait_for(single, ["LEADER", "STANDBY", "STANDBY"])

    findings = manager.check()
    assert [f for f in findings if f.severity is not Severity.OK] == []

    # a command to one, proven on all
    assert manager.send(Detach, 2).result is Result.CHANGED
    assert [single.belief() for single in singles] == ["P+ + -"] * 3
    assert manager.send(Attach, 2).result is Result.CHANGED
    assert [single.belief() for single in singles] == ["P+ + +"] * 3

    # a failover, while one member is down
    pools[2].process.kill()
    cluster.nodes[0].kill()
    cluster.nodes[1].promote()
    cluster.nodes[2].follow(cluster.nodes[1])
    with pytest.raises(TemporaryError, match=f"but cannot connect to {HOST}:{pools[2].pcp_port}"):
        manager.send(Promote, 1)
    assert [single.belief() for single in singles[:2]] == ["- P+ +"] * 2
    silent = members_of(manager.balancer).all[2]
    assert [f.subject for f in manager.check() if f.severity is Severity.ERROR] == [str(silent)]

    # the leader dies as well; until there is a new one, requests are cancelled
    pools[0].process.kill()
    with pytest.raises(TemporaryError, match="is detached; but cannot connect to"):
        manager.send(Detach, 2, seconds=40)
    assert singles[1].belief() == "- P+ -"


def test_pgpools_without_watchdog_are_no_cluster(start_pgpool, manage):
    manager = manage(start_pgpool(), start_pgpool())
    with pytest.raises(PermanentError, match="make each a balancer of its own"):
        manager.send(Detach, 2)
    assert manager.belief() == "P+ + +"
