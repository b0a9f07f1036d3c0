"""One stand for all tests that leave it right; a new one after a test that did not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from faults.network.stand import Stand, open_stand


class _Standing:
    def __init__(self) -> None:
        self.undo = ExitStack()
        self.stand: Stand | None = None

    def close(self) -> None:
        self.undo.close()
        self.stand = None


@pytest.fixture(scope="module")
def standing() -> Iterator[_Standing]:
    standing = _Standing()
    yield standing
    standing.close()


@pytest.fixture
def stand(standing: _Standing) -> Stand:
    """Everything is right and streams; this process is on the observer's host."""
    if standing.stand and not standing.stand.is_right():
        standing.close()
    if not standing.stand:
        standing.stand = standing.undo.enter_context(open_stand())
    return standing.stand
