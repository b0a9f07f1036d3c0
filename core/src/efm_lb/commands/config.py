"""``efm-lb config``: what the settings are, where they were set, and what they may be."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

from efm_lb import compiled
from efm_lb.commands.tables import print_table
from efm_lb.config import compose
from efm_lb.config.schema import composed, markdown
from efm_lb.config.secrets import masked
from efm_lb.errors import EX_OK, EX_UNAVAILABLE, printable
from efm_lb.plugins import discover
from efm_lb.sources import gather

__all__ = ["schema", "show"]

SCHEMA = "efm-lb/config/v1"


def show(cluster: str, env_file: str | None, environ: Mapping[str, str], as_json: bool) -> int:
    """Print every setting in force with its origin.

    :return: 0, or 69 when an adapter in use cannot be used
    :raises EfmLbError: the settings are wrong or cannot be read
    """
    sources = gather(cluster, env_file, environ)
    loaded = compose(sources)
    plan = compiled.load(sources)
    reason = plan.reason if isinstance(plan, compiled.Stale) else ""
    if as_json:
        document = {
            "schema": SCHEMA,
            "cluster": cluster,
            "env_file": None if sources.content is None else sources.env_file,
            "plan": {"path": sources.plan, "stale": reason or None},
            "settings": [
                {"name": value.name, "value": masked(value.name, value.text), "origin": value.origin}
                for value in loaded.values
            ],
            "failures": dict(loaded.failures),
        }
        print(json.dumps(document, indent=2))
    else:
        rows = [[value.name, masked(value.name, value.text), value.origin] for value in loaded.values]
        print_table(["variable", "value", "set in"], rows)
        print(f"\nThe compiled plan {'cannot be used: ' + reason if reason else f'{sources.plan} is fresh'}.")
    for name, failure in loaded.failures.items():
        print(f"efm-lb: adapter {name} cannot be used: {printable(failure)}", file=sys.stderr)
    return EX_UNAVAILABLE if loaded.failures else EX_OK


def schema(as_markdown: bool) -> int:
    """Print the JSON Schema of all settings, or the reference made from it.

    :return: 0
    """
    document = composed(discover())
    print(markdown(document) if as_markdown else json.dumps(document, indent=2))
    return EX_OK
