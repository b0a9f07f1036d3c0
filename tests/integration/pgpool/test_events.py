"""Attach, detach and promote against a real pgpool and real databases."""

from __future__ import annotations

import time

import pytest

from efm_lb import Attach, Detach, Node, Origin, PermanentError, Promote, Result, Severity, TemporaryError
from efm_lb_pgpool import adapter


def switch_over(cluster, new=1):
    """Stop the primary and promote another node, which the rest follows; the old one stays down."""
    cluster.nodes[0].stop()
    cluster.nodes[new].promote()
    for server in cluster.nodes[1:]:
        if server.number != new:
            server.follow(cluster.nodes[new])


def test_a_healthy_pgpool_is_left_alone(manager):
    for kind, number in ((Promote, 0), (Attach, 1), (Attach, 2)):
        assert manager.send(kind, number).result is Result.UNCHANGED
        assert manager.plan(kind, number) == ()


def test_detach_and_attach_of_a_standby(manager):
    assert manager.plan(Detach, 2) == (f"pcp_detach_node 2 ({manager.nodes[2].address})",)
    assert manager.send(Detach, 2).result is Result.CHANGED
    assert manager.belief() == "P+ + -"
    assert manager.send(Detach, 2).result is Result.UNCHANGED
    assert manager.send(Attach, 2).result is Result.CHANGED
    assert manager.send(Attach, 2).result is Result.UNCHANGED
    assert manager.belief() == "P+ + +"


def test_the_primary_stays_until_another_one_is_proven(manager, cluster, pgpool):
    held = manager.send(Detach, 0)
    assert held.result is Result.DEFERRED
    assert held.again_after
    cluster.nodes[0].kill()
    assert manager.send(Detach, 0).result is Result.DEFERRED
    cluster.nodes[1].promote()
    cluster.nodes[2].follow(cluster.nodes[1])
    started = time.monotonic()
    outcome = manager.send(Promote, 1)
    assert outcome.result is Result.CHANGED
    assert outcome.detail.startswith("pcp_detach_node 0")
    assert manager.belief() == "- P+ +"
    assert pgpool.primary() == cluster.nodes[1].host
    assert time.monotonic() - started < 5
    assert manager.send(Promote, 1).result is Result.UNCHANGED
    assert manager.send(Detach, 0).result is Result.UNCHANGED


def test_the_detach_alone_moves_writes_when_it_comes_last(manager, cluster):
    switch_over(cluster)
    assert manager.send(Detach, 0).result is Result.CHANGED
    assert manager.belief() == "- P+ +"
    assert manager.send(Promote, 1).result is Result.UNCHANGED
    cluster.nodes[0].rejoin(cluster.nodes[1])
    assert manager.send(Attach, 0).result is Result.CHANGED
    assert manager.belief() == "+ P+ +"


def test_promote_puts_the_old_primary_back_when_it_is_a_standby_already(manager, cluster):
    switch_over(cluster)
    cluster.nodes[0].rejoin(cluster.nodes[1])
    assert manager.plan(Promote, 1) == (
        f"pcp_detach_node 0 ({manager.nodes[0].address}), then pgpool finds 1 ({manager.nodes[1].address})",
        f"pcp_attach_node 0 ({manager.nodes[0].address})",
    )
    with pytest.raises(TemporaryError, match=f"efm-lb attach {manager.nodes[1].name} p"):
        manager.send(Attach, 0)
    assert manager.send(Promote, 1).result is Result.CHANGED
    assert manager.belief() == "+ P+ +"


def test_an_attach_before_the_promotion_is_held_back_then_done(manager, cluster):
    assert manager.send(Detach, 2).result is Result.CHANGED
    switch_over(cluster)
    assert manager.send(Attach, 2).result is Result.DEFERRED
    assert manager.belief() == "P+ + -"
    assert manager.send(Promote, 1).result is Result.CHANGED
    assert manager.belief() == "- P+ -", "a standby that was out is not put back by a promotion"
    assert manager.send(Attach, 2).result is Result.CHANGED
    assert manager.belief() == "- P+ +"


def test_a_promotion_that_never_comes(manager, cluster):
    """Reads come back after a short search, and the promotion is found in the end."""
    cluster.nodes[0].kill()
    assert manager.send(Detach, 0).result is Result.DEFERRED
    assert manager.send(Detach, 0, Origin.FOLLOW_UP).result is Result.CHANGED
    assert manager.send(Attach, 1).result is Result.UNCHANGED
    time.sleep(4)
    assert manager.belief() == "- + +"
    cluster.nodes[2].promote()
    cluster.nodes[1].follow(cluster.nodes[2])
    outcome = manager.send(Promote, 2)
    assert outcome.result is Result.CHANGED
    assert manager.belief() == "- + P+"


def test_a_search_without_end_is_never_started(cluster, start_pgpool, manage):
    manager = manage(start_pgpool(search_primary_node_timeout=0))
    cluster.nodes[0].kill()
    outcome = manager.send(Detach, 0, Origin.FOLLOW_UP)
    assert outcome.result is Result.DEFERRED
    assert outcome.again_after is None
    assert "search_primary_node_timeout = 0" in outcome.detail
    assert manager.belief() == "P+ + +"


