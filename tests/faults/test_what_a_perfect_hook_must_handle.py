"""What EFM, the databases and the load balancers do to a hook, one case after the other, with real servers.

EFM calls on any node, for any node, in any order, once, several times or never, and says little. Each test makes one
such case, and the databases and a write and a read through each load balancer say whether it was handled.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from efm_lb import Node, lock
from efm_lb.commands.efm_properties import properties
from efm_lb.maintenance import in_force
from efm_lb.rehearsal import sql
from efm_lb.rehearsal.balancer import Balancer, named
from efm_lb.rehearsal.cluster import PROBE_PASSWORD, Cluster, Server
from efm_lb.rehearsal.haproxy import READ, WRITE, Haproxy
from efm_lb.rehearsal.hooks import Hook, Run, efm_lb_hook, hook_environment, probe_passfile
from efm_lb.rehearsal.pgbouncer import ADMIN_PASSWORD, Pgbouncer
from efm_lb.rehearsal.pgpool import PCP_PASSWORD, Pgpool
from efm_lb.rehearsal.stage import free_port
from efm_lb.rehearsal.verdict import faults, misbeliefs
from efm_lb.rehearsal.waiting import wait_until
from efm_lb_pgpool import pcp
from efm_lb_pgpool.node_info import parse
from integration.real import told
from unit.docs.documents import ROOT, blocks, read
from unit.pgpool.fake_pcp import Conversation, FakePgpool, frame, nodes_4_3

HASTE: Mapping[str, object] = {
    "EFM_LB_CONNECT_TIMEOUT": 1,
    "EFM_LB_DEADLINE": 6,
    "EFM_LB_RECONCILE__SETTLE": 0.1,
    "EFM_LB_RECONCILE__DETACH_AFTER": 0.1,
    "EFM_LB_BALANCERS__PGB1__HOLD": 1,
}
IMPATIENT = {"EFM_LB_DEADLINE": 2}
HEALTHY = {"edge1": "W r r", "pgb1": "W r r", "pool1": "Wr r r"}
pytestmark = pytest.mark.fault("a case that EFM, a database or a balancer makes")
SEED = int(os.environ.get("EFM_LB_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)


class Stand:
    """A pgpool, a HAProxy and a PgBouncer in front of a cluster: node 0 the primary, the others its standbys.

    :ivar hook: efm-lb for all three, as EFM runs it on one host
    """

    def __init__(self, cluster: Cluster, balancers: Sequence[Balancer], name: str) -> None:
        self.cluster = cluster
        self.balancers = balancers
        self._name = name
        self.hook = self.host("db")

    def env_file(self, name: str, balancers: Sequence[Balancer] = (), **extra: object) -> Path:
        given = {key: value for key, value in HASTE.items() if "PGB1" not in key or not balancers}
        return hook_environment(self.cluster, balancers or self.balancers, f"{self._name}.{name}", {**given, **extra})

    def host(self, name: str, *balancers: Balancer, **extra: object) -> Hook:
        """The hook of another host, or with other settings; for all three unless some are named."""
        return efm_lb_hook(self.env_file(name, balancers, **extra))

    def records(self, name: str = "db") -> list[dict[str, object]]:
        """What is in the journal of a host."""
        journal = self.cluster.stage.directory / f"{self._name}.{name}.state" / "efm.journal"
        return [json.loads(line) for line in journal.read_text().splitlines()]

    def state(self) -> dict[str, str]:
        """Per balancer and node ``W`` for writes and ``r`` for reads, asked past the hook."""
        return {
            name: " ".join(("W" * writes + "r" * reads) or "-" for writes, reads in beliefs(each))
            for name, each in named(self.balancers).items()
        }

    def wrong(self) -> list[str]:
        """What is wrong, by what each believes, and by a write and a read through it."""
        return [line for each in self.balancers for line in faults(self.cluster, each)]

    def becomes_right(self, timeout: float = 20.0) -> bool:
        return wait_until(
            lambda: not any(misbeliefs(self.cluster, each) for each in self.balancers), timeout, interval=0.1
        )


@pytest.fixture
def stand(cluster: Cluster, pgpool: Pgpool, haproxy: Haproxy, pgbouncer: Pgbouncer, tmp_path: Path) -> Stand:
    return Stand(cluster, [pgpool, haproxy, pgbouncer], tmp_path.name)


def beliefs(balancer: Balancer) -> list[tuple[bool, bool]]:
    """Per node whether writes go there, and reads."""
    if not isinstance(balancer, Pgpool):
        return [belief[:2] for belief in balancer.beliefs()]
    # By PCP: it lets no client in while a node that it holds for up is down.
    server = pcp.Server(balancer.host, balancer.pcp_port)
    deadline = time.monotonic() + 5
    while True:
        try:
            with pcp.connect(server, balancer.pcp_user, PCP_PASSWORD, deadline, 5) as session:
                return [(each.attached and each.is_primary, each.attached) for each in session.nodes().backends]
        except pcp.Interrupted:
            # pgpool starts its PCP process anew after every change, and resets who had just come.
            assert time.monotonic() < deadline, "pgpool resets every connection"
            time.sleep(0.05)


def results(run: Run) -> dict[str, str]:
    """What came of a call per balancer, in the words before the time."""
    found = re.findall(r"^(\w+): ([a-z ]+) in \d+\.\d\d s: ", run.output, re.MULTILINE)
    return dict(found)


def alike(word: str) -> dict[str, str]:
    return dict.fromkeys(HEALTHY, word)


def fail_over(cluster: Cluster) -> tuple[Server, Server, Server]:
    """The primary crashes, the next node is promoted, the last one follows it; nobody is called."""
    old, new, other = cluster.nodes
    old.kill()
    new.promote()
    other.follow(new)
    cluster.wait_streaming()
    return old, new, other


def test_01_both_letters_and_odd_input(stand: Stand, cluster: Cluster) -> None:
    primary, standby, _ = (node.name for node in cluster.nodes)
    for words in (
        *(("attach", primary, letter) for letter in ("p", "m", "primary", "MASTER")),
        *(("attach", standby, letter) for letter in ("s", "standby")),
        *(("attach", node, *letter) for node in (primary, standby) for letter in ((), ("",), ("%t",), ("w",))),
    ):
        run = stand.hook(*words)
        assert (run.exit_code, results(run)) == (0, alike("unchanged")), run.output
        assert ("expected p or s" in run.output) is (words[-1] in ("%t", "w"))
    for words in (("attach", "%h", "%t"), ("detach", "%h", "s"), ("promote", "%p"), ("detach", standby, "%x")):
        run = stand.hook(*words)
        assert run.exit_code == 2, run.output
        assert "EFM did not replace %" in run.output
    assert stand.state() == HEALTHY


def test_02_run_on_any_node_for_any_other(stand: Stand, cluster: Cluster) -> None:
    """No host is special, and a witness has no PostgreSQL to run programs of."""
    node = cluster.nodes[2]
    witness = stand.host("witness")
    witness = Hook(witness.command, {"PATH": "/nowhere"})
    for other in (*cluster.nodes[:2], node):
        assert witness("attach", other.name).exit_code == 0
    out = witness("detach", node.name, "s")
    assert (out.exit_code, results(out)) == (0, alike("changed")), out.output
    back = stand.hook("attach", node.name, "s")
    assert (back.exit_code, results(back)) == (0, alike("changed")), back.output
    assert results(witness("attach", node.name, "s")) == alike("unchanged")
    assert stand.wrong() == []


def test_03_the_primarys_agent_died_and_its_database_is_fine(stand: Stand, cluster: Cluster) -> None:
    """``detach p`` with no promotion behind it: nobody is cut, and a client that was held goes on."""
    primary = cluster.nodes[0]
    with contextlib.ExitStack() as stack:
        sessions = [
            stack.enter_context(session_of(each)) for each in stand.balancers if not isinstance(each, Pgbouncer)
        ]
        run = stand.hook("detach", primary.name, "p")
        assert run.exit_code == 0, run.output
        assert "[defer]" in run.output.splitlines()[0]
        again = stand.hook("detach", primary.name, "p", "--follow-up", "0.1", "--call", "1-1")
        assert "is up: left in place [defer]" in again.output.splitlines()[0]
        for session in sessions:
            assert session.execute("select 1 as one") == [{"one": "1"}]
    (pgbouncer,) = (each for each in stand.balancers if isinstance(each, Pgbouncer))
    assert wait_until(lambda: pgbouncer.paused() == [], timeout=10), "held for a moment, and let go"
    assert stand.state() == HEALTHY
    assert stand.wrong() == []
    refused = stand.host("refuses", EFM_LB_DETACH_LIVE_PRIMARY="refuse")("detach", primary.name, "p")
    assert (refused.exit_code, results(refused)) == (69, {})
    assert stand.state() == HEALTHY


def test_04_a_detach_before_the_stop_of_a_switchover(stand: Stand, cluster: Cluster) -> None:
    """The same call as in case 3, and then nobody calls: what was put off is done when it is proven."""
    old, new, other = cluster.nodes
    run = stand.hook("detach", old.name, "p")
    assert (run.exit_code, "[defer]" in run.output.splitlines()[0]) == (0, True), run.output
    old.stop()
    new.promote()
    other.follow(new)
    assert stand.becomes_right(), stand.state()
    assert stand.wrong() == []


def test_05_a_detach_of_a_dead_host(stand: Stand, cluster: Cluster, haproxy: Haproxy) -> None:
    """A host that answers nothing, and a balancer that does not either: bounded, and no cost to the others."""
    node = cluster.nodes[2]
    node.freeze()
    haproxy.process.freeze()
    try:
        run = stand.hook("detach", node.name, "s")
    finally:
        haproxy.process.thaw()
        node.thaw()
    assert run.exit_code == 75, run.output
    assert results(run) == {**alike("changed"), "edge1": "failed temporarily"}
    assert "did not answer in time" in told(run.output, "edge1")
    assert run.seconds < 6 + 6, "the deadline, and as long again for a busy machine"


def test_06_an_attach_of_a_standby_never_moves_writes(stand: Stand, cluster: Cluster) -> None:
    old, new, other = cluster.nodes
    old.kill()
    early = stand.host("early", **IMPATIENT)("attach", new.name, "p")
    assert early.exit_code == 75, early.output
    assert "still in recovery" in early.output
    assert not [state for state in stand.state().values() if "W" in state.split()[1]]
    new.promote()
    other.follow(new)
    reads_only = stand.hook("attach", new.name, "s")
    assert not [state for state in stand.state().values() if "W" in state.split()[1]], reads_only.output
    moved = stand.hook("attach", new.name, "p")
    assert moved.exit_code == 0, moved.output
    assert stand.wrong() == []


def test_07_an_attach_while_the_database_takes_no_connections_yet(stand: Stand, cluster: Cluster) -> None:
    node = cluster.nodes[2]
    node.stop()
    assert stand.hook("detach", node.name, "s").exit_code == 0
    starter = threading.Timer(1.0, node.start)
    starter.start()
    try:
        run = stand.hook("attach", node.name, "s")
    finally:
        starter.join()
    assert (run.exit_code, results(run)) == (0, alike("changed")), run.output
    node.stop()
    stand.hook("detach", node.name, "s")
    never = stand.host("impatient", **IMPATIENT)("attach", node.name, "s")
    assert never.exit_code == 75, never.output
    assert f"{node.name} takes no connections (refused), so it was not attached" in never.output
    assert {state.split()[2] for state in stand.state().values()} == {"-"}


def test_08_the_event_says_another_role_than_the_database(stand: Stand, cluster: Cluster) -> None:
    one, two, three = cluster.nodes
    wrong = stand.hook("attach", two.name, "p")
    assert wrong.exit_code == 0, wrong.output
    assert f"is a standby although EFM calls it the primary, which is {one.name}" in wrong.output
    assert "although EFM calls it" in str([record.get("reason") for record in stand.records()])
    assert stand.state() == HEALTHY
    fail_over(cluster)
    assert stand.hook("attach", two.name, "p").exit_code == 0
    two.kill()
    three.promote()
    assert stand.hook("attach", three.name, "p").exit_code == 0
    late = stand.host("late", **IMPATIENT)("attach", two.name, "p")
    assert late.exit_code == 75, "a call about a failover that is over"
    assert stand.wrong() == []


def test_09_two_primaries(stand: Stand, cluster: Cluster) -> None:
    one, two, three = cluster.nodes
    two.promote()
    for words in (
        ("attach", two.name, "p"),
        ("promote", two.name),
        ("attach", one.name, "p"),
        ("attach", one.name),
        ("detach", one.name, "p"),
        ("attach", three.name, "s"),
        ("reconcile",),
    ):
        run = stand.hook(*words)
        assert run.exit_code == 75, run.output
        assert "more than one writable primary" in run.output
        assert stand.state() == HEALTHY, f"{words}: what is there stays"


def test_10_the_same_node_returns_as_the_primary(stand: Stand, cluster: Cluster, pgpool: Pgpool) -> None:
    """It was taken out and nobody was promoted: pgpool would end a pcp_promote_node of its own primary."""
    primary = cluster.nodes[0]
    out = stand.host("obeys", EFM_LB_DETACH_LIVE_PRIMARY="obey")("detach", primary.name, "p")
    assert out.exit_code == 0, out.output
    assert stand.state()["edge1"] == "- r r"
    assert stand.state()["pool1"].startswith("- ")
    seen = len(pgpool.log.read_text(errors="replace"))
    back = stand.hook("attach", primary.name, "p")
    assert back.exit_code == 0, back.output
    assert stand.wrong() == []
    assert "specified node is already primary node" not in pgpool.log.read_text(errors="replace")[seen:]
    assert results(stand.hook("attach", primary.name, "p")) == alike("unchanged")


def test_11_the_primary_failed_and_nobody_is_promoted(stand: Stand, cluster: Cluster) -> None:
    primary, *standbys = cluster.nodes
    primary.kill()
    run = stand.hook("detach", primary.name, "p")
    assert run.exit_code == 0, run.output
    assert wait_until(lambda: stand.state()["pool1"] == "- r r", timeout=20, interval=0.2), stand.state()
    assert stand.state()["edge1"] == "- r r"
    for each in stand.balancers:
        # pgpool lets nobody in while it looks for a primary.
        assert wait_until(lambda each=each: reads_from(each) in [node.host for node in standbys], timeout=10), each.name
        entrance = each.writing
        with pytest.raises(sql.SqlError):
            sql.query(entrance.host, entrance.port, "insert into rehearsal values (1, 1)", dbname=entrance.dbname)


def test_12_the_old_primary_comes_back_as_a_standby(stand: Stand, cluster: Cluster) -> None:
    old, new, _ = fail_over(cluster)
    assert stand.hook("attach", new.name, "p").exit_code == 0
    old.rejoin(new)
    back = stand.hook("attach", old.name, "s")
    assert (back.exit_code, results(back)) == (0, alike("changed")), back.output
    assert stand.state() == {"edge1": "r W r", "pgb1": "r W r", "pool1": "r Wr r"}
    assert stand.wrong() == []


def test_13_the_other_standbys_bounce_during_the_promotion(stand: Stand, cluster: Cluster) -> None:
    """EFM restarts them to follow the new primary; one that is up and no standby is not put back."""
    old, new, other = cluster.nodes
    old.kill()
    other.stop()
    new.promote()
    stand.hook("attach", new.name, "p")
    other.follow(new)
    other.start()
    assert stand.hook("attach", other.name, "s").exit_code == 0
    assert stand.wrong() == []
    old.start()  # by mistake: still what it was, on the old timeline
    for words in (("attach", old.name, "s"), ("attach", old.name, "p")):
        assert stand.hook(*words).exit_code == 75
    assert {state.split()[0] for state in stand.state().values()} == {"-"}


def test_14_what_is_right_is_left_alone(stand: Stand, cluster: Cluster, haproxy: Haproxy, pgbouncer: Pgbouncer) -> None:
    """pgpool's detach cuts every session, PgBouncer's reload and HAProxy's shutdown some: none for nothing."""
    primary, standby, node = (each.name for each in cluster.nodes)
    stand.hook("detach", node, "s")
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(session_of(each)) for each in stand.balancers]
        backends = [session.execute("select pg_backend_pid() as pid") for session in sessions]
        files = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in (haproxy.config, pgbouncer.entries)]
        for words in (("detach", node, "s"), ("attach", primary, "p"), ("attach", standby, "s"), ("promote", primary)):
            run = stand.hook(*words)
            assert (run.exit_code, results(run)) == (0, alike("unchanged")), run.output
        assert [session.execute("select pg_backend_pid() as pid") for session in sessions] == backends
        assert files == [(path.stat().st_ino, path.stat().st_mtime_ns) for path in (haproxy.config, pgbouncer.entries)]


