"""``efm-lb adapters``: which adapters are installed, by whom, and whether they can be used."""

from __future__ import annotations

import json

from efm_lb.commands.tables import print_table
from efm_lb.config.adapters import ask
from efm_lb.errors import EX_OK, EX_UNAVAILABLE
from efm_lb.plugins import discover

__all__ = ["adapters"]

SCHEMA = "efm-lb/adapters/v1"


def adapters(as_json: bool) -> int:
    """Print the installed adapters; each is imported and asked for its schema.

    :return: 0, or 69 when one of them cannot be used
    """
    installed = discover()
    failures = {name: description.failure for name, description in ask(installed.sources.values()).items()}
    if as_json:
        document = {
            "schema": SCHEMA,
            "adapters": [
                {
                    "name": source.name,
                    "distribution": source.distribution,
                    "version": source.version,
                    "module": source.module,
                    "failure": failures[source.name] or None,
                }
                for source in installed.sources.values()
            ],
            "conflicts": dict(installed.conflicts),
        }
        print(json.dumps(document, indent=2))
    else:
        rows = [
            [source.name, source.distribution, source.version, failures[source.name] or "usable"]
            for source in installed.sources.values()
        ]
        rows += [[name, "", "", reason] for name, reason in installed.conflicts.items()]
        print_table(["adapter", "distribution", "version", ""], rows)
    return EX_UNAVAILABLE if installed.conflicts or any(failures.values()) else EX_OK
