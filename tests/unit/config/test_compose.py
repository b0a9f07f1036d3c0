"""Right settings in, a Configuration out: which source counts, what is coerced, what is filled in."""

from __future__ import annotations

from pathlib import Path

import pytest

from efm_lb import Balancer, Node, PermanentError
from efm_lb.config import Value, compose, load
from efm_lb.configuration import DetachLivePrimary
from efm_lb.errors import CallError
from efm_lb.sources import gather
from unit.config.fakes import MINIMAL, Compose, Install


def test_the_least_settings_and_their_defaults(load: Compose) -> None:
    configuration = load().configuration
    assert configuration.cluster == "efm"
    assert configuration.nodes == (
        Node("10.0.0.11", "10.0.0.11", 5444),
        Node("10.0.0.12", "10.0.0.12", 5444),
    )
    assert configuration.probe == {"user": "efm", "dbname": "postgres", "sslmode": "prefer"}
    assert (configuration.deadline, configuration.connect_timeout) == (10, 2)
    assert configuration.state_dir == "/var/lib/efm-lb"
    assert configuration.detach_live_primary is DetachLivePrimary.DEFER
    assert configuration.balancers == (
        Balancer("pool1", "fake", {"host": "10.0.0.9", "port": 9898, "verbose": False, "tls": False}, 2),
    )
    assert [str(source) for source in configuration.adapters] == ["fake (acme-fake 1.0)"]


def test_all_settings(load: Compose) -> None:
    configuration = load(
        MINIMAL
        + """
        EFM_LB_PROBE__USER=watch
        EFM_LB_PROBE__DBNAME=edb
        EFM_LB_PROBE__PASSFILE=/var/efm/.pgpass
        EFM_LB_PROBE__SSLMODE=verify-full
        EFM_LB_PROBE__SSLROOTCERT=/etc/ca.pem
        EFM_LB_PROBE__SSLCERT=/etc/cert.pem
        EFM_LB_PROBE__SSLKEY=/etc/key.pem
        EFM_LB_DEADLINE=7.5
        EFM_LB_CONNECT_TIMEOUT=1.5
        EFM_LB_STATE_DIR=/srv/state
        EFM_LB_DETACH_LIVE_PRIMARY=refuse
        """
    ).configuration
    assert configuration.probe == {
        "user": "watch",
        "dbname": "edb",
        "passfile": "/var/efm/.pgpass",
        "sslmode": "verify-full",
        "sslrootcert": "/etc/ca.pem",
        "sslcert": "/etc/cert.pem",
        "sslkey": "/etc/key.pem",
    }
    assert (configuration.deadline, configuration.connect_timeout) == (7.5, 1.5)
    assert configuration.balancers[0].connect_timeout == 1.5
    assert configuration.state_dir == "/srv/state"
    assert configuration.detach_live_primary is DetachLivePrimary.REFUSE


def test_texts_become_what_the_schema_asks_for(load: Compose) -> None:
    lines = ["PORT=70", "RATIO=0.5", "VERBOSE=yes", "WRITE=app, edb", "HOST=123"]
    content = MINIMAL.replace("EFM_LB_BALANCERS__POOL1__HOST=10.0.0.9\n", "")
    content += "".join(f"EFM_LB_BALANCERS__POOL1__{line}\n" for line in lines)
    assert load(content).configuration.balancers[0].settings == {
        "host": "123",
        "port": 70,
        "ratio": 0.5,
        "verbose": True,
        "write": ["app", "edb"],
        "tls": False,
    }


def test_the_environment_comes_first(load: Compose) -> None:
    loaded = load(MINIMAL + "EFM_LB_DEADLINE=7\n", EFM_LB_DEADLINE="8", EFM_LB_BALANCERS__POOL1__PORT="1")
    assert loaded.configuration.deadline == 8
    assert loaded.configuration.balancers[0].settings["port"] == 1


