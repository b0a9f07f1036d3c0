"""What HAProxy does that no manual warns of, shown on the real one, and that the adapter does not fall for it."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from efm_lb import Attach, Detach, PermanentError, Promote, Result, Severity, TemporaryError
from efm_lb.rehearsal import sql
from efm_lb.rehearsal.haproxy import READ, WRITE
from efm_lb.rehearsal.stage import free_port
from efm_lb.rehearsal.waiting import wait_until
from efm_lb_haproxy import adapter
from efm_lb_haproxy.accepted import forms
from efm_lb_haproxy.config import edited, server_lines, words
from efm_lb_haproxy.reloads import is_reloading
from efm_lb_haproxy.validate import locate
from unit.haproxy.haproxy_model import disabled


def session(haproxy):
    return sql.Session(haproxy.host, haproxy.write_port, "postgres")


def reading(haproxy):
    """A session at the second standby."""
    while True:
        one = sql.Session(haproxy.host, haproxy.read_port, "postgres")
        if host_of(one) == haproxy.cluster.nodes[2].host:
            return one
        one.close()


def host_of(one):
    return one.execute("select host(inet_server_addr()) as host")[0]["host"]


def is_cut(one):
    try:
        one.execute("select 1")
    except sql.SqlError:
        return True
    return False


def findings(manager):
    found = adapter.efm_lb_check(manager.truth(), manager.balancer, time.monotonic() + 5)
    return {f"{f.subject}: {f.detail}" for f in found if f.severity is not Severity.OK}


def reloaded(haproxy):
    worker = haproxy.worker()
    haproxy.reload()
    return haproxy.wait_reloaded(worker)


def test_trap_1_maintenance_leaves_sessions_on_the_old_primary(manager, start_haproxy, manage, cluster):
    text = manager.haproxy.config.read_text().replace("    default-server on-marked-down shutdown-sessions\n", "")
    manager.haproxy.write_config(text)
    reloaded(manager.haproxy)
    with session(manager.haproxy) as one:
        assert host_of(one) == cluster.nodes[0].host
        manager.haproxy.command(f"set server {WRITE}/n1 state maint")
        assert not is_cut(one), "this is the trap"
        assert manager.send(Promote, 1, truth=manager.as_if("xPs")).result is Result.CHANGED
        assert is_cut(one), "although the old primary was in maintenance already"


def test_trap_2_after_a_reload_the_old_workers_sessions_cannot_be_shut_down_by_server(manager, haproxy):
    with session(haproxy) as trapped:
        host_of(trapped)
        old = haproxy.worker()
        reloaded(haproxy)
        answer = haproxy.master_command(f"@!{old} shutdown sessions server {WRITE}/n1")
        assert "Proxy is disabled." in answer, "this is the trap"
        assert not is_cut(trapped)
    with session(haproxy) as one:
        host_of(one)
        old = haproxy.worker()
        manager.send(Promote, 1, truth=manager.as_if("xPs"))
        reloaded(haproxy)
        assert is_cut(one), "shut down before the reload"
        assert wait_until(lambda: not os.path.exists(f"/proc/{old}"), 5), "and the old worker has nothing to wait for"


@pytest.mark.parametrize("reads", [True, False])
def test_trap_2_a_worker_that_an_earlier_reload_replaced_keeps_no_session_on_the_old_primary(manager, haproxy, reads):
    """As after last night's logrotate. Only the master leads to it, as long as it has sessions."""
    with contextlib.ExitStack() as sessions:
        writers = [sessions.enter_context(session(haproxy)) for _ in range(2)]
        for one in writers:
            host_of(one)
        if reads:
            reader = sessions.enter_context(reading(haproxy))
        old = haproxy.worker()
        reloaded(haproxy)
        outcome = manager.send(Promote, 1, truth=manager.as_if("xPs"))
        assert f"2 sessions of worker {old}, which a reload has replaced, are shut down" in outcome.detail
        assert all(is_cut(one) for one in writers)
        assert not reads or not is_cut(reader), "it is at the other standby"
        again = manager.send(Promote, 1, truth=manager.as_if("xPs"))
        assert again.result is Result.UNCHANGED
        assert "worker" not in again.detail
        assert not any("worker" in text for text in findings(manager))


