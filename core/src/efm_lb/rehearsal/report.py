"""A rehearsal told to a person, while it goes on."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from efm_lb.rehearsal.clients import Experience
from efm_lb.rehearsal.efm import Step
from efm_lb.rehearsal.play import Play
from efm_lb.rehearsal.results import RehearsalResult, ScenarioResult
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
_NARROWEST = 120


def plain_console() -> Console:
    """The standard output: with colours on a terminal, plain and wide enough for the tables when it is piped."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _NARROWEST)
    return console


class Report:
    """Prints each step once it is over, each scenario, and a summary."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = 0.0

    def set_up(self, play: Play, seconds: float) -> None:
        """The servers are running."""
        nodes = ", ".join(node.address for node in play.cluster.nodes)
        self._line(f"PostgreSQL on {nodes}")
        self._line(f"pgpool on {play.pool.host}:{play.pool.port}, PCP on port {play.pool.pcp_port}")
        self._line(f"1 writer, {len(play.clients.readers)} readers; all set up in {seconds:.1f} s")

    def scenario_begins(self, scenario: Scenario, moment: float) -> None:
        """EFM's first step follows; ``moment`` is by ``time.monotonic()``."""
        self._began = moment
        self._console.print()
        self._console.rule(f"[bold]{escape(_TITLES[scenario])}", align="left", characters="-")

    def step(self, step: Step) -> None:
        """One of EFM's steps is over."""
        at = f"{step.started - self._began:7.3f} s"
        if not step.runs:
            self._line(f"{at}  {escape(step.what)}  [dim]({step.seconds:.3f} s)[/]")
            return
        for run in step.runs:
            code = "killed, it did not end" if run.exit_code is None else f"exit {run.exit_code}"
            colour = "green" if run.exit_code == 0 else "red"
            self._line(f"{at}  [bold]hook: {escape(step.what)}[/]  [{colour}]{code}[/] in {run.seconds:.3f} s")
            for line in run.output.splitlines():
                self._line(f"             [dim]| {escape(line)}[/]")

    def scenario_ends(self, result: ScenarioResult) -> None:
        """The scenario has been judged."""
        self._console.print(_pool_nodes(result))
        self._line(f"writer:  {_suffered(result.writing)}")
        self._line(f"readers: {_suffered(result.reading)}")
        self._line(_rows(result))
        for text, count in list(result.writing.texts.items())[:4]:
            self._line(f"         [dim]{count} x {escape(text)}[/]")
        for owed in result.owed:
            self._line(f"[yellow]OWED[/], until the lost calls were made by hand: {escape(owed)}")
        if result.right:
            self._line(f"[green]RIGHT[/]: {_when(result.settled)}; writes arrive at the real primary")
        for wrong in result.wrong:
            self._line(f"[bold red]WRONG[/]: {escape(wrong)}")
        if result.accounts.lost or result.accounts.doubled:
            self._line("[bold red]WRONG[/]: rows were lost or doubled, see above")

    def summary(self, result: RehearsalResult) -> None:
        """All scenarios in one table."""
        table = Table(box=box.SIMPLE, title=f"order of the calls: {result.order.value}", title_justify="left")
        table.add_column("scenario")
        table.add_column("pgpool is")
        for heading in ("longest gap in writes", "writer's sessions cut", "rows lost", "hook's time"):
            table.add_column(heading, justify="right")
        table.add_column("exit codes")
        for scenario in result.scenarios:
            table.add_row(
                scenario.scenario.value,
                "[green]RIGHT[/]" if scenario.right else "[bold red]WRONG[/]",
                f"{scenario.writing.longest_gap:.2f} s",
                str(scenario.writing.cuts),
                str(scenario.accounts.lost + scenario.accounts.lost_to_replication),
                f"{scenario.hook_seconds:.2f} s",
                " ".join("-" if code is None else str(code) for code in scenario.exit_codes),
            )
        self._console.print()
        self._console.print(table)

    def kept(self, play: Play, stop: Path) -> None:
        """The servers stay; say how to get at them and how to stop them."""
        directory = play.cluster.stage.directory
        pool = play.pool
        self._line("The servers keep running.")
        self._line(f'  through pgpool:  psql "host={pool.host} port={pool.port} user=postgres dbname=postgres"')
        for node in play.cluster.nodes:
            self._line(f'  node {node.number + 1}:          psql "host={node.host} port={node.port} user=postgres"')
        pcp = f"pcp_node_info -h {pool.host} -p {pool.pcp_port} -U {pool.pcp_user} -w"
        self._line(f"  PCP:             PCPPASSFILE={pool.pcp_passfile} {pcp}")
        self._line(f"  hook:            efm-lb status --env-file {directory}/host1.env")
        self._line(f"  logs:            {directory}/*.log")
        self._line(f"  stop everything: sh {stop}")

    def _line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)


def _pool_nodes(result: ScenarioResult) -> Table:
    table = Table(box=box.SIMPLE, title="show pool_nodes, before -> after", title_justify="left")
    for heading in ("node_id", "hostname", "port", "status", "role", "the database is"):
        table.add_column(heading)
    for before, after, role in zip(result.before, result.after, result.roles, strict=True):
        table.add_row(
            after["node_id"],
            after["hostname"],
            after["port"],
            _change(before["status"], after["status"]),
            _change(before["role"], after["role"]),
            role,
        )
    return table


def _change(before: str, after: str) -> str:
    return after if before == after else f"{before} -> [bold]{after}[/]"


def _suffered(seen: Experience) -> str:
    parts = [f"longest gap {seen.longest_gap:.3f} s", f"{seen.cuts} sessions cut"]
    if seen.refused:
        parts.append(f"{seen.refused} connections refused")
    if seen.errors:
        parts.append(f"{seen.errors} statements failed")
    if not seen.recovered:
        parts.append("[bold red]not recovered[/]")
    return ", ".join(parts)


def _rows(result: ScenarioResult) -> str:
    rows = result.accounts
    text = f"rows:    {rows.acknowledged} acknowledged so far, {rows.lost} lost, {rows.doubled} doubled"
    if rows.lost_to_replication:
        text += f" ({rows.lost_to_replication} more died with the old primary: replication is asynchronous)"
    return text


def _when(settled: float) -> str:
    return "when the last hook had ended" if settled < 0.1 else f"{settled:.1f} s after the last hook had ended"
