"""A user who may have no more threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from efm_lb import background

__all__ = ["none_left"]


@contextmanager
def none_left() -> Iterator[None]:
    """No `Background` begins while the block runs."""

    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(background, "start_new_thread", fail)
        yield
