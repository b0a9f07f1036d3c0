"""What hangs: adapters, while settings are read, cost the others a part of the deadline, once; and the run itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from efm_lb.rehearsal.hooks import BARE_ENVIRONMENT
from efm_lb.rehearsal.stage import free_port

DEADLINE = 3.0

GOOD = """
from efm_lb import Outcome, hookimpl

@hookimpl
def efm_lb_settings_schema():
    return {"properties": {}}

@hookimpl
def efm_lb_detach(event):
    return Outcome.changed(f"{event.node.name} is out")
"""


def install(site: Path, name: str, source: str) -> None:
    information = site / f"{name}-1.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (information / "entry_points.txt").write_text(f"[efm_lb.adapters]\n{name} = adapter_{name}\n")
    (site / f"adapter_{name}.py").write_text(source)


def test_two_that_hang_at_import(tmp_path: Path) -> None:
    site = tmp_path / "site"
    for name in ("hung1", "hung2"):
        install(site, name, "import time; time.sleep(600)")
    install(site, "good", GOOD)
    env_file = tmp_path / "efm.env"
    balancers = "".join(f"EFM_LB_BALANCERS__{name}__ADAPTER={name.lower()}\n" for name in ("GOOD", "HUNG1", "HUNG2"))
    env_file.write_text(
        f"EFM_LB_NODES=db1=127.0.0.1:{free_port('127.0.0.1')}\nEFM_LB_STATE_DIR={tmp_path}\n"
        f"EFM_LB_DEADLINE={DEADLINE}\nEFM_LB_CONNECT_TIMEOUT=1\n{balancers}"
    )
    env_file.chmod(0o600)
    argv = [sys.executable, "-m", "efm_lb", "detach", "db1", "s", f"--env-file={env_file}"]
    environment = {**BARE_ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
    started = time.monotonic()
    run = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
    seconds = time.monotonic() - started
    assert run.returncode == 75, run.stdout + run.stderr
    _, good, *hung = run.stdout.splitlines()
    assert good.startswith("good: changed in 0.")
    assert [line.partition(" in ")[0] for line in hung[:2]] == [f"hung{n}: failed temporarily" for n in (1, 2)]
    assert "it did not tell its settings within 0.9 s" in run.stdout
    assert seconds < DEADLINE + 5, "each in its turn takes 10 s more"
    records = [json.loads(line) for line in (tmp_path / "efm.journal").read_text().splitlines()]
    assert [record["record"] for record in records] == ["call", "decision", "outcome"]
    good = records[2]["outcomes"]["good"]
    assert (good["result"], good["detail"]) == ("changed", "db1 is out")


# The run itself hangs, while it holds the lock.
HANGING = """
import sys, threading
from efm_lb import hook, signals

def hang(*given):
    print("hangs", flush=True)
    threading.Event().wait()

hook.decide, signals.HANGS = hang, 0.5
sys.exit(hook.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("more", [(), ("--follow-up=0.1", "--call=1-1")])
def test_a_run_that_hangs_does_not_hold_the_lock_for_ever(tmp_path: Path, more: tuple[str, ...]) -> None:
    install(tmp_path / "site", "good", GOOD)
    env_file = tmp_path / "efm.env"
    env_file.write_text(
        f"EFM_LB_NODES=db1=127.0.0.1:{free_port('127.0.0.1')}\nEFM_LB_STATE_DIR={tmp_path}\n"
        "EFM_LB_DEADLINE=0.4\nEFM_LB_CONNECT_TIMEOUT=0.2\nEFM_LB_BALANCERS__GOOD__ADAPTER=good\n"
    )
    env_file.chmod(0o600)
    environment = {**BARE_ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *sys.path])}
    words = ["attach", "db1", "s", f"--env-file={env_file}"]
    argv = [sys.executable, "-c", HANGING, *words, *more]
    run = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout) == (-signal.SIGALRM, "hangs\n"), run.stderr
    argv = [sys.executable, "-m", "efm_lb", *words]
    after = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "another call holds" not in after.stdout
