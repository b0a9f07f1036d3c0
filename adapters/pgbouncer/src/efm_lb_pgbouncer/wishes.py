"""What an event wants of PgBouncer's entries, and what is missing to have it: pure decisions, no I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from efm_lb import Attach, Event, Node, PermanentError, Promote, TemporaryError, Truth, demand_not_older
from efm_lb_pgbouncer.console import Database, Server
from efm_lb_pgbouncer.entries import EntryError, Location, marked
from efm_lb_pgbouncer.pooler import Pooler
from efm_lb_pgbouncer.targets import Targets, is_at, nodes_at, targets

__all__ = [
    "changes",
    "demand_newest",
    "leftovers",
    "may_have_failed",
    "may_lose_writes",
    "takes_writes_back",
    "to_resume",
    "wanted_of",
    "wrong",
]

_REMOVAL = ("sed", "-i", "--follow-symlinks", "/^; efm-lb: writes follow timeline [0-9]*$/d")


def wanted_of(event: Event, pooler: Pooler, content: bytes, running: Sequence[dict[str, Database]] = ()) -> Targets:
    """What an event wants of the entries in ``content``.

    :param running: what the processes have instead
    :raises PermanentError: an entry is missing, PgBouncer would not take the file, or writes would be moved to an
        older timeline than the file says that they follow
    :raises TemporaryError: the event's node is not what it must be
    """
    truth = event.truth
    if isinstance(event, Attach) and truth.role(event.node) is None:
        raise TemporaryError(f"{event.node.address} does not answer, so it is not attached")
    if isinstance(event, Promote) and truth.primary != event.node:
        raise TemporaryError(f"{event.node.address} is not proven to be the only primary")
    locations = pooler.locations(content)
    write = {name: _not_lost(name, locations[name], truth, running) for name in pooler.write}
    read = {name: locations[name] for name in pooler.read}
    wanted = targets(event, write, read, pooler.policy)
    if wanted.writer:
        demand_newest(pooler, content, wanted.writer, wanted.timeline)
    return wanted


def demand_newest(pooler: Pooler, content: bytes, writer: Node, timeline: int | None) -> None:
    """Refuse to move writes to an older timeline than the file says that they follow. Pure.

    :param timeline: the writer's; None when it is not known
    :raises PermanentError: it does; or PgBouncer would not take the file
    """
    if timeline is None:
        return
    try:
        found = marked(content, pooler.write)
    except EntryError as error:
        raise PermanentError(pooler.said(error)) from None
    demand_not_older(writer, timeline, [(pooler.config, *mark) for mark in found], _REMOVAL)


def _not_lost(name: str, location: Location, truth: Truth, running: Sequence[dict[str, Database]]) -> Location:
    """Where a write entry leads to: where the process has it, when the file has a node that is not the proven primary.

    Somebody has put an old file back, and has not loaded it. The RELOAD for a read entry must not do so: that node may
    be a standby, or be down and come back as an old primary.
    """
    if _is_unproven(location, truth):
        for databases in running:
            now = databases[name].location if name in databases else location
            if not any(is_at(now, standby) for standby in truth.standbys):
                return now
    return location


def _is_unproven(location: Location, truth: Truth) -> bool:
    """Whether an entry leads to a node that is not the proven primary; a host that is no node is somebody else's."""
    return any(is_at(location, node) for node in truth.nodes if node != truth.primary)


def changes(wanted: Targets, locations: dict[str, Location]) -> dict[str, Location]:
    """The entries of the file that must be edited. Pure."""
    return {name: location for name, location in wanted.locations.items() if location != locations[name]}


def wrong(databases: dict[str, Database], wanted: Targets) -> list[str]:
    """The entries that a running PgBouncer has otherwise. Pure."""
    return [
        name
        for name, location in wanted.locations.items()
        if name not in databases or databases[name].location != location
    ]


def may_have_failed(databases: dict[str, Database], wanted: Targets) -> list[str]:
    """The entries that lead to a node at which a login fails, also where they lead to others as well. Pure."""
    return [
        name
        for name in wanted.locations
        if name in databases and any(node in wanted.down for node in nodes_at(databases[name].location, wanted.nodes))
    ]


def to_resume(databases: dict[str, Database], pooler: Pooler, wanted: Targets, abandoned: bool) -> list[str]:
    """The paused entries whose clients may go. Pure.

    What an operator has paused is the operator's, until writes are moved.

    :param abandoned: we paused them, and nobody is left to let go
    """
    paused = [name for name in pooler.write if name in databases and databases[name].paused]
    if wanted.writer:
        return paused
    if not abandoned or wanted.primary is None:
        return []
    return [name for name in paused if is_at(databases[name].location, wanted.primary)]


def leftovers(servers: Sequence[Server], write: Sequence[str], writer: Node, nodes: Sequence[Node]) -> list[Server]:
    """The connections of write entries that do not lead to the primary. Pure."""
    return [
        server
        for server in servers
        if server.database in write
        and not writer.is_at(server.host, server.port)
        and (server.close_needed or any(node.is_at(server.host, server.port) for node in nodes))
    ]


def may_lose_writes(event: Event, wanted: Targets, pooler: Pooler) -> bool:
    """Whether a RELOAD may send writes to a node that is not the proven primary."""
    return any(_is_unproven(wanted.locations[name], event.truth) for name in pooler.write)


def takes_writes_back(wanted: Targets, locations: Mapping[str, Location], pooler: Pooler) -> bool:
    """Whether the file's writes would go back to a node that is not proven to be the primary.

    Where they lead to may have been promoted since the databases were asked, and its RELOAD may be on its way.
    """
    primary = wanted.primary
    taken = [wanted.locations[name] for name in pooler.write if wanted.locations[name] != locations[name]]
    return any(primary is None or not is_at(location, primary) for location in taken)
