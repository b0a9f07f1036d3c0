"""Keep what an event wants in haproxy's own files, so that any later reload comes up with it. No reload is done."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from efm_lb import Node, PermanentError, TemporaryError, demand_not_older, read_file, replace_file
from efm_lb_haproxy.config import ServerLine, edited, marked, server_lines
from efm_lb_haproxy.runtime import Runtime
from efm_lb_haproxy.servers import Server, node_of
from efm_lb_haproxy.settings import Setup
from efm_lb_haproxy.wishes import Place, Wish

__all__ = ["Change", "Files", "changes", "expanded", "is_address", "keep", "may_move", "read", "same_address"]

_REMOVAL = ("sed", "-i", "--follow-symlinks", "s/ *# efm-lb: writes follow timeline [0-9]*$//")
_TRIES = 3
"""How often a file that somebody else changed meanwhile is read and edited anew."""

Files = Mapping[str, bytes]
"""The configuration: content by path, in the order in which haproxy reads them."""


class Change(NamedTuple):
    """A file as it is and as it shall be.

    :param lines: the numbers of the lines that differ
    """

    path: str
    before: bytes
    after: bytes
    lines: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.path}:{','.join(map(str, self.lines))}"


def expanded(config: tuple[str, ...]) -> tuple[str, ...]:
    """The files that haproxy reads for these ``-f`` arguments: of a directory those that end with ``.cfg``, by name.

    :raises TemporaryError: a directory cannot be read
    """
    paths: list[str] = []
    for path in config:
        if not os.path.isdir(path):
            paths.append(path)
            continue
        try:
            names = sorted(os.listdir(path), key=os.fsencode)
        except OSError as error:
            raise TemporaryError(f"cannot read {path}: {error.strerror}") from None
        for name in names:
            whole = os.path.join(path, name)
            if name.endswith(".cfg") and not name.startswith(".") and not os.path.isdir(whole):
                paths.append(whole)
    return tuple(paths)


def read(config: tuple[str, ...]) -> Files:
    """The configuration files. Raises as `efm_lb.read_file`."""
    return {path: read_file(path) for path in expanded(config)}


def keep(
    setup: Setup,
    runtime: Runtime | None,
    wanted: tuple[Wish, ...],
    nodes: tuple[Node, ...],
    proxies: Mapping[str, tuple[Server, ...]],
    deadline: float,
    written: list[str],
) -> None:
    """Bring the configuration files, and a server state file that they name, in line with ``wanted``.

    :param runtime: None when HAProxy does not answer
    :param proxies: HAProxy's servers
    :param written: what was written is appended to it, in words
    :raises TemporaryError: something could not be written; the file is as it was
    :raises PermanentError: the files cannot hold what is wanted, or haproxy refuses them as they are; or as `may_move`
    """
    for remaining in reversed(range(_TRIES)):
        files = read(setup.config)
        may_move(wanted, files)
        todo = changes(files, wanted, nodes, proxies)
        try:
            if todo:
                _write(setup, runtime, files, todo, deadline, written)
                files = {**files, **{change.path: change.after for change in todo}}
            break
        except TemporaryError:
            # Judged anew where somebody wrote meanwhile; what else is wrong stays wrong.
            if not remaining or read(setup.config) == files:
                raise
    if any(b"load-server-state-from-file" in content for content in files.values()):
        # Hardly anybody has one.
        from efm_lb_haproxy.state_file import refresh

        refresh(runtime, files, wanted, nodes, deadline, written)
    _demand_complete(setup, files, wanted, nodes, proxies)


def _write(
    setup: Setup, runtime: Runtime | None, files: Files, todo: list[Change], deadline: float, written: list[str]
) -> None:
    from efm_lb_haproxy.validate import validate

    for change in todo:
        if not change.before.endswith(b"\n"):
            raise TemporaryError(f"{change.path} has no newline at its end, so it may be cut off: not written")
    note = validate(setup.program, runtime, files, {change.path: change.after for change in todo}, deadline)
    for change in todo:
        replace_file(change.path, change.before, change.after)
        written.append(f"{change} written{note}")


def may_move(wanted: tuple[Wish, ...], files: Files) -> None:
    """Refuse to move writes to an older timeline than the files say that they follow. Pure.

    :raises PermanentError: they do
    """
    for wish in wanted:
        for node in wish.nodes:
            if wish.timeline is not None:
                found = [(path, *mark) for path, content in files.items() for mark in marked(content, (wish.proxy,))]
                demand_not_older(node, wish.timeline, found, _REMOVAL)


def changes(
    files: Files, wanted: tuple[Wish, ...], nodes: tuple[Node, ...], proxies: Mapping[str, tuple[Server, ...]]
) -> list[Change]:
    """What must change in which file, nothing where all says what is wanted already. Pure.

    A mark of the timeline is put only where something else changes: a file that is right is not written, validated and
    replaced because of a comment.
    """
    found = []
    for path, content in files.items():
        disabled: dict[int, bool] = {}
        timelines: dict[int, int | None] = {}
        for line in server_lines(content):
            wish = next((wish for wish in wanted if wish.proxy == line.proxy), None)
            place = wish and wish.of(_node(line, nodes, proxies))
            if not wish or not place or line.template:
                continue
            if (place is not Place.READY) != line.disabled:
                disabled[line.number] = place is not Place.READY
            if wish.timeline is not None:
                timelines[line.number] = wish.timeline if place is Place.READY else None
        if edited(content, disabled) != content:
            after = edited(content, disabled, timelines)
            found.append(Change(path, content, after, _differing(content, after)))
    return found


def _differing(before: bytes, after: bytes) -> tuple[int, ...]:
    """The numbers of the lines that differ; there are as many in both."""
    both = zip(before.split(b"\n"), after.split(b"\n"), strict=True)
    return tuple(number for number, (old, new) in enumerate(both, start=1) if old != new)


def _demand_complete(
    setup: Setup,
    files: Files,
    wanted: tuple[Wish, ...],
    nodes: tuple[Node, ...],
    proxies: Mapping[str, tuple[Server, ...]],
) -> None:
    """What a reload would bring that is not wanted, and that no edit of ours can change.

    :raises PermanentError: for all of it
    """
    problems = []
    found = [(path, line) for path, content in files.items() for line in server_lines(content)]
    for wish in wanted:
        of_proxy = [(path, line) for path, line in found if line.proxy == wish.proxy]
        if not of_proxy:
            problems.append(f"CONFIG ({', '.join(setup.config)}) has no servers of proxy {wish.proxy}")
            continue
        for path, line in of_proxy:
            place = _place(line, wanted, nodes, proxies)
            if line.template:
                problems.append(
                    f"{path}:{line.number}: server-template stands for several servers: write one line each"
                )
            elif place is Place.READY and line.inherits:
                problems.append(
                    f"{path}:{line.number}: is disabled by a default-server line: put `disabled` on servers"
                )
        if any(line.template for _, line in of_proxy):
            continue
        kept = [node for _, line in of_proxy if (node := _node(line, nodes, proxies))]
        for node, place in wish.nodes.items():
            runs = any(server.is_node(node) for server in proxies[wish.proxy])
            if place is Place.READY and runs and node not in kept:
                problems.append(f"CONFIG has no server line for {node.address} in proxy {wish.proxy}")
    if problems:
        raise PermanentError("; ".join(problems))


def _place(
    line: ServerLine, wanted: tuple[Wish, ...], nodes: tuple[Node, ...], proxies: Mapping[str, tuple[Server, ...]]
) -> Place | None:
    for wish in wanted:
        if wish.proxy == line.proxy:
            return wish.of(_node(line, nodes, proxies))
    return None


def _node(line: ServerLine, nodes: tuple[Node, ...], proxies: Mapping[str, tuple[Server, ...]]) -> Node | None:
    """The node of a line: by the address in it, which is the one that counts after a reload.

    Where the line leaves the address to the environment or to DNS, HAProxy knows which one its server has.
    """
    if line.port is not None:
        for node in nodes:
            if node.is_at(line.host, line.port):
                return node
        if is_address(line.host):
            return None
    for server in proxies.get(line.proxy, ()):
        if server.name == line.name:
            return node_of(server, nodes)
    return None


def is_address(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


def same_address(line: ServerLine, server: Server) -> bool:
    """Whether a line and a running server of the same name have the same address, as far as the line tells."""
    if line.port is None:
        return True
    node = Node(line.host, line.host, line.port)
    return server.is_node(node) or (not is_address(line.host) and server.port == line.port)