def test_15_command_successful_is_no_proof(stand: Stand, cluster: Cluster, tmp_path: Path) -> None:
    """A pgpool that completes every command, and does none."""
    rows = [
        b"%s\0%d\x002\x000\0up\x00715827882.3\0%d\0unknown\x000\0\0\x000\0"
        % (node.host.encode(), node.port, 2 if node.number == 0 else 3)
        for node in cluster.nodes
    ]

    def nodes(body: bytes) -> bytes:
        number = int(body[:-1])
        return nodes_4_3(*(rows if number < 0 else [rows[number]]))

    complete = b"CommandComplete\0"
    liar = Conversation(
        {
            b"L": frame(b"l", complete + b"3\0"),
            b"I": nodes,
            b"A": frame(b"a", complete),
            b"C": frame(b"c", complete),
            b"D": frame(b"d", complete),
        }
    )
    passfile = tmp_path / "pcppass"
    passfile.touch(mode=0o600)
    passfile.write_text("*:*:pcp:secret\n")
    with FakePgpool(liar) as server:
        extra = {"HOST": "127.0.0.1", "PORT": server.port, "USER": "pcp", "PASSFILE": passfile}
        pool = next(each for each in stand.balancers if isinstance(each, Pgpool))
        hook = stand.host("deceived", pool, **{f"EFM_LB_BALANCERS__POOL1__{k}": v for k, v in extra.items()})
        run = hook("detach", cluster.nodes[2].name, "s")
    assert (run.exit_code, results(run)) == (75, {"pool1": "failed temporarily"}), run.output
    assert (b"D", b"2\0") in liar.requests