@pytest.mark.parametrize("way", ["no -S", "level operator"])
def test_trap_2_a_master_that_does_not_lead_there(start_haproxy, manage, way):
    haproxy = start_haproxy()
    haproxy.process.stop()
    master = {"no -S": [], "level operator": ["-S", f"{haproxy.master_socket},level,operator"]}[way]
    haproxy.process.start([locate(""), "-W", *master, "-db", "-f", haproxy.config])
    assert wait_until(lambda: haproxy.worker() is not None, 5)
    manager = manage(haproxy)
    assert any("a promote cannot end them: " in text for text in findings(manager))
    with session(haproxy) as writer:
        host_of(writer)
        old = haproxy.worker()
        haproxy.reload()
        assert wait_until(lambda: haproxy.worker() not in (None, old), 5)
        assert any(f"worker {old}, which a reload has replaced, may have" in text for text in findings(manager))
        outcome = manager.send(Promote, 1, truth=manager.as_if("xPs"))
        assert outcome.result is Result.CHANGED
        assert f"worker {old}, which a reload has replaced, may have sessions that are left: " in outcome.detail
        assert f"`kill {old}` ends them" in outcome.detail
        assert not is_cut(writer)
        os.kill(old, signal.SIGTERM)
        assert wait_until(lambda: is_cut(writer), 5)
    haproxy.write_config(haproxy.config.read_text().replace("global\n", "global\n    hard-stop-after 5m\n"))
    assert not any("a promote cannot end them: " in text for text in findings(manager))


@pytest.mark.parametrize("delay", [0.0, 0.004, 0.008, 0.016, 0.03, 0.06, 0.1])
def test_trap_3_a_change_during_a_reload_is_not_lost(manager, haproxy, delay):
    worker = haproxy.worker()
    haproxy.reload()
    time.sleep(delay)
    outcome = manager.send(Promote, 1, truth=manager.as_if("xPs"))
    assert outcome.result is Result.CHANGED
    haproxy.wait_reloaded(worker)
    assert manager.belief() == "- W r"
    assert haproxy.ready() == [manager.nodes[1].host]


def test_trap_3_without_a_file_to_keep_it_in(manager, manage, haproxy):
    """Nothing but the processes of this host tells that a reload is in flight."""
    manager = manage(haproxy, config=None)
    worker = haproxy.worker()
    haproxy.reload()
    assert wait_until(lambda: is_reloading(worker), 1, interval=0.0005)
    haproxy.command(f"set server {WRITE}/n3 state ready")
    assert manager.send(Promote, 1, truth=manager.as_if("xPs")).result is Result.CHANGED
    assert haproxy.worker() != worker
    assert not is_reloading(haproxy.worker())
    assert manager.belief() == "- W r"


def test_a_reload_that_fails_is_not_waited_for(manager, haproxy):
    text = haproxy.config.read_text()
    worker = haproxy.worker()
    haproxy.write_config("garbage\n")
    haproxy.reload()
    assert wait_until(lambda: is_reloading(worker), 1, interval=0.0005)
    assert wait_until(lambda: not is_reloading(worker), 3)
    haproxy.write_config(text)
    started = time.monotonic()
    assert manager.send(Promote, 1, truth=manager.as_if("xPs")).result is Result.CHANGED
    assert time.monotonic() - started < 2


def test_trap_4_what_is_only_run_is_gone_after_the_next_reload(manager, manage, haproxy):
    manage(haproxy, config=None).send(Promote, 1, truth=manager.as_if("xPs"))
    assert manager.belief() == "- W r"
    reloaded(haproxy)
    assert manager.belief() == "W r r", "this is the trap"
    manager.send(Promote, 1, truth=manager.as_if("xPs"))
    reloaded(haproxy)
    assert manager.belief() == "- W r"
    manager.send(Attach, 0, truth=manager.as_if("sPs"))
    manager.send(Detach, 2, truth=manager.as_if("sPx"))
    reloaded(haproxy)
    assert manager.belief() == "r W -"


