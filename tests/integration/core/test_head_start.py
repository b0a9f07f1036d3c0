"""Logins that are begun before the rest of the hook is imported, at real servers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from efm_lb import Reach, lock
from efm_lb.head_start import HeadStart, begin
from efm_lb.probe import Probe
from efm_lb.rehearsal.cluster import PROBE_USER, Cluster
from efm_lb.rehearsal.hooks import BARE_ENVIRONMENT, Hook, hook_environment
from efm_lb.rehearsal.pgpool import Pgpool
from efm_lb.rehearsal.waiting import wait_until
from efm_lb.settings import settings_of
from integration.real import nodes_of

TIMEOUT = 2.0
KEYWORDS = {"user": "postgres", "dbname": "postgres"}


def begun(cluster: Cluster, **keywords: str) -> HeadStart:
    nodes = tuple(tuple(node) for node in nodes_of(cluster))
    probe = {**KEYWORDS, **keywords}
    return HeadStart({"connect_timeout": TIMEOUT, "probe": probe, "nodes": nodes, "balancers": (), "logins": ()})


def connections(cluster: Cluster, number: int) -> int:
    statement = "select count(*) from pg_stat_activity where application_name = 'efm-lb'"
    (row,) = cluster.nodes[number].query(statement)
    return int(row["count"] or 0)


def test_what_it_imports_is_little() -> None:
    """The rest is imported while the databases are at it."""
    heavy = "{'typing', 're', 'enum', 'collections', 'functools', 'threading', 'pluggy', 'efm_lb.hook', 'efm_lb.truth'}"
    script = f"import sys, efm_lb.head_start, efm_lb.handover\nprint(*sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "\n"


def test_the_truth_is_asked_on_the_connections_that_were_begun(cluster: Cluster) -> None:
    probe = Probe({**KEYWORDS, "user": "nobody_such"}, TIMEOUT, begun(cluster))
    truth = probe.truth(nodes_of(cluster))
    assert [state.reach for state in truth.states] == [Reach.ACCEPTING] * 3
    assert truth.primary == nodes_of(cluster)[0]
    again = probe.truth(nodes_of(cluster))
    assert [state.reach for state in again.states] == [Reach.DENIED] * 3, "each serves one question"


def test_a_login_that_fails_early_says_the_same(cluster: Cluster) -> None:
    cluster.nodes[2].stop()
    wrong = {"user": "nobody_such"}
    early = Probe({**KEYWORDS, **wrong}, TIMEOUT, begun(cluster, **wrong)).truth(nodes_of(cluster))
    late = Probe({**KEYWORDS, **wrong}, TIMEOUT).truth(nodes_of(cluster))
    assert [(s.reach, s.detail) for s in early.states] == [(s.reach, s.detail) for s in late.states]
    assert [state.reach for state in early.states] == [Reach.DENIED, Reach.DENIED, Reach.REFUSED]


def test_a_frozen_node_costs_one_time_out(cluster: Cluster) -> None:
    cluster.nodes[1].freeze()
    try:
        started = time.monotonic()
        truth = Probe(KEYWORDS, TIMEOUT, begun(cluster)).truth(nodes_of(cluster))
        assert time.monotonic() - started < 1.5 * TIMEOUT
    finally:
        cluster.nodes[1].thaw()
    assert [state.reach for state in truth.states] == [Reach.ACCEPTING, Reach.NO_RESPONSE, Reach.ACCEPTING]


def test_what_was_silent_before_the_lock_was_free_costs_one_time_out(cluster: Cluster) -> None:
    cluster.nodes[1].freeze()
    try:
        probe = Probe(KEYWORDS, TIMEOUT, begun(cluster))
        time.sleep(TIMEOUT)
        probe.start_over()
        started = time.monotonic()
        truth = probe.truth(nodes_of(cluster))
        assert time.monotonic() - started < 0.6 * TIMEOUT
    finally:
        cluster.nodes[1].thaw()
    assert [state.reach for state in truth.states] == [Reach.ACCEPTING, Reach.NO_RESPONSE, Reach.ACCEPTING]


@pytest.mark.parametrize("done", [True, False])
def test_what_is_not_wanted_is_closed(cluster: Cluster, done: bool) -> None:
    start = begun(cluster)
    if done:
        assert wait_until(lambda: connections(cluster, 1) == 1, timeout=5)
    start.drop()
    assert start.logins == {}
    assert wait_until(lambda: connections(cluster, 1) == 0, timeout=5)


def test_a_call_that_had_to_wait_for_the_lock_asks_anew(hook: Hook, cluster: Cluster, tmp_path: Path) -> None:
    """What a database said before the call that it waited for may be out of date: this node was down then."""
    old, new, other = cluster.nodes
    assert hook("attach", other.name, "s").exit_code == 0
    old.stop()
    held = lock.acquire(f"{cluster.stage.directory}/{tmp_path.name}.state/efm.lock", 5)
    try:
        waiting = subprocess.Popen(
            hook.command(["detach", old.name, "p"]), stdout=subprocess.PIPE, text=True, env=dict(BARE_ENVIRONMENT)
        )
        logged_in = f"select count(*) from pg_stat_activity where usename = '{PROBE_USER}'"
        assert wait_until(lambda: new.query(logged_in) == [{"count": "1"}], timeout=10)
        old.start()
    finally:
        os.close(held)
    output, _ = waiting.communicate(timeout=30)
    assert f"{old.name} is up and the only primary" in output


@pytest.mark.parametrize(
    "words",
    [
        ["attach", "127.0.0.12", "s", "--cluster"],
        ["attach", "127.0.0.12", "s", "--follow-up", "2"],
        ["attach", "127.0.0.12", "s", "--cluster", "no/such"],
        ["attach", "127.0.0.12", "s", "--env-file", "/no/such/file"],
    ],
)
def test_what_is_wrong_is_for_the_hook_to_say(
    words: list[str], cluster: Cluster, pgpool: Pgpool, tmp_path: Path
) -> None:
    env_file = hook_environment(cluster, [pgpool], tmp_path.name)
    named = [] if "--env-file" in words else ["--env-file", str(env_file)]
    assert begin(named + words, {}) is None, "its settings are not compiled yet"
    settings_of("efm", str(env_file), {})
    assert begin(named + words, {}) is None
    right = begin(["attach", "127.0.0.12", "s", f"--env-file={env_file}"], {})
    assert right
    right.drop()