NODE_INFO = {
    "3.5": "10.0.0.11 5444 {status} 715827882.3",
    "3.7": "10.0.0.11 5444 {status} 715827882.3 {role}",
    "3.7.23": "10.0.0.11 5444 {status} 0 715827882.3 {role}",
    "4.0": "10.0.0.11 5444 {status} 715827882.3 {role} 0 1795470276",
    "4.0.18": "10.0.0.11 5444 {status} 0 715827882.3 {role} 0 1795470276",
    "4.1 and 4.2": "10.0.0.11 5444 {status} 715827882.3 {role} 0 streaming async 1795470276",
    "4.1.11 and 4.2.8": "10.0.0.11 5444 {status} 0 715827882.3 {role} 0 streaming async 1795470276",
    "4.3.0": "10.0.0.11 5444 {status} up 715827882.3 {role} standby 0 streaming async 1795470276",
    "4.3.1": "10.0.0.11 5444 {status} 0 up 715827882.3 {role} standby 0 streaming async 1795470276",
    "4.4": "10.0.0.11 5444 {status} 0 up 715827882.3 {role} standby 1 0 streaming async 1795470276",
}
"""What a pgpool from that release on says of a node, behind the code string."""


@pytest.mark.parametrize("release", NODE_INFO)
def test_16_every_layout_of_pcp_node_info(release: str) -> None:
    """Role is the sixth word up to 4.2, and the seventh since 4.3: who counts takes a status for it."""
    for status, role, attached, is_primary in (("1", "3", True, False), ("3", "2", False, True)):
        backend = parse(0, NODE_INFO[release].format(status=status, role=role).split())
        assert (backend.host, backend.port) == ("10.0.0.11", 5444)
        assert (backend.attached, backend.is_primary) == (attached, is_primary and release != "3.5")