def test_trap_5_an_old_state_file_overrides_the_configuration(start_haproxy, manage):
    haproxy = start_haproxy()
    state = haproxy.directory / "state"
    text = haproxy.config.read_text()
    text = text.replace("    stats timeout", f"    server-state-file {state}\n    stats timeout")
    haproxy.write_config(text.replace("    mode tcp\n", "    mode tcp\n    load-server-state-from-file global\n"))
    haproxy.process.stop()
    haproxy.launch()
    manager = manage(haproxy)
    manager.send(Promote, 1, truth=manager.as_if("xPs"))
    state.write_text(haproxy.command("show servers state"))
    state.chmod(0o644)
    stale = state.read_text()

    # the configuration says n1 now, the state file says that n1 is in maintenance
    haproxy.write_config(text.replace("    mode tcp\n", "    mode tcp\n    load-server-state-from-file global\n"))
    reloaded(haproxy)
    assert haproxy.ready() != [manager.nodes[0].host], "this is the trap"

    outcome = manager.send(Promote, 0, truth=manager.as_if("Pss"))
    assert f"{state} written" in outcome.detail
    assert state.read_text() != stale
    reloaded(haproxy)
    assert haproxy.ready() == [manager.nodes[0].host]


def test_trap_5_an_old_state_file_overrides_the_configuration_at_a_start_too(start_haproxy, manage):
    haproxy = start_haproxy()
    state = haproxy.directory / "state"
    text = haproxy.config.read_text()
    text = text.replace("    stats timeout", f"    server-state-file {state}\n    stats timeout")
    haproxy.write_config(text.replace("    mode tcp\n", "    mode tcp\n    load-server-state-from-file global\n"))
    manager = manage(haproxy)
    for number, letters in ((1, "xPs"), (0, "Pss")):
        manager.send(Promote, number, truth=manager.as_if(letters))
    state.write_text(haproxy.command("show servers state"))
    state.chmod(0o644)
    rows = state.read_text().splitlines()
    haproxy.process.stop()
    with pytest.raises(TemporaryError, match=f"{state} written; CONFIG is right for its next start"):
        manager.send(Promote, 1, truth=manager.as_if("xPs"))
    gone = [row.split()[1:4:2] for row in rows if row not in state.read_text().splitlines()]
    assert gone == [[WRITE, "n1"], [WRITE, "n2"]], "the configuration counts for them"
    haproxy.launch()
    assert manager.belief() == "- W r"
    haproxy.process.stop()
    state.write_text("\n".join(rows) + "\n")
    haproxy.launch()
    assert manager.belief() != "- W r", "this is the trap"


def test_trap_6_a_broken_configuration_is_found_by_us_and_a_reload_of_it_changes_nothing(manager, haproxy):
    text = haproxy.config.read_text()
    broken = text.replace("mode tcp", "mdoe tcp")
    haproxy.write_config(broken)
    with pytest.raises(TemporaryError, match=r"haproxy -c refuses the configuration.*unknown keyword 'mdoe'") as caught:
        manager.send(Promote, 1, truth=manager.as_if("xPs"))
    assert "n2" in str(caught.value)
    assert manager.belief() == "- W r", "writes have moved"
    assert haproxy.config.read_text() == broken
    worker = haproxy.worker()
    assert haproxy.master_command("reload") == "", "this is the trap"
    assert wait_until(lambda: "[failed: 1]" in haproxy.master_command("show proc"), 5)
    assert haproxy.worker() == worker
    assert manager.belief() == "- W r"
    haproxy.write_config(text)
    assert manager.send(Promote, 1, truth=manager.as_if("xPs")).result is Result.CHANGED, "what was owed is done"


def test_trap_7_an_address_is_answered_with_a_text_takes_no_name_and_wraps_a_port(manager, manage, haproxy):
    """The adapter never gives a server another address; who did so by hand has made it another server."""
    node = manager.nodes[1]
    assert "port changed from" in haproxy.command(f"set server {WRITE}/n2 addr 127.0.0.12 port 99999")
    assert "Invalid addr 'localhost'" in haproxy.command(f"set server {WRITE}/n2 addr localhost")
    row = next(line.split() for line in haproxy.command(f"show servers state {WRITE}").splitlines() if " n2 " in line)
    assert row[18] == str(99999 - 65536), "this is the trap"
    assert f"pg_write: has no server {node.address}: once it is the primary, nothing is written" in findings(manager)
    with pytest.raises(PermanentError, match=f"proxy {WRITE} has no server {node.address}.*its writes are not moved"):
        manager.send(Promote, 1, truth=manager.as_if("xPs"))
    assert haproxy.ready() == [manager.nodes[0].host], "writes are not sent to whatever is there"
    answer = haproxy.command(f"set server {WRITE}/n2 addr {node.host} port {node.port}")
    assert "port changed from" in answer, "an answer that is a success"
    assert manager.send(Promote, 1, truth=manager.as_if("xPs")).result is Result.CHANGED
    assert haproxy.ready() == [node.host]
    with pytest.raises(PermanentError, match="neither the path of a Unix socket nor host:port"):
        manage(haproxy, socket="127.0.0.1:99999").view()


