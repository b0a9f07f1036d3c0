"""``efm-lb reconcile`` at real servers: what nobody calls about becomes right, and nothing flaps."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from efm_lb import lock
from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.haproxy import Haproxy
from efm_lb.rehearsal.hooks import BARE_ENVIRONMENT, EFM_LB, Run, efm_lb_hook, hook_environment
from efm_lb.rehearsal.pgbouncer import Pgbouncer
from efm_lb.rehearsal.pgpool import Pgpool
from efm_lb.rehearsal.verdict import misbeliefs
from efm_lb.rehearsal.waiting import wait_until

QUICK = {
    "EFM_LB_RECONCILE__PERIOD": 1,
    "EFM_LB_RECONCILE__SETTLE": 0.5,
    "EFM_LB_RECONCILE__DETACH_AFTER": 1,
}


class Service:
    """An ``efm-lb reconcile --watch`` at work."""

    def __init__(self, env_file: Path) -> None:
        self.env_file = env_file
        self._log = env_file.with_suffix(".log")
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [*EFM_LB, "reconcile", "--watch", f"--env-file={env_file}"],
                stdout=log,
                stderr=log,
                env=dict(BARE_ENVIRONMENT),
                cwd="/",
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    def end(self) -> int:
        """Tell it to end; its exit code."""
        self.process.terminate()
        try:
            return self.process.wait(timeout=20)
        finally:
            self.process.kill()


Serve = Callable[..., Service]


@pytest.fixture
def serve(cluster: Cluster, pgpool: Pgpool, haproxy: Haproxy, pgbouncer: Pgbouncer, tmp_path: Path) -> Iterator[Serve]:
    """Start a service about a pgpool, a HAProxy and a PgBouncer: ``serve(name="host2", EFM_LB_...=...)``."""
    with ExitStack() as stack:

        def start(name: str = "host1", **extra: object) -> Service:
            balancers = [pgpool, haproxy, pgbouncer]
            service = Service(hook_environment(cluster, balancers, f"{tmp_path.name}.{name}", {**QUICK, **extra}))
            stack.callback(service.end)
            return service

        yield start


@pytest.fixture
def once(cluster: Cluster, pgpool: Pgpool, haproxy: Haproxy, tmp_path: Path) -> Callable[..., Run]:
    """Run ``efm-lb`` about a pgpool and a HAProxy."""
    return efm_lb_hook(hook_environment(cluster, [pgpool, haproxy], tmp_path.name, QUICK))


def are_right(*balancers: Pgpool | Haproxy | Pgbouncer) -> Callable[[], bool]:
    return lambda: not any(misbeliefs(balancer.cluster, balancer) for balancer in balancers)


def fail_over(cluster: Cluster) -> None:
    """Kill the primary and promote the next node; nobody is called."""
    old, new, other = cluster.nodes
    old.kill()
    new.promote()
    other.follow(new)


def test_a_failover_that_nobody_calls_about(
    serve: Serve, cluster: Cluster, pgpool: Pgpool, haproxy: Haproxy, pgbouncer: Pgbouncer
) -> None:
    service = serve()
    assert wait_until(are_right(pgpool, haproxy, pgbouncer), timeout=10)
    fail_over(cluster)
    assert wait_until(are_right(pgpool, haproxy, pgbouncer), timeout=20), service.output
    cluster.nodes[0].rejoin(cluster.nodes[1])
    assert wait_until(lambda: cluster.nodes[0].host in pgpool.attached(), timeout=20), service.output
    assert wait_until(are_right(pgpool, haproxy, pgbouncer), timeout=20), service.output
    assert wait_until(lambda: service.output.rstrip().endswith("everything is right again"), timeout=10)
    assert service.end() == 0
    history = efm_lb_hook(service.env_file)("history", "--limit", "0")
    assert f"reconcile: promote {cluster.nodes[1].name}: exit 0" in history.output
    assert f"reconcile: attach {cluster.nodes[0].name}: exit 0" in history.output
    shown = efm_lb_hook(service.env_file)("history", "show", "last").output
    assert "Nobody called: efm-lb reconcile found something to do" in shown
    assert f"{cluster.nodes[1].name}  is a primary, timeline 2" in shown


def test_a_balancer_that_was_down_meanwhile(
    serve: Serve, cluster: Cluster, pgpool: Pgpool, haproxy: Haproxy, pgbouncer: Pgbouncer
) -> None:
    pgbouncer.process.stop()
    service = serve()
    fail_over(cluster)
    assert wait_until(are_right(pgpool, haproxy), timeout=20), service.output
    assert "pgb1: " in service.output
    pgbouncer.launch()
    assert wait_until(are_right(pgbouncer), timeout=20), service.output


def test_three_services_and_a_hook_do_not_fight(
    serve: Serve, cluster: Cluster, pgpool: Pgpool, haproxy: Haproxy, pgbouncer: Pgbouncer
) -> None:
    services = [serve(f"host{number}") for number in (1, 2, 3)]
    hook = efm_lb_hook(services[0].env_file)
    old, new, other = cluster.nodes
    fail_over(cluster)
    assert wait_until(are_right(pgpool, haproxy, pgbouncer), timeout=20), [each.output for each in services]
    hook("attach", new.name, "p")
    old.rejoin(new)
    hook("attach", old.name, "s")
    other.stop()
    other.start()

    def all_in() -> bool:
        return {old.host, other.host} <= set(pgpool.attached()) and are_right(pgpool, haproxy, pgbouncer)()

    assert wait_until(all_in, timeout=20), [each.output for each in services]

    def changes() -> list[int]:
        return [each.output.count(": changed: ") for each in services]

    before = changes()
    idle = not wait_until(lambda: changes() != before, timeout=5)
    assert idle, f"nobody has anything to do any more: {[each.output for each in services]}"
    assert are_right(pgpool, haproxy, pgbouncer)()


def test_it_waits_for_a_call_that_is_at_work(serve: Serve, cluster: Cluster, pgpool: Pgpool) -> None:
    service = serve()
    assert wait_until(lambda: service.env_file.with_suffix(".state").joinpath("efm.plan").exists(), timeout=10)
    held = lock.acquire(str(service.env_file.with_suffix(".state") / "efm.lock"), 5)
    with open(held, "rb"):
        fail_over(cluster)
        assert wait_until(lambda: "waits for a call of EFM's that is at work" in service.output, timeout=15)
        assert not are_right(pgpool)()
    assert wait_until(are_right(pgpool), timeout=15), service.output


def test_what_is_in_maintenance_is_left_alone(serve: Serve, cluster: Cluster, pgpool: Pgpool, haproxy: Haproxy) -> None:
    service = serve()
    efm_lb = efm_lb_hook(service.env_file)
    set_ = efm_lb("maintenance", "set", "pool1", "--for=10m", "--reason=upgrade")
    assert set_.exit_code == 0, set_.output
    fail_over(cluster)
    assert wait_until(are_right(haproxy), timeout=20), service.output
    assert wait_until(lambda: "waits: pool1 is in maintenance" in service.output, timeout=10)
    assert not are_right(pgpool)()
    assert "pool1 is in maintenance until" in efm_lb("status").output
    (entry,) = json.loads(efm_lb("maintenance", "list", "--json").stdout)["entries"]
    assert (entry["name"], entry["reason"]) == ("pool1", "upgrade")
    assert efm_lb("maintenance", "clear", "pool1").exit_code == 0
    assert wait_until(are_right(pgpool), timeout=15), service.output


def test_changed_settings_are_taken_up(serve: Serve, pgpool: Pgpool) -> None:
    service = serve()
    assert wait_until(lambda: service.env_file.with_suffix(".state").joinpath("efm.plan").exists(), timeout=10)
    text = service.env_file.read_text()
    service.env_file.write_text(text + "EFM_LB_RECONCILE__HOLD=nonsense\n")
    assert wait_until(lambda: service.process.poll() == 78, timeout=15), service.output
    assert "EFM_LB_RECONCILE__HOLD" in service.output
    assert "'nonsense' is not a number" in service.output


def test_once(once: Callable[..., Run], cluster: Cluster, pgpool: Pgpool, haproxy: Haproxy) -> None:
    right = once("reconcile")
    assert (right.exit_code, right.output) == (0, "everything is right")
    document = json.loads(once("reconcile", "--json").stdout)
    assert document == {"schema": "efm-lb/reconcile/v1", "cluster": "efm", "is_right": True, "lines": []}
    fail_over(cluster)
    paid = once("reconcile")
    assert paid.exit_code == 0, paid.output
    assert f"pool1: promote {cluster.nodes[1].name}: changed: " in paid.output
    assert are_right(pgpool, haproxy)()
    haproxy.process.stop()
    failed = once("reconcile")
    assert failed.exit_code == 75
    assert "edge1: " in failed.output
    monitor = once("reconcile", "--custom-monitor")
    assert (monitor.exit_code, monitor.output) == (0, failed.output)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--wacth"], "what is '--wacth'?"),
        (["--watch", "--custom-monitor"], "--custom-monitor looks once, --watch goes on: choose one"),
        (["now"], "what is 'now'?"),
    ],
)
def test_a_wrong_call(once: Callable[..., Run], words: list[str], problem: str) -> None:
    run = once("reconcile", *words)
    assert problem in run.output
    assert run.exit_code == (0 if "--custom-monitor" in words else 2)


def test_what_fails_the_same_way_again_and_again_fills_no_journal(
    serve: Serve, cluster: Cluster, pgpool: Pgpool, pgbouncer: Pgbouncer
) -> None:
    """The entry is gone from a PgBouncer's file: tried again and again, told once."""
    pgbouncer.entries.write_text("; empty\n")
    service = serve(EFM_LB_RECONCILE__PERIOD=0.2)
    journal = service.env_file.with_suffix(".state") / "efm.journal"
    fail_over(cluster)
    assert wait_until(lambda: journal.exists() and '"pgb1"' in journal.read_text(), timeout=20), service.output
    before = journal.stat().st_size
    assert not wait_until(lambda: journal.stat().st_size > before + 2000, timeout=5), journal.read_text()
    assert service.output.count("pgb1: promote") < 10