def test_17_exact_mapping_of_names_and_addresses(stand: Stand, cluster: Cluster) -> None:
    one, two, three = cluster.nodes
    names = f"db-1=127.0.0.11:{one.port},db-1_a.example=127.0.0.12:{two.port},db-1_a.example.net=other={three.address}"
    hook = stand.host("named", EFM_LB_NODES=names)
    for name in ("db-1_a", "db", "example", "127.0.0.1", "27.0.0.11", "127.0.0.110", "127.0.0.13:1", "db-1_a_example"):
        run = hook("detach", name, "s")
        assert run.exit_code == 69, run.output
        assert f"{name} is not in EFM_LB_NODES" in run.output
    assert stand.state() == HEALTHY
    for name in ("DB-1_A.example.net", "other", three.host):
        run = hook("detach", name, "s")
        assert (run.exit_code, results(run)) == (0, alike("changed")), run.output
        assert {state.split()[2] for state in stand.state().values()} == {"-"}
        assert hook("attach", "db-1_a.example.net", "s").exit_code == 0
        assert stand.state() == HEALTHY
    node = Node("fd00::11", "fd00::11", 5444)
    assert node.is_at("FD00:0:0::11", 5444)
    assert not node.is_at("fd00::1", 5444)
    assert not node.is_at("fd00::11", 5445)


