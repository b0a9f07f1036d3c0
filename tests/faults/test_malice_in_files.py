"""Whatever is in a file: a reading or a clear error; and where a file is edited, nothing else in it changes."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import assume
from hypothesis import strategies as st

from efm_lb import compiled
from efm_lb.compiled import Stale
from efm_lb.config import compose
from efm_lb.config.envfile import parse as parse_env
from efm_lb.errors import SettingsError
from efm_lb.history import past_calls
from efm_lb.history import read as read_journal
from efm_lb.journal import Journal
from efm_lb.maintenance import in_force, write
from efm_lb.remote.documents import (
    Malformed,
    Request,
    encoded,
    event_of,
    read_request,
    truth_document,
    truth_of,
)
from efm_lb.settings import settings_of
from efm_lb.sources import Sources, gather
from efm_lb_haproxy.config import _TAKING_ONE, lines, server_lines
from efm_lb_haproxy.config import edited as haproxy_edited
from efm_lb_haproxy.state_file import state_files
from efm_lb_pgbouncer.entries import EntryError, Location, entry_of, location_of, parse
from efm_lb_pgbouncer.entries import edited as pgbouncer_edited
from faults.fuzzing import damaged, fuzzed
from unit.docs.documents import blocks, read
from unit.haproxy.haproxy_model import CONFIG, NODES, truth

pytestmark = pytest.mark.fault("harmful files")

# The env file

ENV = b"".join(block.encode() for block in blocks(read("README.md"), "sh") if "EFM_LB_NODES=" in block)
ENVS = (
    ENV,
    ENV.replace(b"\n", b"\r\n"),
    ENV.rstrip(b"\n"),
    b"\xef\xbb\xbf" + ENV,
    ENV
    + b"export EFM_LB_DEADLINE='7'\nEFM_LB_STATE_DIR=\"/a b\"  # why\n"
    + b'OTHER="$(touch made)"\n\tEFM_LB_CONNECT_TIMEOUT = 1\n',
)


def sources_of(content: bytes, directory: Path) -> Sources:
    return Sources("efm", f"{directory}/efm.env", content, (0, len(content), 0), ())


@fuzzed(150, 10_000, "tmp_path", content=damaged(*ENVS))
def test_the_env_file(tmp_path: Path, content: bytes) -> None:
    """Settings, or an error that names its variable or its line."""
    count = content.count(b"\n") + content.count(b"\r") + 1
    assert all(1 <= each.line <= count for each in parse_env(content))
    try:
        configuration = compose(sources_of(content, tmp_path)).configuration
    except SettingsError as error:
        for message in error.messages:
            assert message.isprintable()
            assert message.startswith("EFM_LB_") or f"{tmp_path}/efm.env:" in message, message
    else:
        assert configuration.nodes
        assert configuration.balancers


WORD = st.text(
    st.characters(codec="utf-8", exclude_characters="\0\r\n'", exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=12
)
PLAIN = st.text("abcXYZ019_./:,@%+-", max_size=12)
NAMES = st.sampled_from([f"EFM_LB_{name}" for name in ("NODES", "DEADLINE", "STATE_DIR", "X", "Y")])
LINES = st.one_of(
    st.builds(lambda name, value: f"{name}={value}", NAMES, PLAIN),
    st.builds(lambda name, value: f"{name}='{value}'", NAMES, WORD.filter(lambda value: "\\" not in value)),
    st.builds(lambda name, value: f"export {name}={value}", NAMES, PLAIN),
    st.builds(lambda name, value, why: f"{name}={value} # {why}", NAMES, PLAIN.filter(bool), PLAIN),
    st.builds(lambda why: f"# {why}", WORD),
    st.just(""),
)


@fuzzed(60, 2000, found=st.lists(LINES, max_size=8))
def test_the_env_file_is_read_as_a_shell_reads_it(found: list[str]) -> None:
    """What docs/settings.md allows: ``NAME=value``, single quotes, ``export``, comments; nothing is interpolated."""
    text = "\n".join(found) + "\n"
    script = "set -a; . /dev/stdin; env -0"
    done = subprocess.run(["sh", "-c", script], input=text.encode(), capture_output=True, env={}, check=True)
    told = dict(pair.split("=", 1) for pair in done.stdout.decode().split("\0") if pair.startswith("EFM_LB_"))
    assert {each.name: each.value for each in parse_env(text.encode())} == told


# The editors of the balancers' own files


def with_variants(*texts: str) -> tuple[bytes, ...]:
    """As they are, with the line ends of another system, without the last one, with tabs, and in another encoding."""
    found: list[bytes] = []
    for text in texts:
        content = text.encode()
        found += [content, content.replace(b"\n", b"\r\n"), content.rstrip(b"\n"), content.replace(b"    ", b"\t")]
        found.append(content + "# h\u00e9t \xfc\n".encode("latin-1") + "# \u4e2d\n".encode())
    return tuple(found)


HAPROXY = with_variants(
    CONFIG,
    *blocks(read("docs/haproxy.md"), "text"),
    'listen "w"\n  server n1 "10.0.0.1:5444" cookie \'disabled\' disabled#why\n'
    '  server n2 "${A}":1 check\\ x # disabled\n',
    "listen w\n  server n1 10.0.0.1:1 # efm-lb: writes follow timeline 7\n"
    "  server n2 10.0.0.1:1 disabled # why # efm-lb: writes follow timeline 65, says Bob\n",
)
OURS = re.compile(rb"[#;] efm-lb: writes follow timeline [0-9]+")


@fuzzed(300, 30_000, content=damaged(*HAPROXY), choice=st.integers(0, 2**32))
def test_haproxys_file(content: bytes, choice: int) -> None:
    """Of a server line the word ``disabled`` comes or goes; every other line is byte-identical."""
    servers = {line.number: line for line in server_lines(content) if not line.template}
    wanted = {number: bool(choice >> bit & 1) for bit, number in enumerate(servers) if not choice >> bit & 2}
    after = haproxy_edited(content, wanted)
    assert after.count(b"\n") == content.count(b"\n")
    for number, (old, new) in enumerate(zip(content.split(b"\n"), after.split(b"\n"), strict=True), 1):
        assert old == new or number in wanted
    assert haproxy_edited(after, wanted) == after, "twice is once"
    # Of one that ends with a keyword without its value haproxy makes nothing, and neither do we.
    cut_off = {line.number for line in lines(content) if line.words[-1].value in _TAKING_ONE}
    excused = {line.number for line in server_lines(after) if line.inherits} | cut_off
    told = {line.number: line.disabled for line in server_lines(after) if line.number in wanted}
    assert {n: d for n, d in told.items() if n not in excused} == {n: d for n, d in wanted.items() if n not in excused}
    plain = {number: False for number in wanted if not servers[number].disabled and b"disabled" not in content}
    timelines = {number: None if choice >> number & 1 else 1 + choice for number in wanted}
    marked = haproxy_edited(content, wanted, timelines)
    assert [line.values for line in lines(marked)] == [line.values for line in lines(after)], "haproxy reads the same"
    for number, (old, new) in enumerate(zip(after.split(b"\n"), marked.split(b"\n"), strict=True), 1):
        assert old == new or (number in wanted and (OURS.search(old) or OURS.search(new)))
    assert haproxy_edited(marked, wanted, timelines) == marked, "twice is once"
    if not OURS.search(content):
        assert haproxy_edited(marked, {}, dict.fromkeys(wanted)) == after, "a mark that is taken away leaves nothing"
    there = haproxy_edited(content, dict.fromkeys(plain, True))
    assert haproxy_edited(there, plain) == content, "forth and back"
    state_files({"haproxy.cfg": content})
    list(lines(content))


PGBOUNCER = with_variants(
    "[databases]\n; by hand\napp = host=10.0.0.1 port=5444 dbname=edb\napp_ro = host=10.0.0.2,10.0.0.3 port=5444\n"
    "%include /etc/pgbouncer/more.ini\n* = host=10.0.0.9\n\n[users]\napp = pool_mode=session\n"
    "[pgbouncer]\nlisten_port = 6432\n",
    "app = host = 10.0.0.1 password='it''s # host=x' port = 5444\n"
    "\tapp_ro\t= host='/run/x y' port=1 ; no\nother = dbname=app\n",
    "\"quoted name\" = host=x\napp=host=a port=1\napp_ro=port=2 connect_query='select 1'\n",
    "; efm-lb: writes follow timeline 7\napp = host=10.0.0.1\n\n; efm-lb: writes follow timeline 65, says Bob\n"
    "# no\n; efm-lb: writes follow timeline 3\napp_ro = host=10.0.0.1\n",
)
LOCATIONS = st.builds(
    Location,
    st.lists(
        st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=","), min_size=1, max_size=9),
        min_size=1,
        max_size=3,
    ).map(tuple),
    st.integers(1, 65535),
)


@fuzzed(300, 30_000, content=damaged(*PGBOUNCER), wanted=st.dictionaries(st.sampled_from(["app", "app_ro"]), LOCATIONS))
def test_pgbouncers_file(content: bytes, wanted: dict[str, Location]) -> None:
    """The values of ``host=`` and ``port=`` of the named entries change; every other line is byte-identical."""
    try:
        after = pgbouncer_edited(content, wanted)
    except EntryError as error:
        refused_at(error, content)
        return
    before = parse(content)
    ours = {entry_of(name, before).line for name in wanted}
    assert after.count(b"\n") == content.count(b"\n")
    for number, (old, new) in enumerate(zip(content.split(b"\n"), after.split(b"\n"), strict=True), 1):
        assert old == new or number in ours
    for name, location in wanted.items():
        old_entry, entry = entry_of(name, before), entry_of(name, parse(after))
        assert location_of(entry) == location
        kept = [(pair.name, pair.value) for pair in old_entry.pairs if pair.name not in (b"host", b"port")]
        assert [(pair.name, pair.value) for pair in entry.pairs if pair.name not in (b"host", b"port")] == kept
    assert pgbouncer_edited(after, wanted) == after, "twice is once"
    marked = pgbouncer_edited(content, wanted, dict.fromkeys(wanted, 8))
    read, again = (
        [(entry.name, [(pair.name, pair.value) for pair in entry.pairs]) for entry in parse(each).entries]
        for each in (after, marked)
    )
    assert read == again, "PgBouncer reads the same"
    assert pgbouncer_edited(marked, wanted, dict.fromkeys(wanted, 8)) == marked, "twice is once"
    for old in set(after.split(b"\n")) - set(marked.split(b"\n")):
        assert OURS.search(old), "only a line of ours goes"
    there = {name: location_of(entry_of(name, before)) for name in wanted}
    if all(location.hosts for location in there.values()):
        with contextlib.suppress(EntryError):  # what nobody would write, such as two commas
            back = pgbouncer_edited(after, there)
            again = {name: location_of(entry_of(name, parse(back))) for name in wanted}
            assert again == there, "forth and back"
            assert pgbouncer_edited(back, wanted) == after


def refused_at(error: EntryError, content: bytes) -> None:
    assert str(error)
    assert 0 <= error.line <= content.count(b"\n") + 1


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [b"", b"end"])
def test_pgbouncers_file_forth_and_back_is_the_same_bytes(end: bytes, last: bytes) -> None:
    there = {"app": Location(("10.0.0.12",), 5445), "app_ro": Location(("10.0.0.11", "10.0.0.13"), 5445)}
    content = PGBOUNCER[0].replace(b"\n", end) + last.replace(b"end", b"; no newline \xe9 \t")
    before = {name: location_of(entry_of(name, parse(content))) for name in there}
    assert pgbouncer_edited(pgbouncer_edited(content, there), before) == content


def test_a_large_file_of_pgbouncers_is_read_in_time() -> None:
    content = b"[databases]\n" + b"".join(b"db%d = host=10.0.0.1 port=5444\n" % number for number in range(3000))
    assert len(parse(content).entries) == 3000
    assert pgbouncer_edited(content, {"db2999": Location(("x",), 1)}).endswith(b"db2999 = host=x port=1\n")


# What efm-lb writes itself


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    env_file = tmp_path / "efm.env"
    env_file.touch(mode=0o600)
    env_file.write_bytes(ENV + f"EFM_LB_STATE_DIR={tmp_path}\n".encode())
    settings_of("efm", str(env_file), {})
    return tmp_path / "efm.plan"


@fuzzed(200, 3000, "plan", data=st.data())
def test_the_compiled_plan(plan: Path, data: st.DataObject) -> None:
    content = plan.read_bytes()
    other = data.draw(damaged(content))
    assume(other != content)
    try:
        plan.write_bytes(other)
        assert isinstance(compiled.load(gather("efm", str(plan.parent / "efm.env"), {})), Stale)
    finally:
        plan.write_bytes(content)
    assert not isinstance(compiled.load(gather("efm", str(plan.parent / "efm.env"), {})), Stale)


SET = b"db1\t2000000000\t1000\tanna\tnew disk\npool1\t2000000000\t1000\t\t\n"


@fuzzed(200, 5000, "tmp_path", content=damaged(SET, SET.replace(b"\n", b"\r\n")))
def test_the_maintenance_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "efm.maintenance").write_bytes(content)
    found = in_force(str(tmp_path), "efm", 1500.0)
    for each in found:
        assert str(each)
        assert each.until > 1500
    write(str(tmp_path), "efm", found)
    assert {(each.name.strip(), int(each.until)) for each in in_force(str(tmp_path), "efm", 1500.0)} <= {
        (" ".join(each.name.split()), round(each.until)) for each in found
    } | {(" ".join(each.name.split()), int(each.until)) for each in found}


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("journal") / "efm.journal"
    writer = Journal(str(path), "c1")
    writer.record("call", kind="attach", host="db1", type="p", follow_up=False)
    writer.record("decision", verdict="act", reason="why \x1b[2J", truth={"db1": "primary"})
    writer.record("outcome", exit_code=0, outcomes={"pool1": {"result": "changed", "detail": "x", "seconds": 0.1}})
    writer.settle(10)
    return path


@fuzzed(200, 5000, "journal", data=st.data())
def test_the_journal(journal: Path, data: st.DataObject) -> None:
    content = journal.read_bytes()
    other = journal.with_name("other.journal")
    other.write_bytes(data.draw(damaged(content)))
    whole = [json.loads(line) for line in content.splitlines()]
    records, damages = read_journal(str(other))
    for record in records:
        assert record.fields in whole, "nothing is taken for a record that was not written"
    assert all(damage.line >= 1 and str(damage) for damage in damages)
    for call in past_calls(records):
        assert call.attempts


# What another host asks

TRUTH = truth("Pss")
REQUEST = encoded(
    Request("1-2", "efm", "pgb1", 9.5, tuple(node.name for node in NODES), "act", {}).document()
    | {"ask": {"act": {"event": {"kind": "attach"}, "truth": truth_document(TRUTH)}}}
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)


def asked(data: bytes) -> None:
    """As `efm_lb.remote.apply` reads it."""
    with contextlib.suppress(Malformed):
        request = read_request(data)
        if "event" in request.given:
            event_of(request.given["event"], truth_of(request.given["truth"], NODES))
        assert request.seconds > 0


@fuzzed(200, 10_000, data=damaged(REQUEST))
def test_a_damaged_request(data: bytes) -> None:
    asked(data)


@fuzzed(200, 3000, document=JSON, data=st.data())
def test_a_request_with_anything_in_it(document: object, data: st.DataObject) -> None:
    asked(json.dumps(document).encode())
    whole = json.loads(REQUEST)
    at = whole
    while data.draw(st.booleans()) and isinstance(at, dict) and at:
        name = data.draw(st.sampled_from(sorted(at)))
        if not isinstance(at[name], dict) or data.draw(st.booleans()):
            at[name] = document
            break
        at = at[name]
    asked(json.dumps(whole).encode())


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 100_000, b"1e999999", b"\xff\xfe[\0]\0"])
def test_a_request_that_is_deep_or_large(data: bytes) -> None:
    asked(data)
