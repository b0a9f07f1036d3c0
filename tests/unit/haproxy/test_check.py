"""What check finds: each complaint by what causes it, and none for a well-made setup."""

from __future__ import annotations

import os
import re
import time

import pytest

from efm_lb import PermanentError, Severity, TemporaryError
from efm_lb_haproxy import adapter
from efm_lb_haproxy.check import http_checked, of_configuration, of_socket
from efm_lb_haproxy.settings import Endpoint, setup_of
from unit.haproxy.haproxy_model import CONFIG, FakeHaproxy, Model, balancer, truth

GOOD = CONFIG.replace(" check", " check on-marked-down shutdown-sessions").replace("mode tcp", "retries 0")


@pytest.fixture
def model():
    return Model(w="RMM", r="MRR")


@pytest.fixture
def look(model, tmp_path):
    path = tmp_path / "haproxy.cfg"
    program = tmp_path / "haproxy"
    program.write_text(
        "#!/bin/sh\n! cat $3 $5 | grep -q BROKEN || { echo '[ALERT] (1) : config : broken' >&2; exit 1; }\n"
    )
    program.chmod(0o755)

    def look(databases="Pss", config=GOOD, **settings):
        path.write_text(config)
        given = {"config": [str(path)], "program": str(program), **settings}
        with FakeHaproxy(model) as fake:
            found = adapter.efm_lb_check(truth(databases), balancer(fake.path, **given), time.monotonic() + 5)
        return [f for f in found if f.severity is not Severity.OK]

    return look


def told(findings):
    return "\n".join(f"{f.severity.value} {f.subject}: {f.detail} -> {f.remedy}" for f in findings)


def test_a_good_setup_is_complained_about_in_no_way(look):
    assert told(look()) == ""


@pytest.mark.parametrize(("timeline", "complains"), [(2, True), (1, False)])
def test_what_a_file_remembers_is_told_before_the_next_promote_is_refused(look, timeline, complains):
    """The truth is on timeline 1."""
    marked = GOOD.replace("# the first", f"# efm-lb: writes follow timeline {timeline}")
    assert ("CONFIG: " in told(look(config=marked))) is complains
    if complains:
        assert "haproxy.cfg:5: writes follow timeline 2, and 10.0.0.1:5444 is on timeline 1:" in told(
            look(config=marked)
        )
        assert told(look("sss", config=marked)).count("timeline") == 0, "no primary is proven"


@pytest.mark.parametrize(
    ("databases", "write", "read", "message"),
    [
        (
            "Pss",
            "RRM",
            "MRR",
            "error w: more than one server is ready for writes: w/n1 .* and w/n2 .*efm-lb promote db1",
        ),
        ("Pss", "MMM", "MRR", "error w: no server is ready for writes -> run efm-lb promote db1"),
        ("sPs", "RMM", "MRR", r"error w: writes go to w/n1 .*, but the primary is 10.0.0.2:5444"),
        ("Pss", "RMM", "MMM", "warning r: no server is ready for reads"),
    ],
)
def test_who_gets_what(look, model, databases, write, read, message):
    model.servers = Model(w=write, r=read).servers
    findings = look(databases)
    assert any(re.search(message, line) for line in told(findings).splitlines()), told(findings)


def test_unknown_proxies_and_servers(look, model):
    model.servers["w"]["x"] = ["10.9.9.9", 5444, 0, 1, 0]
    del model.servers["w"]["n2"]
    del model.servers["w"]["n3"], model.servers["r"]["n3"]
    text = told(look(read=["r", "absent"]))
    assert "error absent: HAProxy has no such listen or backend -> correct EFM_LB_BALANCERS__EDGE__READ" in text
    assert "error 10.0.0.3:5444: HAProxy has no server at this address for node db3" in text
    assert "error w: has no server 10.0.0.2:5444: once it is the primary, nothing is written" in text
    assert "warning w/x: w/x (10.9.9.9:5444) is no node of EFM_LB_NODES" in text


def test_a_tracking_server(look, model):
    model.servers["r"]["n3"][3] |= 2
    assert "error r/n3: takes its maintenance from a server that it tracks" in told(look())


@pytest.mark.parametrize("level", ["operator", "user"])
def test_the_level(look, model, level):
    model.level = level
    assert f"is at level {level}, which allows no change -> add `level admin`" in told(look())


def test_plain_text_over_tcp():
    setup = setup_of(balancer("lb1:9999"))
    (good, bad) = of_socket(setup, "admin")
    assert (good.severity, bad.severity) == (Severity.OK, Severity.WARNING)
    assert "nothing is encrypted" in bad.detail
    assert setup.endpoint == Endpoint("lb1", 9999)
    assert len(list(of_socket(setup_of(balancer("lb1:9999", cafile="/ca.pem")), "admin"))) == 1


