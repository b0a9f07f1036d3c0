"""Measurements with an HAProxy: efm-lb, and what is done today, which is to poll each node for its role."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from arms import efm_lb_hook
from rows import Row

from efm_lb.rehearsal import sql
from efm_lb.rehearsal.clients import Writer
from efm_lb.rehearsal.cluster import PROBE_USER, TABLE, Cluster, Server
from efm_lb.rehearsal.haproxy import WRITE, Haproxy
from efm_lb.rehearsal.hooks import Hook

__all__ = ["Proxies"]

ARMS = ("today", "efm-lb")
POLLED = "check inter 3s fall 3 rise 2"
"""How often HAProxy asks in the configuration that is published with Patroni."""
LONGEST = 30.0
AFTERWARDS = 4.0
"""Seconds for which commits on the old primary are counted once the hook has returned."""


class Proxies:
    """One cluster, and a new HAProxy for each run.

    :param say: told what is going on
    """

    def __init__(self, cluster: Cluster, runs: int, say: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._runs = runs
        self._say = say

    def haproxy_switch(self) -> list[Row]:
        """The primary is stopped and another one promoted: when do new connections reach it, and only it?"""
        first: dict[str, list[float]] = {arm: [] for arm in ARMS}
        both: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for number in range(self._runs):
            for arm in ARMS:
                self._say(f"haproxy switch {number + 1}/{self._runs} {arm}")
                seconds, twice = self._polled() if arm == "today" else self._pushed()
                first[arm].append(seconds)
                both[arm].append(twice)
        connection = Row(
            "HAProxy: first connection on the new primary", "s", first["today"], first["efm-lb"]
        ).aim_value(0.15)
        connection.notes.append("today: from the promotion; efm-lb: from the start of the hook, interpreter included")
        return [
            connection,
            Row("HAProxy: time with two ready writers", "s", both["today"], both["efm-lb"]).aim_value(0),
        ]

    def haproxy_old_sessions(self) -> list[Row]:
        """The old primary lives on, unseen: what do sessions of before commit there once the hook has returned?"""
        found: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for number in range(self._runs):
            for arm in ARMS:
                self._say(f"haproxy old sessions {number + 1}/{self._runs} {arm}")
                found[arm].append(self._commits_on_the_old(arm))
        row = Row(
            f"HAProxy: commits on the old primary, {AFTERWARDS:g} s after the hook", "", found["today"], found["efm-lb"]
        )
        row.notes.append("today: the servers' state is changed and no session is shut down")
        return [row.aim_value(0)]

    def _polled(self) -> tuple[float, float]:
        old, new, other = self._fresh()
        with _role_servers(self._cluster.nodes) as port:
            server = f"{POLLED} port {port}"
            with Haproxy.start(self._cluster, server=server, proxy="option httpchk GET /primary") as haproxy:
                # Every server takes part; which one gets writes is for the checks to say.
                _reload(haproxy, " disabled", "")
                _wait_ready(haproxy, [old.host])
                old.stop()
                new.promote()
                other.follow(new)
                with _overlap(haproxy) as overlap:
                    seconds = _first_connection(haproxy, new, time.monotonic())
                    _wait_ready(haproxy, [new.host])
                return seconds, overlap()

    def _pushed(self) -> tuple[float, float]:
        old, new, other = self._fresh()
        with Haproxy.start(self._cluster) as haproxy:
            hook = efm_lb_hook(self._cluster, [haproxy], f"bench-{haproxy.name}")
            old.stop()
            new.promote()
            other.follow(new)
            with _overlap(haproxy) as overlap:
                began = time.monotonic()
                call = threading.Thread(target=hook, args=("attach", new.name, "p"))
                call.start()
                seconds = _first_connection(haproxy, new, began)
                call.join()
                _wait_ready(haproxy, [new.host])
            return seconds, overlap()

    def _commits_on_the_old(self, arm: str) -> float:
        old, new, _ = self._fresh()
        with Haproxy.start(self._cluster) as haproxy:
            # Nobody but the hook is to cut a session.
            _reload(haproxy, "default-server on-marked-down shutdown-sessions", "")
            hook = efm_lb_hook(self._cluster, [haproxy], f"bench-{haproxy.name}")
            writers = [Writer(haproxy.writing, number) for number in range(4)]
            try:
                for writer in writers:
                    writer.start()
                    writer.wait_success()
                new.promote()
                # It serves others, and does not let the hook ask: nobody knows that there are two primaries.
                old.query(f"alter role {PROBE_USER} nologin")
                if arm == "today":
                    _state_alone(haproxy, new)
                else:
                    _proven(hook, new)
                before = _rows(old)
                time.sleep(AFTERWARDS)
                return float(_rows(old) - before)
            finally:
                for writer in writers:
                    writer.end()
                old.query(f"alter role {PROBE_USER} login")

    def _fresh(self) -> tuple[Server, Server, Server]:
        self._cluster.reset()
        first, second, third = self._cluster.nodes
        return first, second, third


def _reload(haproxy: Haproxy, old: str, new: str) -> None:
    """Put ``new`` in place of ``old`` in haproxy.cfg, and have it read."""
    haproxy.write_config(haproxy.config.read_text().replace(old, new))
    worker = haproxy.worker() or 0
    haproxy.reload()
    haproxy.wait_reloaded(worker)


def _proven(hook: Hook, new: Server) -> None:
    run = hook("attach", new.name, "p")
    if run.exit_code:
        raise RuntimeError(run.output)


def _state_alone(haproxy: Haproxy, new: Server) -> None:
    for node in haproxy.cluster.nodes:
        state = "ready" if node == new else "maint"
        haproxy.command(f"set server {WRITE}/n{node.number + 1} state {state}")


def _rows(node: Server) -> int:
    return int(node.query(f"select count(*) as rows from {TABLE}", timeout=30)[0]["rows"] or 0)


def _first_connection(haproxy: Haproxy, new: Server, began: float) -> float:
    """Seconds from ``began`` until a new session for writes reaches ``new``."""
    while time.monotonic() - began < LONGEST:
        with suppress(sql.SqlError):
            (row,) = haproxy.query("select host(inet_server_addr()) as host", timeout=1)
            if row["host"] == new.host:
                return time.monotonic() - began
        time.sleep(0.001)
    return LONGEST


def _wait_ready(haproxy: Haproxy, hosts: Sequence[str]) -> None:
    deadline = time.monotonic() + LONGEST
    while haproxy.ready() != list(hosts) and time.monotonic() < deadline:
        time.sleep(0.01)


@contextmanager
def _overlap(haproxy: Haproxy) -> Iterator[Callable[[], float]]:
    """Seconds for which more than one server was ready for writes, looked at without a pause."""
    over = threading.Event()
    total = [0.0]

    def look() -> None:
        before = time.monotonic()
        while not over.is_set():
            ready = len(haproxy.ready())
            now = time.monotonic()
            if ready > 1:
                total[0] += now - before
            before = now

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield lambda: total[0]
    finally:
        over.set()
        thread.join()


@contextmanager
def _role_servers(nodes: Sequence[Server]) -> Iterator[int]:
    """On each node's host, the same port: 200 for ``/primary`` while the node is one, as Patroni answers."""
    servers: list[ThreadingHTTPServer] = []
    try:
        port = 0
        for node in nodes:
            servers.append(ThreadingHTTPServer((node.host, port), _handler(node)))
            port = servers[-1].server_port
        for server in servers:
            threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        yield port
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def _handler(node: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if node.in_recovery() is False else 503)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            return

    return Handler
