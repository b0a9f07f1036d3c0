"""Everything that is wrong, said at once: which variable, where it was set, and what to do."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from efm_lb.config import load as load_settings
from efm_lb.config.secrets import is_secret
from efm_lb.errors import NotReadableError, SettingsError
from unit.config.fakes import MINIMAL, Complain, Compose, Install

INSTALLED = "installed: fake (acme-fake 1.0), haproxy (efm-lb 0.1.0), pgbouncer (efm-lb 0.1.0), pgpool (efm-lb 0.1.0)"
POOL1 = "EFM_LB_BALANCERS__POOL1"
NODES = "EFM_LB_NODES (FILE:1)"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("EFM_LB_CONECT_TIMEOUT=3", "no such variable; did you mean EFM_LB_CONNECT_TIMEOUT?"),
        ("EFM_LB_PROBE__USR=x", "no such variable; did you mean EFM_LB_PROBE__USER?"),
        ("EFM_LB_PROBE__SSL_CRT=/x", "no such variable; did you mean EFM_LB_PROBE__SSLCERT?"),
        ("EFM_LB_PROBE__CONNECT=x", "no such variable"),
        ("EFM_LB_PROB__USER=x", "no such variable; did you mean EFM_LB_PROBE__USER?"),
        ("EFM_LB_PROBE_USER=x", "no such variable; did you mean EFM_LB_PROBE__USER?"),
        ("EFM_LB_BALANCER__POOL1__PORT=1", "no such variable; did you mean EFM_LB_BALANCERS__POOL1__PORT?"),
        (f"{POOL1}__PROT=1", f"no such variable; did you mean {POOL1}__PORT?"),
        (
            f"{POOL1}__NONSENSE=x",
            f"no such variable; it has {POOL1}__ADAPTER, {POOL1}__HOST_SSH, {POOL1}__HOST, {POOL1}__PORT,"
            f" {POOL1}__RATIO, {POOL1}__VERBOSE, {POOL1}__WRITE, {POOL1}__TLS, {POOL1}__CERT",
        ),
        *[
            (f"{POOL1}__HOST_SSH={text}", f"{text!r} is no [user@]host or ssh://[user@]host[:port]")
            for text in ("-oProxyCommand=x", "pgb1 uptime", "efm@pgb1:22", "a@b@c", "$(id)@pgb1")
        ],
        *[
            (f"{POOL1}__HOST_SSH={text}", f"{text!r} is no [user@]host or ssh://[user@]host[:port]")
            for text in ("ssh://pgb1/path", "ssh://pgb1:0", "ssh://pgb1:65536", "ssh://pgb1:x")
        ],
        (f'{POOL1}__HOST_SSH="a@b\\n"', "'a@b\\n' is no [user@]host or ssh://[user@]host[:port]"),
        ("EFM_LB_BALANCERS=x", "no such variable"),
        ("EFM_LB_PROBE=x", "no such variable"),
        ("EFM_LB_WHATEVER=x", "no such variable"),
        ("EFM_LB_=x", "no such variable"),
        ("DEADLINE=3", "no such variable; did you mean EFM_LB_DEADLINE?"),
        ("PGSSLMODE=require", "no such variable"),
        ("efm_lb_deadline=3", "no such variable; did you mean EFM_LB_DEADLINE?"),
        ("EFM_LB_DEADLINE=soon", "'soon' is not a number"),
        ("EFM_LB_DEADLINE=inf", "'inf' is not a number"),
        ("EFM_LB_DEADLINE=nan", "'nan' is not a number"),
        ("EFM_LB_DEADLINE=0", "'0' is not greater than 0"),
        ("EFM_LB_CONNECT_TIMEOUT=-1", "'-1' is not greater than 0"),
        ("EFM_LB_CONNECT_TIMEOUT=3000000", "'3000000' is more than 3600"),
        ("EFM_LB_DEADLINE=3601", "'3601' is more than 3600"),
        ("EFM_LB_CONNECT_TIMEOUT=10", "10 is not less than EFM_LB_DEADLINE (10)"),
        ("EFM_LB_STATE_DIR=state", "'state' is not an absolute path"),
        ("EFM_LB_PROBE__PASSFILE=.pgpass", "'.pgpass' is not an absolute path"),
        (
            "EFM_LB_PROBE__SSLMODE=on",
            "'on' is none of 'disable', 'allow', 'prefer', 'require', 'verify-ca' or 'verify-full'",
        ),
        ("EFM_LB_DETACH_LIVE_PRIMARY=maybe", "'maybe' is none of 'defer', 'obey' or 'refuse'"),
        (f"{POOL1}__PORT=http", "'http' is not an integer"),
        (f"{POOL1}__PORT=70000", "70000 is greater than the maximum of 65535"),
        (f"{POOL1}__RATIO=half", "'half' is not a number"),
        (f"{POOL1}__VERBOSE=perhaps", "'perhaps' is neither true nor false"),
        (f"{POOL1}__WRITE=a,,b", "an entry between the commas is empty"),
        ("EFM_LB_ENV_FILE=/x", "names the env file itself; it counts in the environment only"),
    ],
)
def test_one_wrong_line(complain: Complain, line: str, message: str) -> None:
    name = line.partition("=")[0]
    assert complain(MINIMAL + line + "\n") == [f"{name} (FILE:4): {message}"]


def test_a_wrong_variable_of_the_environment(complain: Complain) -> None:
    assert complain(EFM_LB_DEADLINE="soon", EFM_LB_DEADLIN="3") == [
        "EFM_LB_DEADLINE (the environment): 'soon' is not a number",
        "EFM_LB_DEADLIN (the environment): no such variable; did you mean EFM_LB_DEADLINE?",
    ]


def test_all_at_once(complain: Complain) -> None:
    messages = complain(
        "EFM_LB_NODES=a:b,,c:0\nEFM_LB_DEADLINE=x\nEFM_LB_TYPO=1\nEFM_LB_BALANCERS__POOL1__ADAPTER=fake\n"
        "EFM_LB_BALANCERS__POOL1__PORT=0\nEFM_LB_BALANCERS__EDGE__ADAPTER=nginx\n"
    )
    assert messages == [
        f"{NODES}: 'a:b': 'b' is no port",
        f"{NODES}: an entry between the commas is empty",
        f"{NODES}: 'c:0': '0' is no port",
        "EFM_LB_DEADLINE (FILE:2): 'x' is not a number",
        f"EFM_LB_BALANCERS__EDGE__ADAPTER (FILE:6): no adapter 'nginx'; {INSTALLED}",
        "EFM_LB_TYPO (FILE:3): no such variable",
        "EFM_LB_BALANCERS__POOL1__HOST: missing: Where it listens.",
        "EFM_LB_BALANCERS__POOL1__PORT (FILE:5): 0 is less than the minimum of 1",
    ]


def test_nothing_is_set(complain: Complain) -> None:
    nodes, balancers = complain("# nothing\n")
    assert nodes.startswith("EFM_LB_NODES: missing: The cluster's databases")
    assert balancers == "EFM_LB_BALANCERS__<NAME>__ADAPTER: missing: no balancer is set"


def test_a_balancer_without_adapter(complain: Complain) -> None:
    content = MINIMAL + "EFM_LB_BALANCERS__POL1__PORT=3\n"
    assert complain(content) == [
        f"EFM_LB_BALANCERS__POL1__ADAPTER: missing, though EFM_LB_BALANCERS__POL1__PORT (FILE:4) is set; {INSTALLED}"
    ]


def test_a_condition_of_the_schema(complain: Complain) -> None:
    assert complain(MINIMAL + f"{POOL1}__TLS=on\n") == [
        f"{POOL1}__CERT: missing, but needed with this balancer's other settings"
    ]


def test_two_distributions_bring_the_adapter(install: Install, complain: Complain) -> None:
    install("zeta-fake", {"fake": "acme_fake"}, version="2.0")
    assert complain() == [
        f"{POOL1}__ADAPTER (FILE:2): acme-fake 1.0 and zeta-fake 2.0 both bring an adapter fake; uninstall one of them"
    ]


def test_a_malformed_entry_point(install: Install, complain: Complain) -> None:
    install("zeta", {"odd": "a b c"})
    assert complain(MINIMAL.replace("=fake", "=odd")) == [
        f"{POOL1}__ADAPTER (FILE:2): the entry point of odd (zeta 1.0) is malformed: 'a b c'"
    ]


@pytest.mark.parametrize("name", [f"{POOL1}__HOST", f"{POOL1.title().replace('Efm_Lb', 'EFM_LB')}__Host"])
def test_set_twice(complain: Complain, name: str) -> None:
    assert complain(MINIMAL + f"{name}=x\n") == [f"{POOL1}__HOST (FILE:4): set twice, first at FILE:3"]


def test_set_twice_in_the_environment(complain: Complain) -> None:
    assert complain(EFM_LB_DEADLINE="3", EFM_LB_Deadline="4") == [
        "EFM_LB_DEADLINE (the environment): set twice, first at the environment"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("EFM_LB_NODES\n", "EFM_LB_NODES (FILE:1): no = after the name"),
        ("\n\n  EFM_LB_DEADLINE\n", "EFM_LB_DEADLINE (FILE:3): no = after the name"),
        ("EFM_LB_STATE_DIR='/var\n", "FILE:1: expected NAME=value; is a quote left open?"),
        ("\n=5\n", "FILE:2: expected NAME=value; is a quote left open?"),
        (b"\n\nEFM_LB_NODES=\xff\n", "FILE:3: not UTF-8"),
        (b"EFM_LB_NODES=a\0b\n", "FILE:1: a NUL byte"),
    ],
)
def test_a_syntax_error(complain: Complain, content: str | bytes, message: str) -> None:
    assert message in complain(content)


class TestSecrets:
    REMEDY = "secrets come from files only: put it into a file and name the file (…PASSFILE)"

    def test_what_was_refused_is_not_missing(self, complain: Complain) -> None:
        text = MINIMAL.replace("HOST=10.0.0.9", "HOST=host=10.0.0.9 password=hunter2")
        assert complain(text) == [f"{POOL1}__HOST (FILE:3): {self.REMEDY}"]

    @pytest.mark.parametrize(
        "line",
        [
            f"{POOL1}__PASSWORD=hunter2",
            "EFM_LB_PROBE__PASSWORD=hunter2",
            "EFM_LB_TOKEN=hunter2",
            "PGPASSWORD=hunter2",
            "EFM_LB_PROBE__PASSWORT=hunter2",
            f"{POOL1}__PASWORD=hunter2",
            f"{POOL1}__WRITE=host=/run user=x password=hunter2",
            f"{POOL1}__CERT=postgres://efm:hunter2@db1/edb",
        ],
    )
    def test_are_refused_and_never_printed(self, complain: Complain, line: str) -> None:
        name = line.partition("=")[0]
        assert complain(MINIMAL + line + "\n") == [f"{name} (FILE:4): {self.REMEDY}"]

    def test_in_the_environment(self, complain: Complain) -> None:
        assert complain(EFM_LB_PROBE__PASSWORD="hunter2") == [
            f"EFM_LB_PROBE__PASSWORD (the environment): {self.REMEDY}"
        ]

    @pytest.mark.parametrize("content", ["EFM_LB_PROBE__PASSWORD hunter2\n", "EFM_LB_PROBE__PASSWORD='hunter2\n"])
    def test_in_a_syntax_error(self, complain: Complain, content: str) -> None:
        assert not re.search("hunter2", " ".join(complain(content)))

    @pytest.mark.parametrize(
        "key", ["PASSFILE", "PASSWORD_FILE", "PASSWORDFILE", "PASSPORT", "SECURE", "USER", "KEYWORD"]
    )
    def test_what_is_none(self, key: str) -> None:
        assert not is_secret(f"{POOL1}__{key}")

    def test_names_of_files_are_none(self, complain: Complain) -> None:
        assert complain(MINIMAL + "EFM_LB_PROBE__PASSFILE=/x\nEFM_LB_DEADLINE=x\n") == [
            "EFM_LB_DEADLINE (FILE:5): 'x' is not a number"
        ]


class TestEnvFile:
    def test_a_named_one_must_exist(self, tmp_path: Path) -> None:
        path = tmp_path / "none.env"
        with pytest.raises(SettingsError) as caught:
            load_settings("efm", str(path), {"EFM_LB_NODES": "a"})
        assert caught.value.messages == (f"{path}: no such file (--env-file)",)
        with pytest.raises(SettingsError) as caught:
            load_settings("efm", None, {"EFM_LB_ENV_FILE": str(path)})
        assert caught.value.messages == (f"{path}: no such file (EFM_LB_ENV_FILE)",)

    def test_without_any_settings(self) -> None:
        with pytest.raises(SettingsError) as caught:
            load_settings("no-such-cluster", None, {"HOME": "/root"})
        assert caught.value.messages == (
            "/etc/efm-lb/no-such-cluster.env: no such file: the settings of cluster no-such-cluster belong there,"
            " in a file named by --env-file or EFM_LB_ENV_FILE, or into the environment",
        )

    @pytest.mark.parametrize(
        ("mode", "owner", "group", "message"),
        [
            (0o646, None, None, "writable by everybody: chmod o-w"),
            (0o664, None, 12345, "writable by group 12345: chmod g-w"),
            (0o644, 12345, None, "owned by uid 12345, neither root nor the user who runs this (uid 0)"),
        ],
    )
    @pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
    def test_somebody_else_could_have_written_it(
        self, env_file: Path, mode: int, owner: int | None, group: int | None, message: str
    ) -> None:
        os.chown(env_file, -1 if owner is None else owner, -1 if group is None else group)
        os.chown(env_file.parent, -1 if owner is None else owner, -1)
        env_file.chmod(mode)
        with pytest.raises(SettingsError) as caught:
            load_settings("efm", str(env_file), {})
        assert caught.value.messages == (f"{env_file}: {message}",)
        assert caught.value.exit_code == 78

    @pytest.mark.skipif(os.geteuid() != 0, reason="changes the user")
    def test_it_may_not_be_read(self, env_file: Path) -> None:
        env_file.chmod(0o600)
        for parent in env_file.parents[:3]:
            parent.chmod(0o755)
        os.seteuid(12345)
        try:
            with pytest.raises(NotReadableError, match=r"efm\.env: Permission denied \(uid 12345\)") as caught:
                load_settings("efm", str(env_file), {})
        finally:
            os.seteuid(0)
        assert caught.value.exit_code == 77

    def test_a_directory(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="not a regular file"):
            load_settings("efm", str(tmp_path), {})

    def test_a_pipe_does_not_hang(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe", 0o600)
        with pytest.raises(SettingsError, match="not a regular file"):
            load_settings("efm", str(tmp_path / "pipe"), {})

    def test_a_huge_file(self, env_file: Path) -> None:
        env_file.write_bytes(b"#" * 1024 * 1024 + b"\n")
        with pytest.raises(SettingsError, match="this is no env file"):
            load_settings("efm", str(env_file), {})

    def test_the_owners_private_group_may_write(self, env_file: Path, complain: Complain) -> None:
        env_file.chmod(0o660)
        assert complain(MINIMAL + "EFM_LB_DEADLINE=x\n") == ["EFM_LB_DEADLINE (FILE:4): 'x' is not a number"]


def test_one_load_balancer_in_two_blocks(complain: Complain) -> None:
    """It would be sent every command twice."""
    twice = MINIMAL + "EFM_LB_BALANCERS__SPARE__ADAPTER=fake\nEFM_LB_BALANCERS__SPARE__HOST=10.0.0.9\n"
    assert complain(twice) == [
        "EFM_LB_BALANCERS__SPARE__ADAPTER (FILE:4): the same load balancer as"
        " EFM_LB_BALANCERS__POOL1__ADAPTER (FILE:2), with the same settings: make one block of the two"
    ]


def blocks(adapter: str, first: dict[str, str], second: dict[str, str]) -> str:
    lines = ["EFM_LB_NODES=10.0.0.11:5444,10.0.0.12:5444"]
    for name, settings in (("A", first), ("B", second)):
        lines += [f"EFM_LB_BALANCERS__{name}__{key}={value}" for key, value in {"ADAPTER": adapter, **settings}.items()]
    return "\n".join(lines) + "\n"


PCP = {"HOST": "pool1", "USER": "efm"}
EDGE = {"SOCKET": "/run/haproxy.sock", "WRITE": "pg_write"}
PGB = {"ADMIN": "host=/run/pgb user=efm", "CONFIG": "/etc/pgb.ini", "WRITE": "app,edb"}


@pytest.mark.parametrize(
    ("adapter", "first", "second", "both"),
    [
        ("pgpool", PCP, PCP | {"USER": "pcp"}, "pool1 and 9898"),
        ("pgpool", PCP | {"PASSFILE": "/a"}, PCP | {"PORT": "9898", "PASSFILE": "/b"}, "pool1 and 9898"),
        ("pgpool", PCP | {"HOST": "pool1,pool2"}, PCP | {"HOST": "pool2,pool3"}, "pool2 and 9898"),
        ("haproxy", EDGE, EDGE | {"READ": "pg_read"}, "/run/haproxy.sock and pg_write"),
        ("haproxy", EDGE, {"SOCKET": EDGE["SOCKET"], "READ": "pg_write"}, "/run/haproxy.sock and pg_write"),
        ("pgbouncer", PGB, PGB | {"ADMIN": "host=/run/pgb user=other"}, "/etc/pgb.ini and app and edb"),
        ("pgbouncer", PGB, PGB | {"WRITE": "x", "READ": "edb"}, "/etc/pgb.ini and edb"),
    ],
)
def test_one_load_balancer_in_two_blocks_that_differ(
    complain: Complain, adapter: str, first: dict[str, str], second: dict[str, str], both: str
) -> None:
    second_adapter = 3 + len(first)
    assert complain(blocks(adapter, first, second)) == [
        f"EFM_LB_BALANCERS__B__ADAPTER (FILE:{second_adapter}): the same load balancer as"
        f" EFM_LB_BALANCERS__A__ADAPTER (FILE:2), with {both} in both: make one block of the two"
    ]


@pytest.mark.parametrize(
    ("adapter", "first", "second"),
    [
        ("pgpool", PCP, PCP | {"HOST": "pool2"}),
        ("pgpool", PCP, PCP | {"PORT": "9899"}),
        ("haproxy", EDGE, EDGE | {"WRITE": "other"}),
        ("haproxy", EDGE, EDGE | {"SOCKET": "/run/other.sock"}),
        ("pgbouncer", PGB, PGB | {"WRITE": "other"}),
        ("pgbouncer", PGB, PGB | {"CONFIG": "/etc/other.ini"}),
    ],
)
def test_two_load_balancers_that_have_something_in_common(
    load: Compose, adapter: str, first: dict[str, str], second: dict[str, str]
) -> None:
    assert len(load(blocks(adapter, first, second)).configuration.balancers) == 2


@pytest.mark.parametrize(
    ("adapter", "settings", "message"),
    [
        ("haproxy", EDGE | {"WRITE": "pg write"}, "WRITE (FILE:4): 'pg write' is not the name of a proxy: .*"),
        ("haproxy", EDGE | {"PROGRAM": "haproxy"}, "PROGRAM (FILE:5): 'haproxy' is not an absolute path or none"),
        ("haproxy", EDGE | {"CERTFILE": "/x"}, "CAFILE: missing, but needed with CERTFILE"),
        ("pgbouncer", PGB | {"CONFIG": "pgb.ini"}, "CONFIG (FILE:4): 'pgb.ini' is not an absolute path"),
        ("haproxy", EDGE | {"WRITE": "w,w"}, "WRITE (FILE:4): 'w' is there twice"),
        ("pgbouncer", PGB | {"READ": "r,r"}, "READ (FILE:6): 'r' is there twice"),
        ("pgbouncer", PGB | {"WRITE": "my app"}, "WRITE (FILE:5): 'my app' is not the name of an entry: .*"),
        (
            "pgbouncer",
            PGB | {"ADMIN": "pgb1:6432"},
            "ADMIN (FILE:3): 'pgb1:6432' is not a connection string such as .*",
        ),
        ("pgbouncer", PGB | {"ADMIN": "/run/pgb"}, "ADMIN (FILE:3): '/run/pgb' is not a connection string such as .*"),
    ],
)
def test_what_an_adapter_wants_is_told_in_words(
    complain: Complain, adapter: str, settings: dict[str, str], message: str
) -> None:
    (said,) = complain("\n".join(blocks(adapter, settings, {}).splitlines()[: 2 + len(settings)]) + "\n")
    parts = [re.escape(part) for part in f"EFM_LB_BALANCERS__A__{message}".split(".*")]
    assert re.fullmatch(".*".join(parts), said), said


@pytest.mark.parametrize("host_ssh", [{}, {"HOST_SSH": "lb1"}])
@pytest.mark.parametrize(
    ("adapter", "settings"),
    [("haproxy", EDGE | {"WRITE": "a,b", "READ": "c,b"}), ("pgbouncer", PGB | {"WRITE": "a,b", "READ": "b,c"})],
)
def test_what_carries_writes_and_reads(
    complain: Complain, adapter: str, settings: dict[str, str], host_ssh: dict[str, str]
) -> None:
    """Also where the load balancer is on another host: what is told here must be right."""
    given = settings | host_ssh
    content = "\n".join(blocks(adapter, given, {}).splitlines()[: 2 + len(given)]) + "\n"
    write, read = (3 + list(given).index(key) for key in ("WRITE", "READ"))
    assert complain(content) == [
        f"EFM_LB_BALANCERS__A__READ (FILE:{read}): 'b' is in EFM_LB_BALANCERS__A__WRITE (FILE:{write}) as well,"
        " and can be in one of them only"
    ]


@pytest.mark.parametrize("admin", ["host=/run/pgb", "port = 6432", "postgresql://efm@pgb1:6432", "postgres://pgb1"])
def test_all_forms_of_a_connection_string(load: Compose, admin: str) -> None:
    settings = PGB | {"ADMIN": admin}
    (balancer,) = load("\n".join(blocks("pgbouncer", settings, {}).splitlines()[:5]) + "\n").configuration.balancers
    assert balancer.settings["admin"] == [admin]
