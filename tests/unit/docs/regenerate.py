"""Write the generated part of docs/settings.md anew; run it after a change of the settings."""

from __future__ import annotations

from pathlib import Path

from efm_lb.config.schema import composed, markdown
from efm_lb.configuration import AdapterSource
from efm_lb.plugins import Installed

PAGE = Path(__file__).parents[3] / "docs/settings.md"
BEGIN = "### Cluster\n"
_NAMES = ("haproxy", "pgbouncer", "pgpool")
FIRST_PARTY = {name: AdapterSource(name, f"efm_lb_{name}.adapter", "", "efm-lb", "") for name in _NAMES}


def tables() -> str:
    """What ``efm-lb config schema --markdown`` prints where only efm-lb's own adapters are installed."""
    return markdown(composed(Installed(FIRST_PARTY, {}, {}))).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(PAGE.read_text().partition(BEGIN)[0] + tables())
