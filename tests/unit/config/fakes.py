"""A fake adapter, the least settings that use it, and the types of the fixtures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from efm_lb.config import Loaded

ADAPTER = """
from efm_lb import hookimpl

SCHEMA = {
    "type": "object",
    "properties": {
        "host": {"type": "string", "description": "Where it listens."},
        "port": {"type": "integer", "minimum": 1, "maximum": 65535, "default": 9898},
        "ratio": {"type": "number"},
        "verbose": {"type": "boolean", "default": False},
        "write": {"type": "array", "items": {"type": "string"}},
        "tls": {"type": "boolean", "default": False},
        "cert": {"type": "string"},
    },
    "required": ["host"],
    "if": {"properties": {"tls": {"const": True}}},
    "then": {"required": ["cert"]},
}

@hookimpl
def efm_lb_settings_schema():
    return SCHEMA
"""

MINIMAL = """\
EFM_LB_NODES=10.0.0.11:5444,10.0.0.12:5444
EFM_LB_BALANCERS__POOL1__ADAPTER=fake
EFM_LB_BALANCERS__POOL1__HOST=10.0.0.9
"""

Install = Callable[..., Path]
Compose = Callable[..., Loaded]
Complain = Callable[..., list[str]]