def test_18_several_balancers_of_which_one_is_dead(stand: Stand, cluster: Cluster, haproxy: Haproxy) -> None:
    node = cluster.nodes[2]
    node.stop()
    haproxy.process.kill()
    run = stand.hook("detach", node.name, "s")
    assert (run.exit_code, results(run)) == (75, {**alike("changed"), "edge1": "failed temporarily"}), run.output
    haproxy.launch()
    assert "r" not in haproxy_letters(stand).split()[2], "its file was made right for its start"
    paid = stand.hook("reconcile")
    assert paid.exit_code == 0, paid.output
    assert stand.wrong() == []


def test_19_several_clusters_on_one_host(stand: Stand, cluster: Cluster, pgpool: Pgpool, haproxy: Haproxy) -> None:
    node = cluster.nodes[2].name
    state = cluster.stage.directory / f"{stand.env_file('shared').stem}.both"
    state.mkdir()
    acctg = stand.host("acctg", pgpool, EFM_LB_STATE_DIR=state)
    sales = stand.host("sales", haproxy, EFM_LB_STATE_DIR=state)
    held = lock.acquire(str(state / "acctg.lock"), 1)
    try:
        run = sales("detach", node, "s", "--cluster", "sales")
    finally:
        os.close(held)
    assert (run.exit_code, results(run)) == (0, {"edge1": "changed"}), run.output
    assert "another call holds" not in run.output
    assert acctg("detach", node, "s", "--cluster=acctg").exit_code == 0
    names = {path.name.partition(".")[0] for path in state.iterdir()}
    assert names == {"acctg", "sales"}
    for name in names:
        assert node in (state / f"{name}.journal").read_text()


def test_20_concurrent_and_reordered_calls(stand: Stand, cluster: Cluster) -> None:
    old, new, other = fail_over(cluster)
    calls = [("detach", old.name, "p"), ("attach", new.name, "p"), ("promote", new.name), ("attach", other.name, "s")]
    calls += [("detach", new.name, "s"), ("detach", new.name, "p")]  # both were true, and come late
    dice = random.Random(SEED)
    hooks = (stand.hook, stand.host("db2"))
    work = [(hook, words) for hook in hooks for words in dice.sample(calls, len(calls))]
    dice.shuffle(work)
    with ThreadPoolExecutor(4) as threads:
        runs = list(threads.map(lambda each: each[0](*each[1]), work))
    said = [f"seed {SEED}", *(f"{' '.join(run.argv[4:7])}: {run.exit_code} {run.output}" for run in runs)]
    assert stand.becomes_right(), said
    assert stand.wrong() == [], said
    assert {run.exit_code for run in runs} <= {0, 75}, said


def test_21_missed_events(stand: Stand, cluster: Cluster, haproxy: Haproxy) -> None:
    fail_over(cluster)
    paid = stand.hook("reconcile")
    assert paid.exit_code == 0, paid.output
    assert stand.wrong() == []
    haproxy.process.stop()
    assert stand.hook("reconcile").exit_code == 75
    monitor = stand.hook("reconcile", "--custom-monitor")
    assert monitor.exit_code == 0, "EFM would take anything else for a failed database"
    assert "edge1: " in monitor.output


