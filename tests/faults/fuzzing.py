"""Properties that are tried with random input: a little of it in ``make test``, much of it in ``make faults``."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

__all__ = ["SEED", "damaged", "fuzzed"]

FIXED = int(os.environ.get("EFM_LB_SEED", "1"))
"""Of ``make test``, whose input is the same everywhere."""
SEED = int(os.environ.get("EFM_LB_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
"""Of ``make faults``; the same gives the same input again."""


def fuzzed(
    few: int, many: int, *fixtures: str, **strategies: st.SearchStrategy[Any]
) -> Callable[[Callable[..., None]], Any]:
    """Make a test of a property: with ``few`` examples, and as a long one with ``many``.

    :param fixtures: what the property takes besides; not made anew for each example
    """

    def decorate(check: Callable[..., None]) -> Any:
        def test(examples: int, request: pytest.FixtureRequest) -> None:
            chosen = FIXED if examples == few else SEED
            print(f"EFM_LB_SEED={chosen}")
            request.getfixturevalue("tried")(examples)
            given_ones = {name: request.getfixturevalue(name) for name in fixtures}

            def holds(**drawn: Any) -> None:
                check(**given_ones, **drawn)

            seed(chosen)(settings(max_examples=examples, database=None)(given(**strategies)(holds)))()

        test.__name__ = check.__name__
        test.__doc__ = check.__doc__
        test.__module__ = check.__module__
        return pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.long)])(test)

    return decorate


_EDGES = [
    b"\0",
    b"\0\0\0\4",
    b"\0\0\0\0",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\xff",
    b"\x80\0\0\0",
    b"\n",
    b"\n\n",
    b"\r\n",
]
_EDGES += [
    b"'",
    b'"',
    b"\\",
    b"#",
    b"=",
    b"\xff",
    b"\xc2",
    b"\x1b[2J",
    b"9" * 30,
    b"9" * 5000,
    b"-1",
    b"%s",
    b"\t",
    b" ",
]


@st.composite
def damaged(draw: st.DrawFn, *originals: bytes) -> bytes:
    """One of these, with a few pieces removed, repeated, or replaced by others; or anything at all."""
    if not draw(st.integers(0, 9)):
        return draw(st.binary(max_size=300))
    content = draw(st.sampled_from(originals))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        end = min(len(content), at + draw(st.sampled_from([0, 1, 4, 20, len(content)])))
        repeated = content[at:end] * draw(st.integers(0, 3))
        piece = draw(st.one_of(st.just(repeated), st.sampled_from(_EDGES), st.binary(max_size=8)))
        content = content[:at] + piece + content[end:]
    return content
