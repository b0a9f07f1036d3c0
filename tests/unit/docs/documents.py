"""The documents as the tests read them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["DOCS", "DOCUMENTS", "ROOT", "blocks", "outside_code", "read", "slug", "table"]

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted(ROOT.glob("adapters/*/README.md")),
    *sorted(ROOT.glob("examples/*/README.md")),
    *sorted(DOCS.glob("*.md")),
]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def read(name: str) -> str:
    return (ROOT / name).read_text()


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return [body for found, body in _FENCE.findall(text) if found == language]


def outside_code(text: str) -> str:
    return _FENCE.sub("", text)


def table(text: str, first: str) -> Iterator[tuple[str, ...]]:
    """The rows of the table whose first heading is ``first``, without the headings; several are joined."""
    inside = False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        cells = tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
        if cells[0] == first:
            inside = True
        elif inside and set(cells[0]) != {"-"}:
            yield cells


def slug(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")
