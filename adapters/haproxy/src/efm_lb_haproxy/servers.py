"""HAProxy's servers as it tells them: ``show servers state`` and ``show stat``, by the names of their columns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from efm_lb import Node

__all__ = ["FormatError", "Server", "node_of", "parse_sessions", "parse_state"]

_STARTING, _RUNNING = 1, 2
"""Warming up (``slowstart``) takes connections already, only fewer."""
_MAINT = 1 | 2 | 32
"""Forced maintenance, inherited from a tracked server, or because the name did not resolve. Not 4: `disabled` was in
the configuration, which stays set when the server was made ready since."""
_DRAIN = 8 | 16
_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_:.-")
"""What haproxy allows in a name. Names are sent back to it, and other letters have a meaning there."""


class FormatError(Exception):
    """The text is not what HAProxy answers."""


class Server(NamedTuple):
    """One server of a proxy, in the state that HAProxy has it in now.

    :param host: its address, a ``-`` when it has none (a Unix socket, a name that did not resolve)
    :param fqdn: the name that it was configured with, or ``-``
    :param operational: ``srv_op_state``: 0 stopped, 1 starting, 2 running, 3 stopping
    :param admin: the bits of ``srv_admin_state``
    :param sessions: open sessions
    :param weight: 0 when no new connection goes there, ready or not
    :param configured_weight: that of haproxy.cfg
    """

    proxy: str
    name: str
    host: str
    port: int
    fqdn: str
    operational: int
    admin: int
    sessions: int = 0
    weight: int = 1
    configured_weight: int = 1

    @property
    def ready(self) -> bool:
        """New connections go there, as long as it has a weight."""
        return self.operational in (_STARTING, _RUNNING) and not self.out

    @property
    def out(self) -> bool:
        """Taken out of rotation by somebody, as opposed to found down by a health check."""
        return bool(self.admin & (_MAINT | _DRAIN))

    @property
    def in_maintenance(self) -> bool:
        return bool(self.admin & _MAINT)

    @property
    def path(self) -> str:
        """As the runtime API calls it."""
        return f"{self.proxy}/{self.name}"

    @property
    def state(self) -> str:
        """In one word."""
        if self.in_maintenance:
            return "maint"
        if self.out:
            return "drain"
        return {0: "down", 3: "stopping"}.get(self.operational, "ready")

    def is_node(self, node: Node) -> bool:
        return node.is_at(self.host, self.port) or node.is_at(self.fqdn, self.port)

    def __str__(self) -> str:
        host = self.host if self.host != "-" else self.fqdn
        return f"{self.path} ({f'[{host}]' if ':' in host else host}:{self.port})"


def node_of(server: Server, nodes: Iterable[Node]) -> Node | None:
    """The node that ``server`` is: by address and port, never by its name."""
    return next((node for node in nodes if server.is_node(node)), None)


def parse_state(text: str) -> tuple[Server, ...]:
    """Read the answer to ``show servers state <proxy>``.

    :raises FormatError: it is something else, or of a version other than 1
    """
    version, _, rest = text.partition("\n")
    header, _, rest = rest.partition("\n")
    if version != "1" or not header.startswith("# "):
        raise FormatError("no server state of version 1")
    names = header[2:].split(" ")
    rows = (dict(zip(names, line.split(" "), strict=False)) for line in rest.splitlines() if line)
    return tuple([_server(row) for row in rows])


def _server(row: dict[str, str]) -> Server:
    try:
        if not (_NAME.issuperset(row["be_name"]) and _NAME.issuperset(row["srv_name"])):
            raise FormatError("a server state with a name that is none")
        return Server(
            row["be_name"],
            row["srv_name"],
            row["srv_addr"],
            int(row["srv_port"]),
            row["srv_fqdn"],
            int(row["srv_op_state"]),
            int(row["srv_admin_state"]),
            weight=int(row["srv_uweight"]),
            configured_weight=int(row["srv_iweight"]),
        )
    except KeyError as missing:
        raise FormatError(f"a server state without {missing}") from None
    except ValueError:
        raise FormatError("a server state with text where a number belongs") from None


def parse_sessions(text: str) -> dict[str, int]:
    """Read the answer to ``show stat <proxy> 4 -1``: the open sessions by the server's name.

    Only the columns up to the one that is needed are looked at: later ones may hold quoted commas.

    :raises FormatError: it is something else
    """
    header, _, rest = text.partition("\n")
    names = header.removeprefix("# ").split(",")
    try:
        name, sessions = names.index("svname"), names.index("scur")
        rows = (line.split(",") for line in rest.splitlines() if line)
        return {row[name]: int(row[sessions]) for row in rows}
    except (ValueError, IndexError):
        raise FormatError("no statistics") from None
