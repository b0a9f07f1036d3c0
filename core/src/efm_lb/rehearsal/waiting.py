"""Waiting for something to become true, never for longer than said."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["wait_until"]


def wait_until(condition: Callable[[], bool], timeout: float, interval: float = 0.01) -> bool:
    """Ask ``condition`` every ``interval`` seconds until it is true.

    :return: False when it was not true within ``timeout`` seconds
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(interval)
    return True
