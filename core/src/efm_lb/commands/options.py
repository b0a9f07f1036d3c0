"""The options that the commands share, so that they read the same everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Cluster", "EnvFile", "Json"]

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
Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")]