def test_http_checks_are_seen_without_the_file():
    header = "# pxname,svname,scur,check_status,check_code,check_duration,last_chk,"
    assert http_checked(f'{header}\nw,n1,0,L7OK,200,1,"a, b",\n')
    assert not http_checked(f"{header}\nw,n1,0,L4OK,,1,,\n")
    assert not http_checked(f"{header}\n")
    assert not http_checked("# pxname,svname,scur\nw,n1,0\n")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("\tretries 0", " option httpchk OPTIONS /primary", "haproxy.cfg:3: its health check is HTTP"),
        ("listen w\n", "listen w\n option httpchk\n", "haproxy.cfg:5: its health check is HTTP"),
        ("backend r\n", "backend r\n stick on src\n", "haproxy.cfg:9: a drained server still gets the clients"),
        (
            "# by hand",
            "global\n stats socket ipv4@:9999 ssl crt /x level admin",
            "haproxy.cfg:2: `ssl` on a `stats socket`",
        ),
        (" on-marked-down shutdown-sessions     #", " #", "haproxy.cfg:5: its sessions stay when a health check"),
        (
            "    server n3 10.0.0.3:5444\n",
            "    server-template n 3 db:1\n",
            "haproxy.cfg:11: server-template stands for",
        ),
        ("backend r\n", "backend r\n default-server disabled\n", "haproxy.cfg:11: is disabled by a default-server"),
        (
            "    server n2 10.0.0.2:5444\n",
            "    server n2 10.0.0.2:5444 disabled\n",
            "n2 .* is ready now, and maint after",
        ),
        (
            "    server n1 10.0.0.1:5444 disabled",
            "    server n1 10.0.0.1:5444",
            "r/n1 .* is maint now, and ready after",
        ),
        ("    server n3 10.0.0.3:5444\n", "", "r/n3: is in no file: it was added at run time"),
        ("    server n3 10.0.0.3:5444\n", "    server n3 10.0.0.9:5444\n", "says 10.0.0.9:5444, but r/n3"),
        ("backend r\n", "backend other\n", "error r: CONFIG .* has no servers of this proxy"),
        (
            "# by hand",
            "BROKEN",
            "error CONFIG: haproxy -c refuses the configuration, so nothing was written: config : broken",
        ),
        (
            "# by hand",
            "global\n server-state-file a\ndefaults\n load-server-state-from-file global\n",
            "cfg:4: haproxy loads",
        ),
    ],
)
def test_what_the_files_say(look, before, after, message):
    assert before in GOOD
    findings = look(config=GOOD.replace(before, after, 1))
    assert any(re.search(message, line) for line in told(findings).splitlines()), told(findings)


def test_on_marked_down_may_come_from_default_server():
    setup = setup_of(balancer("/a", write=["w"], read=None))
    line = " default-server on-marked-down shutdown-sessions\n"
    config = CONFIG.replace("listen w\n", "listen w\n retries 0\n")
    for text in (config.replace("listen w\n", f"listen w\n{line}"), config.replace("\tmode tcp\n", line)):
        assert list(of_configuration(setup, {"a": text.encode()})) == []
    elsewhere = config.replace("backend r\n", f"backend r\n{line}")
    assert len(list(of_configuration(setup, {"a": elsewhere.encode()}))) == 3


@pytest.mark.parametrize(
    ("defaults", "proxy", "found"),
    [
        ("", "", True),
        ("retries 0", "", False),
        ("option redispatch 1", "", False),
        ("", "retries 0", False),
        ("", "option redispatch 1", False),
        ("", "option redispatch", True),
        ("retries 0", "retries 3", True),
        ("option redispatch 1", "no option redispatch", True),
        ("retries 0\ndefaults", "", True),
        ("retries 0", "retries 3\nbackend other\n retries 0", True),
    ],
)
def test_a_client_that_is_held_while_the_primary_is_gone(defaults, proxy, found):
    setup = setup_of(balancer("/a", write=["w"], read=None))
    text = f"defaults\n {defaults}\nlisten w\n bind :1\n {proxy}\n"
    told = [f.detail for f in of_configuration(setup, {"a": text.encode()})]
    assert [detail.startswith("a client that connects while the primary is gone is held") for detail in told] == (
        [True] if found else []
    )


def test_no_config_setting(model):
    with FakeHaproxy(model) as fake:
        found = adapter.efm_lb_check(truth("Pss"), balancer(fake.path), time.monotonic() + 5)
    (finding,) = (f for f in found if f.severity is not Severity.OK)
    assert "any reload (logrotate, a renewed certificate) undoes" in finding.detail
    assert finding.remedy.startswith("set EFM_LB_BALANCERS__EDGE__CONFIG")


def look_at(path):
    with FakeHaproxy(Model(w="RMM", r="MRR")) as fake:
        found = adapter.efm_lb_check(truth("Pss"), balancer(fake.path, config=[str(path)]), time.monotonic() + 5)
    return [f for f in found if f.severity is not Severity.OK]


def test_files_that_are_not_there():
    assert "error CONFIG: cannot read /absent.cfg: No such file" in told(look_at("/absent.cfg"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_file_that_cannot_be_written(look, tmp_path):
    assert told(look()) == ""
    tmp_path.chmod(0o555)
    try:
        assert "cannot be written: nothing is kept" in told(look_at(tmp_path / "haproxy.cfg"))
    finally:
        tmp_path.chmod(0o755)


def test_what_does_not_answer_is_raised(tmp_path):
    with pytest.raises(TemporaryError, match="No such file"):
        adapter.efm_lb_check(truth("Pss"), balancer(f"{tmp_path}/absent"), time.monotonic() + 5)
    with (
        FakeHaproxy(serve=lambda connection: (connection.recv(9999), connection.sendall(b"SSH-2.0\r\n"))) as other,
        pytest.raises(PermanentError, match="is no `stats socket`"),
    ):
        adapter.efm_lb_check(truth("Pss"), balancer(other.path), time.monotonic() + 5)