def test_trap_8_what_fails_does_not_stop_the_rest_of_a_line_and_is_noticed(manager, haproxy):
    answer = haproxy.command(f"set server {WRITE}/absent state maint; set server {WRITE}/n2 state ready")
    assert answer == "No such server.\n\n\n"
    assert len(haproxy.ready()) == 2, "this is the trap"
    assert manager.send(Promote, 1, truth=manager.as_if("xPs")).result is Result.CHANGED
    assert haproxy.ready() == [manager.nodes[1].host]


def test_trap_9_a_dead_server_that_is_made_ready_is_up_until_a_check_fails(start_haproxy, manage, cluster):
    haproxy = start_haproxy(server="check inter 1s fastinter 1s rise 1 fall 1")
    manager = manage(haproxy)
    host = cluster.nodes[2].host
    cluster.nodes[2].stop()
    assert wait_until(lambda: host not in haproxy.ready(READ), 12), "the check finds it down"
    haproxy.command(f"set server {READ}/n3 state maint")
    told = haproxy.command(f"set server {READ}/n3 state ready; show servers state {READ}").splitlines()
    row = next(line.split() for line in told if " n3 " in line)
    assert row[5:7] == ["2", "0"], "this is the trap: up, and in no maintenance"
    assert wait_until(lambda: host not in haproxy.ready(READ), 12)
    haproxy.command(f"set server {READ}/n3 state maint")
    with pytest.raises(TemporaryError, match="does not answer, so it is not attached"):
        manager.send(Attach, 2)
    assert host not in haproxy.ready(READ)


def test_trap_9_a_server_that_a_check_found_down_is_up_at_once(start_haproxy, manage, cluster):
    haproxy = start_haproxy(server="check inter 5s fastinter 5s rise 5 fall 1")
    manager = manage(haproxy)
    cluster.nodes[2].stop()
    assert wait_until(lambda: cluster.nodes[2].host not in haproxy.ready(READ), 12), "the check finds it down"
    cluster.nodes[2].start()
    started = time.monotonic()
    assert manager.send(Attach, 2).result is Result.CHANGED
    assert time.monotonic() - started < 2, "not after five good checks"
    assert manager.belief() == "W r r"


@contextlib.contextmanager
def roles():
    """What answers on each node of a database whether it is the primary, as Patroni and EFM's tools do.

    :return: its port, and the hosts that it calls primaries
    """
    primaries = []

    class Role(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.connection.getsockname()[0] in primaries else 503)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("0.0.0.0", free_port("127.0.0.1")), Role) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server.server_port, primaries
        server.shutdown()
        thread.join()


def test_trap_10_a_check_that_decides_roles_fights_the_hook_and_is_reported(start_haproxy, manage, cluster):
    old, new, _ = (node.host for node in cluster.nodes)
    with roles() as (port, primaries):
        primaries.append(old)
        check = f"check port {port} inter 300ms rise 1 fall 1"
        haproxy = start_haproxy(proxy="option httpchk GET /primary", server=check)
        manager = manage(haproxy, read=None)
        assert manager.send(Promote, 1, truth=manager.as_if("xPs")).result is Result.CHANGED
        assert wait_until(lambda: haproxy.ready() == [], 5), "this is the trap: it has not heard of it yet"
        primaries.append(new)
        assert wait_until(lambda: haproxy.ready() == [new], 5)
        haproxy.command(f"set server {WRITE}/n1 state ready")
        time.sleep(0.6)
        assert haproxy.ready() == [old, new], "and to it both are primaries"
    assert any("its health check is HTTP" in text for text in findings(manager))
    assert not any("HTTP" in text for text in findings(manage(start_haproxy(server="check inter 1h"))))


