"""A rehearsal that is interrupted leaves nothing behind, also not what the hooks have started for later."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from efm_lb.rehearsal.hooks import EFM_LB
from efm_lb.rehearsal.processes import tree
from efm_lb.rehearsal.waiting import wait_until


def words(pid: int | str) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def naming(directory: str) -> list[list[str]]:
    """The command lines of all processes that have to do with a stage."""
    lines = [words(name) for name in os.listdir("/proc") if name.isdigit()]
    return [line for line in lines if any(directory in word for word in line)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_an_interrupted_switchover(number: signal.Signals) -> None:
    argv = [*EFM_LB, "rehearse", "--scenario=switchover", "--balancers=haproxy,pgbouncer"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as rehearsal:
        try:
            assert rehearsal.stdout
            assert next(line for line in rehearsal.stdout if "hook: detach" in line)
            (keeper,) = (line for pid in tree(rehearsal.pid) if "efm_lb.rehearsal.keeper" in (line := words(pid)))
            directory = keeper[4]
            running = naming(directory)
            assert any("--follow-up" in line for line in running), running
            assert any("efm_lb_pgbouncer.guard" in line for line in running), running
            rehearsal.send_signal(number)
            _, errors = rehearsal.communicate(timeout=30)
        finally:
            rehearsal.kill()
    assert rehearsal.returncode
    assert "Traceback" not in errors
    assert wait_until(lambda: naming(directory) == [], timeout=10), naming(directory)
    assert not Path(directory).exists()
