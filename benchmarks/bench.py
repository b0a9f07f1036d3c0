"""efm-lb and what is done today side by side, in turns on one cluster of real servers: ``make bench``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median

from estates import Estates
from poolers import Poolers
from pools import Pools
from proxies import Proxies
from rich import box
from rich.console import Console
from rich.table import Table
from rows import Row
from services import REST, Services

from efm_lb.errors import EfmLbError
from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.report import plain_console

PARTS = {
    Pools: ("switchover", "failover", "attach_standby", "hung_pgpool", "frozen_primary", "start_up"),
    Poolers: ("pgbouncer_switchover", "pgbouncer_crash", "pgbouncer_frozen"),
    Proxies: ("haproxy_switch", "haproxy_old_sessions"),
    Estates: ("over_ssh", "twenty_balancers"),
    Services: ("reconcile_lost_call", "reconcile_return", "reconcile_at_rest"),
}
"""What can be measured, by the class that does."""
EPILOG = f"""\
EFM_LB_BENCH_REST in the environment: seconds that reconcile_at_rest looks at a service with nothing to do (default:
{REST:g}). The slope of its memory means something after 600 or more.
"""
NAMES = [name for names in PARTS.values() for name in names]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG)
    parser.add_argument("--runs", type=int, default=5, help="runs of each arm (default: 5)")
    parser.add_argument("--only", action="append", choices=NAMES, help="measure this part; may be given more than once")
    parser.add_argument("--json", metavar="FILE", help="write all raw runs to FILE")
    options = parser.parse_args(argv)
    console = plain_console(120)
    say = Console(stderr=True, highlight=False)
    say.print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}: the higher the load, the longer all times")
    rows: list[Row] = []
    try:
        with Cluster.start(durable=True) as cluster:
            for kind, names in PARTS.items():
                bench = kind(cluster, options.runs, lambda text: say.print(f"  {text}"))
                for name in names:
                    if not options.only or name in options.only:
                        say.print(name)
                        rows += getattr(bench, name)()
    except EfmLbError as error:
        say.print(str(error))
        return error.exit_code
    tell(console, rows)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump([{**asdict(row), "ratio": row.ratio} for row in rows], file, indent=2)
    return 1 if any(row.reached is False for row in rows) else 0


def tell(console: Console, rows: Sequence[Row]) -> None:
    """The medians as a table, and all raw runs below."""
    table = Table(box=box.SIMPLE)
    table.add_column("median of")
    for heading in ("today", "efm-lb", "ratio"):
        table.add_column(heading, justify="right")
    table.add_column("target")
    table.add_column("")
    for row in rows:
        verdict = {True: "[green]reached[/]", False: "[bold red]missed[/]", None: ""}[row.reached]
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        table.add_row(row.what, _middle(row, row.today), _middle(row, row.efm_lb), ratio, row.target, verdict)
    console.print(table)
    console.print("raw runs:")
    for row in rows:
        console.print(f"  {row.what}")
        for arm, values in (("today", row.today), ("efm-lb", row.efm_lb)):
            if values:
                console.print(f"    {arm:7} {' '.join(_text(row, value) for value in values)}", soft_wrap=True)
        for note in row.notes:
            console.print(f"    note    {note}", soft_wrap=True, markup=False)


def _middle(row: Row, values: Sequence[float]) -> str:
    return f"{_text(row, median(values))} {row.unit}".strip() if values else "-"


def _text(row: Row, value: float) -> str:
    return f"{value:.3f}" if row.unit == "s" else f"{value:.1f}" if row.unit == "M" else f"{value:g}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
