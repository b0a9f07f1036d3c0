"""One hook for a pgpool, a HAProxy and a PgBouncer: what it says, what it exits with, and what they do then."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.haproxy import READ, WRITE, Haproxy
from efm_lb.rehearsal.hooks import Hook, Run, efm_lb_hook, hook_environment
from efm_lb.rehearsal.pgbouncer import READ as READ_ENTRY
from efm_lb.rehearsal.pgbouncer import WRITE as WRITE_ENTRY
from efm_lb.rehearsal.pgbouncer import Pgbouncer
from efm_lb.rehearsal.pgpool import Pgpool
from integration.real import told


class All:
    """Three load balancers of one cluster."""

    def __init__(self, cluster: Cluster, pgpool: Pgpool, haproxy: Haproxy, pgbouncer: Pgbouncer, name: str) -> None:
        self.pgpool, self.haproxy, self.pgbouncer = pgpool, haproxy, pgbouncer
        self._cluster = cluster
        env_file = hook_environment(cluster, [pgpool, haproxy, pgbouncer], name)
        self.hook: Hook = efm_lb_hook(env_file)

    def state(self) -> dict[str, str]:
        """Per balancer and node ``W`` for writes and ``r`` for reads, asked past the adapters."""
        ready = {proxy: self.haproxy.ready(proxy) for proxy in (WRITE, READ)}
        places = {name: place.rpartition(":")[0].split(",") for name, place in self.pgbouncer.places().items()}
        hosts = {
            "edge1": (ready[WRITE], ready[READ]),
            "pgb1": (places[WRITE_ENTRY], places[READ_ENTRY]),
        }
        told = {
            name: " ".join(("W" * (n.host in w) + "r" * (n.host in r)) or "-" for n in self._cluster.nodes)
            for name, (w, r) in hosts.items()
        }
        attached, primary = self.pgpool.attached(), self.pgpool.primary()
        told["pool1"] = " ".join(
            "W" if n.host == primary else "r" if n.host in attached else "-" for n in self._cluster.nodes
        )
        return told

    def writers(self) -> set[str]:
        """The servers that a write through each of them gets to."""
        statement = "select host(inet_server_addr()) as host, pg_is_in_recovery() as standby"
        rows = [row for balancer in (self.pgpool, self.haproxy, self.pgbouncer) for row in balancer.query(statement)]
        assert {row["standby"] for row in rows} == {"f"}
        return {str(row["host"]) for row in rows}


@pytest.fixture
def everything(cluster: Cluster, pgpool: Pgpool, haproxy: Haproxy, pgbouncer: Pgbouncer, tmp_path: Path) -> All:
    return All(cluster, pgpool, haproxy, pgbouncer, tmp_path.name)


def results(run: Run) -> dict[str, str]:
    """What came of it per balancer: the words before the time."""
    pattern = re.compile(r"(edge1|pgb1|pool1): ([a-z ]+) in \d+\.\d\d s: ")
    found = (pattern.match(line) for line in run.output.splitlines())
    return {match[1]: match[2] for match in found if match}


def alike(word: str) -> dict[str, str]:
    return dict.fromkeys(("edge1", "pgb1", "pool1"), word)


def test_a_standby_goes_and_comes_back(everything: All, cluster: Cluster) -> None:
    node = cluster.nodes[2]
    assert everything.state() == alike("W r r")
    run = everything.hook("detach", node.name, "s")
    assert run.exit_code == 0, run.output
    assert run.output.splitlines()[0] == f"detach {node.name} standby: {node.name} is a standby, and is up"
    assert results(run) == alike("changed")
    said = told(run.output, "edge1")
    assert f"{READ}/n3 ({node.address}) is drained; {everything.haproxy.config}:" in said
    assert said.endswith(" written")
    assert told(run.output, "pgb1").endswith(f"{READ_ENTRY} -> {cluster.nodes[1].address}; RELOAD")
    assert everything.state() == alike("W r -")

    again = everything.hook("detach", node.name, "s")
    assert (again.exit_code, results(again)) == (0, alike("unchanged"))
    back = everything.hook("attach", node.name, "s")
    assert (back.exit_code, results(back)) == (0, alike("changed")), back.output
    assert everything.state() == alike("W r r")
    assert (again.stderr, back.stderr) == ("", "")


def test_a_planned_switchover(everything: All, cluster: Cluster) -> None:
    old, new, other = cluster.nodes
    detach = everything.hook("detach", old.name, "p")
    assert detach.exit_code == 0, detach.output
    assert "clients stay until another primary is proven [defer]" in detach.output.splitlines()[0]
    assert results(detach) == {"pgb1": "changed"}, "the only one that can hold clients"
    assert everything.state() == alike("W r r")
    assert everything.pgbouncer.paused() == [WRITE_ENTRY]
    old.stop()
    new.promote()
    other.follow(new)
    promote = everything.hook("promote", new.name)
    assert promote.exit_code == 0, promote.output
    assert promote.output.splitlines()[0].startswith(f"promote {new.name}: {new.name} is the primary (timeline ")
    # The follow-up of the detach has seen the promotion too, and may have been faster.
    assert set(results(promote).values()) <= {"changed", "unchanged"}
    assert everything.state() == alike("- W r")
    assert everything.pgbouncer.paused() == []
    assert everything.writers() == {new.host}

    attach = everything.hook("attach", new.name, "p")
    assert (attach.exit_code, results(attach)) == (0, alike("unchanged")), attach.output
    old.rejoin(new)
    back = everything.hook("attach", old.name, "s")
    assert (back.exit_code, results(back)) == (0, alike("changed")), back.output
    assert everything.state() == alike("r W r")
    assert everything.writers() == {new.host}


def test_a_hold_whose_guard_is_killed(everything: All, cluster: Cluster) -> None:
    """EFM's agent had failed, nobody is promoted, and what lets clients go is killed as well."""
    primary, standby, _ = cluster.nodes
    detach = everything.hook("detach", primary.name, "p")
    guard = re.search(r"held for at most 10 s \(process (\d+) lets go\)", told(detach.output, "pgb1"))
    assert guard, detach.output
    os.kill(int(guard[1]), signal.SIGKILL)
    status = everything.hook("status")
    assert status.exit_code == 75, status.output
    assert f"! pgb1: {primary.name} is a primary, but gets no writes" in status.output
    assert f"pgb1: promote {primary.name}: RESUME {WRITE_ENTRY} at " in everything.hook("plan").output
    assert "the process that lets its clients go was killed" in " ".join(
        everything.hook("check", "--json").output.split()
    )
    assert everything.pgbouncer.paused() == [WRITE_ENTRY]
    attach = everything.hook("attach", standby.name, "s")
    assert attach.exit_code == 0, attach.output
    assert results(attach) == {**alike("unchanged"), "pgb1": "changed"}
    assert told(attach.output, "pgb1").endswith(f"RESUME {WRITE_ENTRY}")
    assert everything.writers() == {primary.host}
    assert everything.hook("status").exit_code == 0


