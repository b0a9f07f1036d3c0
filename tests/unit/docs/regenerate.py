"""Write what is generated in docs anew; run it after a change of the settings or of the documents for other hosts."""

from __future__ import annotations

import json
from pathlib import Path

from efm_lb.config.schema import composed, markdown
from efm_lb.configuration import AdapterSource
from efm_lb.plugins import Installed
from efm_lb.remote.schemas import ANSWER, READY, REQUEST

DOCS = Path(__file__).parents[3] / "docs"
SCHEMAS = {
    "apply-ready.schema.json": READY,
    "apply-request.schema.json": REQUEST,
    "apply-answer.schema.json": ANSWER,
}
PAGE = DOCS / "settings.md"
BEGIN = "### Cluster\n"
_NAMES = ("haproxy", "pgbouncer", "pgpool")
FIRST_PARTY = {name: AdapterSource(name, f"efm_lb_{name}.adapter", "", "efm-lb", "") for name in _NAMES}


def tables() -> str:
    """What ``efm-lb config schema --markdown`` prints where only efm-lb's own adapters are installed."""
    return markdown(composed(Installed(FIRST_PARTY, {}, {}))).rstrip() + "\n"


def schema_text(name: str) -> str:
    """A schema as it is published."""
    return json.dumps(SCHEMAS[name], indent=2) + "\n"


if __name__ == "__main__":
    for name in SCHEMAS:
        (DOCS / name).write_text(schema_text(name))
    PAGE.write_text(PAGE.read_text().partition(BEGIN)[0] + tables())
