"""Measurements of ``efm-lb reconcile --watch``: how soon it repairs what no call did, and what it costs at rest."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import linear_regression

from arms import command
from estates import TWENTY, start_balancers
from rows import Row

from efm_lb.rehearsal.balancer import Balancer
from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.haproxy import Haproxy
from efm_lb.rehearsal.hooks import BARE_ENVIRONMENT, hook_environment
from efm_lb.rehearsal.verdict import misbeliefs
from efm_lb.rehearsal.waiting import wait_until

__all__ = ["Services"]

PERIOD = 5.0
"""Seconds: the default of ``EFM_LB_RECONCILE__PERIOD``."""
WARM_UP = 15.0
SAMPLE = 5.0


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
        """A HAProxy that was down while the primary moved: from its return until it is right."""
        back: list[float] = []
        for number in range(self._runs):
            self._say(f"return {number + 1}/{self._runs}")
            self._cluster.reset()
            with ExitStack() as running:
                balancers = start_balancers(running, self._cluster, 3)
                (proxy,) = [each for each in balancers if isinstance(each, Haproxy)]
                others = [each for each in balancers if each is not proxy]
                before = proxy.config.read_text()
                proxy.process.stop()
                running.enter_context(self._service(balancers))
                old, new, other = self._cluster.nodes
                old.kill()
                new.promote()
                other.follow(new)
                self._until_right(others, time.monotonic())
                time.sleep(PERIOD + number * PERIOD / self._runs)
                proxy.write_config(before)  # as an administrator's tool may have left it
                proxy.launch()
                back.append(self._until_right([proxy], time.monotonic()))
        row = Row("reconcile: from the return of a balancer until it is right", "s", [], back)
        return [row.aim_value(PERIOD + 0.2)]

    def reconcile_at_rest(self) -> list[Row]:
        """Three nodes and twenty balancers, and nothing to do."""
        seconds = float(os.environ.get("EFM_LB_BENCH_REST", "120"))
        self._cluster.reset()
        with ExitStack() as running:
            balancers = start_balancers(running, self._cluster, TWENTY)
            pid = running.enter_context(self._service(balancers))
            time.sleep(WARM_UP)
            self._say(f"at rest for {seconds:g} s")
            began = time.monotonic()
            busy = [_cpu(pid)]
            sizes, moments, files, threads = [], [], [], []
            while time.monotonic() - began < seconds:
                time.sleep(SAMPLE)
                moments.append(time.monotonic() - began)
                busy.append(_cpu(pid))
                sizes.append(_status(pid, "VmRSS"))
                threads.append(_status(pid, "Threads"))
                files.append(len(os.listdir(f"/proc/{pid}/fd")))
            used = (busy[-1] - busy[0]) / (time.monotonic() - began)
        slope = linear_regression(moments, sizes).slope * 3600 / 1024
        cpu = Row("reconcile at rest, 3 nodes and 20 balancers: part of a core", "%", [], [100 * used]).aim_value(2)
        memory = Row("reconcile at rest: resident memory", "MB", [], [size / 1024 for size in sizes]).aim_value(60)
        memory.notes.append(f"slope over {seconds:g} s: {slope:+.2f} MB per hour")
        memory.notes.append(f"open files {min(files)} to {max(files)}, threads {min(threads):g} to {max(threads):g}")
        return [cpu, memory]

    @contextmanager
    def _service(self, balancers: Sequence[Balancer]) -> Iterator[int]:
        env_file = hook_environment(self._cluster, balancers, "bench-service")
        process = subprocess.Popen(
            [*command(), "reconcile", "--watch", f"--env-file={env_file}"],
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


def _status(pid: int, what: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{what}:")))
