"""Every scenario in every order of calls ends with a right pgpool: efm-lb with real servers and clients."""

from __future__ import annotations

import json

import pytest

from efm_lb.errors import CallError
from efm_lb.rehearsal import rehearse
from efm_lb.rehearsal.clients import Clients
from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.hooks import Hook, efm_lb_hook, hook_environment
from efm_lb.rehearsal.pgpool import Pgpool
from efm_lb.rehearsal.play import Play
from efm_lb.rehearsal.results import ScenarioResult
from efm_lb.rehearsal.scenarios import Order, Scenario

NOTHING = Hook(lambda words: ["true", *words])
"""A hook that reports success and does nothing."""


def play(
    cluster: Cluster, pool: Pgpool, hooks: list[Hook], order: Order, *scenarios: Scenario, patience: float = 10.0
) -> list[ScenarioResult]:
    with Clients(pool.host, pool.port) as clients:
        played = Play(cluster, pool, clients, hooks, order, patience=patience)
        return [played.scenario(scenario) for scenario in played.wanted(scenarios)]


@pytest.mark.parametrize("order", Order)
def test_every_order_of_calls_ends_right(cluster: Cluster, pgpool: Pgpool, order: Order) -> None:
    hooks = [efm_lb_hook(hook_environment(cluster, [pgpool], f"{order.value}-{host}")) for host in (1, 2)]
    results = play(cluster, pgpool, hooks, order, *Scenario)
    assert {result.scenario: result.wrong for result in results if not result.right} == {}
    assert {result.scenario: result.exit_codes for result in results if any(result.exit_codes)} == {}


def test_what_a_lost_attach_leaves(cluster: Cluster, pgpool: Pgpool) -> None:
    """The follow-up of a crashed primary's detach finds the new one; nothing else comes without a call."""
    hook = efm_lb_hook(hook_environment(cluster, [pgpool], "lost"))
    scenarios = (Scenario.FAILOVER, Scenario.REJOIN, Scenario.SWITCHOVER)
    failover, rejoin, switchover = play(cluster, pgpool, [hook], Order.MISSING_ATTACH, *scenarios)
    first, second, _ = (node.name for node in cluster.nodes)
    assert failover.owed == ()
    assert failover.calls == [f"detach {first} p"]
    assert failover.settled > 0.5, "by the follow-up, which comes two seconds after the detach"
    assert rejoin.owed == (f"{first} is up, but {pgpool.name} has it as down/standby",)
    assert rejoin.calls == [f"attach {first} s (by hand)"]
    assert f"{first} is a primary, but {pgpool.name} has it as up/standby" in switchover.owed
    assert switchover.calls == [f"detach {second} p", f"attach {first} p (by hand)", f"attach {second} s (by hand)"]
    assert [result.wrong for result in (failover, rejoin, switchover)] == [(), (), ()]


def test_a_hook_that_does_nothing_is_found_out(cluster: Cluster, pgpool: Pgpool) -> None:
    switchover, standby_stop = play(
        cluster, pgpool, [NOTHING], Order.DOCUMENTED, Scenario.SWITCHOVER, Scenario.STANDBY_STOP, patience=1
    )
    old, new, third = (node.name for node in cluster.nodes)
    assert f"{new} is a primary, but {pgpool.name} has it as up/standby" in switchover.wrong
    assert f"{old} is a standby, but {pgpool.name} has it as up/primary" in switchover.wrong
    assert not switchover.writing.recovered
    assert f"{third} is down, but {pgpool.name} has it as up/standby" in standby_stop.wrong


def test_rejoin_alone_is_preceded_by_a_failover(cluster: Cluster, pgpool: Pgpool) -> None:
    hook = efm_lb_hook(hook_environment(cluster, [pgpool], "alone"))
    results = play(cluster, pgpool, [hook], Order.DOCUMENTED, Scenario.REJOIN)
    assert [result.scenario for result in results] == [Scenario.FAILOVER, Scenario.REJOIN]
    assert [result.roles for result in results] == [("down", "primary", "standby"), ("standby", "primary", "standby")]


def test_rehearse_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert rehearse(["switchover"], as_json=True) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["right"] is True
    (switchover,) = result["scenarios"]
    assert switchover["scenario"] == "switchover"
    assert switchover["roles"] == ["standby", "primary", "standby"]
    assert [run["exit_code"] for step in switchover["steps"] for run in step["runs"]] == [0, 0, 0]
    assert switchover["rows"]["lost"] == switchover["rows"]["doubled"] == 0


def test_rehearse_tells_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    assert rehearse(["consistent"]) == 0
    told = capsys.readouterr().out
    assert "127.0.0.12" in told
    assert "RIGHT" in told
    assert "WRONG" not in told


@pytest.mark.parametrize(
    ("scenarios", "order", "words"),
    [
        (["swichover"], "documented", "no such scenario: swichover; there are consistent, switchover"),
        ([], "backwards", "no such order: backwards; there are documented"),
    ],
)
def test_a_wrong_name_is_refused_before_anything_starts(scenarios: list[str], order: str, words: str) -> None:
    with pytest.raises(CallError, match=words):
        rehearse(scenarios, order)
