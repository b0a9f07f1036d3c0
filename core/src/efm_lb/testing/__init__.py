"""For authors of adapters: what every adapter must do, as a test class to inherit.

Needs pytest and jsonschema; nothing of efm-lb imports it at run time.
"""

from __future__ import annotations

from efm_lb.testing.conformance import BANNED_IMPORTS, AdapterConformance

__all__ = ["BANNED_IMPORTS", "AdapterConformance"]