@pytest.fixture
def certificates(tmp_path):
    """A certificate authority, and a certificate for 127.0.0.1 that both sides may use."""
    if not os.path.exists("/usr/bin/openssl"):
        pytest.skip("needs openssl")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True, timeout=30)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    openssl("req", "-x509", *new, "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
    openssl("req", *new[:-2], "-subj", "/CN=lb", "-keyout", "lb.key", "-out", "lb.csr")
    (tmp_path / "san").write_text("subjectAltName=IP:127.0.0.1\n")
    sign = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "san")
    openssl("x509", "-req", "-in", "lb.csr", *sign, "-out", "lb.crt")
    (tmp_path / "lb.pem").write_text((tmp_path / "lb.crt").read_text() + (tmp_path / "lb.key").read_text())
    return tmp_path


@pytest.fixture
def readable(certificates, cluster):
    """The same, where HAProxy's account may read it."""
    found = {}
    for name in ("ca.pem", "lb.pem"):
        path = cluster.stage.directory / name
        cluster.stage.write(path, (certificates / name).read_text())
        found[name] = path
    return found


def test_trap_11_tls_on_a_stats_socket_is_not_enforced(start_haproxy, manage, readable):
    port = free_port("127.0.0.1")
    line = f"stats socket ipv4@127.0.0.1:{port} level admin ssl crt {readable['lb.pem']} verify required"
    haproxy = start_haproxy(global_=f"{line} ca-file {readable['ca.pem']}")
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"show info\n")
        assert connection.recv(5) == b"Name:", "this is the trap"
    assert any(
        "`ssl` on a `stats socket` line is accepted by 2.6 and not enforced" in t for t in findings(manage(haproxy))
    )


def test_a_socket_behind_a_listener_that_demands_certificates(start_haproxy, manage, readable, certificates):
    port = free_port("127.0.0.1")
    haproxy = start_haproxy()
    wrapper = f"""
listen cli
    bind 127.0.0.1:{port} ssl crt {readable["lb.pem"]} ca-file {readable["ca.pem"]} verify required
    server socket unix@{haproxy.socket}
"""
    haproxy.write_config(haproxy.config.read_text() + wrapper)
    haproxy.process.stop()
    haproxy.launch()
    tls = {"socket": f"127.0.0.1:{port}", "cafile": str(certificates / "ca.pem")}
    manager = manage(haproxy, **tls, certfile=str(certificates / "lb.crt"), keyfile=str(certificates / "lb.key"))
    assert manager.send(Promote, 1, truth=manager.as_if("xPs")).result is Result.CHANGED
    assert manager.belief() == "- W r"
    assert not any("nothing is encrypted" in text for text in findings(manager))
    assert manage(haproxy, **tls, certfile=str(certificates / "lb.pem")).view() == manager.view()

    with pytest.raises(TemporaryError):
        manage(haproxy, **tls).view()
    with pytest.raises((TemporaryError, PermanentError)):
        manage(haproxy, socket=tls["socket"]).view()
    with pytest.raises(PermanentError, match="its certificate is not accepted"):
        manage(haproxy, socket=f"localhost:{port}", cafile=tls["cafile"]).view()
    with pytest.raises(PermanentError, match="cannot be used: No such file"):
        manage(haproxy, socket=tls["socket"], cafile="/absent.pem").view()


def test_trap_12_disabled_in_the_configuration_and_ready_since_is_ready(manager, haproxy):
    manager.send(Promote, 1, truth=manager.as_if("xPs"))
    row = next(line.split() for line in haproxy.command(f"show servers state {WRITE}").splitlines() if " n2 " in line)
    assert row[5:7] == ["2", "4"], "this is the trap"
    assert manager.view().of(manager.nodes[1]).writes


def test_trap_13_servers_that_come_and_go_at_run_time(manager, haproxy):
    node = manager.nodes[2]
    haproxy.command(f"set server {READ}/n3 state maint; shutdown sessions server {READ}/n3")
    assert "Server deleted." in haproxy.command(f"del server {READ}/n3")
    outcome = manager.send(Attach, 2)
    assert outcome.result is Result.UNCHANGED
    assert "New server registered." in haproxy.command(f"add server {READ}/new {node.address}")
    assert manager.send(Attach, 2).result is Result.CHANGED
    assert manager.belief() == "W r r"
    assert any(text.startswith("pg_read/new: is in no file") for text in findings(manager))


