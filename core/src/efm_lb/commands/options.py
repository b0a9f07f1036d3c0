"""The options that the commands share, so that they read the same everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Cluster", "EnvFile", "Json", "wants_json"]

_WANTED = "efm_lb.json"


def _note(context: typer.Context, value: bool) -> bool:
    context.meta[_WANTED] = value
    return value


def wants_json(context: typer.Context) -> bool:
    """Whether the command that ran, or was about to, was given ``--json``."""
    return bool(context.meta.get(_WANTED))


Cluster = Annotated[str, typer.Option("--cluster", metavar="NAME", help="The EFM cluster's name.")]
EnvFile = Annotated[
    str | None,
    typer.Option(
        "--env-file",
        metavar="FILE",
        help="The cluster's settings; else EFM_LB_ENV_FILE, else /etc/efm-lb/NAME.env.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of text.", callback=_note)]
