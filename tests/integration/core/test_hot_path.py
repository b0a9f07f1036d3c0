"""A whole hook run against real servers imports nothing that it cannot afford, and its plan is fresh."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.hooks import BARE_ENVIRONMENT, hook_environment
from efm_lb.rehearsal.pgpool import Pgpool
from efm_lb.testing import BANNED_IMPORTS

AFFORDED = {"ctypes", "pluggy", "threading", "efm_lb.hook", "efm_lb_pgpool.adapter"}

SCRIPT = """
import sys
from efm_lb.hook import main
code = main(sys.argv[1:])
print(*sys.modules, sep="\\n")
sys.exit(code)
"""


@pytest.mark.parametrize("kind", ["attach", "detach"])
def test_a_hook_run_with_a_fresh_plan(cluster: Cluster, pgpool: Pgpool, tmp_path: Path, kind: str) -> None:
    env_file = hook_environment(cluster, [pgpool], tmp_path.name)
    standby = cluster.nodes[2].name
    argv = [sys.executable, "-I", "-c", SCRIPT, kind, standby, "s", f"--env-file={env_file}"]

    def run() -> str:
        done = subprocess.run(
            argv, env=dict(BARE_ENVIRONMENT), cwd="/", capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first, second = run(), run()
    assert "took the slow way" in first
    assert "took the slow way" not in second
    imported = set(second.split())
    assert imported >= AFFORDED, "the whole hook ran"
    assert not imported & set(BANNED_IMPORTS)
    assert not imported & {
        "json",
        "signal",
        "socket",
        "dataclasses",
        "efm_lb.commands",
        "efm_lb.config",
        "efm_lb.views",
    }
