"""What pgpool says about one backend: the fields of PCP's node info, in every layout from 3.5 to 4.7.

The layout changed inside minor releases, and no message carries a version: the number of
fields is the only thing that tells them apart (pgpool's inform_node_info() in every release tag).
"""

from __future__ import annotations

from typing import NamedTuple

from efm_lb_pgpool.frames import FrameError

__all__ = ["LAYOUTS", "MAIN", "PRIMARY", "REPLICA", "STANDBY", "Backend", "parse"]

MAIN, REPLICA, PRIMARY, STANDBY = range(4)
"""Role numbers (libpcp_ext.h). Of a streaming replication cluster only the last two occur."""

_UNUSED, _WAITING, _UP, _DOWN = range(4)
_STATUS_NAMES = ("unused", "waiting", "up", "down")
_ROLE_NAMES = ("main", "replica", "primary", "standby")

_RAND_MAX = 2147483647
"""Weights are sent as normalised weight times RAND_MAX."""

_MAX_HOST = 256
"""MAX_DB_HOST_NAMELEN in pgpool."""

_ADDRESS = ("host", "port", "status")
LAYOUTS = {
    4: (*_ADDRESS, "weight"),  # 3.5, 3.6
    5: (*_ADDRESS, "weight", "role"),  # 3.7.0-3.7.22
    6: (*_ADDRESS, "quarantine", "weight", "role"),  # 3.7.23+
    7: (*_ADDRESS, "weight", "role", "delay", "changed"),  # 4.0.0-4.0.17
    8: (*_ADDRESS, "quarantine", "weight", "role", "delay", "changed"),  # 4.0.18+
    # 4.1.0-4.1.10, 4.2.0-4.2.7
    9: (*_ADDRESS, "weight", "role", "delay", "repl_state", "repl_sync", "changed"),
    # 4.1.11+, 4.2.8+
    10: (*_ADDRESS, "quarantine", "weight", "role", "delay", "repl_state", "repl_sync", "changed"),
    # 4.3.0
    11: (*_ADDRESS, "pg_status", "weight", "role", "pg_role", "delay", "repl_state", "repl_sync", "changed"),
    # 4.3.1+
    12: (
        *(*_ADDRESS, "quarantine", "pg_status", "weight", "role", "pg_role"),
        *("delay", "repl_state", "repl_sync", "changed"),
    ),
    # 4.4-4.7
    13: (
        *(*_ADDRESS, "quarantine", "pg_status", "weight", "role", "pg_role"),
        *("delay_is_time", "delay", "repl_state", "repl_sync", "changed"),
    ),
}
"""Field names by the number of fields after the code string."""


class Backend(NamedTuple):
    """One backend as pgpool believes it to be.

    :param id: pgpool's node id, the index in its configuration
    :param status: 0 unused, 1 waiting, 2 up, 3 down
    :param role: pgpool's belief, not the database's word; None before 3.7, which does not tell
    :param quarantined: down only until pgpool's own health check succeeds again
    :param weight: share of the reads, 0 to 1
    """

    id: int
    host: str
    port: int
    status: int
    role: int | None
    quarantined: bool = False
    weight: float = 0.0

    @property
    def attached(self) -> bool:
        """In rotation. "waiting" is in rotation too: it only means that no client has connected since."""
        return self.status in (_WAITING, _UP)

    @property
    def detached(self) -> bool:
        """Out of rotation for good. A quarantined backend comes back by itself."""
        return self.status == _UNUSED or (self.status == _DOWN and not self.quarantined)

    @property
    def is_primary(self) -> bool:
        """Whether pgpool calls it the primary, attached or not."""
        return self.role == PRIMARY

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def state(self) -> str:
        """In pgpool's words, such as ``up/primary``."""
        status = "quarantine" if self.quarantined else _name(_STATUS_NAMES, self.status)
        return status if self.role is None else f"{status}/{_name(_ROLE_NAMES, self.role)}"

    def __str__(self) -> str:
        return f"{self.id} ({self.address})"


def parse(node_id: int, values: list[str]) -> Backend:
    """Read one node info.

    :param node_id: the id that was asked for, or the place in a list of all: it is not among the fields
    :param values: the fields after the code string
    :raises FrameError: no known layout, or a number that is none
    """
    layout = LAYOUTS.get(len(values))
    if layout is None:
        raise FrameError(f"node info with {len(values)} fields, a layout of no pgpool from 3.5 to 4.7")
    named = dict(zip(layout, values, strict=True))
    if not named["host"].isprintable() or len(named["host"]) > _MAX_HOST:
        raise FrameError("node info with a host that is none")
    try:
        return Backend(
            id=node_id,
            host=named["host"],
            port=int(named["port"]),
            status=int(named["status"]),
            role=int(named["role"]) if "role" in named else None,
            quarantined=named.get("quarantine", "0") == "1",
            weight=float(named["weight"]) / _RAND_MAX,
        )
    except ValueError as error:
        raise FrameError(f"node info with a value that is no number: {error}") from None


def _name(names: tuple[str, ...], number: int) -> str:
    return names[number] if 0 <= number < len(names) else str(number)