def test_the_env_file_may_be_missing_where_the_environment_has_it_all(install: Install, load: Compose) -> None:
    environ = dict(line.split("=", 1) for line in MINIMAL.splitlines())
    loaded = compose(gather("no-such-cluster", None, environ))
    assert loaded.configuration.cluster == "no-such-cluster"
    assert loaded.configuration.balancers == load().configuration.balancers


def test_the_variable_names_the_env_file(env_file: Path, load: Compose) -> None:
    load()
    assert gather("efm", None, {"EFM_LB_ENV_FILE": str(env_file)}).content == env_file.read_bytes()


def test_an_empty_value_is_no_value(load: Compose) -> None:
    loaded = load(MINIMAL + "EFM_LB_DEADLINE=7\nEFM_LB_STATE_DIR=\n", EFM_LB_DEADLINE="")
    assert loaded.configuration.deadline == 7
    assert loaded.configuration.state_dir == "/var/lib/efm-lb"


def test_names_are_in_any_case_after_the_prefix(load: Compose) -> None:
    content = MINIMAL.replace("POOL1__HOST", "Pool1__host").replace("EFM_LB_NODES", "EFM_LB_nodes")
    assert load(content).configuration == load().configuration


def test_quotes_comments_export_and_dos_line_ends(load: Compose) -> None:
    content = MINIMAL.replace("=10.0.0.9", "='10.0.0.9' # the pool").replace(
        "EFM_LB_NODES", "\n\n# x\nexport EFM_LB_NODES"
    )
    loaded = load(content.replace("\n", "\r\n"))
    assert loaded.configuration == load().configuration


def test_nothing_is_interpolated(load: Compose) -> None:
    loaded = load(MINIMAL + "EFM_LB_PROBE__USER=${HOME}$(id)\n", HOME="/root")
    assert loaded.configuration.probe["user"] == "${HOME}$(id)"


def test_balancers_are_sorted_and_share_an_adapter(load: Compose) -> None:
    content = MINIMAL + "EFM_LB_BALANCERS__EDGE_2__ADAPTER=fake\nEFM_LB_BALANCERS__EDGE_2__HOST=a\n"
    configuration = load(content).configuration
    assert [balancer.name for balancer in configuration.balancers] == ["edge_2", "pool1"]
    assert [source.name for source in configuration.adapters] == ["fake"]


def test_every_value_knows_where_it_was_set(load: Compose, env_file: Path) -> None:
    loaded = load("\n# head\n" + MINIMAL, EFM_LB_DEADLINE="8")
    values = {value.name: value for value in loaded.values}
    assert values["EFM_LB_NODES"].origin == f"{env_file}:3"
    assert values["EFM_LB_DEADLINE"] == Value("EFM_LB_DEADLINE", "8", "the environment")
    assert values["EFM_LB_CONNECT_TIMEOUT"] == Value("EFM_LB_CONNECT_TIMEOUT", "2", "default")
    assert values["EFM_LB_BALANCERS__POOL1__ADAPTER"].origin == f"{env_file}:4"
    assert values["EFM_LB_BALANCERS__POOL1__VERBOSE"] == Value("EFM_LB_BALANCERS__POOL1__VERBOSE", "false", "default")
    assert "EFM_LB_PROBE__PASSFILE" not in values


@pytest.mark.parametrize("cluster", ["", ".", "..", "../efm", "a/b", "-x", "a b", "é", "a\0", "a\n"])
def test_a_cluster_name_is_a_file_name(cluster: str) -> None:
    with pytest.raises(CallError, match="--cluster"):
        load(cluster, None, {})


