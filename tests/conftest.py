"""For all tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# Property tests judge what is right, not how long it takes on a busy machine.
settings.register_profile("efm-lb", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("efm-lb")


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """A run of a hook ends by ignoring signals, which every process that a later test starts would inherit."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
