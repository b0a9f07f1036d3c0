"""What `efm-lb check` finds, from the settings and nodes that PCP tells."""

import json

import pytest

from efm_lb import Balancer, Node, NodeState, PermanentError, Reach, Role, Severity, TemporaryError, Truth
from efm_lb_pgpool.check import SETTINGS, check, of_backends, of_settings, of_sr_check_user, of_watchdog
from efm_lb_pgpool.node_info import PRIMARY, STANDBY, Backend

NODES = tuple(Node(f"10.0.0.{n}", f"10.0.0.{n}", 5444) for n in (11, 12, 13))
HEALTHY = Truth(
    tuple(
        NodeState(node, Reach.ACCEPTING, role)
        for node, role in zip(NODES, (Role.PRIMARY, Role.STANDBY, Role.STANDBY), strict=True)
    )
)
BACKENDS = tuple(Backend(i, node.host, node.port, 2, PRIMARY if i == 0 else STANDBY) for i, node in enumerate(NODES))
GOOD = {
    "backend_clustering_mode": "1",
    "sr_check_user": "pgpool",
    "failover_on_backend_shutdown": "0",
    "failover_on_backend_error": "0",
    "health_check_period": "0",
    "auto_failback": "0",
    "detach_false_primary": "0",
    "failover_command": "",
    "failback_command": "",
    "follow_primary_command": "",
    "failover_if_affected_tuples_mismatch": "0",
    "search_primary_node_timeout": "3",
    "connect_timeout": "3000",
    "backend_flag0": "ALLOW_TO_FAILOVER",
}


def bad(findings):
    return [finding for finding in findings if finding.severity is not Severity.OK]


def test_good_settings_are_told_as_well():
    findings = list(of_settings(GOOD | {"port": "9999"}))
    assert not bad(findings)
    assert sorted(finding.subject for finding in findings) == sorted(GOOD), "of the port there is nothing to say"
    assert {finding.subject: finding.detail for finding in findings} == {
        name: value or "''" for name, value in GOOD.items()
    }
    assert {rule.names[0] for rule in SETTINGS} < GOOD.keys()


@pytest.mark.parametrize(
    ("name", "value", "severity"),
    [
        ("backend_clustering_mode", "2", Severity.ERROR),
        ("sr_check_user", "", Severity.ERROR),
        ("failover_on_backend_shutdown", "1", Severity.WARNING),
        ("failover_on_backend_error", "1", Severity.WARNING),
        ("health_check_period", "5", Severity.WARNING),
        ("auto_failback", "1", Severity.WARNING),
        ("detach_false_primary", "1", Severity.WARNING),
        ("failover_command", "/x --password=secret", Severity.WARNING),
        ("failback_command", "/x", Severity.WARNING),
        ("follow_primary_command", "/x", Severity.WARNING),
        ("failover_if_affected_tuples_mismatch", "1", Severity.WARNING),
        ("search_primary_node_timeout", "300", Severity.WARNING),
        ("search_primary_node_timeout", "11", Severity.WARNING),
        ("search_primary_node_timeout", "0", Severity.WARNING),
        ("search_primary_node_timeout", "-1", Severity.WARNING),
        ("search_primary_node_timeout", "3s", Severity.WARNING),
        ("search_primary_node_timeout", "\N{SUPERSCRIPT THREE}", Severity.WARNING),
        ("search_primary_node_timeout", "9" * 5000, Severity.WARNING),
        ("connect_timeout", "10001", Severity.WARNING),
        ("connect_timeout", "0", Severity.WARNING),
        ("backend_flag0", "DISALLOW_TO_FAILOVER", Severity.ERROR),
        ("backend_flag0", "ALLOW_TO_FAILOVER|ALWAYS_PRIMARY", Severity.ERROR),
        ("backend_flag0", "ALLOW_TO_FAILOVER | ALWAYS_MASTER", Severity.ERROR),
    ],
)
def test_each_bad_setting_has_a_line_to_paste(name, value, severity):
    (finding,) = bad(of_settings(GOOD | {name: value}))
    assert (finding.subject, finding.severity) == (name, severity)
    assert finding.remedy.startswith(f"{name} = ")
    assert "secret" not in finding.detail + finding.remedy


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("search_primary_node_timeout", "1"),
        ("search_primary_node_timeout", "10"),
        ("connect_timeout", "1"),
        ("connect_timeout", "10000"),
    ],
)
def test_the_shortest_and_the_longest_time_that_is_good(name, value):
    assert not bad(of_settings(GOOD | {name: value}))


