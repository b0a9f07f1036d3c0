"""A rehearsal told to a person, while it goes on."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from efm_lb.rehearsal.efm import Step
from efm_lb.rehearsal.play import Play
from efm_lb.rehearsal.results import BalancerResult, RehearsalResult, ScenarioResult
from efm_lb.rehearsal.scenarios import Scenario

__all__ = ["Report", "plain_console"]

_TITLES = {
    Scenario.CONSISTENT: "consistent: the state before testing",
    Scenario.SWITCHOVER: "switchover: efm promote -switchover",
    Scenario.FAILOVER: "failover: the primary crashes",
    Scenario.REJOIN: "rejoin: the crashed primary comes back as a standby",
    Scenario.STANDBY_STOP: "standby-stop: a standby is stopped",
    Scenario.STANDBY_START: "standby-start: the stopped standby comes back",
}
_WIDTH = 100
"""Columns of what is no terminal, and what the tables need to be aligned with each other."""
_FIRST_COLUMN = 26
_AT_ONCE = 0.5
"""Seconds that a look at a balancer may take, so that it was right when the last hook had ended."""
_TEXTS = 3
"""How many kinds of errors are shown of each balancer's writer."""


def plain_console(width: int = _WIDTH) -> Console:
    """The standard output: with colours on a terminal, plain and at least ``width`` columns when it is piped."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, width)
    return console


_PREFIX = re.compile(r'^connection to server at "[^"]*", port \d+ failed: ((FATAL|ERROR): *)?')
"""What libpq puts before the words of a server that has refused a session."""


class Report:
    """Prints each step once it is over, each scenario, and a summary."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began: float | None = None

    def set_up(self, play: Play, seconds: float) -> None:
        """The servers are running."""
        self._line(f"{'nodes':6} PostgreSQL on {', '.join(node.address for node in play.cluster.nodes)}")
        for front in play.fronts:
            self._line(f"{front.balancer.name:6} {front.balancer.place}")
        each = f"1 writer and {len(play.fronts[0].clients.readers)} readers through each"
        self._line(f"{each}; all set up in {seconds:.1f} s")

    def scenario_begins(self, scenario: Scenario) -> None:
        """EFM's first step follows."""
        self._began = None
        self._console.print()
        self._console.rule(f"[bold]{escape(_TITLES[scenario])}", align="left", characters="-")

    def step(self, step: Step) -> None:
        """One of EFM's steps is over."""
        if self._began is None:
            self._began = step.started
        at = f"{step.started - self._began:7.3f} s"
        if not step.runs:
            self._line(f"{at}  {escape(step.what)}  [dim]({step.seconds:.3f} s)[/]")
            return
        for run in step.runs:
            code = "killed, it did not end" if run.exit_code is None else f"exit {run.exit_code}"
            colour = "green" if run.exit_code == 0 else "red"
            self._line(f"{at}  [bold]hook: {escape(step.what)}[/]  [{colour}]{code}[/] in {run.seconds:.3f} s")
            for line in run.output.splitlines():
                self._console.print(Padding(f"[dim]{escape(line)}[/]", (0, 0, 0, 13), expand=False))

    def scenario_ends(self, result: ScenarioResult) -> None:
        """The scenario has been judged."""
        self._console.print()
        self._line(f"databases: {', '.join(f'{name} {role}' for name, role in result.roles.items())}")
        for balancer in result.balancers:
            self._console.print(_states(balancer, self._table))
        self._console.print()
        self._console.print(_suffered(result, self._table))
        for balancer in result.balancers:
            self._remarks(balancer)

    def summary(self, result: RehearsalResult) -> None:
        """All scenarios in one table."""
        table = self._table(f"order of the calls: {result.order.value}")
        for heading in ("", ""):
            table.add_column(heading)
        for heading in ("write gap", "errors", "cut", "lost", "hook"):
            table.add_column(heading, justify="right")
        table.add_column("exit codes")
        for scenario in result.scenarios:
            codes = " ".join("-" if code is None else str(code) for code in scenario.exit_codes)
            begin, end = scenario.scenario.value, (f"{scenario.hook_seconds:.2f} s", codes)
            for balancer in scenario.balancers:
                seen, rows = balancer.writing, balancer.accounts
                table.add_row(
                    begin,
                    balancer.name,
                    _verdict(balancer),
                    f"{seen.longest_gap:.2f} s",
                    str(seen.refused + seen.errors),
                    str(seen.cuts),
                    str(rows.lost + rows.lost_to_replication),
                    *end,
                )
                begin, end = "", ("", "")
        self._console.print()
        self._console.print(table)

    def kept(self, play: Play, stop: Path) -> None:
        """The servers stay; say how to get at them and how to stop them."""
        directory = play.cluster.stage.directory
        self._line("The servers keep running.")
        for node in play.cluster.nodes:
            self._line(f'  {f"node {node.number + 1}:":16} psql "host={node.host} port={node.port} user=postgres"')
        for front in play.fronts:
            for what, command in front.balancer.doors.items():
                self._line(f"  {f'{front.balancer.name} {what}:':16} {command}")
        self._line(f"  {'hook:':16} efm-lb status --env-file {directory}/host1.env")
        self._line(f"  {'logs:':16} {directory}/*.log")
        self._line(f"  {'stop all of it:':16} sh {stop}")

    def _remarks(self, balancer: BalancerResult) -> None:
        """What does not fit into the table."""
        name = escape(balancer.name)
        for text, count in list(balancer.writing.texts.items())[:_TEXTS]:
            self._line(f"{name}: [dim]{count} x {escape(_PREFIX.sub('', text))}[/]")
        if rows := balancer.accounts.lost_to_replication:
            self._line(f"{name}: {rows} rows died with the old primary: replication is asynchronous")
        if not balancer.writing.recovered:
            self._line(f"{name}: [bold red]the writer has not recovered[/]")
        if balancer.settled >= _AT_ONCE and not balancer.wrong and not balancer.owed:
            self._line(f"{name}: right {balancer.settled:.1f} s after the last hook had ended")
        for owed in balancer.owed:
            self._line(f"{name}: [yellow]OWED[/] until the lost call was made by hand: {escape(owed)}")
        for wrong in balancer.wrong:
            self._line(f"{name}: [bold red]WRONG[/]: {escape(wrong)}")
        if balancer.accounts.lost or balancer.accounts.doubled:
            self._line(f"{name}: [bold red]WRONG[/]: rows were lost, or are there twice")

    def _table(self, first: str) -> Table:
        """A table without lines, aligned with the others where there is room for that: no column may be cut off."""
        is_narrow = self._console.width < _WIDTH
        table = Table(box=None, pad_edge=False, collapse_padding=is_narrow, header_style="bold")
        table.add_column(first, min_width=None if is_narrow else _FIRST_COLUMN)
        return table

    def _line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)


