"""Only the word ``disabled`` on the server lines that are meant changes; every other byte stays."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from efm_lb_haproxy.config import edited, lines, marked, server_lines, words
from unit.haproxy.haproxy_model import CONFIG

PROXY = b"listen w\n"


def line_of(text: bytes):
    (line,) = server_lines(PROXY + text)
    return line


def values(text: bytes) -> list[bytes]:
    return [word.value for word in words(text, 0, len(text))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"server n1 10.0.0.1:5444", [b"server", b"n1", b"10.0.0.1:5444"]),
        (b"\tserver  n1\x0b10.0.0.1:1\r", [b"server", b"n1", b"10.0.0.1:1"]),
        (b"a # b", [b"a"]),
        (b"a#b", [b"a"]),
        (b"a\\#b", [b"a#b"]),
        (b'"a # b" c', [b"a # b", b"c"]),
        (b"'a \\' b", [b"a \\", b"b"]),
        (b'"a \\" b" c', [b'a " b', b"c"]),
        (b"a\\ b c", [b"a b", b"c"]),
        (b"a\\\tb", [b"a\\", b"b"]),
        (b"a\\z", [b"a\\z"]),
        (b"a\\", [b"a\\"]),
        (b"\"a'b\" 'c\"d'", [b"a'b", b'c"d']),
        (b"a\rb c", [b"a"]),
        (b"", []),
        (b"   ", []),
        (b"# all of it", []),
        (b'server n1 "10.0.0.1:1', []),
        (b"server n1 '\0' x", []),
    ],
)
def test_words(text: bytes, expected: list[bytes]) -> None:
    assert values(text) == expected


@given(st.text("ab1.:@[]\t\v\f ").map(str.encode))
def test_a_line_without_quotes_is_read_as_one_with(text: bytes) -> None:
    """It is found in another, faster way."""
    commented = text + b" # it"
    assert words(text, 0, len(text)) == words(commented, 0, len(commented))
    shifted = b"a b " + text + b" c"
    assert [word.start for word in words(shifted, 4, 4 + len(text))] == [
        word.start + 4 for word in words(text, 0, len(text))
    ]


def test_a_variable_makes_a_word_say_nothing() -> None:
    text = b'"${A}" \'${A}\' "\\${A}"'
    found = words(text, 0, len(text))
    assert [word.literal for word in found] == [False, True, True]


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        (b"server a 10.0.0.1:5444\n", "10.0.0.1", 5444),
        (b"server a [::1]:5444\n", "::1", 5444),
        (b"server a ::1:5444\n", "::1", 5444),
        (b"server a ipv4@10.0.0.1:5444\n", "10.0.0.1", 5444),
        (b"server a db1.example.com:5444\n", "db1.example.com", 5444),
        (b"server-template a 3 db1.example.com:5444\n", "db1.example.com", 5444),
        (b'server a "10.0.0.1:5444"\n', "10.0.0.1", 5444),
        (b'server a 10.0.0.1:"${PGPORT}"\n', "", None),
        (b"server a 10.0.0.1\n", "", None),
        (b"server a 10.0.0.1:+1\n", "", None),
        ("server a 10.0.0.1:\N{SUPERSCRIPT TWO}\n".encode(), "", None),
        (b"server a 10.0.0.1:%s\n" % (b"9" * 5000), "", None),
        (b"server a unix@/run/a:1\n", "", None),
        (b"server a /run/a:1\n", "", None),
        (b"server a abns@a:1\n", "", None),
    ],
)
def test_addresses(text: bytes, host: str, port: int | None) -> None:
    line = line_of(text)
    assert (line.host, line.port) == (host, port)


@pytest.mark.parametrize(
    ("text", "disabled"),
    [
        (b"server a 1.1.1.1:1\n", False),
        (b"server a 1.1.1.1:1 disabled\n", True),
        (b"server a 1.1.1.1:1 disabled enabled\n", False),
        (b"server a 1.1.1.1:1 enabled check disabled\n", True),
        (b'server a 1.1.1.1:1 "disabled"\n', True),
        (b"server a 1.1.1.1:1 # disabled\n", False),
        (b"server a 1.1.1.1:1 cookie disabled\n", False),
        (b"server a 1.1.1.1:1 cookie cookie disabled\n", True),
        (b"server disabled 1.1.1.1:1\n", False),
        (b"server a disabled\n", False),
        (b"server-template a 3 db1.example.com:1 disabled\n", True),
        (b"server a 1.1.1.1:1 track disabled/disabled disabled\n", True),
        (b"server a 1.1.1.1:1 check\\ disabled\n", False),
    ],
)
def test_disabled(text: bytes, disabled: bool) -> None:
    assert line_of(text).disabled is disabled


def test_servers_are_those_of_listen_and_backend() -> None:
    content = b"""