def test_a_setting_that_came_with_a_newer_pgpool_is_not_missed():
    settings = {name: value for name, value in GOOD.items() if name != "auto_failback"}
    assert not bad(of_settings(settings))


def test_a_pgpool_that_cannot_switch_off_detaching_on_shutdown():
    settings = {name: value for name, value in GOOD.items() if name != "failover_on_backend_shutdown"}
    (finding,) = bad(of_settings(settings))
    assert "cannot switch it off" in finding.detail
    assert "4.3" in finding.remedy


def test_the_old_name_of_a_setting_is_judged_too():
    settings = {name: value for name, value in GOOD.items() if name != "follow_primary_command"}
    (finding,) = bad(of_settings(settings | {"follow_master_command": "/x"}))
    assert finding.subject == "follow_master_command"


def test_healthy_backends():
    findings = list(of_backends(HEALTHY, BACKENDS, GOOD))
    assert not bad(findings)
    assert len(findings) == 4


def test_a_node_that_pgpool_does_not_know_gets_the_next_id():
    (finding,) = bad(of_backends(HEALTHY, BACKENDS[:2], GOOD))
    assert finding.severity is Severity.ERROR
    assert "backend_hostname2 = '10.0.0.13'" in finding.remedy


def test_a_hole_between_the_ids_is_filled_first():
    backends = (BACKENDS[0], Backend(1, "", 0, 0, STANDBY), BACKENDS[2])
    (finding,) = bad(of_backends(HEALTHY, backends, GOOD))
    assert "backend_hostname1 = '10.0.0.12'" in finding.remedy


def detached(number):
    return tuple(b._replace(status=3) if b.id == number else b for b in BACKENDS)


def test_a_standby_that_is_up_and_detached():
    (finding,) = bad(of_backends(HEALTHY, detached(1), GOOD))
    assert (finding.severity, finding.subject) == (Severity.WARNING, "10.0.0.12:5444")
    assert finding.detail == "is up, but down/standby in pgpool"
    assert finding.remedy == "efm-lb attach 10.0.0.12 s"


def test_a_primary_that_is_detached_is_not_attached_as_a_standby():
    (finding, primary) = bad(of_backends(HEALTHY, detached(0), GOOD))
    assert (finding.subject, finding.remedy) == ("10.0.0.11:5444", "")
    assert "efm-lb attach 10.0.0.11 p" in primary.remedy


def test_a_node_that_is_down_is_rightly_detached():
    assert not bad(of_backends(answered(Reach.REFUSED), detached(1), GOOD))


def test_while_no_primary_is_proven_pgpool_is_not_blamed_for_having_none():
    nobody = Truth(tuple(NodeState(node, Reach.REFUSED) for node in NODES))
    assert not bad(of_backends(nobody, tuple(b._replace(role=STANDBY, status=3) for b in BACKENDS), GOOD))


def test_a_backend_that_is_no_node():
    stranger = Backend(3, "db4.example", 5444, 2, STANDBY)
    (finding,) = bad(of_backends(HEALTHY, (*BACKENDS, stranger), GOOD))
    assert "3 (db4.example:5444)" in finding.subject


def test_a_hole_between_the_ids_is_no_stranger():
    assert not bad(of_backends(HEALTHY, (*BACKENDS, Backend(3, "", 0, 0, STANDBY)), GOOD))


@pytest.mark.parametrize("status", [2, 3])
def test_no_primary_points_to_the_user_that_looks_for_it(status):
    roles = (STANDBY if status == 2 else PRIMARY, STANDBY, STANDBY)
    backends = tuple(b._replace(role=role) for b, role in zip(BACKENDS, roles, strict=True))
    backends = (backends[0]._replace(status=status), *backends[1:])
    findings = [finding for finding in bad(of_backends(HEALTHY, backends, GOOD)) if finding.subject == "primary"]
    assert len(findings) == 1
    assert "sr_check_user 'pgpool' cannot log in" in findings[0].detail


def test_the_wrong_primary():
    backends = (BACKENDS[0]._replace(role=STANDBY), BACKENDS[1]._replace(role=PRIMARY), BACKENDS[2])
    (finding,) = bad(of_backends(HEALTHY, backends, GOOD))
    assert finding.detail == "pgpool sends writes to 10.0.0.12:5444, but the primary is 10.0.0.11:5444"