def test_a_failover(everything: All, cluster: Cluster) -> None:
    old, new, other = cluster.nodes
    old.kill()
    new.promote()
    other.follow(new)
    attach = everything.hook("attach", new.name, "p")
    assert attach.exit_code == 0, attach.output
    assert results(attach) == alike("changed")
    assert everything.state() == alike("- W r")
    assert everything.writers() == {new.host}
    detach = everything.hook("detach", old.name, "p")
    assert (detach.exit_code, results(detach)) == (0, alike("unchanged")), detach.output


def test_a_failover_of_which_the_detach_comes_first(everything: All, cluster: Cluster) -> None:
    old, new, other = cluster.nodes
    old.kill()
    detach = everything.hook("detach", old.name, "p")
    assert detach.exit_code == 0, detach.output
    assert results(detach) == {"edge1": "changed", "pgb1": "deferred", "pool1": "deferred"}, detach.output
    assert everything.haproxy.ready(WRITE) == []
    new.promote()
    other.follow(new)
    attach = everything.hook("attach", new.name, "p")
    assert attach.exit_code == 0, attach.output
    # The follow-up of the detach has seen the promotion too, and may have been faster.
    assert set(results(attach).values()) <= {"changed", "unchanged"}
    assert everything.state() == alike("- W r")
    assert everything.writers() == {new.host}


@pytest.mark.parametrize("name", ["edge1", "pgb1", "pool1"])
def test_one_of_them_is_down(everything: All, cluster: Cluster, name: str) -> None:
    servers: dict[str, Haproxy | Pgbouncer | Pgpool] = {
        "edge1": everything.haproxy,
        "pgb1": everything.pgbouncer,
        "pool1": everything.pgpool,
    }
    node = cluster.nodes[2]
    servers[name].process.kill()
    run = everything.hook("detach", node.name, "s")
    assert run.exit_code == 75, run.output
    assert results(run) == {**alike("changed"), name: "failed temporarily"}
    servers[name].launch()
    again = everything.hook("detach", node.name, "s")
    assert again.exit_code == 0, again.output
    assert everything.state() == alike("W r -")


def test_status_and_plan_agree_with_what_they_do(everything: All, cluster: Cluster) -> None:
    node = cluster.nodes[2]
    everything.hook("detach", node.name, "s")
    status = everything.hook("status")
    assert status.exit_code == 75, status.output
    for name in ("edge1", "pgb1", "pool1"):
        assert f"! {name}: {node.name} is up, but detached" in status.output
    plan = everything.hook("plan")
    assert plan.exit_code == 0, plan.output
    for name in ("edge1", "pgb1", "pool1"):
        assert f"{name}: attach {node.name}: " in plan.output
    everything.hook("attach", node.name, "s")
    assert everything.hook("status").exit_code == 0
    assert everything.hook("plan").output.splitlines() == [f"{name}: nothing to do" for name in sorted(alike(""))]
