"""What goes on while faults are tried: a look at the balancers without end, and a reconcile service at work."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from efm_lb.rehearsal import sql
from efm_lb.rehearsal.cluster import Server
from efm_lb.rehearsal.haproxy import Haproxy
from efm_lb.rehearsal.hooks import BARE_ENVIRONMENT, EFM_LB
from efm_lb.rehearsal.pgbouncer import Pgbouncer
from efm_lb.rehearsal.pgpool import Pgpool
from efm_lb.rehearsal.stage import ServerError

__all__ = ["OLDEST", "AnyBalancer", "Service", "Watch"]

AnyBalancer = Pgpool | Haproxy | Pgbouncer

OLDEST = 8.0
"""Seconds that an answer may be old when it is acted on: a deadline, a connect, and the look at the balancer."""


class Watch:
    """Looks at the balancers without end, in a thread for each.

    :ivar wrong: what must never be
    """

    def __init__(self, balancers: Sequence[AnyBalancer]) -> None:
        self.wrong: list[str] = []
        self.looks = 0
        self.restarted: dict[str, float] = {}
        self._out: dict[Server, list[tuple[float, float]]] = {}
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._look, args=(each,), daemon=True) for each in balancers]

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def leaves_recovery(self, server: Server) -> None:
        """It is about to be promoted."""
        self._out.setdefault(server, []).append((time.monotonic(), float("inf")))

    def is_in_recovery(self, server: Server) -> None:
        """It was brought back as a standby."""
        times = self._out.get(server, [])
        if times and times[-1][1] == float("inf"):
            times[-1] = (times[-1][0], time.monotonic())

    def reads_its_file(self, balancer: AnyBalancer) -> None:
        """It begins with whatever its file says: nobody has told it that now."""
        self.restarted[balancer.name] = time.monotonic()

    def _look(self, balancer: AnyBalancer) -> None:
        nodes = balancer.cluster.nodes
        before: list[Server] | None = None
        while not self._over.wait(0.02):
            began = time.monotonic()
            try:
                beliefs = balancer.beliefs()
            except (sql.SqlError, ServerError, OSError, KeyError, ValueError):
                before = None
                continue
            self.looks += 1
            writers = [node for node, belief in zip(nodes, beliefs, strict=True) if belief.writes]
            # One answer of a HAProxy with threads may show a server before a change, and another one after it.
            if len(writers) > 1 and writers == before:
                self.wrong.append(f"{balancer.name} has two ready writers: {writers}")
            is_told = began > self.restarted.get(balancer.name, 0.0) + 2.0
            if before is not None and is_told:
                self.wrong += [
                    f"{balancer.name} gives writes to {node.name}, which is in recovery"
                    for node in writers
                    if node not in before and not self._was_out(node, began - OLDEST)
                ]
            before = writers

    def _was_out(self, server: Server, since: float) -> bool:
        return any(until >= since for _, until in self._out.get(server, ()))


class Service:
    """An ``efm-lb reconcile --watch`` at work.

    :param limited: makes another command line of its own
    """

    def __init__(self, env_file: Path, limited: Callable[[Sequence[str]], Sequence[str]] = tuple) -> None:
        self._log = env_file.with_suffix(".log")
        with self._log.open("w") as log:
            argv = limited([*EFM_LB, "reconcile", "--watch", f"--env-file={env_file}"])
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, env=dict(BARE_ENVIRONMENT), cwd="/")

    @property
    def output(self) -> str:
        return self._log.read_text()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        finally:
            self._process.kill()
