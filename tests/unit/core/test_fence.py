"""The mark itself; what the adapters make of it is tested with them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efm_lb import Node, PermanentError, demand_not_older, timeline_mark, timeline_marks

NODE = Node("db1", "10.0.0.1", 5444)
WORDS = b"# efm-lb: writes follow timeline "


def found(content: bytes, *span: int) -> list[tuple[int, int, int]]:
    return [(mark.start, mark.end, mark.timeline) for mark in timeline_marks(b"#", content, *span)]


@pytest.mark.parametrize(
    ("content", "marks"),
    [
        (WORDS + b"7", [(0, 34, 7)]),
        (b"x" + WORDS + b"07 # it", [(1, 36, 7)]),
        (WORDS + b"1" + WORDS + b"22", [(0, 34, 1), (34, 69, 22)]),
        (WORDS, []),
        (WORDS + b"x", []),
        (WORDS + b"-1", []),
        (WORDS + "²".encode(), []),
        (WORDS + b"1" * 11, []),
        (WORDS.replace(b"#", b";") + b"7", []),
        (WORDS.upper() + b"7", []),
        (b"", []),
    ],
)
def test_marks(content: bytes, marks: list[tuple[int, int, int]]) -> None:
    assert found(content) == marks


@given(st.binary(max_size=20), st.integers(0, 2**32 - 1), st.binary(max_size=20))
def test_what_is_written_is_found(before: bytes, timeline: int, after: bytes) -> None:
    mark = timeline_mark(b"#", timeline)
    content = before + mark + b" " + after
    assert found(content, len(before), len(content) - len(after)) == [(len(before), len(before) + len(mark), timeline)]
    assert found(content, len(before) + 1, len(content) - len(after)) == []
    assert found(content, len(before), len(before) + len(WORDS)) == []


def test_the_newest_mark_is_named_and_every_file_that_has_a_newer_one() -> None:
    marks = [("/a b", 3, 7), ("/c", 1, 6), ("/d", 9, 8), ("/d", 10, 7), ("/e", 1, 5)]
    with pytest.raises(PermanentError) as caught:
        demand_not_older(NODE, 6, marks, ["sed", "-i", "s/x y//"])
    assert str(caught.value).startswith("/d:9: writes follow timeline 8, and 10.0.0.1:5444 is on timeline 6: ")
    assert str(caught.value).endswith(", remove the mark, and call again: sed -i 's/x y//' '/a b' /d")
    demand_not_older(NODE, 8, marks, [])
    demand_not_older(NODE, 1, [], [])
