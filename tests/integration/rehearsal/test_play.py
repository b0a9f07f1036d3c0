"""Every scenario in every order of calls ends with right balancers: efm-lb with real servers and clients."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from efm_lb.errors import CallError
from efm_lb.rehearsal import programs, rehearse
from efm_lb.rehearsal.balancer import Balancer
from efm_lb.rehearsal.clients import Clients
from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.hooks import Hook, efm_lb_hook, hook_environment
from efm_lb.rehearsal.kinds import KINDS, chosen
from efm_lb.rehearsal.pgpool import Pgpool
from efm_lb.rehearsal.play import Front, Play
from efm_lb.rehearsal.programs import MissingProgramError
from efm_lb.rehearsal.results import BalancerResult, ScenarioResult
from efm_lb.rehearsal.scenarios import Order, Scenario

NOTHING = Hook(lambda words: ["true", *words])
"""A hook that reports success and does nothing."""


@pytest.fixture
def estate(cluster: Cluster, pgpool: Pgpool) -> Iterator[list[Balancer]]:
    """One balancer of each kind in front of `cluster`."""
    with KINDS["haproxy"].start(cluster) as haproxy, KINDS["pgbouncer"].start(cluster) as pgbouncer:
        yield [pgpool, haproxy, pgbouncer]


def play(
    cluster: Cluster,
    balancers: Sequence[Balancer],
    hooks: list[Hook],
    order: Order,
    *scenarios: Scenario,
    patience: float = 10.0,
) -> list[ScenarioResult]:
    with ExitStack() as stack:
        fronts = [
            Front(each, stack.enter_context(Clients(each.writing, each.reading, readers=2, number=number, retry=0.05)))
            for number, each in enumerate(balancers, start=1)
        ]
        played = Play(cluster, fronts, hooks, order, patience=patience)
        return [played.scenario(scenario) for scenario in played.wanted(scenarios)]


def wrong(results: Sequence[ScenarioResult]) -> dict[tuple[str, str], object]:
    """What is not right, by scenario and balancer."""
    return {
        (result.scenario.value, each.name): each.wrong or each.accounts
        for result in results
        for each in result.balancers
        if not each.right
    }


def only(result: ScenarioResult) -> BalancerResult:
    (balancer,) = result.balancers
    return balancer


@pytest.mark.parametrize("order", Order)
def test_every_order_of_calls_ends_right_for_every_balancer(
    cluster: Cluster, estate: list[Balancer], order: Order
) -> None:
    hooks = [efm_lb_hook(hook_environment(cluster, estate, f"{order.value}-{host}")) for host in (1, 2)]
    results = play(cluster, estate, hooks, order, *Scenario)
    assert wrong(results) == {}
    runs = [run for result in results for step in result.steps for run in step.runs]
    assert [run.output for run in runs if run.exit_code] == []


def test_what_the_clients_of_each_kind_see_in_a_switchover(cluster: Cluster, estate: list[Balancer]) -> None:
    hook = efm_lb_hook(hook_environment(cluster, estate, "seen"))
    (result,) = play(cluster, estate, [hook], Order.DOCUMENTED, Scenario.SWITCHOVER)
    pgpool, haproxy, pgbouncer = result.balancers
    assert pgpool.writing.cuts
    assert haproxy.writing.cuts == 1
    assert haproxy.reading.texts == {}, "the old standbys serve reads all the time"
    assert "app held for at most 10 s" in result.steps[0].runs[0].output
    assert pgbouncer.writing.texts == {}, "held writers see no error"
    assert pgbouncer.after.rows[0] == ("app", cluster.nodes[1].host)
    assert haproxy.after.rows[1][1:] == ("ready", "drain")
    for each in result.balancers:
        assert each.accounts.acknowledged > 10
        assert each.writing.recovered
        assert each.reading.recovered


@pytest.mark.parametrize("kind", KINDS)
def test_a_balancer_alone(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert rehearse(["switchover", "failover"], balancers=[kind], as_json=True) == 0
    result = json.loads(capsys.readouterr().out)
    for scenario in result["scenarios"]:
        (balancer,) = scenario["balancers"].values()
        assert balancer["right"] is True
        assert balancer["rows"]["acknowledged"] > 10


def test_a_lost_attach_of_a_new_primary_is_made_good_and_a_standby_stays_out(
    cluster: Cluster, estate: list[Balancer]
) -> None:
    """The follow-up of the detach sees the promotion; nobody looks out for a standby."""
    hook = efm_lb_hook(hook_environment(cluster, estate, "lost"))
    failover, rejoin = play(cluster, estate, [hook], Order.MISSING_ATTACH, Scenario.FAILOVER, Scenario.REJOIN)
    old = cluster.nodes[0].name
    (new,) = (name for name, role in failover.roles.items() if role == "primary")
    assert failover.calls == [f"detach {old} p", f"attach {new} p (by hand)"]
    assert rejoin.calls == [f"attach {old} s (by hand)"]
    for balancer in failover.balancers:
        assert balancer.owed == (), "the call by hand has found nothing to do"
    for balancer in rejoin.balancers:
        (owed,) = balancer.owed
        assert owed.startswith(f"{old} is up, but {balancer.name} has it as ")
    assert wrong([failover, rejoin]) == {}


def test_a_hook_that_does_nothing_is_found_out(cluster: Cluster, estate: list[Balancer]) -> None:
    switchover, standby_stop = play(
        cluster, estate, [NOTHING], Order.DOCUMENTED, Scenario.SWITCHOVER, Scenario.STANDBY_STOP, patience=1
    )
    old, new, third = (node.name for node in cluster.nodes)
    said = {
        "pool": ("up/primary", "up/standby", "up/standby"),
        "edge": ("ready in pg_write, maint in pg_read", "maint in pg_write, ready in pg_read", None),
        "pgb": ("in app", "in app_ro", "in app_ro"),
    }
    for balancer, after, later in zip(estate, switchover.balancers, standby_stop.balancers, strict=True):
        of_old, of_new, of_third = said[balancer.alias]
        assert f"{new} is a primary, but {balancer.name} has it as {of_new}" in after.wrong
        assert f"{old} is a standby, but {balancer.name} has it as {of_old}" in after.wrong
        assert not after.writing.recovered
        assert f"{third} is down, but {balancer.name} has it as {of_third or of_new}" in later.wrong


def test_rejoin_alone_is_preceded_by_a_failover(cluster: Cluster, pgpool: Pgpool) -> None:
    hook = efm_lb_hook(hook_environment(cluster, [pgpool], "alone"))
    results = play(cluster, [pgpool], [hook], Order.DOCUMENTED, Scenario.REJOIN)
    assert [result.scenario for result in results] == [Scenario.FAILOVER, Scenario.REJOIN]
    assert [result.roles[cluster.nodes[0].name] for result in results] == ["down", "standby"]
    assert [sorted(result.roles.values()) for result in results] == [
        ["down", "primary", "standby"],
        ["primary", "standby", "standby"],
    ]


def test_rehearse_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert rehearse(["switchover"], as_json=True) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["right"] is True
    (switchover,) = result["scenarios"]
    assert switchover["scenario"] == "switchover"
    assert list(switchover["roles"].values()) == ["standby", "primary", "standby"]
    assert [run["exit_code"] for step in switchover["steps"] for run in step["runs"]] == [0, 0, 0]
    assert list(switchover["balancers"]) == ["pool1", "edge1", "pgb1"], "all that are installed"
    for balancer in switchover["balancers"].values():
        assert balancer["rows"]["lost"] == balancer["rows"]["doubled"] == 0
    assert switchover["balancers"]["pgb1"]["before"]["app"] == {"host": "127.0.0.11"}
    assert switchover["balancers"]["pgb1"]["after"]["app"] == {"host": "127.0.0.12"}


def test_rehearse_tells_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    assert rehearse(["consistent", "standby-stop"]) == 0
    told = capsys.readouterr().out
    assert told.count("RIGHT") == 12, "of each balancer in each scenario, and in the summary"
    assert "WRONG" not in told
    assert "pool1: show pool_nodes" in told
    assert "edge1: show servers state" in told
    assert "ready -> drain" in told
    assert "pgb1: SHOW DATABASES" in told
    assert "127.0.0.12,127.0.0.13 -> 127.0.0.12" in told
    assert max(len(line) for line in told.splitlines() if "/" not in line) <= 100


@pytest.mark.parametrize(
    ("scenarios", "order", "balancers", "words"),
    [
        (["swichover"], "documented", [], "no such scenario: swichover; there are consistent, switchover"),
        ([], "backwards", [], "no such order: backwards; there are documented"),
        ([], "documented", ["pgbouncr"], "no such balancer: pgbouncr; there are pgpool, haproxy, pgbouncer"),
        ([], "documented", ["pgpool", ""], "no such balancer: an empty name"),
    ],
)
def test_a_wrong_name_is_refused_before_anything_starts(
    scenarios: list[str], order: str, balancers: list[str], words: str
) -> None:
    with pytest.raises(CallError, match=words):
        rehearse(scenarios, order, balancers)


def without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    """As if these programs were not installed."""
    found = programs._server_program

    def find(name: str) -> Path | None:
        return None if name in missing else found(name)

    monkeypatch.setattr(programs, "_server_program", find)


def test_what_is_not_installed_is_left_out_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "haproxy")
    assert chosen() == [KINDS["pgpool"], KINDS["pgbouncer"]]
    with pytest.raises(MissingProgramError, match="haproxy was not found: install the package haproxy") as caught:
        rehearse(balancers=["pgbouncer", "haproxy"])
    assert caught.value.exit_code == 69


def test_without_any_balancer_all_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, *KINDS)
    with pytest.raises(MissingProgramError, match=r"install one of the packages pgpool2 .*, haproxy, pgbouncer"):
        rehearse()


def test_a_balancer_that_is_named_twice_is_there_once() -> None:
    assert chosen(["pgbouncer", "pgpool", "pgbouncer"]) == [KINDS["pgbouncer"], KINDS["pgpool"]]
