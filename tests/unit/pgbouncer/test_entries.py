"""The file is read as PgBouncer reads it, and nothing in it changes but the hosts and ports that must."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efm_lb_pgbouncer.entries import EntryError, Location, edited, entry_of, location_of, marked, parse

NEW = Location(("10.0.0.12",), 5444)


def edit(text: str, **wanted: Location) -> str:
    return edited(text.encode(), wanted or {"app": NEW}).decode()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # Trap 24: what sed does to each of these.
        ("app = host=db-1.example.com port=5444", "app = host=10.0.0.12 port=5444"),
        ("app = host=/var/run/postgresql port=5444", "app = host=10.0.0.12 port=5444"),
        ("app = host=fd00::1 port=5444", "app = host=10.0.0.12 port=5444"),
        ("app = host = x  port = 5432", "app = host = 10.0.0.12  port = 5444"),
        ("app=host=x port=5432 dbname=app", "app=host=10.0.0.12 port=5444 dbname=app"),
        ("app = dbname=app port=5444 host=x", "app = dbname=app port=5444 host=10.0.0.12"),
        ("app = host='x' port='5432'", "app = host=10.0.0.12 port=5444"),
        ("app = password='host=x '' y' host=y port=5444", "app = password='host=x '' y' host=10.0.0.12 port=5444"),
        ("app = dbname=host=y host=x port=5444", "app = dbname=host=y host=10.0.0.12 port=5444"),
        ("app = host= port=1", "app = host= 10.0.0.12 port=5444"),
        ("app = dbname=app", "app = dbname=app host=10.0.0.12 port=5444"),
        ("app = host=x", "app = host=10.0.0.12 port=5444"),
        ("app =", "app =host=10.0.0.12 port=5444"),
        ("app = ", "app = host=10.0.0.12 port=5444"),
        ("app = host=x port=5444 ", "app = host=10.0.0.12 port=5444 "),
        ("\tapp\t=\thost=x port=5444\t", "\tapp\t=\thost=10.0.0.12 port=5444\t"),
        ("app = host=10.0.0.12 port=05444", "app = host=10.0.0.12 port=05444"),
    ],
)  # fmt: skip
def test_one_entry(before: str, after: str) -> None:
    assert edit(before) == after
    assert edit(f"[databases]\r\n{before}\r\n[pgbouncer]\r\n") == f"[databases]\r\n{after}\r\n[pgbouncer]\r\n"


def test_only_the_named_entry_of_the_right_section() -> None:
    text = (
        "; app = host=comment\n"
        "# app = host=comment\n"
        "[databases]\n"
        "%include /etc/pgbouncer/other.ini\n"
        "app2 = host=x port=1\n"
        "app = host=x port=1   \n"
        "app.old = host=x port=1\n"
        "* = host=x port=1\n"
        "\n"
        "[users]\n"
        "app = pool_mode=session\n"
        "[pgbouncer]\n"
        "listen_addr = *\n"
    )
    assert edit(text) == text.replace("app = host=x port=1   \n", "app = host=10.0.0.12 port=5444   \n")


def test_an_included_file_begins_in_the_middle_of_the_section() -> None:
    assert edit("app = host=x port=5444\n") == "app = host=10.0.0.12 port=5444\n"


def test_an_entry_on_the_line_of_its_section() -> None:
    assert edit("[databases] app = host=x port=5444") == "[databases] app = host=10.0.0.12 port=5444"


def test_bytes_that_are_no_text_stay() -> None:
    before = b"; \xff\xfe\n[databases]\nx = dbname=\xe9\napp = host=\xe9 port=5444\n"
    assert edited(before, {"app": NEW}) == before.replace(b"host=\xe9", b"host=10.0.0.12")


@pytest.mark.parametrize(
    ("hosts", "text"),
    [
        (("fd00::12",), "fd00::12"),
        (("10.0.0.12", "10.0.0.13"), "10.0.0.12,10.0.0.13"),
        (("/run/post gresql",), "'/run/post gresql'"),
        (("/run/o'clock",), "'/run/o''clock'"),
    ],
)
def test_hosts_are_written_so_that_pgbouncer_reads_them(hosts: tuple[str, ...], text: str) -> None:
    after = edit("app = host=x port=5444 dbname=y", app=Location(hosts, 5444))
    assert after == f"app = host={text} port=5444 dbname=y"
    assert location_of(entry_of("app", parse(after.encode()))) == Location(hosts, 5444)


@pytest.mark.parametrize(
    ("text", "location", "shown"),
    [
        ("app = host=db1", Location(("db1",), 5432), "db1:5432"),
        ("app = dbname=x port=5444", Location((), 5444), ":5444"),
        ("app = host=db1,db2 port=5444", Location(("db1", "db2"), 5444), "db1,db2:5444"),
        ("app = host=fd00::12 port=65535", Location(("fd00::12",), 65535), "[fd00::12]:65535"),
    ],
)
def test_where_an_entry_leads_to(text: str, location: Location, shown: str) -> None:
    found = location_of(entry_of("app", parse(text.encode())))
    assert found == location
    assert str(found) == shown


@pytest.mark.parametrize("host", ["", "a,b", "a\nb", "a\0b", "a\tb"])
def test_a_host_that_cannot_be_written_is_refused(host: str) -> None:
    with pytest.raises(EntryError, match="cannot be written"):
        edit("app = host=x port=5444", app=Location((host,), 5444))


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("[databases]\nother = host=x\n", 0, "there is no entry app"),
        ("[databases]\n%include b.ini\n", 0, "no entry app; it includes b.ini"),
        ("[users]\napp = host=x\n", 0, "there is no entry app"),
        ("app = host=x\n\napp = host=y\n", 3, "a second entry app, after line 1"),
        ("app = host=x host=y\n", 1, "host= twice"),
        ("app = port=1 host=y port=2\n", 1, "port= twice"),
        # Trap 25: a trailing comment.
        ("[databases]\napp = host=x port=1 ; the primary\n", 2, "a comment must have a line of its own"),
        ("app = host=x # the primary\n", 1, "a comment must have a line of its own"),
        ("app = host='x port=1\n", 1, "quote after host= is not closed"),
        ("app = host='x'port=1\n", 1, "no space after the quoted value"),
        ("app = host=\n", 1, "host= has no value"),
        ("app = host=''\n", 1, "host= has no value"),
        ("app = host=x port=abc\n", 1, "port is no number"),
        ("app = host=x port=0\n", 1, "port is no number"),
        ("app = host=x port=123456\n", 1, "port is no number"),
        ("app = secret\n", 1, "no name=value"),
        ("app = =x\n", 1, "text is no name=value"),
        ("[databases\napp = host=x\n", 1, "closing bracket"),
        ("app = host=x\nnonsense\n", 2, "neither a comment nor key = value"),
        ("app = host=x\n= host=x\n", 2, "neither a comment nor key = value"),
        ("app = host=x\nmy db = host=x\n", 2, "neither a comment nor key = value"),
        ("\0", 1, "no text"),
        ("app = host=x\n\0\n", 2, "no text"),
    ],
)
def test_what_is_refused_says_where_and_why(text: str, line: int, what: str) -> None:
    with pytest.raises(EntryError, match=what) as caught:
        edit(text)
    assert caught.value.line == line


def test_an_error_never_shows_a_password() -> None:
    for text in ("app = host=x password=sec'ret ;x", "app = password='sec'ret", "app = password=secret secret2"):
        with pytest.raises(EntryError) as caught:
            edit(text)
        assert "sec" not in str(caught.value).replace("secret2", "")


def test_entries_that_newer_releases_quote_are_passed_over() -> None:
    text = "\"my db\" = host=x\n'other' = host=y\napp = host=x port=5444\n"
    assert edit(text) == text.replace("app = host=x", "app = host=10.0.0.12")


M7 = "; efm-lb: writes follow timeline 7\n"
M8 = "; efm-lb: writes follow timeline 8\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("app = host=x\n", f"{M8}app = host=x\n"),
        ("app = host=x", f"{M8}app = host=x"),
        ("x = host=x\napp = host=x\nz = host=x\n", f"x = host=x\n{M8}app = host=x\nz = host=x\n"),
        ("[databases]\r\n\tapp = host=x\r\n", f"[databases]\r\n{M8[:-1]}\r\n\tapp = host=x\r\n"),
        ("; why\n[databases] app = host=x\n", f"; why\n{M8}[databases] app = host=x\n"),
        ("; why\n\n#\napp = host=x\n", f"; why\n\n#\n{M8}app = host=x\n"),
        # Ours is replaced, wherever it is among the comments above.
        (f"{M7}app = host=x\n", f"{M8}app = host=x\n"),
        (f"{M8}app = host=x\n", f"{M8}app = host=x\n"),
        (f"{M7}; why\n\napp = host=x\n", f"{M8}; why\n\napp = host=x\n"),
        (f"{M7}; why\n{M7}app = host=x\n", f"; why\n{M8}app = host=x\n"),
        (f"{M7}\n{M8}{M7}app = host=x\n", f"\n{M8}app = host=x\n"),
        (f" {M7[:-1]} \r\napp = host=x\r\n", f" {M8[:-1]} \r\napp = host=x\r\n"),
        # What somebody has written into its line stays a comment.
        (f"{M7[:-1]}, says Bob\napp = host=x\n", f"{M8[:-1]}, says Bob\napp = host=x\n"),
        (f"# {M7}app = host=x\n", f"# {M8}app = host=x\n"),
        (f"{M7[:-1]}, says Bob\n# {M7}{M7}app = host=x\n", f";, says Bob\n# ;\n{M8}app = host=x\n"),
        # Other entries' are theirs, and so is what only looks like one.
        (f"{M7}x = host=x\napp = host=x\n", f"{M7}x = host=x\n{M8}app = host=x\n"),
        (f"app = host=x\n{M7}", f"{M8}app = host=x\n{M7}"),
        (f"{M7[:-2]}\napp = host=x\n", f"{M7[:-2]}\n{M8}app = host=x\n"),
        (f"{M7[:-2]}{'9' * 30}\napp = host=x\n", f"{M7[:-2]}{'9' * 30}\n{M8}app = host=x\n"),
        (f"{M7.upper()}app = host=x\n", f"{M7.upper()}{M8}app = host=x\n"),
    ],
)
def test_the_mark_of_a_timeline(before: str, after: str) -> None:
    assert edited(before.encode(), {}, {"app": 8}).decode() == after
    assert edited(after.encode(), {}, {"app": 8}).decode() == after, "twice is once"
    assert [timeline for _, timeline in marked(after.encode(), {"app"})] == [8]
    parse(after.encode())


def test_several_entries_have_a_mark_each() -> None:
    text = f"[databases]\napp = host=x port=1\n{M7}edb = host=x port=1\nro = host=y port=1\n"
    after = edited(text.encode(), {"app": NEW, "edb": NEW}, {"app": 8, "edb": 8})
    right = "host=10.0.0.12 port=5444"
    assert after.decode() == f"[databases]\n{M8}app = {right}\n{M8}edb = {right}\nro = host=y port=1\n"
    assert marked(after, ["app", "edb", "ro"]) == [(2, 8), (4, 8)]
    assert marked(after, ["ro"]) == []


def test_a_mark_in_a_value_is_none() -> None:
    text = b"app = host=x password='; efm-lb: writes follow timeline 9'\nb = host=y\n"
    assert marked(text, ["app", "b"]) == []
    assert edited(text, {}, {"b": 8}) == text.replace(b"b =", M8.encode() + b"b =")


# Properties

OURS = re.compile(rb"; efm-lb: writes follow timeline [0-9]{1,10}(?![0-9])")
"""A mark, found in another way than the editor finds it."""


def read_by_pgbouncer(content: bytes) -> list[tuple[str, list[tuple[bytes, bytes]]]]:
    return [(entry.name, [(pair.name, pair.value) for pair in entry.pairs]) for entry in parse(content).entries]


def without_marks(content: bytes) -> list[bytes]:
    """The lines without the marks: those that were nothing else are gone, and so is a sign that is left of one."""
    stripped = [OURS.sub(b";", line) if OURS.search(line) else line for line in content.split(b"\n")]
    return [
        line for line, old in zip(stripped, content.split(b"\n"), strict=True) if line == old or line.strip() != b";"
    ]


NAMES = st.text("abcxyzABC019_.-", min_size=1, max_size=8)
VALUES = st.text(
    st.characters(blacklist_characters="\0\n\r", blacklist_categories=["Cs"]), min_size=1, max_size=12
).filter(lambda text: text.strip(" \t\v\f\x1c\x1d\x1e\x1f\x85") == text)
SPACES = st.sampled_from(["", " ", "  "])
HOSTS = st.lists(
    st.text(st.characters(min_codepoint=33, max_codepoint=126, blacklist_characters=",'"), min_size=1, max_size=15),
    min_size=1,
    max_size=3,
).map(tuple)
LOCATIONS = st.builds(Location, HOSTS, st.integers(1, 65535))


@st.composite
def pairs(draw: st.DrawFn, name: str, value: str) -> str:
    quoted = " " in value or "'" in value or draw(st.booleans())
    text = "'" + value.replace("'", "''") + "'" if quoted else value
    return f"{name}{draw(SPACES)}={draw(SPACES)}{text}"


@st.composite
def lines(draw: st.DrawFn, name: str) -> str:
    """One entry, as anybody may have written it."""
    given = {"dbname": draw(VALUES), "password": draw(VALUES)}
    if draw(st.booleans()):
        given["host"] = ",".join(draw(HOSTS))
    if draw(st.booleans()):
        given["port"] = str(draw(st.integers(1, 65535)))
    words = draw(st.permutations([draw(pairs(key, value)) for key, value in given.items()]))
    between = draw(st.sampled_from([" ", "   "]))
    return f"{draw(SPACES)}{name}{draw(SPACES)}={draw(SPACES)}{between.join(words)}{draw(SPACES)}"


def mark_lines(end: str) -> list[str]:
    """Lines that hold one of ours, or look like it."""
    ours = "; efm-lb: writes follow timeline "
    return [
        f"{ours}7{end}",
        f"  {ours}4294967295 {end}",
        f"# {ours}8 Bob{end}",
        f"{ours}{end}",
        f"{ours}{'9' * 12}{end}",
    ]


@st.composite
def files(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A file, and the names of its entries."""
    names = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    text = draw(st.sampled_from(["", f"[databases]{end}", f"[pgbouncer]{end}x = y{end}[databases]{end}"]))
    for name in names:
        above = draw(
            st.lists(st.sampled_from([f"; {name} = host=a{end}", f"#{end}", end, *mark_lines(end)]), max_size=3)
        )
        text += "".join(above) + draw(lines(name)) + end
    text += draw(st.sampled_from(["", f"[users]{end}{names[0]} = pool_mode=session{end}", "; the end"]))
    return text, names


