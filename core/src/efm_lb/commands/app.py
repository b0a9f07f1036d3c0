"""The command line for people. Script hooks take another way (see `efm_lb.__main__`)."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from efm_lb.commands.options import Cluster, EnvFile, Json
from efm_lb.errors import EfmLbError

__all__ = ["app"]


class _Group(TyperGroup):
    """Ends with the message and the exit code of an `EfmLbError` instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EfmLbError as error:
            for message in error.messages:
                typer.echo(f"efm-lb: {message}", err=True)
            raise typer.Exit(error.exit_code) from None


app = typer.Typer(
    name="efm-lb",
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="One EDB Failover Manager hook for every load balancer.",
)
config = typer.Typer(no_args_is_help=True, help="The settings of a cluster.")
app.add_typer(config, name="config")


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