server a 1.1.1.1:1
global
 server b 1.1.1.1:1
peers p
 server c 1.1.1.1:1
"listen" "w"
 server d 1.1.1.1:1
.if defined(X)
 server e 1.1.1.1:1
.endif
frontend f
 server g 1.1.1.1:1
backend r from base
 server h 1.1.1.1:1
 server-template t 3 db.example.com:5432
ring r
 server i 1.1.1.1:1
 listen x
 server j 1.1.1.1:1
"""
    found = [(line.proxy, line.name, line.template) for line in server_lines(content)]
    assert found == [
        ("w", "d", False),
        ("w", "e", False),
        ("r", "h", False),
        ("r", "t", True),
        ("x", "j", False),
    ]


@pytest.mark.parametrize("text", [b"server a\n", b"server\n", b"server-template a 3\n"])
def test_a_server_whose_address_is_missing_is_none(text: bytes) -> None:
    assert server_lines(PROXY + text) == []


def test_a_default_server_line_disables_until_a_server_says_otherwise() -> None:
    content = b"""
listen a
 server x 1.1.1.1:1
 default-server inter 1s disabled
 server y 1.1.1.1:1
 server z 1.1.1.1:1 enabled
 default-server enabled
 server v 1.1.1.1:1
listen b
 server w 1.1.1.1:1
defaults
 default-server disabled
listen c
 server u 1.1.1.1:1
