"""The value of ``EFM_LB_NODES``."""

from __future__ import annotations

import re
from socket import AF_INET, AF_INET6, inet_pton

from efm_lb.truth import Node

__all__ = ["DEFAULT_PORT", "parse_nodes"]

DEFAULT_PORT = 5432
_ADDRESS = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<host>[^:\[\]]*))(?::(?P<port>[^:]*))?")
_SCOPE = re.compile(r"[A-Za-z0-9_.-]{1,15}")
"""Of a link-local IPv6 address: an interface."""
_HOST = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?)*"
)


def parse_nodes(text: str) -> tuple[Node, ...]:
    """Read a comma list of ``host:port``, ``[v6]:port`` and ``name=host:port``.

    :param text: the port is 5432 when left out; of several names (``a=b=host``) the first is the one EFM uses
    :raises ValueError: with one line per problem
    """
    nodes: list[Node] = []
    problems: list[str] = []
    for entry in text.split(","):
        try:
            node = _node(entry.strip())
            for other in nodes:
                _distinct(node, other)
        except ValueError as error:
            problems.append(str(error))
        else:
            nodes.append(node)
    if problems:
        raise ValueError("\n".join(problems))
    return tuple(nodes)


def _node(entry: str) -> Node:
    if not entry:
        raise ValueError("an entry between the commas is empty")
    *names, address = [part.strip() for part in entry.split("=")]
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise ValueError(f"{entry!r} is not host:port; an IPv6 address needs brackets: [fd00::1]:5432")
    host = found["host"] if found["v6"] is None else f"[{found['v6']}]"
    names = [_host(name, entry) for name in [*names, host]]
    port = found["port"]
    if port is not None and not (port.isascii() and port.isdigit() and len(port) < 10 and 0 < int(port) < 65536):
        raise ValueError(f"{entry!r}: {port!r} is no port")
    return Node(names[0], names[-1], int(port) if port else DEFAULT_PORT, tuple(names[1:-1]))


def _host(text: str, entry: str) -> str:
    """A host name or address, without brackets."""
    bare = text[1:-1] if text[:1] == "[" and text[-1:] == "]" else text
    if ":" in bare:
        address, percent, scope = bare.partition("%")
        if _is_address(AF_INET6, address) and (not percent or _SCOPE.fullmatch(scope)):
            return bare
    elif bare == text and _HOST.fullmatch(bare) and (re.search("[^0-9.]", bare) or _is_address(AF_INET, bare)):
        return bare
    raise ValueError(f"{entry!r}: {text!r} is neither a host name nor an IP address")


def _is_address(family: int, text: str) -> bool:
    try:
        inet_pton(family, text)
    except (OSError, ValueError):
        return False
    return True


def _distinct(node: Node, other: Node) -> None:
    if node.is_at(other.host, other.port):
        raise ValueError(f"{node.address} is in the list twice")
    for one, two in ((node, other), (other, node)):
        for name in (one.name, *one.aliases):
            if two.is_called(name):
                raise ValueError(f"{name!r} is a name of two nodes, {other.address} and {node.address}")
