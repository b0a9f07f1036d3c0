"""A rehearsal that is interrupted leaves nothing behind, also not what the hooks have started for later."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from efm_lb.follow_up import NAME
from efm_lb.rehearsal import sql
from efm_lb.rehearsal.hooks import EFM_LB
from efm_lb.rehearsal.processes import end_tree, tree
from efm_lb.rehearsal.waiting import wait_until


def words(pid: int | str) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def name(pid: int | str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def naming(directory: str) -> list[list[str]]:
    """The names and command lines of all processes that have to do with a stage."""
    lines = [[name(pid), *words(pid)] for pid in os.listdir("/proc") if pid.isdigit()]
    return [line for line in lines if any(directory in word for word in line)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_an_interrupted_switchover(number: signal.Signals) -> None:
    argv = [*EFM_LB, "rehearse", "--scenario=switchover", "--balancers=haproxy,pgbouncer"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as rehearsal:
        try:
            assert rehearsal.stdout
            assert next(line for line in rehearsal.stdout if "hook: detach" in line)
            rehearsal.send_signal(signal.SIGSTOP)  # or it would go on, and clients would be let go
            (keeper,) = (line for pid in tree(rehearsal.pid) if "efm_lb.rehearsal.keeper" in (line := words(pid)))
            directory = keeper[4]
            assert wait_until(lambda: any(NAME in line for line in naming(directory)), timeout=5), naming(directory)
            running = naming(directory)
            assert any("efm_lb_pgbouncer.guard" in line for line in running), running
            rehearsal.send_signal(number)
            rehearsal.send_signal(signal.SIGCONT)
            _, errors = rehearsal.communicate(timeout=30)
        finally:
            rehearsal.kill()
    assert rehearsal.returncode
    assert "Traceback" not in errors
    assert wait_until(lambda: naming(directory) == [], timeout=10), naming(directory)
    assert not Path(directory).exists()


def test_kept_servers_end_by_their_script_whatever_their_clients_do() -> None:
    argv = [*EFM_LB, "rehearse", "--keep", "--scenario=consistent", "--balancers=pgbouncer,haproxy"]
    told = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True).stdout
    (stop,) = re.findall(r"sh (\S+/stop)$", told, re.MULTILINE)
    directory = str(Path(stop).parent)
    try:
        (port,) = re.findall(r'pgb1 writers: .* port=(\d+) user=postgres dbname=app"', told)
        with sql.Session("127.0.0.1", int(port), dbname="app") as session:
            # PgBouncer waits for the end of a transaction when it is told to stop.
            session.execute("begin")
            session.execute("select 1")
            assert naming(directory)
            subprocess.run(["sh", stop], timeout=30, check=True)
        assert wait_until(lambda: naming(directory) == [], timeout=5), naming(directory)
        assert not Path(directory).exists()
    finally:
        for name in os.listdir("/proc"):
            if name.isdigit() and any(directory in word for word in words(name)):
                end_tree(int(name))