"""
    found = {line.name: (line.disabled, line.inherits) for line in server_lines(content)}
    assert found == {
        "x": (False, False),
        "y": (True, True),
        "z": (False, False),
        "v": (False, False),
        "w": (False, False),
        "u": (True, True),
    }


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b" server a 1.1.1.1:1\n", b" server a 1.1.1.1:1 disabled\n"),
        (b" server a 1.1.1.1:1 check  # why\n", b" server a 1.1.1.1:1 check disabled  # why\n"),
        (b" server a 1.1.1.1:1 check#why\n", b" server a 1.1.1.1:1 check disabled#why\n"),
        (b"\tserver\ta\t1.1.1.1:1\tcheck\t\r\n", b"\tserver\ta\t1.1.1.1:1\tcheck disabled\t\r\n"),
        (b' server a "${HOST}":1 # "\n', b' server a "${HOST}":1 disabled # "\n'),
        (b" server a 1.1.1.1:1 cookie disabled\n", b" server a 1.1.1.1:1 cookie disabled disabled\n"),
        (b" server a 1.1.1.1:1 source 'a # b'\n", b" server a 1.1.1.1:1 source 'a # b' disabled\n"),
        (b" server a 1.1.1.1:1 check\\ \n", b" server a 1.1.1.1:1 check\\  disabled\n"),
        (b" server a 1.1.1.1:1 check\\\n", b" server a 1.1.1.1:1 check\\\tdisabled\n"),
        (b" server a 1.1.1.1:1 check\\\tx\\\\\n", b" server a 1.1.1.1:1 check\\\tx\\\\\tdisabled\n"),
    ],
)
def test_on_and_off_again(before: bytes, after: bytes) -> None:
    assert edited(PROXY + before, {2: True}) == PROXY + after
    assert edited(PROXY + after, {2: True}) == PROXY + after
    assert edited(PROXY + after, {2: False}) == PROXY + before


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"server a 1.1.1.1:1 disabled check\n", b"server a 1.1.1.1:1 check\n"),
        (b"server a 1.1.1.1:1 disabled\tcheck  disabled # d\n", b"server a 1.1.1.1:1\tcheck # d\n"),
        (b'server a 1.1.1.1:1 "disabled"\n', b"server a 1.1.1.1:1\n"),
        (b"server a disabled disabled\n", b"server a disabled\n"),
        (b"server disabled 1.1.1.1:1 cookie disabled disabled\n", b"server disabled 1.1.1.1:1 cookie disabled\n"),
    ],
)
def test_words_of_other_hands_are_taken_off(before: bytes, after: bytes) -> None:
    assert edited(PROXY + before, {2: False}) == PROXY + after


def test_lines_that_are_no_server_lines_are_never_touched() -> None:
    content = PROXY + b"server-template a 3 1.1.1.1:1\n# server b 1.1.1.1:1\n default-server disabled\n"
    content += b"server c 1.1.1.1:1 cookie # its value is missing\nserver d 1.1.1.1:1 track\n"
    assert edited(content, dict.fromkeys(range(1, 8), True)) == content
    assert edited(content, dict.fromkeys(range(1, 8), False)) == content


M7 = b"# efm-lb: writes follow timeline 7"
M8 = b"# efm-lb: writes follow timeline 8"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b" server a 1.1.1.1:1\n", b" server a 1.1.1.1:1 %b\n" % M8),
        (b" server a 1.1.1.1:1", b" server a 1.1.1.1:1 %b" % M8),
        (b" server a 1.1.1.1:1 \t\r\n", b" server a 1.1.1.1:1 \t %b\r\n" % M8),
        (b" server a 1.1.1.1:1  # why\n", b" server a 1.1.1.1:1  # why %b\n" % M8),
        (b" server a 1.1.1.1:1#why\n", b" server a 1.1.1.1:1#why %b\n" % M8),
        # A space would be a part of the word before it.
        (b" server a 1.1.1.1:1 check\\\n", b" server a 1.1.1.1:1 check\\\t%b\n" % M8),
        (b" server a 1.1.1.1:1 'x #'\n", b" server a 1.1.1.1:1 'x #' %b\n" % M8),
    ],
)
def test_a_mark_is_put_behind_all_else_and_taken_away_again(before: bytes, after: bytes) -> None:
    assert edited(PROXY + before, {}, {2: 8}) == PROXY + after
    assert edited(PROXY + after, {}, {2: 8}) == PROXY + after
    assert edited(PROXY + after, {}, {2: None}) == PROXY + before
    assert edited(PROXY + before, {}, {2: None}) == PROXY + before
    assert marked(PROXY + after, ["w"]) == [(2, 8)]
    assert marked(PROXY + before, ["w"]) == []


@pytest.mark.parametrize(
    ("before", "marked_8", "unmarked"),
    [
        (b"server a 1.1.1.1:1 %b\n" % M7, b"server a 1.1.1.1:1 %b\n" % M8, b"server a 1.1.1.1:1\n"),
        (b"server a 1.1.1.1:1%b\n" % M7, b"server a 1.1.1.1:1%b\n" % M8, b"server a 1.1.1.1:1\n"),
        (b"server a 1.1.1.1:1 x\\ %b\n" % M7, b"server a 1.1.1.1:1 x\\ %b\n" % M8, b"server a 1.1.1.1:1 x\\ \n"),
        (b"server a 1.1.1.1:1 #y %b \r\n" % M7, b"server a 1.1.1.1:1 #y %b \r\n" % M8, b"server a 1.1.1.1:1 #y \r\n"),
        # What somebody has written behind it stays, and stays a comment.
        (b"server a 1.1.1.1:1 %b Bob\n" % M7, b"server a 1.1.1.1:1 %b Bob\n" % M8, b"server a 1.1.1.1:1 # Bob\n"),
        (b"server a 1.1.1.1:1 %b %b\n" % (M8, M7), b"server a 1.1.1.1:1 %b\n" % M8, b"server a 1.1.1.1:1\n"),
        (b"server a 1.1.1.1:1 %b B %b\n" % (M7, M7), b"server a 1.1.1.1:1 # B %b\n" % M8, b"server a 1.1.1.1:1 # B\n"),
    ],
)  # fmt: skip
def test_a_mark_is_replaced_and_there_is_never_a_second_one(before: bytes, marked_8: bytes, unmarked: bytes) -> None:
    assert edited(PROXY + before, {}, {2: 8}) == PROXY + marked_8
    assert edited(PROXY + before, {}, {2: None}) == PROXY + unmarked
    assert edited(PROXY + before, {}, {1: 8}) == PROXY + before


@pytest.mark.parametrize(
    "text",
    [
        b"server a 1.1.1.1:1 '%b'\n" % M7,
        b"server a 1.1.1.1:1 # efm-lb: writes follow timeline\n",
        b"server a 1.1.1.1:1 %b%b\n" % (M7, b"9" * 10),
        b"# server a 1.1.1.1:1 %b\n" % M7,
        b"bind :5000 %b\n" % M7,
        b"server-template a 3 1.1.1.1:1 %b\n" % M7,
        b"listen other\nserver a 1.1.1.1:1 %b\n" % M7,
        b"peers w\nserver a 1.1.1.1:1 %b\n" % M7,
    ],
)
def test_what_only_looks_like_a_mark(text: bytes) -> None:
    assert marked(PROXY + text, ["w"]) == []
    assert edited(PROXY + text, {}, {2: None}) == PROXY + text


def test_on_and_off_again_beside_a_mark() -> None:
    line = b" server a 1.1.1.1:1 check%b # why %b\n"
    assert (
        edited(PROXY + line % (b"", M7), {2: True}, {2: None}) == PROXY + b" server a 1.1.1.1:1 check disabled # why\n"
    )
    assert edited(PROXY + line % (b" disabled", M7), {2: False}, {2: 8}) == PROXY + line % (b"", M8)
    assert edited(PROXY + line % (b"", M7), {2: True}) == PROXY + line % (b" disabled", M7)


OURS = re.compile(rb"# efm-lb: writes follow timeline [0-9]{1,10}(?![0-9])")
"""A mark, found in another way than the editor finds it."""
BLANK = st.sampled_from([b" ", b"\t", b"  ", b" \t "])
OPTION = st.sampled_from(
    [
        b"check",
        b"disabled",
        b"enabled",
        b"backup",
        b"cookie disabled",
        b'"a b"',
        b"'#'",
        b"\\#",
        b"inter 3s",
        b"#",
        b'"${A}"',
    ]
)
SERVER = st.builds(
    lambda head, options, gap, end: (
        gap + b"server n%d 10.0.0.%d:5444" % (head, head) + b"".join(gap + o for o in options) + end
    ),
    st.integers(1, 9),
    st.lists(OPTION, max_size=5),
    BLANK,
    st.sampled_from(
        [b"", b" ", b"\r", b" # disabled", b"#x", b" " + M7, b"%b Bob%b\r" % (M7, M8), b" # " + M8 + b"12345678901"]
    ),
)
OTHER = st.one_of(
    st.sampled_from(
        [b"listen w", b"backend r", b"defaults", b"global", b".if defined(A)", b".endif", b"", b"\tbalance leastconn"]
    ),
    st.binary(max_size=20).map(lambda text: text.replace(b"\n", b"")),
)
FILE = st.lists(st.one_of(SERVER, OTHER), max_size=20).map(lambda found: b"listen w\n" + b"\n".join(found) + b"\n")


@given(FILE, st.dictionaries(st.integers(1, 22), st.booleans()))
@example(CONFIG.encode(), {5: True, 6: False})
def test_only_wanted_server_lines_change_and_only_by_that_word(content: bytes, wanted: dict[int, bool]) -> None:
    after = edited(content, wanted)
    servers = {line.number for line in lines(content) if line.keyword == b"server"}
    assert content.count(b"\n") == after.count(b"\n")
    for number, (old, new) in enumerate(zip(content.split(b"\n"), after.split(b"\n"), strict=True), start=1):
        if number not in wanted or number not in servers:
            assert old == new
        else:
            assert [value for value in values(old) if value not in (b"disabled", b"enabled")] == [
                value for value in values(new) if value not in (b"disabled", b"enabled")
            ]
    assert edited(after, wanted) == after, "twice is once"


def bare(line: bytes) -> bytes:
    """A line without its marks, and without what may be left of one: blanks, and the signs of comments."""
    return OURS.sub(b"", line).translate(None, b"# \t\r") if OURS.search(line) else line


@given(
    FILE,
    st.dictionaries(st.integers(1, 22), st.booleans()),
    st.dictionaries(st.integers(1, 22), st.none() | st.integers(1, 2**32 - 1)),
)
def test_a_mark_changes_nothing_but_marks(
    content: bytes, wanted: dict[int, bool], timelines: dict[int, int | None]
) -> None:
    without, after = edited(content, wanted), edited(content, wanted, timelines)
    assert [line[:-1] for line in lines(after)] == [line[:-1] for line in lines(without)]
    assert [line.values for line in lines(after)] == [line.values for line in lines(without)], "haproxy reads the same"
    servers = {line.number for line in lines(content) if line.keyword == b"server"}
    for number, (old, new) in enumerate(zip(without.split(b"\n"), after.split(b"\n"), strict=True), start=1):
        if number not in timelines or number not in servers:
            assert old == new
        elif old != new:
            marked_one = old if OURS.search(old) else new
            other = new if marked_one is old else old
            assert bare(marked_one) == (bare(other) if OURS.search(other) else other.translate(None, b"# \t\r"))
    told = dict(marked(after, ["w", "r"]))
    for line in server_lines(after):
        if line.number in timelines and not line.template:
            assert told.get(line.number) == timelines[line.number]
    assert edited(after, wanted, timelines) == after, "twice is once"
    again = edited(edited(after, {}, dict.fromkeys(timelines, 5)), {}, timelines)
    assert again == after or None in timelines.values(), "a mark in place of a mark is the same file"


@given(FILE, st.dictionaries(st.integers(1, 22), st.integers(1, 2**32 - 1)))
def test_a_mark_taken_away_again_is_the_same_file(content: bytes, timelines: dict[int, int]) -> None:
    assume(not OURS.search(content))
    assert edited(edited(content, {}, timelines), {}, dict.fromkeys(timelines)) == content


@given(FILE, st.dictionaries(st.integers(1, 22), st.booleans()))
def test_what_is_wanted_is_what_the_file_then_says(content: bytes, wanted: dict[int, bool]) -> None:
    after = {line.number: line for line in server_lines(edited(content, wanted))}
    before = {line.number: line for line in server_lines(content)}
    assert after.keys() == before.keys()
    for number, line in after.items():
        if number in wanted and not line.inherits:
            assert line.disabled is wanted[number]
        if number not in wanted:
            assert line == before[number]


@given(FILE)
def test_back_again_is_the_same_file(content: bytes) -> None:
    ready = [line.number for line in server_lines(content) if not line.disabled and b"disabled" not in content]
    out = edited(content, dict.fromkeys(ready, True))
    assert edited(out, dict.fromkeys(ready, False)) == content
    back_in = edited(out, dict.fromkeys(ready, False))
    assert edited(back_in, dict.fromkeys(ready, True)) == out


@given(st.binary(max_size=200), st.dictionaries(st.integers(1, 9), st.booleans()))
def test_no_file_is_too_strange(content: bytes, wanted: dict[int, bool]) -> None:
    server_lines(content)
    edited(content, wanted, {number: 8 if place else None for number, place in wanted.items()})
