"""Waiting for a promotion at real servers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from efm_lb import Node, Reach
from efm_lb.probe import Probe
from efm_lb.rehearsal import sql
from efm_lb.rehearsal.cluster import PROBE_PASSWORD, PROBE_USER, Cluster, Server
from efm_lb.rehearsal.waiting import wait_until
from efm_lb.watch import wait_for_primary


def watch(server: Server, seconds: float, **keywords: str) -> bool:
    node = Node(server.name, server.host, server.port)
    given = {"user": "postgres", "dbname": "postgres", **keywords}
    return wait_for_primary([node], Probe(given, 2.0), time.monotonic() + seconds)


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"user": "nobody"}, "nobody"),
        ({"user": PROBE_USER, "password": "wrong"}, "password authentication failed"),
        ({"dbname": "nothing"}, "nothing"),
    ],
)
def test_a_login_that_is_denied_is_not_tried_again_at_once(
    cluster: Cluster, keywords: Mapping[str, str], said: str
) -> None:
    server = cluster.nodes[1]
    before = denials(server, said)
    assert not watch(server, 1.8, **keywords)
    assert denials(server, said) == before + 1


def test_a_server_that_starts_is_asked_again_at_once(cluster: Cluster) -> None:
    """Down first, then starting up, then there."""
    server = cluster.nodes[0]
    server.stop()
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(watch, server, 20)
        server.start()
        began = time.monotonic()
        assert found.result()
    assert time.monotonic() - began < 4


def test_a_server_without_a_free_connection_is_asked_again_at_once(cluster: Cluster) -> None:
    server = cluster.nodes[0]
    with sql.Session(server.host, server.port, "postgres") as session:
        session.execute(f"alter role {PROBE_USER} connection limit 0")
        try:
            before = denials(server, "too many connections for role")
            with ThreadPoolExecutor(1) as pool:
                found = pool.submit(watch, server, 20, user=PROBE_USER, password=PROBE_PASSWORD)
                assert wait_until(lambda: denials(server, "too many connections for role") >= before + 2, timeout=4)
                session.execute(f"alter role {PROBE_USER} connection limit -1")
                assert found.result()
        finally:
            session.execute(f"alter role {PROBE_USER} connection limit -1")


def test_the_next_question_needs_no_login(cluster: Cluster) -> None:
    server = cluster.nodes[0]
    node, probe = watched(server)
    server.query(f"alter role {PROBE_USER} connection limit 0")
    try:
        assert probe.truth([node]).primary == node
        assert probe.truth([node]).state(node).reach is Reach.FULL, "each connection serves one question"
    finally:
        server.query(f"alter role {PROBE_USER} connection limit -1")


def test_a_session_that_was_cut_since_says_nothing_about_its_server(cluster: Cluster) -> None:
    server = cluster.nodes[0]
    node, probe = watched(server)
    server.query(f"select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = '{PROBE_USER}'")
    assert probe.truth([node]).primary == node


def watched(server: Server) -> tuple[Node, Probe]:
    """A primary that was watched for, and a probe that has the connection."""
    node = Node(server.name, server.host, server.port)
    probe = Probe({"user": PROBE_USER, "password": PROBE_PASSWORD, "dbname": "postgres"}, 2.0)
    assert wait_for_primary([node], probe, time.monotonic() + 5)
    return node, probe


def denials(server: Server, said: str) -> int:
    lines = server.log.read_text(errors="replace").splitlines()
    return sum("FATAL" in line and said in line for line in lines)
