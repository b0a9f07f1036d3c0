"""A name that EFM passes is a word, whatever is in it: to files, shells and terminals as well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efm_lb import hook
from efm_lb.errors import EfmLbError, printable

pytestmark = pytest.mark.fault("names that mean harm")

NAMES = [
    b"db1;reboot",
    b"db1 && reboot",
    b"$(touch made)",
    b"`touch made`",
    b"db1|cat",
    b"db1>made",
    b"'",
    b'"',
    b"\\",
    b"a\\nb",
    b"a\nb",
    b"a\r\nb",
    b"a\tb",
    b"a\x00b".replace(b"\x00", b"\\0"),
    b"\x1b[2J\x1b]0;made\x07",
    b"\xc2\x9b2J",
    "\u202edb1".encode(),
    "db\u20281".encode(),
    b"\xff\xfe",
    b"a%sb%n",
    b"../../made",
    b"/etc/passwd",
    b"[databases]",
    b"db1 port=1",
    b"db1,db2",
    b"db1:5432",
    b"host=db1",
    b"server n1 127.0.0.1:1 disabled",
    b"x" * 254,
    b"x" * 100_000,
    b"-rf",
    b"--",
    b"-",
    b" ",
]
TERMINAL = [name for name in NAMES if {10, 27, 155, 255} & set(name)]
"""Those that a terminal, a mail or a log would obey, or that are no UTF-8."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with an env file that names one node."""
    (tmp_path / "pcppass").touch(mode=0o600)
    env_file = tmp_path / "efm.env"
    env_file.touch(mode=0o600)
    env_file.write_text(
        f"EFM_LB_NODES=db1=127.0.0.1:1\nEFM_LB_STATE_DIR={tmp_path}\nEFM_LB_BALANCERS__P__ADAPTER=pgpool\n"
        f"EFM_LB_BALANCERS__P__HOST=127.0.0.1\nEFM_LB_BALANCERS__P__USER=u\n"
        f"EFM_LB_BALANCERS__P__PASSFILE={tmp_path}/pcppass\n"
    )
    return tmp_path


def run(place: Path, *words: bytes) -> subprocess.CompletedProcess[bytes]:
    argv = [os.fsencode(sys.executable), b"-I", b"-m", b"efm_lb", *words, b"--env-file=%b/efm.env" % bytes(place)]
    return subprocess.run(argv, capture_output=True, env={}, cwd=place, check=False, timeout=30)


@pytest.mark.parametrize("words", [("attach", "s"), ("detach", "p"), ("promote",)], ids=lambda words: words[0])
def test_a_hook_says_one_plain_line_and_touches_nothing(place: Path, words: Sequence[str]) -> None:
    kind, *letter = [word.encode() for word in words]
    for name in NAMES:
        done = run(place, kind, name, *letter)
        assert done.returncode in (2, 69), (name[:40], done.stdout)
        assert done.stderr == b""
        (line,) = done.stdout.decode("utf-8").removesuffix("\n").split("\n")
        assert line.isprintable(), (name[:40], line)
        assert len(line) < 1000
    for name in TERMINAL:
        done = run(place, kind, name, *letter, b"--json")
        assert json.loads(done.stdout)["exit_code"] == done.returncode == 69
    assert sorted(path.name for path in place.iterdir()) == ["efm.env", "efm.journal", "efm.plan", "pcppass"]
    records = [json.loads(line) for line in (place / "efm.journal").read_bytes().decode("ascii").splitlines()]
    assert {record["record"] for record in records} == {"call", "outcome"}
    assert {len(record["host"]) <= 253 for record in records if "host" in record} == {True}


def test_a_name_that_is_an_option_is_no_name(place: Path) -> None:
    for name in (b"--cluster=../../made", b"--cluster=a;b", b"--env-file=/nowhere", b"--follow-up=1;2"):
        done = run(place, b"detach", name, b"p")
        assert done.returncode in (2, 69), (name, done.stdout)
        assert done.stdout.count(b"\n") == 1


@pytest.mark.parametrize("command", ["set", "clear"])
def test_maintenance_knows_only_nodes_and_balancers(place: Path, command: str) -> None:
    for name in [*TERMINAL, b"x" * 100_000]:
        done = run(place, b"maintenance", command.encode(), name)
        assert done.returncode == 69, (name[:40], done.stderr)
        (line,) = done.stderr.decode("utf-8").removesuffix("\n").split("\n")
        assert line.isprintable()
        assert len(line) < 1000
    assert not (place / "efm.maintenance").exists()


def test_a_reason_is_one_plain_line(place: Path) -> None:
    reason = b"new disk\n\x1b[2Jdb9\t9999999999\t0\tx\ty"
    done = run(place, b"maintenance", b"set", b"db1", b"--reason=" + reason)
    assert done.returncode == 0
    listed = run(place, b"maintenance", b"list")
    for output in (done.stdout, listed.stdout):
        assert all(line.isprintable() for line in output.decode().splitlines())
        assert b"\\x1b[2Jdb9" in output
    (entry,) = json.loads(run(place, b"maintenance", b"list", b"--json").stdout)["entries"]
    assert entry["name"] == "db1"


def test_the_systems_log_gets_plain_lines(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    monkeypatch.setattr("syslog.syslog", lambda priority, line: said.append(line))
    code = hook.main(["detach", "a\nb\x1b[2J%n", "p", "--follow-up", "x\n", "--call", "c"])
    assert code == 2
    assert said
    assert all(line.isprintable() for line in said)
    assert capfd.readouterr().out.splitlines() == said


@given(st.text() | st.binary().map(lambda text: text.decode("utf-8", "surrogateescape")))
def test_whatever_is_said_is_one_line_that_can_be_encoded(text: str) -> None:
    said = printable(text)
    assert said.isprintable()
    said.encode()
    assert printable(said) == said
    assert text.isprintable() == (said == text)
    assert EfmLbError(text).messages == (said,)