class TestBrokenAdapter:
    """An adapter that cannot be used fails for its balancers, and for no other."""

    CONTENT = MINIMAL + "EFM_LB_BALANCERS__OTHER__ADAPTER=broken\nEFM_LB_BALANCERS__OTHER__ANYTHING=1\n"

    @pytest.mark.parametrize(
        ("source", "reason"),
        [
            ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
            ("raise SystemExit(3)", "SystemExit: 3"),
            ("1 +", "SyntaxError: invalid syntax (acme_broken.py, line 1)"),
            ("", "it implements no hook of efm-lb"),
            (
                "from efm_lb import hookimpl\n@hookimpl\ndef efm_lb_atach(event): ...",
                "efm_lb_atach is no hook of efm-lb; did you mean efm_lb_attach?",
            ),
            (
                "from efm_lb import hookimpl\n@hookimpl\ndef efm_lb_attach(evnt): ...",
                "Argument(s) {'evnt'} are declared in the hookimpl but can not be found in the hookspec",
            ),
            (
                "from efm_lb import hookimpl\n@hookimpl\ndef efm_lb_settings_schema(): 1 / 0",
                "efm_lb_settings_schema raised ZeroDivisionError: division by zero",
            ),
            (
                "from efm_lb import hookimpl\n@hookimpl\ndef efm_lb_attach(event): ...",
                "it has no efm_lb_settings_schema",
            ),
            (
                "from efm_lb import hookimpl\n@hookimpl\ndef efm_lb_settings_schema(): return []",
                "the schema is of type list, not a mapping",
            ),
            (
                "from efm_lb import hookimpl as h\n@h\ndef efm_lb_settings_schema(): return {'properties': {'a': {}}}",
                "the schema's property 'a' needs a type: integer, number, boolean, string, or array of these",
            ),
        ],
    )
    def test_it_disables_only_itself(self, install: Install, load: Compose, source: str, reason: str) -> None:
        install("acme-broken", {"broken": "acme_broken"}, acme_broken=source)
        loaded = load(self.CONTENT)
        assert reason in loaded.failures["broken"]
        assert "\n" not in loaded.failures["broken"]
        other, pool = loaded.configuration.balancers
        assert pool.settings["port"] == 9898
        for look in (lambda: other.settings["anything"], lambda: other.settings.get("anything")):
            with pytest.raises(PermanentError, match="could not be validated"):
                look()

    def test_an_unused_one_is_not_even_imported(self, install: Install, load: Compose) -> None:
        install("acme-broken", {"broken": "acme_broken"}, acme_broken="raise SystemExit")
        assert not load().failures

    def test_a_conflict_about_an_unused_name_is_nobodys_business(self, install: Install, load: Compose) -> None:
        for distribution in ("acme-one", "acme-two"):
            install(distribution, {"twice": "acme_broken"})
        assert not load().failures


TWO_ELSEWHERE = """
EFM_LB_NODES=10.0.0.11:5444
EFM_LB_BALANCERS__A__ADAPTER=fake
EFM_LB_BALANCERS__A__HOST_SSH=efm-lb@{0}
EFM_LB_BALANCERS__B__ADAPTER=fake
EFM_LB_BALANCERS__B__HOST_SSH=efm-lb@{1}
"""


def test_two_balancers_on_one_other_host_need_no_settings_that_tell_them_apart(load: Compose) -> None:
    balancers = load(TWO_ELSEWHERE.format("pools", "pools")).configuration.balancers
    assert [(balancer.name, balancer.host_ssh) for balancer in balancers] == [
        ("a", "efm-lb@pools"),
        ("b", "efm-lb@pools"),
    ]


def test_one_env_file_serves_two_hosts_whose_balancers_are_set_up_alike(load: Compose, env_file: Path) -> None:
    same = "".join(f"EFM_LB_BALANCERS__{name}__HOST=127.0.0.1\n" for name in "AB")
    load(TWO_ELSEWHERE.format("one", "two") + same)
    there = compose(gather("efm", str(env_file), {}, here=True)).configuration
    assert [(balancer.name, balancer.host_ssh) for balancer in there.balancers] == [("a", ""), ("b", "")]
