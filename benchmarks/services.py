"""Measurements of ``efm-lb reconcile --watch``: how soon it repairs what no call did, and what it costs at rest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import linear_regression

from arms import command
from estates import TWENTY, start_balancers
from rows import Row

from efm_lb.rehearsal.balancer import Balancer
from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.haproxy import Haproxy
from efm_lb.rehearsal.hooks import BARE_ENVIRONMENT, hook_environment
from efm_lb.rehearsal.pgbouncer import Pgbouncer
from efm_lb.rehearsal.pgpool import Pgpool
from efm_lb.rehearsal.processes import tree
from efm_lb.rehearsal.verdict import misbeliefs
from efm_lb.rehearsal.waiting import wait_until

__all__ = ["REST", "Services"]

PERIOD = 5.0
"""Seconds: the default of ``EFM_LB_RECONCILE__PERIOD``."""
WARM_UP = 15.0
SAMPLE = 5.0
REST = 120.0
"""Seconds to look at a service at rest, where ``EFM_LB_BENCH_REST`` says nothing else."""
COUNTED = 6
"""Periods in which connections are counted."""
TRACER = Path(__file__).parents[1] / "tests/faults/kill/tracer.py"


class Services:
    """One cluster.

    :param say: told what is going on
    """

    def __init__(self, cluster: Cluster, runs: int, say: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._runs = runs
        self._say = say

    def reconcile_lost_call(self) -> list[Row]:
        """A failover about which nobody calls: from the promotion until all balancers are right."""
        lost: list[float] = []
        for number in range(self._runs):
            self._say(f"lost call {number + 1}/{self._runs}")
            self._cluster.reset()
            with ExitStack() as running:
                balancers = start_balancers(running, self._cluster, 3)
                running.enter_context(self._service(balancers))
                old, new, other = self._cluster.nodes
                time.sleep(PERIOD + number * PERIOD / self._runs)  # at another moment of the period each time
                old.kill()
                new.promote()
                began = time.monotonic()
                other.follow(new)
                lost.append(self._until_right(balancers, began))
        row = Row("reconcile: nobody calls, from the promotion until all are right", "s", [], lost)
        return [row.aim_value(PERIOD)]

    def reconcile_return(self) -> list[Row]:
        """Balancers that were down while the primary moved: from the return of each until it is right."""
        back: dict[str, list[float]] = {kind.__name__: [] for kind in (Haproxy, Pgpool, Pgbouncer)}
        for number in range(self._runs):
            self._say(f"return {number + 1}/{self._runs}")
            self._cluster.reset()
            with ExitStack() as running:
                balancers = start_balancers(running, self._cluster, 3)
                files = {each.name: _file(each) for each in balancers}
                before = {name: file.read_text() for name, file in files.items() if file}
                for balancer in balancers:
                    balancer.process.stop()
                running.enter_context(self._service(balancers))
                old, new, other = self._cluster.nodes
                old.kill()
                new.promote()
                other.follow(new)
                for balancer in sorted(balancers, key=lambda each: list(back).index(type(each).__name__)):
                    time.sleep(PERIOD + number * PERIOD / self._runs)
                    if file := files[balancer.name]:
                        file.write_text(before[balancer.name])  # as an administrator's tool may have left it
                    balancer.launch()
                    back[type(balancer).__name__].append(self._until_right([balancer], time.monotonic()))
        return [
            Row(f"reconcile: from the return of a {kind} until it is right", "s", [], seconds).aim_value(PERIOD + 0.2)
            for kind, seconds in back.items()
        ]

    def reconcile_at_rest(self) -> list[Row]:
        """Three nodes and twenty balancers, and nothing to do.

        Connections are counted by ptrace, in another service: what is traced takes longer.
        """
        seconds = float(os.environ.get("EFM_LB_BENCH_REST", REST))
        self._cluster.reset()
        with ExitStack() as running:
            balancers = start_balancers(running, self._cluster, TWENTY)
            with self._service(balancers) as pid:
                time.sleep(WARM_UP)
                self._say(f"at rest for {seconds:g} s")
                began = time.monotonic()
                busy = [_cpu(pid)]
                sizes, moments, files, sockets, threads = [], [], [], [], []
                while time.monotonic() - began < seconds:
                    time.sleep(SAMPLE)
                    moments.append(time.monotonic() - began)
                    busy.append(_cpu(pid))
                    sizes.append(_status(pid, "VmRSS"))
                    threads.append(_status(pid, "Threads"))
                    open_files = _open_files(pid)
                    files.append(len(open_files))
                    sockets.append(sum(each.startswith("socket:") for each in open_files))
                used = (busy[-1] - busy[0]) / (time.monotonic() - began)
            self._say(f"its connections, for {COUNTED * PERIOD:g} s")
            connects = self._connects(balancers)
        slope = linear_regression(moments, sizes).slope * 3600 / 1024
        cpu = Row("reconcile at rest, 3 nodes and 20 balancers: part of a core", "%", [], [100 * used]).aim_value(2)
        memory = Row("reconcile at rest: resident memory", "MB", [], [size / 1024 for size in sizes]).aim_value(60)
        memory.notes.append(f"slope over {seconds:g} s: {slope:+.2f} MB per hour")
        memory.notes.append(f"open files {min(files)} to {max(files)}, threads {min(threads):g} to {max(threads):g}")
        to_nodes = sum(any(f" {node.address}" in each for node in self._cluster.nodes) for each in connects)
        per_period = [len(connects) / COUNTED]
        connections = Row(f"reconcile at rest: connections opened in {PERIOD:g} s", "", [], per_period).aim_value(
            TWENTY
        )
        connections.notes.append(f"{len(connects)} in {COUNTED} periods, {to_nodes} of them to databases")
        connections.notes.append(f"{min(sockets)} stay open, {max(sockets)} were open at most")
        return [cpu, memory, connections]

    def _connects(self, balancers: Sequence[Balancer]) -> list[str]:
        """What a service at rest connects to in `COUNTED` periods, one line each."""
        with tempfile.TemporaryDirectory() as directory:
            log = Path(directory) / "steps"
            with self._service(balancers, [sys.executable, "-I", str(TRACER), str(log), "--"]):
                time.sleep(WARM_UP)
                before = len(_connects_in(log))
                time.sleep(COUNTED * PERIOD)
                return _connects_in(log)[before:]

    @contextmanager
    def _service(self, balancers: Sequence[Balancer], tracer: Sequence[str] = ()) -> Iterator[int]:
        env_file = hook_environment(self._cluster, balancers, "bench-service")
        process = subprocess.Popen(
            [*tracer, *command(), "reconcile", "--watch", f"--env-file={env_file}"],
            env=dict(BARE_ENVIRONMENT),
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield process.pid
            if process.poll() is not None:
                raise RuntimeError(f"efm-lb reconcile has ended with {process.returncode}")
        finally:
            if tracer:  # it ends with what it traces
                for child in tree(process.pid)[1:]:
                    os.kill(child, signal.SIGTERM)
            else:
                process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _until_right(self, balancers: Sequence[Balancer], began: float) -> float:
        def is_right() -> bool:
            return not any(misbeliefs(self._cluster, balancer) for balancer in balancers)

        if not wait_until(is_right, timeout=30):
            raise RuntimeError(str([misbeliefs(self._cluster, balancer) for balancer in balancers]))
        return time.monotonic() - began


def _cpu(pid: int) -> float:
    """Seconds of processor time, children that have ended included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _file(balancer: Balancer) -> Path | None:
    """The file that efm-lb keeps for its next start; a pgpool has none."""
    if isinstance(balancer, Haproxy):
        return balancer.config
    return balancer.entries if isinstance(balancer, Pgbouncer) else None


def _connects_in(log: Path) -> list[str]:
    """The steps of the tracer's log that are a connect."""
    whole = log.read_text().rpartition("\n")[0].splitlines()
    return [step for line in whole if (step := json.loads(line).get("step", "")).startswith("connect ")]


def _open_files(pid: int) -> list[str]:
    """What each of its open files is; one that is closed meanwhile is left out."""
    found = []
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found.append(os.readlink(file))
    return found


def _status(pid: int, what: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{what}:")))
