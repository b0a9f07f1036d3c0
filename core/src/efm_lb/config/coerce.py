"""Texts to the types that a JSON Schema asks for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["SCALARS", "coerce", "text_of"]

SCALARS = ("integer", "number", "boolean", "string")
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}", re.ASCII)
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)


def coerce(text: str, schema: Mapping[str, Any]) -> Any:
    """The value that ``text`` means where ``schema`` is asked for.

    :param schema: its ``type`` is one of `SCALARS`, or ``array`` of these: a comma list
    :raises ValueError: the text is no such value
    """
    kind = schema["type"]
    if kind == "array":
        items = [item.strip() for item in text.split(",")]
        if "" in items:
            raise ValueError("an entry between the commas is empty")
        return [coerce(item, schema.get("items", {"type": "string"})) for item in items]
    if kind == "integer":
        if not _INTEGER.fullmatch(text):
            raise ValueError(f"{text!r} is not an integer")
        return int(text)
    if kind == "number":
        if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
            raise ValueError(f"{text!r} is not a number")
        return float(text)
    if kind == "boolean":
        if text.lower() not in _BOOLEANS:
            raise ValueError(f"{text!r} is neither true nor false")
        return _BOOLEANS[text.lower()]
    return text


def text_of(value: Any) -> str:
    """A value as it is written into an env file: the inverse of `coerce`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(map(text_of, value))
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)