def test_22_maintenance(stand: Stand, cluster: Cluster, haproxy: Haproxy) -> None:
    """What an operator drains by hand stays so, whoever looks or calls; a promotion counts all the same."""
    node = cluster.nodes[2]
    haproxy.command(f"set server {READ}/n3 state drain")
    assert stand.hook("maintenance", "set", node.name, "--for=1h", "--reason=new disks").exit_code == 0
    assert stand.hook("reconcile").exit_code == 0
    called = stand.hook("attach", node.name, "s")
    assert (called.exit_code, "[defer]" in called.output) == (0, True), called.output
    assert f"{node.name} is in maintenance: not attached" in called.output
    assert f"{node.name} is in maintenance until" in stand.hook("status").output
    assert haproxy.servers(READ)[node.host] == "drain"
    fail_over(cluster)
    assert stand.hook("attach", cluster.nodes[1].name, "p").exit_code == 0
    assert haproxy.ready(WRITE) == [cluster.nodes[1].host]
    assert haproxy.servers(READ)[node.host] == "drain"
    state = stand.env_file("db").with_suffix(".state")
    assert [each.name for each in in_force(str(state), "efm")] == [node.name]
    assert stand.hook("maintenance", "clear", node.name).exit_code == 0
    assert stand.hook("attach", node.name, "s").exit_code == 0
    assert stand.wrong() == []


def test_23_efm_itself_is_never_asked(stand: Stand, cluster: Cluster, tmp_path: Path) -> None:
    """``efm cluster-status`` takes seconds, and can make EFM miss the failure of a database."""
    spy = tmp_path / "efm"
    spy.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    spy.chmod(0o755)
    hook = Hook(stand.hook.command, {"PATH": f"{tmp_path}:/usr/bin:/bin"})
    node = cluster.nodes[2].name
    for words in (("detach", node, "s"), ("attach", node, "s"), ("promote", cluster.nodes[0].name), ("reconcile",)):
        assert hook(*words).exit_code == 0
    for words in (("status",), ("check",), ("plan",)):
        hook(*words)
    assert not (tmp_path / "asked").exists()
    sources = [path.read_text() for folder in ("core", "adapters") for path in (ROOT / folder).rglob("*.py")]
    assert not [text for text in sources if "cluster-status" in text or "node-status" in text]


def test_24_an_honest_exit_code_and_a_short_output(stand: Stand, cluster: Cluster, haproxy: Haproxy) -> None:
    node = cluster.nodes[2].name
    haproxy.process.kill()
    run = stand.hook("detach", node, "s")
    assert run.exit_code == 75
    assert run.stderr == ""
    lines = run.stdout.splitlines()
    assert len(lines) <= 1 + len(stand.balancers) + 1, "the decision, each balancer, a note about the first run"
    assert all(len(line) < 600 and line.isprintable() for line in lines)
    everything = run.output + stand.hook("detach", node, "s", "--json").output + json.dumps(stand.records())
    for secret in (PROBE_PASSWORD, PCP_PASSWORD, ADMIN_PASSWORD):
        assert secret not in everything
    outcome = next(record for record in stand.records() if record["record"] == "outcome")
    assert outcome["exit_code"] == 75, "-quiet keeps EFM from mailing: the journal has it too"
    assert "edge1" in json.dumps(outcome)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_25_an_unprivileged_user_with_nothing_around_it(stand: Stand, cluster: Cluster, pgpool: Pgpool) -> None:
    nobody = 65534
    directory = cluster.stage.directory / f"{stand.env_file('nobody').stem}.home"
    directory.mkdir()
    (directory / "state").mkdir(mode=0o700)
    for path, name in ((Path(pgpool.pcp_passfile), "pcppass"), (probe_passfile(cluster), "pgpass")):
        shutil.copy(path, directory / name)
    env_file = stand.env_file(
        "nobody",
        [pgpool],
        EFM_LB_STATE_DIR=directory / "state",
        EFM_LB_PROBE__PASSFILE=directory / "pgpass",
        EFM_LB_BALANCERS__POOL1__PASSFILE=directory / "pcppass",
    )
    shutil.move(env_file, directory / "efm.env")
    for path in (directory, *directory.iterdir()):
        os.chown(path, nobody, nobody)
    # The interpreter itself may be where only root can read it, so the user changes after the imports.
    script = (
        "import email.parser, os, sys, efm_lb.hook, efm_lb.dispatch, efm_lb.__main__, efm_lb.config,"
        " efm_lb_pgpool.adapter, efm_lb_pgpool.drive;"
        f" os.setgroups([]); os.setgid({nobody}); os.setuid({nobody}); efm_lb.__main__.main()"
    )
    node = cluster.nodes[2].name
    for kind, letters in (("detach", "Wr r -"), ("attach", "Wr r r")):
        argv = [sys.executable, "-I", "-c", script, kind, node, "s", f"--env-file={directory}/efm.env"]
        run = subprocess.run(argv, env={}, cwd="/", capture_output=True, text=True, timeout=30, check=False)
        assert (run.returncode, run.stderr) == (0, ""), run.stdout
        assert "pool1: changed" in run.stdout
        assert stand.state()["pool1"] == letters
    owners = {path.stat().st_uid for path in (directory / "state").iterdir()}
    assert owners == {nobody}
    assert (directory / "state" / "efm.journal").exists()


