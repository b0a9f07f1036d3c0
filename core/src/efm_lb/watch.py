"""Wait for a promotion: see it when it happens, whatever EFM calls and when."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from threading import Event, Thread

from efm_lb.connection import Connection, ConnectionFailed, StatementFailed, library
from efm_lb.truth import Node

__all__ = ["wait_for_primary"]

POLL = 0.02
"""Seconds between two questions on one connection."""
RETRY = 0.5
"""Seconds between two connections to a node that takes none."""
DENIED_RETRY = 5.0
"""The same for a node that denies the login: each one is a line in its log, and waiting heals none."""

# Classes of SQLSTATEs: the login is refused (28), there is no such database (3D), a right is missing (42).
_DENIED = ("28", "3D", "42")

_IN_RECOVERY = b"SELECT pg_catalog.pg_is_in_recovery() AS recovering"


def wait_for_primary(nodes: Iterable[Node], keywords: Mapping[str, str], timeout: float, until: float) -> bool:
    """Wait until one of ``nodes`` says that it is out of recovery.

    Each is asked on one connection that stays open, for a promotion cuts no session: the answer costs a round trip,
    and no login.

    :param keywords: libpq connection keywords
    :param timeout: seconds that a login or an answer may take
    :param until: when to give up, by ``time.monotonic()``
    :return: one is; whether it is the only one is for the truth to say
    :raises libpq.LibpqNotFoundError: this host has no libpq
    """
    library()  # before there are threads: it changes the environment
    found = Event()
    for node in nodes:
        given = {**keywords, "host": node.host, "port": str(node.port)}
        Thread(target=_watch, args=(given, timeout, until, found), name=node.name, daemon=True).start()
    return found.wait(max(0.0, until - time.monotonic()))


def _watch(keywords: Mapping[str, str], timeout: float, until: float, found: Event) -> None:
    while not found.is_set() and time.monotonic() < until:
        try:
            with Connection(keywords, time.monotonic() + timeout) as connection:
                while not found.is_set() and time.monotonic() < until:
                    rows = connection.query(_IN_RECOVERY, time.monotonic() + timeout).rows
                    if [row.get("recovering") for row in rows] == ["f"]:
                        found.set()
                        return
                    found.wait(POLL)
        except (ConnectionFailed, StatementFailed) as failure:
            found.wait(DENIED_RETRY if _is_denied(failure) else RETRY)


def _is_denied(failure: ConnectionFailed | StatementFailed) -> bool:
    """The server has said that this user may not ask. Not that it starts up, or has no connection left."""
    needs_password = isinstance(failure, ConnectionFailed) and failure.needs_password
    return needs_password or any(state.startswith(_DENIED) for state in failure.sqlstates)