def _states(result: BalancerResult, make: Callable[[str], Table]) -> Table:
    """What a balancer showed before and after."""
    table = make(f"{result.name}: {result.after.title}")
    for heading in result.after.columns:
        table.add_column(heading, min_width=18)
    for before, after in zip(result.before.rows, result.after.rows, strict=True):
        cells = (
            new if old == new else f"{old} -> [bold]{new}[/]" for old, new in zip(before[1:], after[1:], strict=True)
        )
        table.add_row(f"  {after[0]}", *cells)
    return table


def _suffered(result: ScenarioResult, make: Callable[[str], Table]) -> Table:
    """What the clients of each balancer saw."""
    table = make("clients of")
    table.add_column("")
    for heading in ("write gap", "errors", "cut", "rows", "lost", "twice", "read gap", "errors", "cut"):
        table.add_column(heading, justify="right")
    for balancer in result.balancers:
        writing, reading, rows = balancer.writing, balancer.reading, balancer.accounts
        table.add_row(
            f"  {balancer.name}",
            _verdict(balancer),
            f"{writing.longest_gap:.3f} s",
            str(writing.refused + writing.errors),
            str(writing.cuts),
            *(str(rows.acknowledged), str(rows.lost), str(rows.doubled)),
            f"{reading.longest_gap:.3f} s",
            str(reading.refused + reading.errors),
            str(reading.cuts),
        )
    return table


def _verdict(result: BalancerResult) -> str:
    return "[green]RIGHT[/]" if result.right else "[bold red]WRONG[/]"
