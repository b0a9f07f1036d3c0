"""The server state file: where haproxy loads one at a reload, an old one overrides the configuration.

Measured with 2.6: a server that a file from before calls in maintenance is so after the reload, whatever haproxy.cfg
says. So it is written anew when it contradicts what is wanted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from efm_lb import Node, PermanentError, read_file, replace_file
from efm_lb_haproxy.config import lines
from efm_lb_haproxy.runtime import Runtime
from efm_lb_haproxy.servers import FormatError, Server, node_of, parse_state
from efm_lb_haproxy.wishes import Place, Wish

__all__ = ["StateFile", "contradicts", "refresh", "state_files", "without"]


class StateFile(NamedTuple):
    """A file that haproxy loads server states from.

    :param path: empty when it cannot be told, because the configuration gives no absolute path
    :param proxy: the proxy that it is for, None when it is for all
    :param where: ``file:line`` of what makes haproxy load it
    """

    path: str
    proxy: str | None
    where: str


def state_files(files: Mapping[str, bytes]) -> list[StateFile]:
    """The server state files that a configuration makes haproxy load. Pure.

    ``load-server-state-from-file global`` loads the one file of `server-state-file`, ``local`` one for each proxy.
    Which defaults section a proxy takes it from is not followed up: one that says so is enough.
    """
    base = shared = ""
    names: dict[str, str] = {}
    loads: dict[str, str] = {}
    proxies: list[str] = []
    for path, content in files.items():
        for line in lines(content):
            values = [value.decode("utf-8", "surrogateescape") for value in line.values]
            value = values[1] if len(values) > 1 else ""
            if line.section in ("listen", "backend"):
                if values[0] == line.section:
                    proxies.append(line.name)
                elif values[0] == "server-state-file-name":
                    names[line.name] = line.name if value == "use-backend-name" else value
            if values[0] == "server-state-base" and line.section == "global":
                base = value
            elif values[0] == "server-state-file" and line.section == "global":
                shared = value
            elif values[0] == "load-server-state-from-file" and value in ("global", "local"):
                loads.setdefault(value, f"{path}:{line.number}")
    found = []
    if "global" in loads:
        found.append(StateFile(_absolute(base, shared), None, loads["global"]))
    if "local" in loads:
        found += [StateFile(_absolute(base, names.get(proxy, proxy)), proxy, loads["local"]) for proxy in proxies]
    return found


def _absolute(base: str, name: str) -> str:
    path = os.path.join(base, name) if name else ""
    return path if path.startswith("/") else ""


def contradicts(servers: tuple[Server, ...], wanted: tuple[Wish, ...], nodes: tuple[Node, ...]) -> bool:
    """Whether a state file's servers are not as wanted. Pure."""
    for wish in wanted:
        for server in servers:
            place = wish.of(node_of(server, nodes)) if server.proxy == wish.proxy else None
            if place and (place is Place.READY) != (not server.out):
                return True
    return False


def refresh(
    runtime: Runtime | None,
    files: Mapping[str, bytes],
    wanted: tuple[Wish, ...],
    nodes: tuple[Node, ...],
    deadline: float,
    written: list[str],
) -> None:
    """Write every state file anew that would undo what is wanted. One that is not there undoes nothing.

    :param runtime: None when HAProxy does not answer
    :param written: what was written is appended to it, in words
    :raises TemporaryError: one cannot be read or written
    :raises PermanentError: where one is cannot be told
    """
    proxies = {wish.proxy for wish in wanted}
    for file in state_files(files):
        if file.proxy is not None and file.proxy not in proxies:
            continue
        if not file.path:
            raise PermanentError(
                f"{file.where}: haproxy loads a server state file that may undo it: give it an absolute path"
            )
        if not os.path.exists(file.path):
            continue
        before = read_file(file.path)
        if contradicts(_servers(before), wanted, nodes):
            if runtime:
                query = "show servers state" + (f" {file.proxy}" if file.proxy else "")
                now = runtime.ask(query, deadline).encode()
            else:
                now = without(before, wanted, nodes)
            replace_file(file.path, before, now)
            written.append(f"{file.path} written")


def without(content: bytes, wanted: tuple[Wish, ...], nodes: tuple[Node, ...]) -> bytes:
    """A state file without the servers that are not as wanted: haproxy takes theirs from its configuration. Pure."""
    version, header, *rows = content.splitlines(keepends=True)
    kept = [row for row in rows if not contradicts(_servers(version + header + row), wanted, nodes)]
    return b"".join([version, header, *kept])


def _servers(content: bytes) -> tuple[Server, ...]:
    try:
        return parse_state(content.decode("utf-8", "replace"))
    except FormatError:  # haproxy ignores it as well
        return ()