def test_trap_14_whatever_the_files_hold(start_haproxy, manage, cluster):
    """Several files, a symbolic link, carriage returns, a condition, quotes and variables; taken from a real reload."""
    haproxy = start_haproxy()
    directory = haproxy.directory / "conf.d"
    head, _, proxies = haproxy.config.read_text().partition("listen pg_write\n")
    write, _, read = proxies.partition("listen pg_read\n")
    n1, n2, _ = (node.address for node in cluster.nodes)
    port = n1.rpartition(":")[2]
    write = f"""\
    bind 127.0.0.1:{haproxy.write_port}  # "quoted' # twice
    server n1 {n1}\tcheck inter 1h#no blank before this
.if defined(NOT_THERE)
    server n2 192.0.2.1:1 disabled
.else
    server n2 '{n2}'  disabled  # ' "
.endif
    server n3 127.0.0.13:"${{PGPORT}}" id 7 disabled
"""
    cluster.stage.make_directory(f"{haproxy.name}/conf.d")
    real = haproxy.directory / "elsewhere.conf"
    cluster.stage.write(real, "listen pg_write\n" + write)
    (directory / "20-write.cfg").symlink_to("../elsewhere.conf")
    crlf = directory / "30-read.cfg"
    cluster.stage.write(crlf, "")
    crlf.write_bytes(("listen pg_read\n" + read).replace("\n", "\r\n").encode())
    haproxy.write_config(head.replace("global\n", f"global\n    presetenv PGPORT {port}\n"))
    before = {path: path.read_bytes() for path in (real, crlf, haproxy.config)}
    haproxy.process.stop()
    haproxy.process.start(
        [locate(""), "-W", "-S", str(haproxy.master_socket), "-db", "-f", haproxy.config, "-f", directory]
    )
    assert wait_until(lambda: haproxy.worker() is not None, 5), haproxy.process.log_tail()

    manager = manage(haproxy, config=[str(haproxy.config), str(directory)])
    assert manager.send(Promote, 1, truth=manager.as_if("xPs")).result is Result.CHANGED
    reloaded(haproxy)
    assert manager.belief() == "- W r"
    assert (directory / "20-write.cfg").is_symlink()
    assert crlf.read_bytes().count(b"\r\n") == before[crlf].count(b"\r\n")
    assert haproxy.config.read_bytes() == before[haproxy.config]

    assert manager.send(Promote, 0, truth=manager.as_if("Pss")).result is Result.CHANGED
    manager.send(Attach, 1, truth=manager.as_if("Pss"))
    reloaded(haproxy)
    assert manager.belief() == "W r r"
    expected = before[real].replace(b"'  disabled  #", b"' disabled  #")
    expected = expected.replace(b"#no blank before this", b"#no blank before this # efm-lb: writes follow timeline 1")
    assert real.read_bytes() == expected, "but for the blanks before the word and the mark, all is as it was"
    assert crlf.read_bytes() == before[crlf]
    haproxy.process.stop()


def test_trap_14_a_missing_newline_is_a_truncated_file(manager, haproxy):
    haproxy.write_config(haproxy.config.read_text().rstrip("\n"))
    cut = haproxy.config.read_text()
    with pytest.raises(TemporaryError, match="has no newline at its end, so it may be cut off"):
        manager.send(Promote, 1, truth=manager.as_if("xPs"))
    assert haproxy.config.read_text() == cut
    assert manager.belief() == "- W r"


def test_trap_33_every_other_server_goes_not_only_the_one_that_is_named(manager, haproxy):
    haproxy.command(f"set server {WRITE}/n3 state ready")
    assert len(haproxy.ready()) == 2
    assert manager.send(Promote, 1, truth=manager.as_if("xPs")).result is Result.CHANGED
    assert haproxy.ready() == [manager.nodes[1].host]
    assert disabled(haproxy.config, WRITE) == "n1 n3"


@pytest.mark.parametrize("line", ["retries 3", "option redispatch 1", "retries 0"])
def test_a_client_that_connects_while_the_primary_is_gone(start_haproxy, manage, cluster, line):
    """What it sends first, as every client of PostgreSQL does, keeps it from being cut with the server's sessions."""
    haproxy = start_haproxy()
    haproxy.write_config(haproxy.config.read_text().replace("    retries 0\n", f"    {line}\n"))
    reloaded(haproxy)
    manager = manage(haproxy)
    cluster.nodes[0].kill()
    with socket.create_connection((haproxy.host, haproxy.write_port)) as client:
        client.settimeout(30)
        client.sendall(bytes.fromhex("0000000804d2162f"))  # may I speak TLS?
        if line == "retries 0":
            assert client.recv(1) == b"", "told at once, it can try again"
        cluster.nodes[1].promote()
        assert manager.send(Promote, 1).result is Result.CHANGED
        assert manager.belief() == "- W r"
        if line == "option redispatch 1":
            assert client.recv(1) == b"N"
        if line == "retries 3":
            assert client.recv(1) == b"", "this is the trap: held, and cut although the new primary was ready"
    assert any("held for seconds (`retries`)" in text for text in findings(manager)) == (line == "retries 3")