@given(files(), st.data())
def test_after_an_edit_the_entry_leads_there_and_all_else_is_as_it_was(
    file: tuple[str, list[str]], data: st.DataObject
) -> None:
    text, names = file
    before = text.encode()
    wanted = data.draw(st.dictionaries(st.sampled_from(names), LOCATIONS, min_size=1))
    after = edited(before, wanted)
    parsed, original = parse(after), parse(before)
    assert [entry.name for entry in parsed.entries] == [entry.name for entry in original.entries] == names
    for entry, old in zip(parsed.entries, original.entries, strict=True):
        if entry.name in wanted:
            assert location_of(entry) == wanted[entry.name]
            others = [(pair.name, pair.value) for pair in entry.pairs if pair.name not in (b"host", b"port")]
            assert others == [(pair.name, pair.value) for pair in old.pairs if pair.name not in (b"host", b"port")]
        else:
            assert after[entry.start : entry.end] == before[old.start : old.end]
    assert edited(after, wanted) == after, "what is right is left alone"
    assert after.count(b"\n") == before.count(b"\n")


@given(files(), st.data())
def test_a_mark_changes_nothing_but_marks(file: tuple[str, list[str]], data: st.DataObject) -> None:
    text, names = file
    before = text.encode()
    wanted = data.draw(st.dictionaries(st.sampled_from(names), LOCATIONS))
    timelines = data.draw(st.dictionaries(st.sampled_from(names), st.integers(1, 2**32 - 1), min_size=1))
    without, after = edited(before, wanted), edited(before, wanted, timelines)
    assert without_marks(after) == without_marks(without)
    assert read_by_pgbouncer(after) == read_by_pgbouncer(without)
    for name in names:
        there = [timeline for _, timeline in marked(after, [name])]
        assert there == ([timelines[name]] if name in timelines else [t for _, t in marked(without, [name])])
    assert edited(after, wanted, timelines) == after, "twice is once"


@given(files(), st.data())
def test_a_mark_in_place_of_a_mark_is_the_same_file(file: tuple[str, list[str]], data: st.DataObject) -> None:
    text, names = file
    timelines = data.draw(st.dictionaries(st.sampled_from(names), st.integers(1, 2**32 - 1), min_size=1))
    once = edited(text.encode(), {}, timelines)
    assert edited(edited(once, {}, dict.fromkeys(timelines, 5)), {}, timelines) == once


@given(files())
def test_what_is_right_already_is_the_same_bytes(file: tuple[str, list[str]]) -> None:
    text, names = file
    parsed = parse(text.encode())
    there = {name: location_of(entry_of(name, parsed)) for name in names}
    assert edited(text.encode(), there) == text.encode()


@given(st.binary(max_size=200), NAMES)
def test_any_bytes_end_in_an_edit_or_in_a_reason(content: bytes, name: str) -> None:
    with contextlib.suppress(EntryError):
        after = edited(content, {name: NEW}, {name: 8})
        assert location_of(entry_of(name, parse(after))) == NEW
        assert marked(after, [name])[-1][1] == 8