def test_a_silent_standby_is_detached_before_pgpool_would_wait_for_it(manager, cluster):
    cluster.nodes[2].freeze()
    try:
        manager.silent.add(2)
        cluster.nodes[0].kill()
        cluster.nodes[1].promote()
        with pytest.raises(TemporaryError, match=r"but node 2 .* was silent and is detached"):
            manager.send(Promote, 1)
    finally:
        cluster.nodes[2].thaw()
    assert manager.belief() == "- P+ -"


def test_a_node_that_is_down_is_not_attached(manager, cluster):
    assert manager.send(Detach, 2).result is Result.CHANGED
    cluster.nodes[2].stop()
    with pytest.raises(TemporaryError, match="does not answer"):
        manager.send(Attach, 2)
    assert manager.belief() == "P+ + -"


def test_an_unknown_node(manager):
    stranger = Node("127.0.0.1", "127.0.0.1", manager.nodes[0].port)
    with pytest.raises(PermanentError, match="pgpool has no backend"):
        adapter.efm_lb_detach(Detach(stranger, manager.truth()), manager.balancer, time.monotonic() + 5)
    assert [f"{b}" for b in manager.view().strangers] == []


def test_a_flag_that_forbids_it(start_pgpool, manage):
    manager = manage(start_pgpool(backend_flag2="DISALLOW_TO_FAILOVER"))
    with pytest.raises(PermanentError, match="disallowed"):
        manager.send(Detach, 2)


def test_a_dead_and_a_frozen_pgpool(start_pgpool, manage):
    pool = start_pgpool()
    manager = manage(pool)
    pool.process.freeze()
    started = time.monotonic()
    with pytest.raises(TemporaryError, match="did not answer in time"):
        manager.send(Attach, 1)
    assert time.monotonic() - started < 3, "it costs the connect time-out, not the deadline"
    pool.process.kill()
    with pytest.raises(TemporaryError, match="Connection refused"):
        manager.send(Attach, 1)


def test_a_port_that_is_not_pcp(manager, cluster, pgpool):
    for port in (pgpool.port, cluster.nodes[0].port):
        host = pgpool.host if port == pgpool.port else cluster.nodes[0].host
        balancer = manager.balancer._replace(settings={**manager.balancer.settings, "host": [f"{host}:{port}"]})
        with pytest.raises(TemporaryError, match=f"{host}:{port}.*pcp_port"):
            adapter.efm_lb_view(manager.nodes, balancer, time.monotonic() + 5)


def test_a_wrong_password(manager, tmp_path):
    (tmp_path / "pcppass").touch(mode=0o600)
    (tmp_path / "pcppass").write_text("*:*:*:wrong-secret\n")
    settings = {**manager.balancer.settings, "passfile": str(tmp_path / "pcppass")}
    with pytest.raises(PermanentError, match="refuses the login") as caught:
        adapter.efm_lb_view(manager.nodes, manager.balancer._replace(settings=settings), time.monotonic() + 5)
    assert "wrong-secret" not in str(caught.value)


def test_the_socket_directory(manager, pgpool):
    settings = {**manager.balancer.settings, "host": [str(pgpool.directory)], "port": pgpool.pcp_port}
    view = adapter.efm_lb_view(manager.nodes, manager.balancer._replace(settings=settings), time.monotonic() + 5)
    assert view == manager.view()


def test_check_of_a_well_configured_pgpool(manager):
    findings = manager.check()
    assert [f for f in findings if f.severity is not Severity.OK] == []
    assert len(findings) > 15


def test_check_finds_what_fights_efm(cluster, start_pgpool, manage):
    manager = manage(
        start_pgpool(
            failover_on_backend_error="on",
            auto_failback="on",
            search_primary_node_timeout=300,
            backend_flag1="DISALLOW_TO_FAILOVER",
        )
    )
    findings = manager.check()
    assert {f.subject for f in findings if f.severity is not Severity.OK} == {
        "failover_on_backend_error",
        "auto_failback",
        "search_primary_node_timeout",
        "backend_flag1",
    }


@pytest.mark.parametrize(("setting", "dbname"), [("template1", "template1"), ("", "postgres")])
def test_check_tries_the_role_in_the_database_that_pgpool_looks_in(start_pgpool, manage, setting, dbname):
    manager = manage(start_pgpool(sr_check_user="postgres", sr_check_database=setting))
    truth = manager.truth()
    asked = []

    def log_in(*where):
        asked.append(where)
        return truth

    adapter.efm_lb_check(truth, manager.balancer, log_in, time.monotonic() + 5)
    assert asked == [("postgres", dbname)]


def test_check_finds_a_role_that_can_no_longer_look_for_the_primary(cluster, start_pgpool, manage):
    """pgpool itself would notice it at the next failover: by finding no primary."""
    primary = cluster.nodes[0]
    primary.query("create role looks_for_primary login")
    try:
        cluster.wait_streaming()
        manager = manage(start_pgpool(sr_check_user="looks_for_primary"))
        primary.query("alter role looks_for_primary nologin")
        cluster.wait_streaming()
        wrong = [f for f in manager.check() if f.severity is Severity.ERROR]
    finally:
        primary.query("drop role looks_for_primary")
    assert {f.subject for f in wrong} == {"sr_check_user"}
    assert any(primary.host in f.detail and "not permitted to log in" in f.detail for f in wrong)
