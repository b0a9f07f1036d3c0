"""A host that has not seen the last promotion moves no writes back: the balancers' own files have."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.haproxy import WRITE, Haproxy
from efm_lb.rehearsal.hooks import EFM_LB, Hook, efm_lb_hook, hook_environment
from efm_lb.rehearsal.pgbouncer import READ as READ_ENTRY
from efm_lb.rehearsal.pgbouncer import WRITE as WRITE_ENTRY
from efm_lb.rehearsal.pgbouncer import Pgbouncer
from efm_lb.rehearsal.sshd import Sshd
from integration.real import told

MARK = "efm-lb: writes follow timeline 2"


class Stand:
    """A HAProxy and a PgBouncer whose files have comments of somebody's, and hooks of several hosts."""

    def __init__(self, cluster: Cluster, haproxy: Haproxy, pgbouncer: Pgbouncer, name: str) -> None:
        self.cluster, self.haproxy, self.pgbouncer = cluster, haproxy, pgbouncer
        self.files = (haproxy.config, pgbouncer.entries)
        self._name = name
        lines = haproxy.config.read_text().splitlines(keepends=True)
        haproxy.write_config("".join(f"{line[:-1]}  # mine\n" if " server n" in line else line for line in lines))
        pgbouncer.write_entries(f"; mine\n{pgbouncer.first_entries()}".replace("\napp =", "\n; mine too\napp ="))

    def host(self, name: str, **extra: object) -> Hook:
        """The hook of a host that remembers nothing."""
        balancers = [] if "EFM_LB_BALANCERS__EDGE1__HOST_SSH" in extra else [self.haproxy, self.pgbouncer]
        return efm_lb_hook(self.env_file(name, balancers, **extra))

    def env_file(self, name: str, balancers: list[Haproxy | Pgbouncer], **extra: object) -> Path:
        variables = {"EFM_LB_CONNECT_TIMEOUT": 2, **extra}
        return hook_environment(self.cluster, balancers, f"{self._name}-{name}", variables)

    def fail_over(self, hook: Hook) -> None:
        """The second node is the primary, and a hook has sent the writes there."""
        old, new, other = self.cluster.nodes
        old.stop()
        new.promote()
        other.follow(new)
        run = hook("attach", new.name, "p")
        assert run.exit_code == 0, run.output
        assert self.writers() == {new.host}

    def bring_back_the_old_one(self) -> None:
        """Nobody but the old primary answers."""
        old, new, other = self.cluster.nodes
        other.stop()
        new.stop()
        old.start()

    def writers(self) -> set[str]:
        """Where both send writes, and would after a reload."""
        places = self.pgbouncer.places()[WRITE_ENTRY].rpartition(":")[0]
        return {*self.haproxy.ready(WRITE), places}

    def contents(self) -> list[str]:
        return [path.read_text() for path in self.files]


@pytest.fixture
def stand(cluster: Cluster, haproxy: Haproxy, pgbouncer: Pgbouncer, tmp_path: Path) -> Stand:
    return Stand(cluster, haproxy, pgbouncer, tmp_path.name)


