"""For all tests: property tests judge what is right, not how long it takes on a busy machine."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("efm-lb", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("efm-lb")
