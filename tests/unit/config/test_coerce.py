"""Texts to the types that a schema asks for, and back."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from efm_lb.config.coerce import SCALARS, coerce, text_of

VALUES = {
    "integer": st.integers(-(10**18), 10**18),
    "number": st.floats(allow_nan=False, allow_infinity=False),
    "boolean": st.booleans(),
    "string": st.text(),
}
WORDS = st.text(st.characters(exclude_characters=","), min_size=1).filter(lambda text: text == text.strip())


@st.composite
def valued(draw: st.DrawFn) -> tuple[dict[str, Any], Any]:
    """A schema, and a value of it."""
    kind = draw(st.sampled_from(SCALARS))
    if draw(st.booleans()):
        return {"type": kind}, draw(VALUES[kind])
    items = WORDS if kind == "string" else VALUES[kind]
    return {"type": "array", "items": {"type": kind}}, draw(st.lists(items, min_size=1))


@given(valued())
def test_what_is_written_is_read(pair: tuple[dict[str, Any], Any]) -> None:
    schema, value = pair
    assert coerce(text_of(value), schema) == value


@given(st.text(), valued())
def test_what_comes_out_is_of_the_type(text: str, pair: tuple[dict[str, Any], Any]) -> None:
    schema, _ = pair
    with contextlib.suppress(ValueError):
        Draft202012Validator(schema).validate(coerce(text, schema))


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("007", "integer", 7),
        ("-1", "integer", -1),
        ("+1", "integer", 1),
        (".5", "number", 0.5),
        ("1e3", "number", 1000.0),
        ("TRUE", "boolean", True),
        ("off", "boolean", False),
        ("1", "boolean", True),
        ("1", "string", "1"),
        (" a ", "string", " a "),
    ],
)
def test_spellings(text: str, kind: str, value: object) -> None:
    assert coerce(text, {"type": kind}) == value


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("1.0", "integer"),
        ("1_0", "integer"),
        ("٣", "integer"),
        ("", "integer"),
        ("9" * 5000, "integer"),
        ("nan", "number"),
        ("inf", "number"),
        ("1e999", "number"),
        ("1_0", "number"),
        ("2", "boolean"),
        ("", "boolean"),
        ("a,", "array"),
    ],
)
def test_refused(text: str, kind: str) -> None:
    with pytest.raises(ValueError, match=r"is not|is neither|is empty"):
        coerce(text, {"type": kind})


def test_an_array_without_items_is_of_strings() -> None:
    assert coerce("1, b", {"type": "array"}) == ["1", "b"]
