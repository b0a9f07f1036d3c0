"""The command line for people. Script hooks take another way (see `efm_lb.__main__`)."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from efm_lb import __version__
from efm_lb.commands.options import Cluster, EnvFile, Json, wants_json
from efm_lb.errors import EX_OK, EX_SOFTWARE, CallError, EfmLbError, printable, unforeseen
from efm_lb.failure import as_document
from efm_lb.settings import settings_of

__all__ = ["app", "run"]

HOOKS = "Script hooks of EFM"
_READER_GONE = 141
"""The exit code that a shell reports of a program that SIGPIPE has ended."""


class _Group(TyperGroup):
    """Ends with the message and the exit code of an `EfmLbError` instead of a traceback; with ``--json``, in JSON."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EfmLbError as error:
            with suppress(OSError):
                if wants_json(ctx):
                    typer.echo(as_document(error.exit_code, error.messages))
            with suppress(OSError):
                for message in error.messages:
                    typer.echo(f"efm-lb: {message}", err=True)
            raise typer.Exit(error.exit_code) from None


app = typer.Typer(
    name="efm-lb",
    context_settings={"help_option_names": ["-h", "--help"]},
    cls=_Group,
    no_args_is_help=True,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
)
Host = Annotated[str, typer.Argument(help="The node, as EFM passes it in %h (or %p).", metavar="HOST")]
Type = Annotated[
    str, typer.Argument(help="p or s (also m, primary, master, standby); nothing: ask the database.", metavar="TYPE")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and touch nothing.")]
config = typer.Typer(no_args_is_help=True, help="The settings of a cluster.")
app.add_typer(config, name="config")
maintenance = typer.Typer(no_args_is_help=True, help="Nodes and balancers that are left alone for a time.")
app.add_typer(maintenance, name="maintenance")
Name = Annotated[str, typer.Argument(help="A node or a balancer.", metavar="NAME")]
history = typer.Typer(
    invoke_without_command=True, help="The calls of this host: what was decided, and what came of it."
)
app.add_typer(history, name="history")


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """One EDB Failover Manager hook for every load balancer."""
    if version:
        typer.echo(f"efm-lb {__version__}")
        raise typer.Exit


@app.command("attach", rich_help_panel=HOOKS)
def attach(
    host: Host,
    type: Type = "",
    cluster: Cluster = "efm",
    env_file: EnvFile = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """script.load.balancer.attach: a node came up, or was promoted."""
    _hook("attach", host, type, cluster, env_file, json, dry_run)


@app.command("detach", rich_help_panel=HOOKS)
def detach(
    host: Host,
    type: Type = "",
    cluster: Cluster = "efm",
    env_file: EnvFile = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """script.load.balancer.detach: a node went down, or is about to be stopped."""
    _hook("detach", host, type, cluster, env_file, json, dry_run)


@app.command("promote", rich_help_panel=HOOKS)
def promote(
    host: Host,
    cluster: Cluster = "efm",
    env_file: EnvFile = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """script.post.promotion: a node was promoted."""
    _hook("promote", host, "", cluster, env_file, json, dry_run)


def _hook(kind: str, host: str, type: str, cluster: str, env_file: str | None, json: bool, dry_run: bool) -> None:
    """A hook run comes here only when the program is not started as `efm_lb.__main__` starts it."""
    from efm_lb import hook

    options = [f"--cluster={cluster}", *([f"--env-file={env_file}"] if env_file else [])]
    flags = [*(["--json"] if json else []), *(["--dry-run"] if dry_run else [])]
    raise typer.Exit(hook.main([kind, host, *([type] if type else []), *options, *flags]))


@app.command("apply")
def apply(cluster: Cluster = "efm", env_file: EnvFile = None) -> None:
    """Do what a hook on another host asks on standard input: the forced command of HOST_SSH."""
    from efm_lb.remote.apply import main

    raise typer.Exit(main([f"--cluster={cluster}", *([f"--env-file={env_file}"] if env_file else [])]))


@app.command("status")
def status(cluster: Cluster = "efm", env_file: EnvFile = None, json: Json = False) -> None:
    """What each database says and what each balancer believes, side by side."""
    from efm_lb.commands.status import status

    raise typer.Exit(status(settings_of(cluster, env_file, os.environ)[0], json))


@app.command("plan")
def plan(cluster: Cluster = "efm", env_file: EnvFile = None, json: Json = False) -> None:
    """What would bring every balancer in line with the databases; nothing is done."""
    from efm_lb.commands.plan import plan

    raise typer.Exit(plan(settings_of(cluster, env_file, os.environ)[0], json))


@app.command("reconcile")
def reconcile(
    watch: Annotated[bool, typer.Option("--watch", help="Go on until it is told to end: a service.")] = False,
    custom_monitor: Annotated[
        bool, typer.Option("--custom-monitor", help="For script.custom.monitor of EFM: the exit code is always 0.")
    ] = False,
    cluster: Cluster = "efm",
    env_file: EnvFile = None,
    json: Json = False,
) -> None:
    """Bring every balancer in line with the databases, without a call."""
    from efm_lb.reconcile.service import main

    given = {"--watch": watch, "--custom-monitor": custom_monitor, "--json": json}
    flags = [flag for flag, is_given in given.items() if is_given]
    raise typer.Exit(main([*flags, f"--cluster={cluster}", *([f"--env-file={env_file}"] if env_file else [])]))


@app.command("check")
def check(
    cluster: Cluster = "efm",
    env_file: EnvFile = None,
    json: Json = False,
    properties: Annotated[
        str | None,
        typer.Option(
            "--efm-properties",
            metavar="FILE",
            help="EFM's own settings, such as /etc/edb/efm-5.4/efm.properties: are they right for these hooks?",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Look for what will go wrong on the day: settings, files, logins, balancers; nothing is changed."""
    from efm_lb.commands.check import check

    raise typer.Exit(check(settings_of(cluster, env_file, os.environ)[0], json, properties))


@history.callback()
def history_list(
    context: typer.Context,
    cluster: Cluster = "efm",
    env_file: EnvFile = None,
    json: Json = False,
    since: Annotated[
        str,
        typer.Option(
            "--since",
            metavar="TIME",
            help="Such as 30m, 2h, 2d or 2026-11-03T02:30; no limit then.",
            show_default=False,
        ),
    ] = "",
    node: Annotated[
        str, typer.Option("--node", metavar="HOST", help="Only calls about this node.", show_default=False)
    ] = "",
    balancer: Annotated[
        str,
        typer.Option("--balancer", metavar="NAME", help="Only calls that it was told about.", show_default=False),
    ] = "",
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=0, help="How many calls; 0 for all. What fits on a screen when left out."),
    ] = None,
) -> None:
    """The calls of this host, newest last: what EFM said, what was decided and why, and what came of it."""
    if context.invoked_subcommand:
        if (cluster, env_file, json, since, node, balancer, limit) != ("efm", None, False, "", "", "", None):
            raise CallError(f"write the options behind the word {context.invoked_subcommand}")
        return
    from efm_lb.commands.history import history

    settings, _ = settings_of(cluster, env_file, os.environ)
    raise typer.Exit(history(settings, since, node, balancer, limit, json))


@history.command("show")
def history_show(
    call: Annotated[str, typer.Argument(help="Its name, as much of it as no other call has.", metavar="ID")] = "last",
    cluster: Cluster = "efm",
    env_file: EnvFile = None,
    json: Json = False,
) -> None:
    """One call from beginning to end, and what to do now."""
    from efm_lb.commands.explain import explain

    options = [*(["--cluster", cluster] if cluster != "efm" else []), *(["--env-file", env_file] if env_file else [])]
    raise typer.Exit(explain(settings_of(cluster, env_file, os.environ)[0], call, options, json))


@app.command("rehearse")
def rehearse(
    scenario: Annotated[
        list[str] | None,
        typer.Option(
            "--scenario",
            help="consistent, switchover, failover, rejoin, standby-stop or standby-start. May be repeated; all of"
            " them when left out.",
            show_default=False,
        ),
    ] = None,
    order: Annotated[
        str,
        typer.Option(
            "--order",
            help="How EFM calls: documented, detach-after-stop, missing-detach, missing-attach, duplicate, two-hosts or"
            " missing-type.",
        ),
    ] = "documented",
    balancers: Annotated[
        str,
        typer.Option(
            "--balancers",
            help="Any of pgpool, haproxy and pgbouncer, with commas between; all that are installed when left out.",
            metavar="NAMES",
            show_default=False,
        ),
    ] = "",
    keep: Annotated[bool, typer.Option("--keep", help="Leave the servers running, and say how to stop them.")] = False,
    json: Json = False,
) -> None:
    """Play a switchover, a failover and more on a throwaway cluster with the servers found on this machine."""
    from efm_lb.rehearsal import rehearse

    names = [name.strip() for name in balancers.split(",")] if balancers else []
    raise typer.Exit(rehearse(scenario or (), order, names, keep, json))


@maintenance.command("set")
def maintenance_set(
    name: Name,
    span: Annotated[str, typer.Option("--for", help="How long, such as 30m, 2h or 1d.", metavar="TIME")] = "4h",
    reason: Annotated[str, typer.Option("--reason", help="Why, for those who look.")] = "",
    cluster: Cluster = "efm",
    env_file: EnvFile = None,
) -> None:
    """Leave it alone: nothing but a promotion changes it, and a detach of the node."""
    from efm_lb.commands.maintenance import set_

    raise typer.Exit(set_(settings_of(cluster, env_file, os.environ)[0], name, span, reason))


@maintenance.command("clear")
def maintenance_clear(name: Name, cluster: Cluster = "efm", env_file: EnvFile = None) -> None:
    """Stop leaving it alone."""
    from efm_lb.commands.maintenance import clear

    raise typer.Exit(clear(settings_of(cluster, env_file, os.environ)[0], name))


@maintenance.command("list")
def maintenance_list(cluster: Cluster = "efm", env_file: EnvFile = None, json: Json = False) -> None:
    """What is left alone, until when, and why."""
    from efm_lb.commands.maintenance import show

    raise typer.Exit(show(settings_of(cluster, env_file, os.environ)[0], json))


@config.command("show")
def config_show(cluster: Cluster = "efm", env_file: EnvFile = None, json: Json = False) -> None:
    """Print every setting in force and where it was set."""
    from efm_lb.commands.config import show

    raise typer.Exit(show(cluster, env_file, os.environ, json))


@config.command("schema")
def config_schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="The reference of all variables as tables.")] = False,
) -> None:
    """Print one JSON Schema of all settings, those of the installed adapters included."""
    from efm_lb.commands.config import schema

    raise typer.Exit(schema(markdown))


@app.command("adapters")
def adapters(json: Json = False) -> None:
    """List the installed adapters, where they come from, and whether they can be used."""
    from efm_lb.commands.adapters import adapters

    raise typer.Exit(adapters(json))


def run() -> NoReturn:
    """Run the command line and end the process.

    A bug, or an output that cannot be written, ends it with one line and 70. A reader that went away ends it without a
    word and with 141, as it ends other programs.
    """
    # None when the caller has closed it.
    sys.stdout = stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    code, problem = _ending()
    try:
        stdout.flush()
    except BrokenPipeError:
        code, problem = _READER_GONE, ""
    except OSError as error:
        code, problem = EX_SOFTWARE, f"the output cannot be written: {error.strerror}"
    if problem:
        with suppress(OSError):
            os.write(2, f"efm-lb: {printable(problem)}\n".encode("utf-8", "backslashreplace"))
    # At once: Python's own end would fail once more over what cannot be written, and make an exit code of that.
    os._exit(code)


def _ending() -> tuple[int, str]:
    """Run the command line: the exit code, and what there is to say about it."""
    try:
        app()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # of which typer and rich make a 1
            return _READER_GONE, ""
        return end.code if isinstance(end.code, int) else EX_SOFTWARE, ""
    except BrokenPipeError:
        return _READER_GONE, ""
    except OSError as error:
        return EX_SOFTWARE, str(error)
    except Exception as error:
        return unforeseen(error)
    return EX_OK, ""
