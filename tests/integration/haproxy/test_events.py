"""Attach, detach and promote against a real HAProxy and real databases."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from efm_lb import Attach, Detach, Origin, PermanentError, Promote, Result, Severity, TemporaryError
from efm_lb.reconcile.differences import differences
from efm_lb.rehearsal import sql
from efm_lb.rehearsal.haproxy import READ, WRITE
from efm_lb_haproxy import adapter
from unit.haproxy.haproxy_model import disabled


def where(haproxy, proxy=WRITE):
    return haproxy.query("select host(inet_server_addr()) as host", proxy)[0]["host"]


def problems(manager):
    found = adapter.efm_lb_check(manager.truth(), manager.balancer, time.monotonic() + 5)
    return [f for f in found if f.severity is not Severity.OK]


def test_a_healthy_haproxy_is_left_alone(manager, haproxy):
    before = haproxy.config.stat()
    for kind, number in ((Promote, 0), (Attach, 1), (Attach, 2)):
        assert manager.send(kind, number).result is Result.UNCHANGED
    assert manager.belief() == "W r r"
    assert haproxy.config.stat().st_mtime_ns == before.st_mtime_ns
    assert problems(manager) == []


def test_a_switchover(manager, cluster, haproxy):
    cluster.nodes[0].stop()
    cluster.nodes[1].promote()
    cluster.nodes[2].follow(cluster.nodes[1])
    assert manager.send(Promote, 1).result is Result.CHANGED
    assert manager.belief() == "- W r"
    assert where(haproxy) == cluster.nodes[1].host
    assert where(haproxy, READ) == cluster.nodes[2].host
    assert manager.send(Promote, 1).result is Result.UNCHANGED
    assert manager.send(Detach, 0).result is Result.UNCHANGED
    cluster.nodes[0].rejoin(cluster.nodes[1])
    assert manager.send(Attach, 0).result is Result.CHANGED
    assert manager.belief() == "r W r"
    assert problems(manager) == []


def test_a_failover_in_which_the_detach_comes_first(manager, cluster, haproxy):
    cluster.nodes[0].kill()
    assert manager.send(Detach, 0).result is Result.CHANGED
    assert manager.belief() == "- r r", "nobody gets writes: an old primary that thaws must not"
    with pytest.raises(sql.SqlError):
        where(haproxy)
    cluster.nodes[1].promote()
    assert manager.send(Promote, 1).result is Result.CHANGED
    assert manager.belief() == "- W r"
    assert where(haproxy) == cluster.nodes[1].host


def test_a_standby_that_failed_loses_its_sessions_and_one_that_is_up_keeps_them(manager, cluster, haproxy):
    def session():
        return sql.Session(haproxy.host, haproxy.read_port, "postgres")

    with session() as one, session() as other:
        hosts = [s.execute("select host(inet_server_addr()) as host")[0]["host"] for s in (one, other)]
        assert sorted(hosts) == [cluster.nodes[1].host, cluster.nodes[2].host]
        assert manager.send(Detach, 1).result is Result.CHANGED
        for s in (one, other):
            s.execute("select 1")
        manager.silent.add(1)
        assert manager.send(Detach, 1).result is Result.CHANGED, "drained before, in maintenance now"
        on_failed, on_good = (one, other) if hosts[0] == cluster.nodes[1].host else (other, one)
        with pytest.raises(sql.SqlError):
            on_failed.execute("select 1")
        on_good.execute("select 1")
    assert manager.belief() == "W - r"


def test_the_primary_serves_reads_only_while_nobody_else_can(manager, haproxy, cluster):
    assert manager.send(Detach, 1).result is Result.CHANGED
    assert manager.send(Detach, 2).result is Result.CHANGED
    assert manager.belief() == "Wr - -"
    assert where(haproxy, READ) == cluster.nodes[0].host
    assert manager.send(Attach, 2).result is Result.CHANGED
    assert manager.belief() == "W - r"


@pytest.mark.parametrize(("policy", "belief"), [("never", "W - -"), ("always", "W - -")])
def test_other_policies_keep_their_word(manage, haproxy, policy, belief):
    manager = manage(haproxy, read_includes_primary=policy)
    manager.send(Detach, 1)
    outcome = manager.send(Detach, 2)
    assert manager.belief() == belief
    assert outcome.detail.endswith("; no server of pg_read is ready")
    manager.send(Promote, 0)
    assert manager.belief() == ("Wr - -" if policy == "always" else "W - -")


def test_an_operator_may_take_out_the_only_primary(manager):
    assert manager.send(Detach, 0, Origin.OPERATOR).result is Result.CHANGED
    assert manager.belief() == "- r r"


def test_no_two_writers_are_ready_in_any_moment(manager, haproxy):
    """Sampled as fast as HAProxy answers, while writes move back and forth."""
    samples = []
    over = threading.Event()

    def sample():
        while not over.is_set():
            samples.append(tuple(haproxy.ready(WRITE)))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        for round_ in range(20):
            number = 1 - round_ % 2
            letters = "sPs" if number else "Pss"
            assert manager.send(Promote, number, truth=manager.as_if(letters)).result is Result.CHANGED
    finally:
        over.set()
        sampler.join()
    assert len(samples) > 100
    assert {len(ready) for ready in samples} <= {0, 1}
    assert {ready for ready in samples if ready} == {(manager.nodes[0].host,), (manager.nodes[1].host,)}


def test_after_the_hook_nothing_is_written_to_the_old_primary(manager, haproxy, cluster):
    """Both databases are writable here, as when the old primary was cut off and has not noticed."""
    cluster.nodes[1].promote()
    over = threading.Event()
    written: list[tuple[float, str]] = []
    errors: list[float] = []

    def write():
        session = None
        while not over.is_set():
            try:
                session = session or sql.Session(haproxy.host, haproxy.write_port, "postgres")
                host = session.execute(
                    "insert into rehearsal values (1, 1) returning host(inet_server_addr()) as host"
                )[0]["host"]
                written.append((time.monotonic(), host))
            except sql.SqlError:
                errors.append(time.monotonic())
                session = None

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    try:
        time.sleep(0.3)
        outcome = manager.send(Promote, 1, truth=manager.as_if("xPs"))
        returned = time.monotonic()
        time.sleep(0.5)
    finally:
        over.set()
        for writer in writers:
            writer.join()
    assert outcome.result is Result.CHANGED
    old, new = cluster.nodes[0].host, cluster.nodes[1].host
    assert [host for at, host in written if at < returned].count(old) > 10
    assert [host for at, host in written if at > returned + 0.05].count(old) == 0
    assert [host for _, host in written].count(new) > 10
    assert len(errors) < 100


def test_a_frozen_old_primary_gets_nothing_when_it_thaws(manager, haproxy, cluster):
    session = sql.Session(haproxy.host, haproxy.write_port, "postgres")
    session.execute("select 1")
    cluster.nodes[0].freeze()
    try:
        manager.silent.add(0)
        waiting = threading.Thread(target=lambda: _try(session, "insert into rehearsal values (7, 7)"))
        waiting.start()
        time.sleep(0.1)
        cluster.nodes[1].promote()
        assert manager.send(Promote, 1).result is Result.CHANGED
        waiting.join(5)
        assert not waiting.is_alive(), "its session is shut down"
    finally:
        cluster.nodes[0].thaw()
    assert manager.belief() == "- W r"
    late = _try(session, "insert into rehearsal values (7, 8)")
    assert late is not None
    assert where(haproxy) == cluster.nodes[1].host


def _try(session, statement):
    try:
        session.execute(statement)
    except sql.SqlError as error:
        return error
    return None


def test_a_dead_and_a_frozen_haproxy(start_haproxy, manage):
    haproxy = start_haproxy()
    manager = manage(haproxy)
    haproxy.process.freeze()
    started = time.monotonic()
    with pytest.raises(TemporaryError, match="did not answer in time"):
        manager.send(Detach, 1)
    assert time.monotonic() - started < 3, "it costs the connect time-out, not the deadline"
    haproxy.process.kill()
    with pytest.raises(TemporaryError, match="Connection refused"):
        manager.send(Detach, 1)


# A HAProxy that is down


def test_a_haproxy_that_is_down_at_a_promotion_sends_its_first_writer_to_the_new_primary(manager, haproxy, cluster):
    cluster.nodes[0].kill()
    cluster.nodes[1].promote()
    cluster.nodes[2].follow(cluster.nodes[1])
    before = haproxy.config.read_text()
    haproxy.process.kill()
    with pytest.raises(TemporaryError, match=r"Connection refused; .*haproxy.cfg:[\d,]+ written; CONFIG is right for"):
        manager.send(Promote, 1)
    assert haproxy.config.read_text().replace(" disabled", "") == before.replace(" disabled", "")
    haproxy.launch()
    assert where(haproxy) == cluster.nodes[1].host
    assert where(haproxy, READ) == cluster.nodes[2].host
    assert manager.belief() == "- W r"
    assert manager.send(Promote, 1).result is Result.UNCHANGED


def test_a_haproxy_that_is_down_at_the_detach_and_the_attach_of_a_standby(manager, haproxy):
    for kind, belief in ((Detach, "W r -"), (Attach, "W r r")):
        haproxy.process.stop()
        haproxy.socket.unlink()
        with pytest.raises(TemporaryError, match=r"No such file or directory; .* written; CONFIG is right for"):
            manager.send(kind, 2)
        with pytest.raises(TemporaryError, match="No such file or directory; CONFIG is right for its next start"):
            manager.send(kind, 2)
        haproxy.launch()
        assert manager.belief() == belief


def test_a_haproxy_that_is_down_and_could_not_start_keeps_its_file(manager, haproxy):
    broken = haproxy.config.read_text().replace("    mode tcp\n", "    mdoe tcp\n")
    haproxy.process.stop()
    haproxy.write_config(broken)
    line = broken.splitlines().index("    mdoe tcp") + 1
    message = rf"haproxy -c refuses .*haproxy.cfg:{line}\] : unknown keyword 'mdoe'"
    with pytest.raises(TemporaryError, match=f"; CONFIG is not right for its next start: {message}"):
        manager.send(Promote, 1, truth=manager.as_if("xPs"))
    assert haproxy.config.read_text() == broken


@pytest.mark.parametrize("delay", [0.0, 0.03, 0.06, 0.1, 0.3])
def test_a_haproxy_that_is_being_started_is_brought_right(manager, haproxy, delay):
    """It may have read its file before it was changed."""
    haproxy.process.stop()
    starting = threading.Timer(delay, haproxy.launch)
    starting.start()
    try:
        assert manager.send(Promote, 1, truth=manager.as_if("xPs")).result is Result.CHANGED
    finally:
        starting.join()
    assert manager.belief() == "- W r"
    assert disabled(haproxy.config, WRITE) == "n1 n3"


def test_a_frozen_haproxy_that_is_started_anew_is_right(start_haproxy, manage):
    haproxy = start_haproxy()
    manager = manage(haproxy)
    haproxy.process.freeze()
    with pytest.raises(TemporaryError, match=r"did not answer in time; .* written; CONFIG is right for its next start"):
        manager.send(Promote, 1, truth=manager.as_if("xPs"))
    haproxy.process.kill()
    haproxy.launch()
    assert manager.belief() == "- W r"


# Sockets that are no good


def test_other_sockets(manager, manage, haproxy, cluster):
    for text, kind, message in (
        (str(haproxy.master_socket), PermanentError, "command line of HAProxy's master"),
        (f"{haproxy.host}:{haproxy.write_port}", TemporaryError, "is it a `stats socket`"),
        (cluster.nodes[0].address, TemporaryError, "is it a `stats socket`"),
        ("/absent.sock", TemporaryError, "No such file"),
    ):
        with pytest.raises(kind, match=message):
            manage(haproxy, socket=text).view()
    assert manager.belief() == "W r r"


@pytest.mark.parametrize("level", ["operator", "user"])
def test_a_socket_that_allows_no_changes(start_haproxy, manage, level):
    haproxy = start_haproxy()
    low = haproxy.directory / "low.sock"
    haproxy.write_config(
        haproxy.config.read_text().replace(
            "    stats timeout", f"    stats socket {low} level {level}\n    stats timeout"
        )
    )
    haproxy.process.stop()
    haproxy.launch()
    manager = manage(haproxy, socket=str(low))
    before = haproxy.config.read_text()
    with pytest.raises(PermanentError, match=f"low.sock is at level {level}: changes need `level admin`"):
        manager.send(Detach, 1)
    assert manager.belief() == "W r r"
    assert haproxy.config.read_text() == before
    assert any(f"is at level {level}" in f.detail for f in problems(manager))


def test_a_socket_over_tcp(start_haproxy, manage):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    haproxy = start_haproxy(global_=f"stats socket ipv4@127.0.0.1:{port} level admin")
    manager = manage(haproxy, socket=f"127.0.0.1:{port}")
    assert manager.send(Detach, 1).result is Result.CHANGED
    assert manager.belief() == "W - r"
    assert any("nothing is encrypted" in f.detail for f in problems(manager))


def test_proxies_that_do_not_exist(manage, haproxy):
    manager = manage(haproxy, write=["pg_rwite"])
    with pytest.raises(PermanentError, match=r"no proxy pg_rwite \(EFM_LB_BALANCERS__EDGE__WRITE\)"):
        manager.send(Promote, 0)
    assert any(f.subject == "pg_rwite" for f in problems(manager))


def test_what_the_files_would_undo_is_seen_and_put_right(manager, haproxy, cluster):
    """A hook that was killed between the running HAProxy and its files leaves nobody else who knows."""
    _, new, standby = manager.nodes
    first = haproxy.config.read_text()
    cluster.nodes[0].stop()
    cluster.nodes[1].promote()
    assert manager.send(Promote, 1).result is Result.CHANGED
    assert manager.view().of(new).writes
    haproxy.write_config(first)
    seen = manager.view()
    assert not any(each.writes for each in seen.nodes), "a reload would move them back"
    assert "CONFIG says otherwise" in seen.of(new).detail
    (event,) = [each for each in differences(manager.truth(), seen) if isinstance(each, Promote)]
    assert event.node == new
    outcome = manager.send(Promote, 1)
    assert outcome.result is Result.CHANGED
    assert f"{haproxy.config}:" in outcome.detail
    assert manager.view().of(new).writes

    haproxy.write_config(
        haproxy.config.read_text().replace(f"server n3 {standby.address}\n", f"server n3 {standby.address} disabled\n")
    )
    assert manager.view().of(standby).kept is False
    (event,) = differences(manager.truth(), manager.view())
    assert event == Attach(standby, manager.truth(), Origin.RECONCILE)
    assert manager.send(Attach, 2).result is Result.CHANGED
    assert differences(manager.truth(), manager.view()) == ()


def test_one_that_is_down_is_out_of_haproxy_and_of_its_files(manager, haproxy, cluster):
    """Whichever of both somebody else, or a hook that was killed in between, has changed alone."""
    standby = manager.nodes[2]
    cluster.nodes[2].stop()
    assert manager.send(Detach, 2).result is Result.CHANGED
    detach = (Detach(standby, manager.truth(), Origin.RECONCILE),)
    assert differences(manager.truth(), manager.view()) == ()
    haproxy.command(f"set server {READ}/n3 state ready")
    assert differences(manager.truth(), manager.view()) == detach
    assert manager.send(Detach, 2).result is Result.CHANGED
    assert haproxy.servers(READ)[standby.host] == "maint"
    config = haproxy.config.read_text()
    before, _, after = config.rpartition(f"{standby.address} disabled\n")
    haproxy.write_config(f"{before}{standby.address}\n{after}")
    assert differences(manager.truth(), manager.view()) == detach
    assert manager.send(Detach, 2).result is Result.CHANGED
    assert haproxy.config.read_text() == config
    assert differences(manager.truth(), manager.view()) == ()


def test_a_primary_that_stood_in_for_standbys_is_taken_out_of_reads_again(manager, haproxy):
    """A standby has crashed and is back before anybody was called about it: HAProxy has had it in all the time."""
    haproxy.command(f"set server {READ}/n1 state ready")
    assert haproxy.servers(READ) == {node.host: "ready" for node in manager.nodes}
    (event,) = differences(manager.truth(), manager.view())
    assert event == Promote(manager.nodes[0], manager.truth(), Origin.RECONCILE)
    assert manager.send(Promote, 0).result is Result.CHANGED
    assert haproxy.servers(READ)[manager.nodes[0].host] == "drain"
    assert differences(manager.truth(), manager.view()) == ()


def test_files_that_cannot_be_read_hide_nothing_that_runs(manager, haproxy):
    before = manager.view()
    haproxy.config.rename(haproxy.config.with_suffix(".gone"))
    assert manager.view() == before
    assert manager.view().of(manager.nodes[0]).writes


def test_a_new_primary_that_somebody_gave_no_weight_gets_the_writes(manager, cluster, haproxy):
    """As many drain a server: it is up and in no maintenance, and no new connection goes there."""
    haproxy.command(f"set server {WRITE}/n2 weight 0")
    cluster.nodes[0].kill()
    cluster.nodes[1].promote()
    assert any(f.subject == f"{WRITE}/n2" and "weight 0" in f.detail for f in problems(manager))
    outcome = manager.send(Promote, 1)
    assert outcome.result is Result.CHANGED
    assert haproxy.query("select pg_is_in_recovery() as standby") == [{"standby": "f"}]
    assert manager.send(Promote, 1).result is Result.UNCHANGED
    assert not any("weight 0" in f.detail for f in problems(manager))
