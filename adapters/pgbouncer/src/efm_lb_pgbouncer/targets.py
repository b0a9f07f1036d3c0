"""Where the entries must lead to after an event: pure decisions from the event and the entries as they are.

The entry itself remembers which standbys are attached: those that it lists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from efm_lb import Attach, Detach, Event, Node, Promote, Role
from efm_lb_pgbouncer.entries import Location

__all__ = ["Policy", "Targets", "is_at", "nodes_at", "targets"]

Policy = Literal["never", "always", "fallback"]
"""Whether a read entry lists the primary: READ_INCLUDES_PRIMARY."""


class Targets(NamedTuple):
    """What an event wants.

    :param locations: of every entry, also of those that are right already
    :param writer: the node that writes are sent to by this event; None when the event moves no writes
    :param kept: write entries that stay on the event's node because no other primary is proven
    :param notes: what else a person must know
    :param nodes: of the cluster
    :param down: those of them that let nobody in, or do not answer
    :param primary: the proven one, None also when the event is to take it out
    :param timeline: of the writer; None when it is not known
    """

    locations: Mapping[str, Location]
    writer: Node | None = None
    kept: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    nodes: tuple[Node, ...] = ()
    down: tuple[Node, ...] = ()
    primary: Node | None = None
    timeline: int | None = None


def is_at(location: Location, node: Node) -> bool:
    """Whether an entry leads to ``node`` and nowhere else."""
    return len(location.hosts) == 1 and node.is_at(location.hosts[0], location.port)


def nodes_at(location: Location, nodes: Sequence[Node]) -> tuple[Node, ...]:
    """The nodes that an entry lists, in its order."""
    return tuple(node for host in location.hosts for node in nodes if node.is_at(host, location.port))


def targets(event: Event, write: Mapping[str, Location], read: Mapping[str, Location], policy: Policy) -> Targets:
    """Decide.

    Writes move for a Promote, and for the Detach of the node that they go to once another primary is proven. A read
    entry lists the attached standbys, and the primary as the policy says.

    :param write: the write entries as they are
    :param read: the read entries as they are
    """
    truth = event.truth
    primary = event.node if isinstance(event, Promote) else truth.primary
    moves = isinstance(event, Promote) or (
        isinstance(event, Detach)
        and primary not in (None, event.node)
        and any(is_at(location, event.node) for location in write.values())
    )
    locations = dict(write)
    kept: tuple[str, ...] = ()
    if moves and primary:
        locations |= {
            name: location if is_at(location, primary) else Location((primary.host,), primary.port)
            for name, location in write.items()
        }
    elif isinstance(event, Detach):
        kept = tuple(name for name, location in write.items() if is_at(location, event.node))
    replaced = [node for location in write.values() for node in nodes_at(location, truth.nodes) if node != primary]
    notes: list[str] = []
    for name, location in read.items():
        locations[name], note = _readers(event, location, primary, replaced if moves else [], policy)
        if note:
            notes.append(f"{name} {note}")
    leaves = isinstance(event, Detach) and primary == event.node
    writer = primary if moves else None
    down = tuple(node for node in truth.nodes if truth.role(node) is None)
    timeline = truth.state(writer).timeline if writer else None
    return Targets(locations, writer, kept, tuple(notes), truth.nodes, down, None if leaves else primary, timeline)


def _readers(
    event: Event, location: Location, primary: Node | None, replaced: Sequence[Node], policy: Policy
) -> tuple[Location, str]:
    """Where one read entry must lead to, and what is to be said about it.

    :param replaced: the nodes that writes are moved away from
    """
    truth = event.truth
    listed = nodes_at(location, truth.nodes)
    members = [
        node
        for node in listed
        # An old primary was there as the primary, unless it is a standby by now.
        if node != primary and (node not in replaced or truth.role(node) is Role.STANDBY)
    ]
    if isinstance(event, Detach):
        members = [node for node in members if node != event.node]
    elif isinstance(event, Attach) and truth.role(event.node) is Role.STANDBY and event.node not in members:
        # What is listed and proven to be no standby was only there because nobody else was.
        members = [*members, event.node] if any(node in truth.standbys for node in members) else [event.node]
    # Hosts that are no node of the cluster stay: they are somebody else's.
    strangers = [host for host in location.hosts if not any(node.is_at(host, location.port) for node in truth.nodes)]
    if primary and (policy == "always" or (policy == "fallback" and not members and not strangers)):
        members.append(primary)
    note = ""
    if not members and not strangers:
        members, note = _nobody(listed, truth.nodes, primary, policy)
    if set(members) == set(listed):
        return location, note
    ordered = [node for node in listed if node in members] + [node for node in members if node not in listed]
    port = _commonest([node.port for node in ordered] or [location.port])
    other = [node for node in ordered if node.port != port]
    if other:
        aside = ", ".join(node.address for node in other)
        note = note or f"leaves out {aside}: PgBouncer has one port for all hosts of an entry"
    hosts = [node.host for node in ordered if node.port == port]
    return Location((*hosts, *strangers) if port == location.port else tuple(hosts), port), note


def _nobody(
    listed: Sequence[Node], nodes: Sequence[Node], primary: Node | None, policy: Policy
) -> tuple[list[Node], str]:
    """An entry cannot be empty: where it leads to when no standby is left and the primary must not be there."""
    if policy == "never" and primary:
        # A node that refuses is right: it serves again when it comes back as a standby.
        refused = [node for node in (*listed, *nodes) if node != primary][:1]
        if refused:
            return refused, f"has no standby left, and must not lead to the primary: it stays on {refused[0].name}"
    return list(listed), "has no standby left, and no primary is proven: it stays as it is"


def _commonest(ports: Sequence[int]) -> int:
    """The port that most have; of several, the first."""
    return max(ports, key=ports.count)
