"""The runtime API: what is asked, how answers are told apart, and everything that may come instead of one."""

from __future__ import annotations

import socket
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efm_lb import PermanentError, TemporaryError
from efm_lb_haproxy.runtime import Interrupted, Runtime, answers_of
from efm_lb_haproxy.servers import FormatError, parse_sessions, parse_state
from efm_lb_haproxy.settings import Endpoint, Reads, endpoint_of, setup_of
from unit.haproxy.haproxy_model import HEADER, FakeHaproxy, Model, balancer


def runtime(path, connect_timeout=1.0):
    return Runtime(Endpoint(path), connect_timeout)


def soon(seconds=5.0):
    return time.monotonic() + seconds


@given(st.lists(st.lists(st.text("ab:# ", min_size=1), max_size=3).map("\n".join)))
def test_answers_are_told_apart(texts):
    stream = "".join(f"{text}\n\n" if text else "\n" for text in texts).encode()
    assert answers_of(stream, len(texts)) == [f"{text}\n" if text else "" for text in texts]
    assert answers_of(stream, len(texts) + 1) is None
    for end in range(len(stream)):
        assert answers_of(stream[:end], len(texts)) is None


def test_a_real_line_of_commands():
    received = b"Name: HAProxy\nPid: 1\n\n\n\nNo such server.\n\nCan't find backend.\n\nadmin\n\n"
    assert answers_of(received, 6) == [
        "Name: HAProxy\nPid: 1\n",
        "",
        "",
        "No such server.\n",
        "Can't find backend.\n",
        "admin\n",
    ]


def test_a_look_is_one_line_and_what_it_sends_comes_first():
    model = Model(w="RM", r="MR")
    with FakeHaproxy(model) as haproxy:
        look = runtime(haproxy.path).look(("w", "r", "absent"), soon(), ("set server w/n2 state ready",))
        assert haproxy.connections == 1
    assert (look.pid, look.stopping, look.refusals) == (4711, False, ())
    assert list(look.proxies) == ["w", "r"]
    assert [(s.path, s.ready, s.sessions) for s in look.proxies["w"]] == [("w/n1", True, 3), ("w/n2", True, 0)]


def test_what_a_command_answers_is_a_refusal():
    with FakeHaproxy(Model(w="RM")) as haproxy:
        look = runtime(haproxy.path).look(
            ("w",), soon(), ("set server w/n9 state ready", "set server w/n2 state ready")
        )
    assert look.refusals == ("set server w/n9 state ready: No such server.",)
    assert [server.ready for server in look.proxies["w"]] == [True, True], "the next one was carried out"


@pytest.mark.parametrize("level", ["operator", "user"])
def test_too_low_a_level(level):
    model = Model(w="RM")
    model.level = level
    with (
        FakeHaproxy(model) as haproxy,
        pytest.raises(PermanentError, match=f"is at level {level}: changes need `level admin`"),
    ):
        runtime(haproxy.path).look(("w",), soon(), ("set server w/n2 state ready",))


def test_a_stopping_worker_is_not_believed():
    model = Model(w="RM")
    model.stopping = 1
    with FakeHaproxy(model) as haproxy, pytest.raises(TemporaryError, match="worker 4711 is stopping"):
        runtime(haproxy.path, 0.1).look(("w",), soon())
    assert haproxy.connections > 1


def serve(reply, read=True):
    def talk(connection):
        if read:
            connection.recv(65536)
        connection.sendall(reply)

    return talk


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is no `stats socket` of HAProxy"),
        (b"E\0\0\0\x8fSFATAL\0", "is no `stats socket` of HAProxy"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "is no `stats socket` of HAProxy"),
        (b"Unknown command, but maybe one of\n  @master  : send a command\n\n", "command line of HAProxy's master"),
    ],
)
def test_what_is_no_haproxy(reply, message):
    with FakeHaproxy(serve=serve(reply)) as other, pytest.raises(PermanentError, match=message) as caught:
        runtime(other.path).look(("w",), soon())
    assert other.path in str(caught.value)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"", "closed the connection without an answer"),
        (b"Name: HAProxy\nPid: 1\n", "in the middle of an answer"),
        (b"Name: HAProxy\nPid: 1\n\n1\n# a b\n", "in the middle of an answer"),
        (b"Name: HAProxy\nPid: x\n\n1\n# a b\n\n# svname,scur\n\n", "invalid literal"),
        (b"Name: HAProxy\nPid: 1\n\n2\n# be_name\n\n# svname,scur\n\n", "no server state of version 1"),
        (b"Name: HAProxy\nPid: 1\n\n1\n# be_name\nw\n\n# svname,scur\n\n", "a server state without 'srv_name'"),
        (b"Name: HAProxy\nPid: 1\n\n1\n# be_name\n\nnothing\n\n", "no statistics"),
        (b"Name: HAProxy\nPid: 1\n\n1\n# be_name srv_name\nw n1;quit\n\n# svname,scur\n\n", "a name that is none"),
        (b"Name: HAProxy\nPid: 1\n\nwhat\n\nnothing\n\n", "no statistics"),
    ],
)
def test_a_broken_answer_is_temporary_and_asked_again(reply, message):
    with FakeHaproxy(serve=serve(reply)) as haproxy, pytest.raises(Interrupted, match=message):
        runtime(haproxy.path, 0.1).look(("w",), soon())
    assert haproxy.connections > 1


