"""Whether a document conforms to one of `efm_lb.remote.schemas`, without the start-up cost of jsonschema.

It knows the keywords that those schemas use and no others. jsonschema says the same of every document, which the tests
prove, and is asked for the words once a document is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["conforms", "objection"]

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "null": (type(None),),
}


def conforms(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether ``value``, as `json` reads it, is what ``schema`` describes."""
    if "const" in schema:
        return _same(value, schema["const"])
    if "enum" in schema:
        return any(_same(value, allowed) for allowed in schema["enum"])
    if not _is_of_type(value, schema["type"]):
        return False
    if isinstance(value, dict):
        return _object_conforms(value, schema)
    if isinstance(value, list):
        return bool(len(value) <= schema["maxItems"]) and all(conforms(item, schema["items"]) for item in value)
    if isinstance(value, str):
        return bool(len(value) <= schema["maxLength"])
    return value is None or bool(schema["minimum"] <= value <= schema["maximum"])


def objection(value: Any, schema: Mapping[str, Any]) -> str:
    """What is wrong with a document that does not conform, in jsonschema's words, and where."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    error = best_match(Draft202012Validator(schema).iter_errors(value))
    if error is None:
        return ""
    message = error.message if len(error.message) < 200 else error.message[:200] + "..."
    return f"{error.json_path}: {message}"


def _object_conforms(value: Mapping[str, Any], schema: Mapping[str, Any]) -> bool:
    properties = schema["properties"]
    if len(value) < schema.get("minProperties", 0) or len(value) > schema.get("maxProperties", len(value)):
        return False
    if any(name not in value for name in schema.get("required", ())):
        return False
    return all(name in properties and conforms(item, properties[name]) for name, item in value.items())


def _is_of_type(value: Any, types: str | list[str]) -> bool:
    if isinstance(value, bool):
        return False  # to Python a bool is an int
    for name in [types] if isinstance(types, str) else types:
        if isinstance(value, _TYPES[name]):
            return True
        if name == "integer" and isinstance(value, float) and value.is_integer():
            return True  # to JSON 1.0 is an integer
    return False


def _same(value: Any, allowed: Any) -> bool:
    """Equal as JSON: to Python 1 is True."""
    return isinstance(value, bool) == isinstance(allowed, bool) and bool(value == allowed)
