"""What an adapter's schema may be, and how it is closed."""

from __future__ import annotations

import time
from typing import Any

import pytest

from efm_lb.config.adapters import BadSchemaError, Problem, closed, logins, read
from efm_lb.plugins import describe, discover
from unit.config.fakes import ADAPTER, Install


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ([], "of type list, not a mapping"),
        ({"type": "array"}, "of type 'array', not 'object'"),
        ({"properties": {"a": {"type": "intger"}}}, "not valid: 'intger' is not valid under any of the given schemas"),
        ({"properties": {"a": {"type": "object"}}}, "property 'a' needs a type"),
        ({"properties": {"a": {"type": ["string", "null"]}}}, "property 'a' needs a type"),
        ({"properties": {"a": {"type": "array", "items": {"type": "array"}}}}, "property 'a' needs a type"),
        ({"properties": {"a": True}}, "property 'a' needs a type"),
        ({"properties": {"A": {"type": "string"}}}, "'A' cannot be the end of a variable's name"),
        ({"properties": {"a__b": {"type": "string"}}}, "'a__b' cannot be the end of a variable's name"),
        ({"properties": {"a-b": {"type": "string"}}}, "'a-b' cannot be the end of a variable's name"),
        ({"properties": {"adapter": {"type": "string"}}}, "'adapter' cannot be the end of a variable's name"),
        ({"properties": {"a": {"type": "integer", "default": "1"}}}, "default of the schema's property 'a' is not"),
        ({"x-identity": "a"}, "x-identity is not a list of lists of settings"),
        ({"x-identity": ["a"]}, "x-identity is not a list of lists of settings"),
        ({"x-identity": [["a"]]}, "x-identity has 'a', which is not among its properties"),
        ({"x-disjoint": ["a"]}, "x-disjoint is not a list of lists of settings"),
        ({"x-disjoint": [["a"]]}, "x-disjoint has 'a', which is not among its properties"),
        ({"properties": {"a": {"type": "string", "x-login": ["user"]}}}, "x-login of the schema's property 'a' is no"),
        (
            {"properties": {"a": {"type": "string", "x-login": {"port": 1}}}},
            "x-login of the schema's property 'a' is no",
        ),
        ({"properties": {"a": {"type": "string", "x-login": {"b": None}}}}, "has 'b', which is no text of its"),
        ({"required": ["a"]}, "requires 'a', which is not among its properties"),
        ({"properties": {"a": {"type": "string", "x": object()}}}, "not JSON"),
        ({"properties": {"a": {"type": "number", "default": float("nan")}}}, "not JSON"),
    ],
)
def test_schemas_that_cannot_be_used(schema: Any, message: str) -> None:
    with pytest.raises(BadSchemaError) as caught:
        closed(schema)
    assert message in str(caught.value)


def test_it_is_closed_whatever_it_says_itself() -> None:
    given = {"properties": {"a": {"type": "string"}}, "additionalProperties": True}
    assert closed(given)["additionalProperties"] is False
    assert given["additionalProperties"] is True


def test_what_every_event_logs_in_to() -> None:
    own = {"dbname": "pgbouncer", "passfile": None}
    schema = closed(
        {
            "properties": {
                "admin": {"type": "array", "x-login": own},
                "passfile": {"type": "string"},
                "host": {"type": "string"},
            }
        }
    )
    settings = {"admin": ["host=a", "host=b"], "host": "c"}
    assert logins(settings, schema) == [("host=a", {"dbname": "pgbouncer"}), ("host=b", {"dbname": "pgbouncer"})]
    keywords = {"dbname": "pgbouncer", "passfile": "/p"}
    assert logins({"admin": ["host=a"], "passfile": "/p"}, schema) == [("host=a", keywords)]
    assert logins({"host": "c"}, schema) == []


def test_defaults_are_copies() -> None:
    schema = closed({"properties": {"a": {"type": "array", "default": ["x"]}}})
    one, _ = read({}, schema)
    one["a"].append("y")
    assert read({}, schema) == ({"a": ["x"]}, [])


def test_a_default_satisfies_required() -> None:
    schema = closed({"properties": {"a": {"type": "string", "default": "x"}}, "required": ["a"]})
    assert read({}, schema) == ({"a": "x"}, [])


def test_references_within_the_schema() -> None:
    schema = closed(
        {
            "$defs": {"port": {"maximum": 65535}},
            "properties": {"port": {"type": "integer", "$ref": "#/$defs/port"}},
        }
    )
    assert read({"port": "1"}, schema) == ({"port": 1}, [])
    assert read({"port": "70000"}, schema)[1] == [Problem("port", "70000 is greater than the maximum of 65535")]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"pattern": "^/"}, "'x y' is not an absolute path"),
        ({"pattern": "^[a-z]+$", "x-expected": "a word"}, "'x y' is not a word"),
        ({"pattern": "^[a-z]+$"}, "'x y' does not match '^[a-z]+$'"),
    ],
)
def test_a_pattern_in_words(setting: dict[str, str], message: str) -> None:
    schema = closed(
        {
            "properties": {
                "a": {"type": "string", **setting},
                "b": {"type": "array", "items": {"type": "string", **setting}},
            }
        }
    )
    assert read({"a": "x y"}, schema)[1] == [Problem("a", message)]
    assert read({"b": "x y"}, schema)[1] == [Problem("b", message)]


def test_a_problem_of_several_settings_waits_until_each_is_right() -> None:
    schema = closed(
        {
            "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
            "dependentRequired": {"a": ["b"]},
        }
    )
    assert read({"a": "x"}, schema)[1] == [Problem("a", "'x' is not an integer")]
    assert read({"a": "1"}, schema)[1] == [Problem("b", "missing, but needed with A")]


@pytest.mark.parametrize(
    "source",
    [
        "import time; time.sleep(3)",
        """
        import time
        from efm_lb import hookimpl

        @hookimpl
        def efm_lb_settings_schema():
            time.sleep(3)
        """,
    ],
)
def test_an_adapter_that_hangs_is_left_behind(install: Install, source: str) -> None:
    names = [f"slow{number}" for number in range(20)]
    for name in names:
        install(f"acme-{name}", {name: f"acme_{name}"}, **{f"acme_{name}": source})
    install("acme-fake", {"fake": "acme_fake"}, acme_fake=ADAPTER)
    sources = [discover().sources[name] for name in [*names, "fake"]]
    started = time.monotonic()
    *late, fake = describe(sources, patience=0.5).values()
    assert time.monotonic() - started < 2.5, "all are asked at once"
    assert {(each.schema, each.failure) for each in late} == {(None, "it did not tell its settings within 0.5 s")}
    assert fake.schema is not None
