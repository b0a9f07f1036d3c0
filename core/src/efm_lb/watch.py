"""Wait for a promotion: see it when it happens, whatever EFM calls and when."""

from __future__ import annotations

import time
from collections.abc import Iterable
from threading import Event, Thread
from typing import TYPE_CHECKING

from efm_lb.connection import ConnectionFailed, StatementFailed, library
from efm_lb.handover import Kept

if TYPE_CHECKING:
    from efm_lb.connection import Connection
    from efm_lb.probe import Probe
    from efm_lb.truth import Node

__all__ = ["wait_for_primary"]

POLL = 0.01
"""Seconds between two questions on one connection."""
RETRY = 0.5
"""Seconds between two connections to a node that takes none."""
DENIED_RETRY = 5.0
"""The same for a node that denies the login: each one is a line in its log, and waiting heals none."""

# Classes of SQLSTATEs: the login is refused (28), there is no such database (3D), a right is missing (42).
_DENIED = ("28", "3D", "42")

_IN_RECOVERY = b"SELECT pg_catalog.pg_is_in_recovery() AS recovering"


def wait_for_primary(nodes: Iterable[Node], probe: Probe, until: float) -> bool:
    """Wait until one of ``nodes`` says that it is out of recovery.

    Each is asked on one connection that stays open, for a promotion cuts no session: the answer costs a round trip,
    and no login.

    :param probe: knows how to log in, and gets the connections, for the questions that come next
    :param until: when to give up, by ``time.monotonic()``
    :return: one is; whether it is the only one is for the truth to say
    :raises libpq.LibpqNotFoundError: this host has no libpq
    """
    library()  # before there are threads: it changes the environment
    found, over = Event(), Event()
    for node in nodes:
        kept = Kept()
        Thread(target=_watch, args=(node, probe, found, over, kept), name=node.name, daemon=True).start()
        probe.kept[node] = kept
    try:
        return found.wait(max(0.0, until - time.monotonic()))
    finally:
        over.set()


def _watch(node: Node, probe: Probe, found: Event, over: Event, kept: Kept) -> None:
    connection: Connection | None = None
    try:
        while not over.is_set():
            try:
                connection = connection or probe.connect(node, time.monotonic() + probe.timeout)
                rows = connection.query(_IN_RECOVERY, time.monotonic() + probe.timeout).rows
                if [row.get("recovering") for row in rows] == ["f"]:
                    found.set()
                    break
                over.wait(POLL)
            except (ConnectionFailed, StatementFailed) as failure:
                if connection:
                    connection.close()
                connection = None
                over.wait(DENIED_RETRY if _is_denied(failure) else RETRY)
    finally:
        kept.give(connection)


def _is_denied(failure: ConnectionFailed | StatementFailed) -> bool:
    """The server has said that this user may not ask. Not that it starts up, or has no connection left."""
    needs_password = isinstance(failure, ConnectionFailed) and failure.needs_password
    return needs_password or any(state.startswith(_DENIED) for state in failure.sqlstates)
