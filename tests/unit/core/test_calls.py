"""The command line as EFM writes it."""

from __future__ import annotations

import pytest

from efm_lb import Role
from efm_lb.calls import Arguments, Kind, parse, without_options
from efm_lb.errors import CallError


@pytest.mark.parametrize(
    ("argv", "role"),
    [
        (["attach", "db1", "p"], Role.PRIMARY),
        (["attach", "db1", "m"], Role.PRIMARY),
        (["attach", "db1", "primary"], Role.PRIMARY),
        (["attach", "db1", "Master"], Role.PRIMARY),
        (["attach", "db1", "s"], Role.STANDBY),
        (["attach", "db1", "standby"], Role.STANDBY),
        (["attach", "db1", ""], None),
        (["attach", "db1"], None),
    ],
)
def test_type(argv: list[str], role: Role | None) -> None:
    assert parse(argv) == Arguments(Kind.ATTACH, "db1", role)


@pytest.mark.parametrize("letter", ["w", "x", "%t", "idle"])
def test_a_type_that_nobody_knows_leaves_it_to_the_database(letter: str) -> None:
    assert parse(["attach", "db1", letter]) == Arguments(Kind.ATTACH, "db1", None, strange=letter)


def test_options_stand_anywhere_and_take_both_forms() -> None:
    expected = Arguments(Kind.DETACH, "fe80::1", Role.STANDBY, "sales", "/etc/x.env", json=True, dry_run=True)
    argv = ["detach", "--cluster", "sales", "fe80::1", "--env-file=/etc/x.env", "s", "--json", "--dry-run"]
    assert parse(argv) == expected


@pytest.mark.parametrize("host", ["db-1.example_net.com", "10.0.0.11", "2001:db8::11"])
def test_hosts_of_every_form(host: str) -> None:
    assert parse(["promote", host]).host == host


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["attach", "%h", "p"], "EFM did not replace %h"),
        (["attach", "%h", "%t"], "EFM did not replace %h"),
        (["attach", "db1", "%x"], "EFM did not replace %x"),
        (["attach", "%t"], "EFM did not replace %t"),
        (["promote", "%p"], "EFM did not replace %p"),
        (["attach"], "no HOST given"),
        (["attach", "", "p"], "no HOST given"),
        (["attach", "  "], "no HOST given"),
        (["attach", "db1", "p", "10.0.0.1"], "too many words"),
        (["promote", "db1", "p"], "too many words"),
        (["attach", "d" * 254, "p"], "HOST has 254 characters, a name has 253 at most: d{253}[.]{3}$"),
        (["attach", "db1", "--clutser", "x"], "no such option: --clutser"),
        (["attach", "-x", "db1"], "no such option: -x"),
        (["attach", "db1", "--cluster"], "--cluster needs a value"),
        (["attach", "db1", "--follow-up", "soon"], "--follow-up needs seconds"),
        (["attach", "db1", "--follow-up", "nan"], "--follow-up needs seconds"),
        (["attach", "db1", "--follow-up", "9" * 400], "--follow-up needs seconds, at most 3600"),
        (["attach", "db1", "--follow-up=-1"], "--follow-up needs seconds"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(argv: list[str], message: str) -> None:
    with pytest.raises(CallError, match=message):
        parse(argv)


def test_a_message_names_the_words_and_not_the_options_values() -> None:
    assert without_options(["attach", "db1", "p", "--env-file", "/x", "--cluster=c", "--json"]) == "attach db1 p"
