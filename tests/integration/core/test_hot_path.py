"""A whole hook run against real servers imports nothing that it cannot afford, and its plan is fresh."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.haproxy import Haproxy
from efm_lb.rehearsal.hooks import BARE_ENVIRONMENT, hook_environment
from efm_lb.rehearsal.pgbouncer import Pgbouncer
from efm_lb.rehearsal.pgpool import Pgpool
from efm_lb.rehearsal.sshd import Sshd
from efm_lb.testing import BANNED_IMPORTS

AFFORDED = {"ctypes", "pluggy", "threading", "efm_lb.hook"}
NOT_AFFORDED = {
    *BANNED_IMPORTS,
    *("base64", "dataclasses", "hashlib", "json", "shutil", "signal", "socket", "ssl", "tempfile"),
    *("efm_lb.commands", "efm_lb.config", "efm_lb.views"),
}

SCRIPT = """
import os, sys
from efm_lb.head_start import begin
begun = begin(sys.argv[1:], os.environ)
from efm_lb.hook import main
code = main(sys.argv[1:], begun)
print(*sys.modules, sep="\\n")
sys.exit(code)
"""

APPLY = """
import os, sys
from efm_lb.remote.apply import main
code = main(sys.argv[1:])
with open(f"{os.path.dirname(__file__)}/imported.{os.getpid()}", "w") as file:
    print(*sys.modules, sep="\\n", file=file)
sys.exit(code)
"""


class Process:
    """Hook runs in a process each, which tell what they have imported."""

    def __init__(self, env_file: Path, path: str = BARE_ENVIRONMENT["PATH"]) -> None:
        self._env_file = env_file
        self._environment = {**BARE_ENVIRONMENT, "PATH": path}

    def __call__(self, *words: str) -> tuple[str, set[str]]:
        """The report, and the modules."""
        argv = [sys.executable, "-I", "-c", SCRIPT, *words, f"--env-file={self._env_file}"]
        done = subprocess.run(
            argv, env=self._environment, cwd="/", capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        report, _, modules = done.stdout.partition("\nsys\n")
        return report, set(modules.split())


@pytest.mark.parametrize("kind", ["attach", "detach"])
def test_a_hook_run_with_a_fresh_plan(cluster: Cluster, pgpool: Pgpool, tmp_path: Path, kind: str) -> None:
    run = Process(hook_environment(cluster, [pgpool], tmp_path.name))
    standby = cluster.nodes[2].name
    first, _ = run(kind, standby, "s")
    second, imported = run(kind, standby, "s")
    assert "took the slow way" in first
    assert "took the slow way" not in second
    assert imported >= {*AFFORDED, "efm_lb_pgpool.adapter"}, "the whole hook ran"
    assert not imported & NOT_AFFORDED


def test_runs_that_change_the_file_and_the_balancer(
    cluster: Cluster, haproxy: Haproxy, pgbouncer: Pgbouncer, tmp_path: Path
) -> None:
    """Down to the validated and replaced haproxy.cfg, and the entry that PgBouncer has loaded."""
    run = Process(hook_environment(cluster, [haproxy, pgbouncer], tmp_path.name))
    old, new, standby = cluster.nodes
    assert "took the slow way" in run("attach", standby.name, "s")[0]
    for words in (("detach", standby.name, "s"), ("attach", standby.name, "s"), ("promote", new.name)):
        if words[0] == "promote":
            old.stop()
            new.promote()
        report, imported = run(*words)
        assert "took the slow way" not in report
        assert "edge1: changed" in report
        assert "pgb1: changed" in report
        assert imported >= {*AFFORDED, "efm_lb_haproxy.validate", "efm_lb_pgbouncer.entries"}, "the whole hook ran"
        assert not imported & {*NOT_AFFORDED, "efm_lb_pgbouncer.guard"}
        assert not imported & {"efm_lb_haproxy.check", "efm_lb_pgbouncer.check"}
    report, imported = run("detach", new.name, "p")
    assert "pgb1: changed" in report
    assert "efm_lb_pgbouncer.guard" in imported, "clients are held"
    assert not imported & NOT_AFFORDED


def test_a_balancer_on_another_host(cluster: Cluster, haproxy: Haproxy, pgbouncer: Pgbouncer, tmp_path: Path) -> None:
    """Neither end of ssh imports more than the document needs; the hook no adapter at all."""
    there = hook_environment(cluster, [haproxy, pgbouncer], f"{tmp_path.name}-there")
    script = tmp_path / "apply.py"
    script.write_text(APPLY)
    with Sshd(tmp_path, f"{sys.executable} -I {script} --env-file={there}") as sshd:
        # No connection is shared where others may write, so none is left.
        state = tmp_path / "state"
        state.mkdir()
        state.chmod(0o777)
        extra = {"EFM_LB_STATE_DIR": state, "EFM_LB_DEADLINE": 30, "EFM_LB_CONNECT_TIMEOUT": 10}
        for name, adapter in (("EDGE1", "haproxy"), ("PGB1", "pgbouncer")):
            extra |= {f"EFM_LB_BALANCERS__{name}__ADAPTER": adapter}
            extra |= {f"EFM_LB_BALANCERS__{name}__HOST_SSH": sshd.destination}
        run = Process(hook_environment(cluster, [], f"{tmp_path.name}-here", extra), sshd.path)
        standby = cluster.nodes[2].name
        assert "took the slow way" in run("attach", standby, "s")[0]
        for path in tmp_path.glob("imported.*"):
            path.unlink()
        report, imported = run("detach", standby, "s")
    assert "took the slow way" not in report
    assert "edge1: changed" in report
    assert "pgb1: changed" in report
    assert imported >= {"ctypes", "threading", "efm_lb.hook", "efm_lb.remote.documents"}, "the whole hook ran"
    assert not imported & {*NOT_AFFORDED, "pluggy", "efm_lb_haproxy", "efm_lb_pgbouncer"} - {"json"}
    applied = [set(path.read_text().split()) for path in tmp_path.glob("imported.*")]
    assert len(applied) == 2
    assert {"efm_lb_haproxy.validate", "efm_lb_pgbouncer.entries"} <= applied[0] | applied[1], "the files were changed"
    for modules in applied:
        assert modules >= {"pluggy", "efm_lb.remote.apply"}
        assert not modules & {*NOT_AFFORDED, "ctypes.util"} - {"json", "efm_lb.views"}
