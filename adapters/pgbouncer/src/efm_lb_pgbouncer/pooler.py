"""One balancer's settings: the PgBouncer processes behind it, their file, and the entries."""

from __future__ import annotations

import os
from typing import NamedTuple, cast

from efm_lb import Balancer, PermanentError, read_file
from efm_lb_pgbouncer.console import Console
from efm_lb_pgbouncer.entries import EntryError, Location, entry_of, location_of, parse
from efm_lb_pgbouncer.targets import Policy

__all__ = ["HOLD", "KILL_AFTER", "NAME", "Pooler", "pooler_of"]

HOLD = 10.0
KILL_AFTER = 1.0
NAME = r"^[A-Za-z0-9_.-]+$"
"""A name that needs no quotes in the file, where releases do not agree on them."""


class Pooler(NamedTuple):
    """What the settings say.

    :param consoles: of every process; more than one where they share a port by so_reuseport
    :param config: the file that holds the entries
    :param hold: seconds that clients may be held, 0 for never
    :param kill_after: seconds that sessions on the old primary get to end by themselves
    """

    consoles: tuple[Console, ...]
    config: str
    write: tuple[str, ...]
    read: tuple[str, ...]
    policy: Policy
    hold: float
    kill_after: float
    connect_timeout: float

    @property
    def entries(self) -> tuple[str, ...]:
        return (*self.write, *self.read)

    @property
    def mark(self) -> str:
        """The file that is there while a pause of ours is, see `efm_lb_pgbouncer.mark`."""
        directory, name = os.path.split(os.path.realpath(self.config))
        return os.path.join(directory, f".{name}.held")

    def is_abandoned(self) -> bool:
        """Whether we paused an entry, and the process that would let go of it was killed."""
        if not os.path.lexists(self.mark):
            return False
        # It is hardly ever there.
        from efm_lb_pgbouncer.mark import is_abandoned

        return is_abandoned(self.mark)

    def content(self) -> bytes:
        """The file.

        :raises TemporaryError: it cannot be read
        :raises PermanentError: it is no regular file
        """
        return read_file(self.config)

    def locations(self, content: bytes) -> dict[str, Location]:
        """Where the entries lead to by the file.

        :raises PermanentError: an entry is missing, or PgBouncer would not take the file
        """
        try:
            parsed = parse(content)
            return {name: location_of(entry_of(name, parsed)) for name in self.entries}
        except EntryError as error:
            raise PermanentError(self.said(error)) from None

    def said(self, error: EntryError) -> str:
        place = f"{self.config}:{error.line}" if error.line else self.config
        return f"{place}: {error}"


def pooler_of(balancer: Balancer) -> Pooler:
    """Read a balancer's settings."""
    settings = balancer.settings
    passfile = str(settings.get("passfile", ""))
    return Pooler(
        tuple(Console(text, passfile, balancer.connect_timeout, balancer.login(text)) for text in settings["admin"]),
        str(settings["config"]),
        tuple(settings["write"]),
        tuple(settings.get("read", ())),
        cast(Policy, settings.get("read_includes_primary", "fallback")),
        float(settings.get("hold", HOLD)),
        float(settings.get("kill_after", KILL_AFTER)),
        balancer.connect_timeout,
    )