def test_the_servers_take_the_marks(stand: Stand) -> None:
    """What was somebody else's stays, and a check, a reload and a restart find what they would without the mark."""
    before = stand.contents()
    stand.fail_over(stand.host("first"))
    _, new, other = stand.cluster.nodes
    cfg, ini = stand.contents()
    assert [line.split(" disabled")[0] for line in cfg.splitlines() if MARK in line] == [
        f"    server n2 {new.address}  # mine # {MARK}"
    ]
    assert ini.splitlines()[:4] == ["; mine", "[databases]", "; mine too", f"; {MARK}"]
    assert (cfg.count("# mine"), ini.count("; mine")) == (before[0].count("# mine"), 2)
    checked = subprocess.run(
        ["haproxy", "-c", "-f", stand.haproxy.config],
        env={"PATH": "/usr/sbin:/usr/bin"},
        capture_output=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    worker = stand.haproxy.worker()
    stand.haproxy.reload()
    stand.haproxy.wait_reloaded(worker or 0)
    stand.pgbouncer.console("RELOAD")
    assert stand.writers() == {new.host}
    stand.haproxy.process.stop()
    stand.haproxy.launch()
    stand.pgbouncer.restart()
    assert stand.writers() == {new.host}
    assert stand.pgbouncer.places()[READ_ENTRY] == f"{other.host}:{other.port}"
    statement = "select host(inet_server_addr()) as host, pg_is_in_recovery() as standby"
    for balancer in (stand.haproxy, stand.pgbouncer):
        assert balancer.query(statement) == [{"host": new.host, "standby": "f"}]
    assert stand.contents() == [cfg, ini]


def test_a_host_that_has_seen_no_promotion_moves_nothing_back(stand: Stand) -> None:
    stand.fail_over(stand.host("first"))
    stand.bring_back_the_old_one()
    old, new, _ = stand.cluster.nodes
    before = stand.contents()
    hook = stand.host("second", EFM_LB_RECONCILE__MAJORITY="off")  # with it reconcile does nothing at all
    run = hook("attach", old.name, "p")
    assert run.exit_code == 69, run.output
    for balancer, path, line in (("edge1", stand.files[0], cfg_line(before[0])), ("pgb1", stand.files[1], 4)):
        said = told(run.output, balancer)
        assert said.startswith("failed in ")
        assert f"s: {path}:{line}: writes follow timeline 2, and {old.address} is on timeline 1: it has missed" in said
    rehearsed = hook("attach", old.name, "p", "--dry-run")
    assert rehearsed.output.count(f"writes follow timeline 2, and {old.address} is on timeline 1") == 2
    reconciled = hook("reconcile")
    assert reconciled.exit_code == 75
    assert f"pgb1: promote {old.name}: failed: {stand.files[1]}:4: writes follow timeline 2" in reconciled.output
    assert stand.writers() == {new.host}
    assert stand.contents() == before

    for balancer in ("edge1", "pgb1"):
        removal = told(run.output, balancer).rpartition("call again: ")[2]
        subprocess.run(removal, shell=True, check=True)
    assert stand.contents() == [before[0].replace(f" # {MARK}", ""), before[1].replace(f"; {MARK}\n", "")]
    run = hook("attach", old.name, "p")
    assert run.exit_code == 0, run.output
    assert stand.writers() == {old.host}
    assert [content.count("efm-lb: writes follow timeline 1") for content in stand.contents()] == [1, 1]


def test_by_another_host(stand: Stand, tmp_path: Path) -> None:
    """The timeline travels with the truth; the file is where the adapter is."""
    there = stand.env_file("there", [stand.haproxy, stand.pgbouncer])
    with Sshd(tmp_path, f"{' '.join(EFM_LB)} apply --env-file={there}") as sshd:
        extra: dict[str, object] = {"EFM_LB_DEADLINE": 30, "EFM_LB_CONNECT_TIMEOUT": 10}
        for name, adapter in (("EDGE1", "haproxy"), ("PGB1", "pgbouncer")):
            extra |= {f"EFM_LB_BALANCERS__{name}__ADAPTER": adapter}
            extra |= {f"EFM_LB_BALANCERS__{name}__HOST_SSH": sshd.destination}
        path = {"PATH": sshd.path}
        first, second = (Hook(stand.host(name, **extra).command, path, timeout=90) for name in ("first", "second"))
        stand.fail_over(first)
        stand.bring_back_the_old_one()
        before = stand.contents()
        assert all(MARK in content for content in before)
        # Else it would know by its own memory.
        (there.parent / f"{there.stem}.state" / "efm.timeline").unlink()
        run = second("attach", stand.cluster.nodes[0].name, "p")
    assert run.exit_code == 69, run.output
    assert told(run.output, "edge1").count("writes follow timeline 2, and") == 1
    assert told(run.output, "pgb1").count("writes follow timeline 2, and") == 1
    assert stand.writers() == {stand.cluster.nodes[1].host}
    assert stand.contents() == before


def cfg_line(text: str) -> int:
    (number,) = [number for number, line in enumerate(text.splitlines(), 1) if MARK in line]
    return number
