"""What ``efm-lb check --efm-properties`` finds in EFM's own settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efm_lb.commands.efm_properties import judged, properties, read
from efm_lb.errors import NotReadableError
from efm_lb.views import Severity
from unit.docs.documents import blocks
from unit.docs.documents import read as page

NEW, OLD, UNKNOWN = "/etc/edb/efm-5.4/efm.properties", "/etc/edb/efm-4.10/efm.properties", "/etc/efm.properties"
ATTACH, DETACH, POST = "script.load.balancer.attach", "script.load.balancer.detach", "script.post.promotion"
MONITOR = "script.custom.monitor"


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "bin" / "efm-lb"
    path.parent.mkdir()
    path.touch(mode=0o755)
    return str(path)


@pytest.fixture
def good(program: str) -> dict[str, str]:
    (example,) = blocks(page("README.md"), "properties")
    return properties(example.replace("/opt/efm-lb/bin/efm-lb", program))


def bad(given: dict[str, str], path: str = NEW, cluster: str = "efm") -> list[tuple[str, str, str]]:
    found = judged(given, path, cluster)
    return [(f.subject, f.severity.value, f.detail) for f in found if f.severity is not Severity.OK]


@pytest.mark.parametrize("path", [NEW, OLD, UNKNOWN])
def test_the_lines_of_the_readme_are_right(good: dict[str, str], path: str) -> None:
    assert bad(good, path) == []
    assert [f.subject for f in judged(good, path, "efm")] == [ATTACH, DETACH, POST]


def test_another_cluster_is_named_in_the_line(good: dict[str, str]) -> None:
    assert {found[0] for found in bad(good, cluster="acctg")} == {ATTACH, DETACH, POST}
    assert "is of cluster efm; this check is of cluster acctg" in bad(good, cluster="acctg")[0][2]
    named = {name: f"{line} --cluster acctg" if name.startswith("script") else line for name, line in good.items()}
    assert bad(named, cluster="acctg") == []


@pytest.mark.parametrize("name", [ATTACH, DETACH])
@pytest.mark.parametrize(
    ("words", "severity", "what"),
    [
        ("{kind} %h", "warning", "without %t it does not say whether the node is a primary"),
        ("{kind} %t", "error", "without %h it does not say which node is meant"),
        ("{kind}", "error", "without %h it does not say which node is meant"),
        ("{kind} %h %x", "error", "EFM puts nothing in for %x: it knows %h and %t here"),
        ("{kind} %p %t", "error", "EFM puts nothing in for %p"),
        ("{kind} %h:5444 %t", "error", "EFM puts nothing in for %h:5444"),
        ('{kind} "%h" "%t"', "error", "has quotes, which EFM does not take"),
        ("{kind} %h %t more", "error", "too many words"),
        ("{kind} %h %t --clutser=x", "error", "no such option: --clutser=x"),
        ("{kind} %h %t --cluster", "error", "--cluster needs a value"),
        ("{kind} %h %t --dry-run", "error", "--dry-run does nothing"),
        ("promote %h", "error", "runs efm-lb promote, expected {kind}"),
        ("", "error", "runs efm-lb , expected {kind}"),
    ],
)
def test_wrong_words(good: dict[str, str], program: str, name: str, words: str, severity: str, what: str) -> None:
    kind = name.rpartition(".")[2]
    good[name] = f"{program} {words.format(kind=kind)}"
    ((subject, found, detail),) = bad(good)
    assert (subject, found) == (name, severity)
    assert what.format(kind=kind) in detail


def test_a_hook_that_is_missing(good: dict[str, str]) -> None:
    del good[ATTACH], good[POST]
    good[DETACH] = "  "
    assert bad(good) == [(ATTACH, "error", "not set: EFM calls nobody"), (DETACH, "error", "not set: EFM calls nobody")]


def test_a_script_of_ones_own_may_call_it(good: dict[str, str]) -> None:
    good[ATTACH] = "/usr/local/bin/attach.sh %h %t"
    good[POST] = "/usr/local/bin/promoted.sh %p %f"
    ((subject, severity, detail),) = bad(good)
    assert (subject, severity) == (ATTACH, "warning")
    assert "which is not efm-lb" in detail


@pytest.mark.parametrize(
    ("command", "what"),
    [("efm-lb", "efm-lb is no full path"), ("/nowhere/efm-lb", "/nowhere/efm-lb is not there")],
)
def test_a_program_that_efm_does_not_find(good: dict[str, str], command: str, what: str) -> None:
    good[POST] = f"{command} promote %p"
    ((subject, severity, detail),) = bad(good)
    assert (subject, severity) == (POST, "error")
    assert what in detail


def test_the_promotion_has_placeholders_of_its_own(good: dict[str, str], program: str) -> None:
    good[POST] = f"{program} promote %h"
    ((subject, _, detail),) = bad(good)
    assert (subject, "EFM puts nothing in for %h: it knows %p and %f here" in detail) == (POST, True)


def test_both_integrations(good: dict[str, str]) -> None:
    good["pgpool.enable"] = "TRUE"
    ((subject, severity, detail),) = bad(good)
    assert (subject, severity) == ("pgpool.enable", "error")
    assert ATTACH in detail


@pytest.mark.parametrize(
    ("value", "path", "warned"),
    [
        ("true", NEW, True),
        ("true", OLD, True),
        (None, NEW, False),
        (None, "/etc/edb/efm-5.0/acctg.properties", False),
        (None, OLD, True),
        (None, "/etc/edb/efm-4.2/efm.properties", True),
        (None, "/etc/edb/efm-4.1/efm.properties", False),
        (None, UNKNOWN, True),
        ("false", UNKNOWN, False),
    ],
)
def test_an_agent_that_dies(good: dict[str, str], value: str | None, path: str, warned: bool) -> None:
    del good["detach.on.agent.failure"]
    if value:
        good["detach.on.agent.failure"] = value
    assert [found[:2] for found in bad(good, path)] == [("detach.on.agent.failure", "warning")] * warned


@pytest.mark.parametrize(
    ("words", "safe", "subjects"),
    [
        ("reconcile --custom-monitor", "true", []),
        ("reconcile --custom-monitor", "false", ["custom.monitor.safe.mode"]),
        ("reconcile --custom-monitor", None, ["custom.monitor.safe.mode"]),
        ("reconcile", "true", [MONITOR]),
        ("reconcile", None, [MONITOR, "custom.monitor.safe.mode"]),
        ("reconcile --watch", "true", [MONITOR]),
        ("reconcile --custom-monitor --cluster x", "true", [MONITOR]),
        ("reconcile --nonsense", "true", [MONITOR]),
        ("--cluster efm reconcile --custom-monitor", "true", [MONITOR]),
        ("reconcile --custom-monitor=1", "true", [MONITOR]),
        ("check", None, []),
    ],
)
def test_the_custom_monitor(
    good: dict[str, str], program: str, words: str, safe: str | None, subjects: list[str]
) -> None:
    good[MONITOR] = f"{program} {words}"
    if safe:
        good["custom.monitor.safe.mode"] = safe
    assert [found[0] for found in bad(good)] == subjects
    assert {found[1] for found in bad(good)} <= {"error"}


def test_javas_format() -> None:
    text = (
        "# a=b\n! a=b\n\n  a = b c \nd:e\nf g\nh=1\nh=2\ni=\\\n   j\\\n   k\nl\\:m=n\\u0041\\\\\nempty=\nalone\n"
        "win=1\r\nlast=x\\"
    )
    assert properties(text) == {
        "a": "b c ",
        "d": "e",
        "f": "g",
        "h": "2",
        "i": "jk",
        "l:m": "nA\\",
        "empty": "",
        "alone": "",
        "win": "1",
        "last": "x",
    }


@given(st.text() | st.text("a=: \\\n#!u%'").map(str))
def test_any_text_is_properties(text: str) -> None:
    found = properties(text)
    list(judged(found | {ATTACH: text}, UNKNOWN, "efm"))
    list(judged(found | {MONITOR: f"efm-lb reconcile {text}"}, UNKNOWN, "efm"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotReadableError, match=r"--efm-properties .*none: No such file"):
        read(f"{tmp_path}/none")
