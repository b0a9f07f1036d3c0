"""A HAProxy that does not answer: its files are brought right all the same, so that it starts as it shall be.

Which servers it has is known from its files alone then.
"""

from __future__ import annotations

from collections.abc import Mapping

from efm_lb import Event, Node, PermanentError
from efm_lb_haproxy.config import ServerLine, server_lines
from efm_lb_haproxy.persist import Files, is_address, keep, read
from efm_lb_haproxy.servers import Server
from efm_lb_haproxy.settings import Setup
from efm_lb_haproxy.wishes import wishes

__all__ = ["keep_alone", "servers_of"]


def keep_alone(event: Event, setup: Setup, deadline: float, written: list[str]) -> None:
    """Bring the files in line with ``event``. Parameters and errors as those of `efm_lb_haproxy.persist.keep`.

    :raises PermanentError: also when the files do not tell which server is which node; nothing is changed then
    """
    nodes = event.truth.nodes
    proxies = servers_of(read(setup.config), setup, nodes)
    wanted, problems = wishes(event, setup, proxies)
    keep(setup, None, wanted, nodes, proxies, deadline, written)
    if problems:
        raise PermanentError("; ".join(problems))


def servers_of(files: Files, setup: Setup, nodes: tuple[Node, ...]) -> Mapping[str, tuple[Server, ...]]:
    """The servers that HAProxy will have when it starts, by proxy. Pure.

    :raises PermanentError: a line of WRITE or READ does not tell the address of its server
    """
    found: dict[str, tuple[Server, ...]] = {}
    unclear = []
    for path, content in files.items():
        for line in server_lines(content):
            if line.proxy not in setup.proxies:
                continue
            if _is_clear(line, nodes):
                found[line.proxy] = (*found.get(line.proxy, ()), _server(line))
            else:
                unclear.append(f"{path}:{line.number}")
    if unclear:
        raise PermanentError(f"{', '.join(unclear)}: which node this server is can be told only by a HAProxy that runs")
    return found


def _is_clear(line: ServerLine, nodes: tuple[Node, ...]) -> bool:
    """Whether the line tells by itself which node it is, or that it is none."""
    if line.template or line.port is None:
        return False
    return is_address(line.host) or any(node.is_called(line.host) for node in nodes)


def _server(line: ServerLine) -> Server:
    assert line.port is not None
    return Server(line.proxy, line.name, line.host, line.port, "-", operational=2, admin=int(line.disabled))