def test_a_change_is_not_sent_again_when_its_answer_is_lost():
    with FakeHaproxy(serve=serve(b"")) as haproxy, pytest.raises(Interrupted):
        runtime(haproxy.path).look(("w",), soon(), ("set server w/n2 state ready",))
    assert haproxy.connections == 1


def test_an_endless_answer_is_cut_off(monkeypatch):
    monkeypatch.setattr("efm_lb_haproxy.runtime._MAX_RECEIVED", 100_000)

    def talk(connection):
        connection.sendall(b"Name: HAProxy\n")
        while True:
            connection.sendall(b"x" * 10_000)

    with FakeHaproxy(serve=talk) as haproxy, pytest.raises(Interrupted, match="sent more than 100000 bytes"):
        runtime(haproxy.path, 5).look(("w",), soon())


@pytest.mark.parametrize("start", [b"", b"Name: HAProxy\n"])
def test_a_socket_that_hangs_costs_the_connect_time_out(start):
    def talk(connection):
        connection.sendall(start)
        time.sleep(1)

    started = time.monotonic()
    with FakeHaproxy(serve=talk) as haproxy:
        with pytest.raises(TemporaryError):
            runtime(haproxy.path, 0.2).look(("w",), soon(10))
        assert time.monotonic() - started < 1


def test_nobody_there(tmp_path):
    with pytest.raises(TemporaryError, match="No such file"):
        runtime(f"{tmp_path}/absent.sock").look(("w",), soon())
    (tmp_path / "file").touch()
    with pytest.raises(TemporaryError, match="Connection refused"):
        runtime(f"{tmp_path}/file").look(("w",), soon())
    with pytest.raises(TemporaryError, match="too long"):
        runtime(f"/{'x' * 200}").look(("w",), soon())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(TemporaryError, match=rf"cannot connect to 127.0.0.1:{port}: Connection refused"):
        Runtime(Endpoint("127.0.0.1", port), 1).look(("w",), soon())
    with pytest.raises(TemporaryError, match="cannot resolve"):
        Runtime(Endpoint("no.such.host.invalid", 1), 1).look(("w",), soon())
    with pytest.raises(PermanentError, match="is no host name"):
        Runtime(Endpoint("hé", 1), 1).look(("w",), soon())


@pytest.mark.parametrize(
    ("row", "state", "ready", "out"),
    [
        ("2 0", "ready", True, False),
        ("1 0", "ready", True, False),
        ("2 4", "ready", True, False),
        ("0 5", "maint", False, True),
        ("0 1", "maint", False, True),
        ("0 2", "maint", False, True),
        ("0 32", "maint", False, True),
        ("2 8", "drain", False, True),
        ("2 16", "drain", False, True),
        ("0 4", "down", False, False),
        ("0 0", "down", False, False),
        ("3 0", "stopping", False, False),
        ("2 64", "ready", True, False),
    ],
)
def test_the_states_of_a_server(row, state, ready, out):
    names = "be_name srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_port srv_fqdn"
    (server,) = parse_state(f"1\n# {names}\nw n1 10.0.0.1 {row} 1 1 5444 -\n")
    assert (server.state, server.ready, server.out) == (state, ready, out)


def test_columns_are_found_by_name():
    columns = [*HEADER[2:].split(" "), "srv_new"]
    row = dict.fromkeys(columns, "0") | {"be_name": "w", "srv_name": "n1", "srv_addr": "::1", "srv_port": "5444"}
    row |= {"srv_fqdn": "db1", "srv_op_state": "2"}
    order = sorted(columns)
    (server,) = parse_state(f"1\n# {' '.join(order)}\n{' '.join(row[name] for name in order)}\n\n")
    assert str(server) == "w/n1 ([::1]:5444)"
    assert server.fqdn == "db1"
    assert parse_sessions("# scur,x,svname,\n5,1,n1,\n") == {"n1": 5}
    for broken in ("", "1\n", "1\nno header\n", f"1\n{HEADER}\n2 w 1 n1 10.0.0.1 up 0\n"):
        with pytest.raises(FormatError):
            parse_state(broken)


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("/run/haproxy/admin.sock", Endpoint("/run/haproxy/admin.sock")),
        ("lb1:9999", Endpoint("lb1", 9999)),
        ("[::1]:9999", Endpoint("::1", 9999)),
    ],
)
def test_sockets(text, endpoint):
    assert endpoint_of(text) == endpoint
    assert str(endpoint) == text


@pytest.mark.parametrize(
    "text",
    ["lb1", "lb1:", ":9999", "lb1:0", "lb1:70000", "lb1:" + "9" * 5000, "::1:9999", "admin.sock", "lb1:99x", "[]:1"],
)
def test_what_is_no_socket(text):
    with pytest.raises(PermanentError, match="neither the path of a Unix socket nor host:port"):
        endpoint_of(text)


def test_settings():
    setup = setup_of(balancer("/a"))
    assert (setup.write, setup.read, setup.reads, setup.tls) == (("w",), ("r",), Reads.FALLBACK, None)
    assert setup.variable_of("r") == "EFM_LB_BALANCERS__EDGE__READ"
    with pytest.raises(PermanentError, match="CAFILE is for host:port"):
        setup_of(balancer("/a", cafile="/ca.pem"))