# The editor's idea of a word


def test_words_are_those_that_haproxy_finds(tmp_path):
    """Each unknown word of a server line is named by haproxy; twenty per run, because it names no more."""
    dice = random.Random(7)
    head = "defaults\n timeout connect 1s\n timeout client 1s\n timeout server 1s\nlisten w\n bind 127.0.0.1:1\n"
    compared = 0
    for _ in range(25):
        lines = []
        for i in range(20):
            word = "".join(dice.choice("ZQ\\\\\"'# \t-é") for _ in range(dice.randint(1, 7)))
            lines.append(f" server s{i} 127.0.0.1:1 Z{word}\n")
        path = tmp_path / "a.cfg"
        path.write_text(head + "".join(lines))
        done = subprocess.run([locate(""), "-c", "-f", path], capture_output=True, timeout=20, check=False)
        pattern = rb"a\.cfg:(\d+)\] : 'server w/s\d+' : unknown keyword '(.*?)'(?:\.\n|; did)"
        for number, found in re.findall(pattern, done.stderr, re.DOTALL):
            line = lines[int(number) - head.count("\n") - 1].encode()
            assert words(line, 0, len(line) - 1)[3].value == found, line
            compared += 1
    assert compared > 200


# What is accepted without being asked about again


def test_lines_that_are_accepted_in_both_forms_are_accepted_in_any_mixture(tmp_path):
    """Whatever is written on them; each file of a few lines, because one bad line spoils a file."""
    dice = random.Random(11)
    options = [
        "check",
        "disabled",
        "enabled",
        "backup",
        "inter 3s",
        "cookie disabled",
        "weight 0",
        "track w/s0",
        "'a b'",
    ]
    options += [
        "on-error mark-down",
        "maxconn 3",
        '"check"',
        "id 7",
        "# by hand",
        "ssl",
        "init-addr none",
        "resolvers x",
    ]
    head = "defaults\n timeout connect 1s\n timeout client 1s\n timeout server 1s\nlisten w\n bind 127.0.0.1:1\n"
    path = tmp_path / "a.cfg"

    def accepts(content):
        path.write_bytes(content)
        return not subprocess.run(
            [locate(""), "-c", "-f", path], capture_output=True, timeout=20, check=False
        ).returncode

    mixed = 0
    for _ in range(120):
        chosen = [" ".join(dice.choices(options, k=dice.randint(0, 3))) for _ in range(3)]
        content = (head + "".join(f" server s{i} 127.0.0.1:1 {text}\n" for i, text in enumerate(chosen))).encode()
        if not all(accepts(form["a"]) for form in forms({"a": content})):
            continue
        for _ in range(3):
            wanted = {line.number: dice.random() < 0.5 for line in server_lines(content)}
            marks = {number: dice.choice([None, 1, 4294967295]) for number in wanted}
            assert accepts(edited(content, wanted, marks)), content
            mixed += 1
    assert mixed > 60


def test_a_failover_does_not_wait_for_what_haproxy_has_accepted(manager, haproxy, tmp_path):
    program = tmp_path / "haproxy"
    program.write_text(f'#!/bin/sh\necho run >> {tmp_path}/runs\nexec {locate("")} "$@"\n')
    program.chmod(0o755)
    runs = tmp_path / "runs"
    settings = {**manager.balancer.settings, "program": str(program)}
    manager.balancer = manager.balancer._replace(settings=settings)
    assert not [text for text in findings(manager) if "haproxy -c" in text]
    assert runs.read_text() == "run\nrun\nrun\n"
    assert manager.send(Promote, 1, truth=manager.as_if("xPs")).result is Result.CHANGED
    assert disabled(haproxy.config, WRITE) == "n1 n3"
    assert runs.read_text() == "run\nrun\nrun\n"
    reloaded(haproxy)
    assert manager.belief() == "- W r"
