"""What a person types: status, plan, check and help, against real servers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from efm_lb.rehearsal import sql
from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.hooks import BARE_ENVIRONMENT, EFM_LB, Hook, hook_environment
from efm_lb.rehearsal.pgpool import Pgpool
from efm_lb.rehearsal.scenarios import Order, Scenario
from efm_lb.rehearsal.waiting import wait_until
from integration.real import follow_ups

Type = Callable[..., "subprocess.CompletedProcess[str]"]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*EFM_LB, *words],
        env=dict(BARE_ENVIRONMENT),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def efm_lb(cluster: Cluster, pgpool: Pgpool, tmp_path: Path) -> Type:
    env_file = hook_environment(cluster, [pgpool], tmp_path.name)
    return lambda *words: run(*words, f"--env-file={env_file}")


def test_status_of_a_right_cluster(efm_lb: Type, cluster: Cluster) -> None:
    done = efm_lb("status")
    assert done.returncode == 0, done.stdout + done.stderr
    header, *rows = done.stdout.splitlines()
    assert header.split() == ["node", "address", "database", "pool1"]
    assert len(rows) == 3
    assert rows[0].split()[0] == cluster.nodes[0].name
    assert "primary, timeline 1" in rows[0]
    assert "writes" in rows[0]
    assert "standby" in rows[1]
    assert "!" not in done.stdout


def test_a_missed_promotion_is_seen_planned_and_repaired(efm_lb: Type, cluster: Cluster) -> None:
    """EFM never called: the writes are on a dead node."""
    old, new, _ = cluster.nodes
    old.kill()
    new.promote()
    status = efm_lb("status")
    assert status.returncode == 75
    assert f"! pool1: {old.name} gets writes, but is down" in status.stdout
    assert f"! pool1: {new.name} is a primary, but gets no writes" in status.stdout
    plan = efm_lb("plan")
    assert plan.returncode == 0, plan.stdout
    assert f"pool1: promote {new.name}: pcp_detach_node 0" in plan.stdout
    assert efm_lb("plan").stdout == plan.stdout, "a plan changes nothing"
    assert efm_lb("status").stdout == status.stdout
    assert efm_lb("attach", new.name, "p").returncode == 0
    assert efm_lb("status").returncode == 0
    assert efm_lb("plan").stdout == "pool1: nothing to do\n"


def test_documents(efm_lb: Type, cluster: Cluster) -> None:
    status = json.loads(efm_lb("status", "--json").stdout)
    assert status["schema"] == "efm-lb/status/v1"
    assert [node["role"] for node in status["nodes"]] == ["primary", "standby", "standby"]
    assert [node["writes"] for node in status["balancers"]["pool1"]["nodes"]] == [True, False, False]
    assert status["problems"] == []
    plan = json.loads(efm_lb("plan", "--json").stdout)
    assert (plan["schema"], plan["steps"], plan["failures"]) == ("efm-lb/plan/v1", {"pool1": []}, {})
    check = json.loads(efm_lb("check", "--json").stdout)
    assert check["schema"] == "efm-lb/check/v1"
    assert {finding["where"] for finding in check["findings"]} == {"efm-lb", "databases", "pool1"}
    hook = json.loads(efm_lb("attach", cluster.nodes[1].name, "s", "--json").stdout)
    assert hook["schema"] == "efm-lb/hook/v1"
    assert [outcome["result"] for outcome in hook["outcomes"]] == ["unchanged"]


def test_check_of_a_good_setup_has_no_error(efm_lb: Type) -> None:
    done = efm_lb("check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not [line for line in done.stdout.splitlines() if line.startswith("error")]


def test_check_names_what_fights_efm_and_who_cannot_log_in(
    cluster: Cluster, start_pgpool: Callable[..., Pgpool], tmp_path: Path
) -> None:
    pool = start_pgpool(failover_on_backend_shutdown="on", health_check_period=5, auto_failback="on")
    wrong = tmp_path / "pgpass"
    wrong.write_text("*:*:*:efm:mistaken\n")
    wrong.chmod(0o600)
    env_file = hook_environment(cluster, [pool], tmp_path.name, {"EFM_LB_PROBE__PASSFILE": wrong})
    done = run("check", f"--env-file={env_file}")
    assert done.returncode == 69
    for words in (
        "failover_on_backend_shutdown = off",
        "health_check_period = 0",
        "auto_failback = off",
        "password authentication failed",
    ):
        assert words in done.stdout, done.stdout
    assert "mistaken" not in done.stdout


def test_a_dead_balancer_is_a_line_not_a_traceback(
    cluster: Cluster, start_pgpool: Callable[..., Pgpool], tmp_path: Path
) -> None:
    pool = start_pgpool()
    env_file = hook_environment(cluster, [pool], tmp_path.name)
    pool.process.kill()
    for words, code in ((("status",), 75), (("plan",), 75), (("check",), 69)):
        done = run(*words, f"--env-file={env_file}")
        assert done.returncode == code, done.stdout
        assert "pool1" in done.stdout
        assert str(pool.pcp_port) in done.stdout
        assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("words", [["--help"], ["attach", "--help"], ["detach", "--help"], ["promote", "--help"]])
def test_help(words: list[str]) -> None:
    done = run(*words)
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_the_help_of_rehearse_names_what_there_is() -> None:
    text = run("rehearse", "--help").stdout.replace("│", "").split()
    words = {word.strip(".,") for word in text}
    assert words >= {each.value for each in (*Scenario, *Order)}


def test_an_unknown_command_is_a_usage_error() -> None:
    assert run("atach", "db1").returncode == 2


def test_a_follow_up_detaches_a_primary_that_died_without_a_promotion(
    hook: Hook, cluster: Cluster, pgpool: Pgpool
) -> None:
    """Held back at first; nobody is promoted; within seconds the standbys serve reads again."""
    cluster.nodes[0].kill()
    run = hook("detach", cluster.nodes[0].name, "p")
    assert run.exit_code == 0, run.output
    assert "deferred" in run.output
    assert run.seconds < 3

    def reads_again() -> bool:
        try:
            return bool(pgpool.query("select 1", timeout=1))
        except sql.SqlError:
            return False

    assert wait_until(reads_again, timeout=15), "the follow-up has not detached it"
    assert next(row["status"] for row in pgpool.show_pool_nodes()) == "down"


def test_the_call_for_the_new_primary_does_not_wait_for_a_follow_up(
    hook: Hook, cluster: Cluster, pgpool: Pgpool, tmp_path: Path
) -> None:
    """The standby's attach is held back until pgpool is promoted, which is what the other call is for."""
    old, new, other = cluster.nodes
    assert hook("detach", other.name, "s").exit_code == 0
    old.kill()
    new.promote()
    other.follow(new)
    held = hook("attach", other.name, "s")
    assert "deferred" in held.output, held.output
    (follow_up,) = follow_ups(cluster)
    journal = cluster.stage.directory / f"{tmp_path.name}.state" / "efm.journal"
    assert wait_until(lambda: '"follow_up": true' in journal.read_text(), timeout=10)
    promote = hook("attach", new.name, "p")
    assert promote.exit_code == 0, promote.output
    assert promote.seconds < 4, "the lock was held by what waits for this call"
    assert wait_until(lambda: not Path(f"/proc/{follow_up}").exists(), timeout=20)
    assert other.host in pgpool.attached(), pgpool.show_pool_nodes()