def test_an_ancient_pgpool():
    backends = tuple(backend._replace(role=None) for backend in BACKENDS)
    (finding,) = bad(of_backends(HEALTHY, backends, GOOD))
    assert finding.subject == "version"


def answered(reach, detail=""):
    """The truth as it is told to pgpool's role; the second node answers like this."""
    first, second, third = HEALTHY.states
    return Truth((first, second._replace(reach=reach, role=None, detail=detail), third))


def test_a_role_that_can_log_in_everywhere():
    for truth in (HEALTHY, answered(Reach.REFUSED)):
        (finding,) = of_sr_check_user("pgpool", truth)
        assert finding.severity is Severity.OK


def test_of_a_role_nothing_is_told_while_every_node_is_down():
    assert not list(of_sr_check_user("pgpool", Truth(tuple(NodeState(node, Reach.REFUSED) for node in NODES))))


@pytest.mark.parametrize(
    ("detail", "severity"),
    [
        ('FATAL:  28P01: password authentication failed for user "pgpool"', Severity.ERROR),
        ('FATAL:  28000: role "pgpool" is not permitted to log in', Severity.ERROR),
        ('FATAL:  3D000: database "x" does not exist', Severity.ERROR),
        ('FATAL:  28000: no pg_hba.conf entry for host "10.0.0.1"', Severity.WARNING),
        ("fe_sendauth: no password supplied", Severity.WARNING),
    ],
)
def test_a_role_that_cannot_log_in(detail, severity):
    (finding,) = of_sr_check_user("pgpool", answered(Reach.DENIED, detail))
    assert finding.severity is severity
    assert NODES[1].address in finding.detail
    assert detail in finding.detail
    assert ("cannot be tried from here" in finding.detail) is (severity is Severity.WARNING)


def watchdog(*states, quorum=1):
    nodes = [{"NodeName": f"pool{i}", "StateName": state} for i, state in enumerate(states)]
    return json.dumps({"QuorumStatus": quorum, "WatchdogNodes": nodes})


def test_watchdog():
    good = watchdog("LEADER", "STANDBY", "STANDBY")
    (finding,) = of_watchdog("pool1", 3, good)
    assert (finding.severity, finding.detail) == (Severity.OK, "3 pgpools")
    assert not list(of_watchdog("pool1", 1, None))
    assert [f.detail for f in bad(of_watchdog("pool1", 1, good))] == [
        "3 pgpools are in the watchdog cluster, HOST lists 1"
    ]
    assert [f.severity for f in bad(of_watchdog("pool1", 2, None))] == [Severity.ERROR]
    lost = list(bad(of_watchdog("pool1", 3, watchdog("LEADER", "LOST", "SHUTDOWN", quorum=-1))))
    assert [finding.detail for finding in lost] == [
        "is LOST",
        "is SHUTDOWN",
        "has no quorum; PCP commands work nevertheless",
    ]


@pytest.mark.parametrize("quorum", [{"QuorumStatus": 1}, {"QuorumStatus": 0}, {}])
def test_a_quorum_that_is_not_lost(quorum):
    """0 is what pgpool calls on the edge: exactly half of an even number of pgpools."""
    document = json.dumps({**quorum, "WatchdogNodes": [{"NodeName": "pool0", "StateName": "LEADER"}]})
    assert not bad(of_watchdog("pool1", 1, document))


@pytest.mark.parametrize("document", ["", "[]", "{}", '{"WatchdogNodes": 1}', '{"WatchdogNodes": [1]}', "[" * 100_000])
def test_a_watchdog_that_talks_nonsense(document):
    (finding,) = of_watchdog("pool1", 3, document)
    assert finding.severity is Severity.WARNING


def test_what_does_not_answer_or_cannot_be_logged_in_to(tmp_path):
    settings = {"host": ["127.0.0.1:1"], "user": "pcp", "passfile": str(tmp_path / "pcppass")}
    balancer = Balancer("pool1", "pgpool", settings)
    with pytest.raises(PermanentError, match="cannot be read"):
        check(HEALTHY, balancer, lambda *_: HEALTHY, 1e9)
    (tmp_path / "pcppass").touch(mode=0o600)
    (tmp_path / "pcppass").write_text("*:*:*:secret\n")
    with pytest.raises(TemporaryError, match="Connection refused"):
        check(HEALTHY, balancer, lambda *_: HEALTHY, 1e9)