def test_26_one_line_without_quotes_and_settings_that_need_no_restart(stand: Stand, cluster: Cluster) -> None:
    (example,) = blocks(read("README.md"), "properties")
    lines = [value for name, value in properties(example).items() if name.startswith("script.")]
    assert len(lines) == 3
    assert not [line for line in lines if re.search("""['"$;|&]""", line)], "EFM would pass them on as they are"
    assert not [line for line in lines if re.search(r"/efm-\d", line)], "an upgrade of EFM would lose it"
    node = cluster.nodes[2].name
    env_file = stand.env_file("db")
    assert set(results(stand.hook("detach", node, "s"))) == set(HEALTHY)
    text = env_file.read_text()
    env_file.write_text("".join(line for line in text.splitlines(True) if "__EDGE1__" not in line))
    assert set(results(stand.hook("attach", node, "s"))) == {"pgb1", "pool1"}, "read anew by the next call"
    env_file.write_text(text)
    assert results(stand.hook("attach", node, "s")) == {**alike("unchanged"), "edge1": "changed"}


def test_27_not_both_integrations(stand: Stand, tmp_path: Path) -> None:
    program = tmp_path / "efm-lb"
    program.touch(mode=0o755)
    directory = tmp_path / "efm-4.10"
    directory.mkdir()
    given = directory / "efm.properties"
    (example,) = blocks(read("README.md"), "properties")
    good = example.replace("/opt/efm-lb/bin/efm-lb", str(program))

    def found() -> set[tuple[str, str]]:
        run = stand.hook("check", "--json", f"--efm-properties={given}")
        findings = json.loads(run.stdout)["findings"]
        wrong = {(f["severity"], f["subject"]) for f in findings if f["where"] == "EFM" and f["severity"] != "ok"}
        if any(severity == "error" for severity, _ in wrong):
            assert run.exit_code == 69
        return wrong

    given.write_text(good)
    assert found() == set()
    given.write_text(
        f"pgpool.enable=true\nscript.load.balancer.attach={program} attach %h\n"
        f"script.custom.monitor={program} reconcile --custom-monitor\n"
    )
    assert found() == {
        ("error", "pgpool.enable"),
        ("warning", "script.load.balancer.attach"),
        ("error", "script.load.balancer.detach"),
        ("warning", "detach.on.agent.failure"),
        ("error", "custom.monitor.safe.mode"),
    }
    given.unlink()
    missing = stand.hook("check", f"--efm-properties={given}")
    assert (missing.exit_code, "No such file" in missing.output) == (77, True), missing.output


def test_28_the_balancers_own_check_was_faster(
    stand: Stand, cluster: Cluster, start_haproxy: Callable[..., Haproxy]
) -> None:
    haproxy = start_haproxy(server="check inter 100ms fall 1 rise 1000")
    node = cluster.nodes[2]
    hook = stand.host("checked", haproxy)
    node.stop()
    assert wait_until(lambda: haproxy.servers(READ)[node.host] == "down", timeout=10)
    out = hook("detach", node.name, "s")
    assert (out.exit_code, results(out)) == (0, {"edge1": "changed"}), out.output
    assert haproxy.servers(READ)[node.host] == "maint"
    node.start()
    back = hook("attach", node.name, "s")
    assert back.exit_code == 0, back.output
    assert haproxy.servers(READ)[node.host] == "ready", "and it waits for no thousand checks"
    node.stop()
    assert wait_until(lambda: haproxy.servers(READ)[node.host] == "down", timeout=10)
    node.start()
    late = hook("attach", node.name, "s")
    assert late.exit_code == 0, late.output
    assert haproxy.servers(READ)[node.host] == "ready", "only its check had found it down"