def test_writes_follow_a_promotion_that_efm_never_calls_about(hook: Hook, cluster: Cluster, pgpool: Pgpool) -> None:
    """The call for the dead primary was the last one; the new primary is seen, not told."""
    old, new, other = cluster.nodes
    old.kill()
    assert hook("detach", old.name, "p").exit_code == 0
    new.promote()
    other.follow(new)
    assert wait_until(lambda: pgpool.primary() == new.host, timeout=15), pgpool.show_pool_nodes()
    assert pgpool.query("select pg_is_in_recovery() as recovering") == [{"recovering": "f"}]


def test_an_old_primary_started_by_mistake_gets_no_writes(efm_lb: Type, cluster: Cluster) -> None:
    """It died, another took over, and that one is down when the old one comes back writable."""
    old, new, other = cluster.nodes
    old.kill()
    new.promote()
    other.follow(new)
    assert efm_lb("attach", new.name, "p").returncode == 0
    received = "select received_tli as timeline from pg_stat_wal_receiver"
    new.query("select pg_switch_wal()")
    assert wait_until(lambda: other.query(received) == [{"timeline": "2"}], timeout=10)
    # EFM's role may not see the receiver; after a restartpoint the control file tells it too.
    new.query("checkpoint")
    assert wait_until(other.is_streaming, timeout=10)
    other.query("checkpoint")
    new.kill()
    old.start()

    def writers() -> list[str]:
        nodes = json.loads(efm_lb("status", "--json").stdout)["balancers"]["pool1"]["nodes"]
        return [node["name"] for node in nodes if node["writes"]]

    for words in (("detach", new.name, "p"), ("attach", old.name, "p"), ("promote", old.name), ("attach", old.name)):
        efm_lb(*words)
        assert old.name not in writers(), words
    status = efm_lb("status")
    assert status.returncode == 75
    assert f"{old.name} is an old primary: {other.name} is on timeline 2; stop {old.name}" in status.stdout
    plan = efm_lb("plan")
    assert "promote" not in plan.stdout
    assert plan.returncode == 75
