"""The env file's assignments, each with its line."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import NamedTuple

from dotenv.parser import parse_stream

__all__ = ["Assignment", "parse"]


class Assignment(NamedTuple):
    """One line of an env file.

    :param line: counted from 1
    :param problem: empty, or what is wrong with the line; never quotes it, for it may hold a secret
    """

    name: str
    value: str
    line: int
    problem: str = ""


def parse(content: bytes) -> Iterator[Assignment]:
    """Read ``NAME=value`` lines as python-dotenv does: quotes, ``export`` and comments, nothing interpolated.

    :param content: UTF-8
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        yield Assignment("", "", content.count(b"\n", 0, error.start) + 1, "not UTF-8")
        text = content.decode(errors="replace")  # to find what else is wrong
    for binding in parse_stream(io.StringIO(text, newline="")):
        # The parser counts the empty lines before an assignment as the assignment's own.
        blank = len(binding.original.string) - len(binding.original.string.lstrip())
        line = binding.original.line + binding.original.string.count("\n", 0, blank)
        if binding.error:
            yield Assignment("", "", line, "expected NAME=value; is a quote left open?")
        elif binding.key is not None and "\0" in f"{binding.key}{binding.value}":
            yield Assignment("", "", line, "a NUL byte")
        elif binding.key is not None and binding.value is None:
            yield Assignment(binding.key, "", line, "no = after the name")
        elif binding.key is not None:
            yield Assignment(binding.key, binding.value or "", line)