class Agents:
    """EFM 5.4's agents, as far as HAProxy sees them: HTTP on one port of each node, 200 where the primary is."""

    def __init__(self, cluster: Cluster) -> None:
        self.port = free_port(*(node.host for node in cluster.nodes))
        self.servers = [self._server(node) for node in cluster.nodes]
        self.threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in self.servers]

    def _server(self, node: Server) -> http.server.ThreadingHTTPServer:
        class Agent(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200 if node.in_recovery() is False else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        return http.server.ThreadingHTTPServer((node.host, self.port), Agent)

    def __enter__(self) -> Agents:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for number in range(len(self.servers)):
            self.end(number)

    def end(self, number: int) -> None:
        """This agent dies, and its database does not."""
        self.servers[number].shutdown()
        self.threads[number].join()
        self.servers[number].server_close()


@pytest.fixture
def agents(cluster: Cluster) -> Iterator[Agents]:
    with Agents(cluster) as running:
        yield running


def test_29_efm_s_own_port_for_haproxy(
    stand: Stand, cluster: Cluster, agents: Agents, start_haproxy: Callable[..., Haproxy]
) -> None:
    """What docs/haproxy.md says: polled where writes go, the hook where reads go, and neither is in the other's way."""
    page = read("docs/haproxy.md")
    assert "primary.health.check.port" in page
    (polled,) = (block for block in blocks(page, "text") if "http-check" in block)
    haproxy = start_haproxy()
    worker = haproxy.worker()
    assert worker
    for number, node in enumerate(cluster.nodes, start=11):
        assert f"10.0.0.{number}:5444" in polled
        polled = polled.replace(f"10.0.0.{number}:5444", node.address)
    for before, after in (
        ("8765", agents.port),
        (":5000", f"127.0.0.1:{haproxy.write_port}"),
        ("inter 1s", "inter 100ms"),
    ):
        assert before in polled
        polled = polled.replace(before, str(after))
    head, _, rest = haproxy.config.read_text().partition(f"listen {WRITE}")
    haproxy.write_config(f"{head}{polled}\nlisten {READ}{rest.partition(f'listen {READ}')[2]}")
    haproxy.reload()
    haproxy.wait_reloaded(worker)
    hook = stand.host("reads", haproxy, EFM_LB_BALANCERS__EDGE1__WRITE=None)
    old, new, _ = cluster.nodes
    assert wait_until(lambda: haproxy.ready(WRITE) == [old.host], timeout=10), haproxy.servers(WRITE)
    checked = hook("check", "--json")
    assert "http" not in " ".join(
        f["detail"].lower() for f in json.loads(checked.stdout)["findings"] if f["severity"] != "ok"
    )
    fail_over(cluster)
    assert wait_until(lambda: haproxy.ready(WRITE) == [new.host], timeout=10), "nobody has called"
    run = hook("attach", new.name, "p")
    assert run.exit_code == 0, run.output
    assert WRITE not in told(run.output, "edge1")
    assert new.host not in haproxy.ready(READ)
    assert haproxy.query("select pg_is_in_recovery() as standby") == [{"standby": "f"}]
    agents.end(new.number)
    assert wait_until(lambda: haproxy.ready(WRITE) == [], timeout=10), "a dead agent is a dead primary to a poll"
    assert new.is_accepting()


def test_30_sessions_on_the_old_primary(stand: Stand, cluster: Cluster) -> None:
    """They hang on a frozen host; each balancer ends them, and none writes there when the host thaws."""
    old, new, other = cluster.nodes
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(session_of(each)) for each in stand.balancers]
        reader = stack.enter_context(reading_from(stand, other))
        old.freeze()
        try:
            waiting = [threading.Thread(target=insert, args=(session,), daemon=True) for session in sessions]
            for thread in waiting:
                thread.start()
            new.promote()
            other.follow(new)
            run = stand.hook("attach", new.name, "p")
            assert run.exit_code == 0, run.output
            for each, thread in zip(stand.balancers, waiting, strict=True):
                thread.join(10)
                assert not thread.is_alive(), f"{each.name} has left its client hanging"
        finally:
            old.thaw()
        assert reader.execute("select 1 as one") == [{"one": "1"}], "a reader of another node is left alone"
        for session in sessions:
            insert(session, 31)
    # What had reached the frozen host's kernel before is carried out there when it thaws; nobody can take that back.
    assert old.query("select count(*) as rows from rehearsal where writer = 31") == [{"rows": "0"}]
    assert {name: "W" in state.split()[1] and "W" not in state.split()[0] for name, state in stand.state().items()} == (
        dict.fromkeys(HEALTHY, True)
    )


def session_of(balancer: Balancer) -> sql.Session:
    """A session that writes."""
    entrance = balancer.writing
    session = sql.Session(entrance.host, entrance.port, dbname=entrance.dbname)
    session.execute("select 1")
    return session


def reads_from(balancer: Balancer) -> str | None:
    """Where a read arrives, None when it does not."""
    entrance = balancer.reading
    with contextlib.suppress(sql.SqlError):
        statement = "select host(inet_server_addr()) as host"
        return sql.query(entrance.host, entrance.port, statement, dbname=entrance.dbname)[0]["host"]
    return None


def reading_from(stand: Stand, node: Server) -> sql.Session:
    """A session through HAProxy that reads from one node."""
    entrance = next(each.reading for each in stand.balancers if isinstance(each, Haproxy))
    for _ in range(20):
        session = sql.Session(entrance.host, entrance.port, dbname=entrance.dbname)
        if session.execute("select host(inet_server_addr()) as host")[0]["host"] == node.host:
            return session
        session.close()
    raise AssertionError(f"no session to {node.host}")


def insert(session: sql.Session, writer: int = 30) -> None:
    with contextlib.suppress(sql.SqlError):
        session.execute(f"insert into rehearsal values ({writer}, 1)", timeout=15)


def haproxy_letters(stand: Stand) -> str:
    return stand.state()["edge1"]
