"""What an event wants of HAProxy's servers, and the commands that bring it about: pure decisions, no I/O, no clock.

A wish is about the state that a proxy's servers shall be in, not about a change: when they are in it, nothing is sent,
and it does not matter who else changed something in between. The same wishes are kept in the configuration files.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from efm_lb import Attach, Detach, Event, Node, PermanentError, Promote, Reach, Role, TemporaryError, Truth
from efm_lb_haproxy.servers import Server, node_of
from efm_lb_haproxy.settings import Reads, Setup

__all__ = ["Place", "Step", "Wish", "steps", "wishes"]

_DEAD = (Reach.REFUSED, Reach.NO_RESPONSE)


class Place(Enum):
    """Where a server shall be."""

    READY = "ready"
    DRAINED = "drained"
    """No new connections; those that exist may end by themselves. A server that is in maintenance is so too."""
    OUT = "out"
    """In maintenance and without any session: nothing may reach it, also when it thaws."""


class Wish(NamedTuple):
    """What an event wants of the servers of one proxy.

    :param nodes: the place of each node that the event has an opinion about
    :param others: the place of every other server, None to leave them as they are
    :param timeline: of the node that writes are moved to; None when it is not known, and when no writes are moved
    """

    proxy: str
    nodes: Mapping[Node, Place]
    others: Place | None = None
    timeline: int | None = None

    def of(self, node: Node | None) -> Place | None:
        """The place of the servers that are ``node`` (None: they are no node of the cluster)."""
        return self.others if node is None else self.nodes.get(node, self.others)


class Step(NamedTuple):
    """The commands that bring one server to its place."""

    server: Server
    place: Place
    commands: tuple[str, ...]

    def __str__(self) -> str:
        did = {
            Place.READY: "is ready",
            Place.DRAINED: "is drained",
            Place.OUT: "is in maintenance, its sessions are shut down",
        }
        return f"{self.server} {did[self.place]}"


def wishes(
    event: Event, setup: Setup, proxies: Mapping[str, tuple[Server, ...]]
) -> tuple[tuple[Wish, ...], tuple[str, ...]]:
    """What ``event`` wants, and why it cannot be had everywhere.

    :param proxies: HAProxy's servers by proxy, as they are now
    :return: the wishes, writes first; and a problem for each proxy that cannot do its part
    :raises PermanentError: HAProxy knows nothing of the node, or of any of its proxies
    :raises TemporaryError: the event is about a node that does not answer, and cannot be wanted
    """
    node, truth = event.node, event.truth
    if isinstance(event, Promote) and truth.primary != node:
        raise TemporaryError(f"{node.address} is not proven to be the only primary")
    if isinstance(event, Attach) and truth.role(node) is None:
        raise TemporaryError(f"{node.address} does not answer, so it is not attached")
    problems = [
        f"HAProxy has no proxy {name} ({setup.variable_of(name)})" for name in setup.proxies if name not in proxies
    ]
    known = [name for name in setup.proxies if any(server.is_node(node) for server in proxies.get(name, ()))]
    if not known:
        servers = ", ".join(str(server) for name in setup.proxies for server in proxies.get(name, ()))
        problems.append(f"HAProxy has no server {node.address} ({node.name}); it has {servers or 'none'}")
        raise PermanentError("; ".join(problems))
    wanted = []
    for name in setup.write:
        if isinstance(event, Promote) and name in known:
            wanted.append(Wish(name, {node: Place.READY}, Place.OUT, truth.state(node).timeline))
        elif isinstance(event, Promote) and name in proxies:
            problems.append(f"proxy {name} has no server {node.address} ({node.name}): its writes are not moved")
        elif isinstance(event, Detach) and name in known:
            wanted.append(Wish(name, {node: Place.OUT}))
    wanted += [Wish(name, _reads(event, name, setup, proxies)) for name in setup.read if name in proxies]
    return tuple(wanted), tuple(problems)


def _reads(event: Event, name: str, setup: Setup, proxies: Mapping[str, tuple[Server, ...]]) -> dict[Node, Place]:
    """The places in one proxy that carries reads."""
    node, truth = event.node, event.truth
    places: dict[Node, Place] = {}
    if isinstance(event, Detach):
        places[node] = Place.OUT if truth.state(node).reach in _DEAD else Place.DRAINED
    elif isinstance(event, Attach):
        places[node] = Place.READY
    elif isinstance(event, Promote):
        places |= {old: Place.OUT for old in _displaced(truth, setup, proxies) if old != node}
    primary = truth.primary
    if primary and not (isinstance(event, Detach) and primary == node):
        place = _primary(event, primary, setup.reads, _others_serve(primary, places, truth, proxies[name]))
        if place:
            places[primary] = place
    return places


def _primary(event: Event, primary: Node, reads: Reads, others_serve: bool) -> Place | None:
    """The place of the primary in a proxy that carries reads, None to leave it as it is."""
    if reads is Reads.NEVER:
        return Place.DRAINED
    if reads is Reads.FALLBACK:
        return Place.DRAINED if others_serve else Place.READY
    return Place.READY if event.node == primary else None


def _others_serve(primary: Node, places: Mapping[Node, Place], truth: Truth, servers: tuple[Server, ...]) -> bool:
    """Whether a server that is not the primary serves reads when ``places`` are had."""
    for server in servers:
        node = node_of(server, truth.nodes)
        if node == primary:
            continue
        place = places.get(node) if node else None
        if place is Place.READY:
            return True
        if place is None and server.ready and (node is None or truth.role(node) is Role.STANDBY):
            return True
    return False


def _displaced(truth: Truth, setup: Setup, proxies: Mapping[str, tuple[Server, ...]]) -> list[Node]:
    """The dead nodes that writes still go to: EFM's detach of an old primary may have been held back until now."""
    writers = [server for name in setup.write for server in proxies.get(name, ()) if server.ready]
    return [
        state.node
        for state in truth.states
        if state.reach in _DEAD and any(server.is_node(state.node) for server in writers)
    ]


def steps(wanted: tuple[Wish, ...], nodes: tuple[Node, ...], proxies: Mapping[str, tuple[Server, ...]]) -> list[Step]:
    """What is missing to have ``wanted``, in the order to send it; nothing when all is as it shall be.

    In a proxy that carries writes the others go out before the new one comes in, so that there are never two; where
    reads are, the new one comes in first, so that there is always one.
    """
    found: list[Step] = []
    for wish in wanted:
        of_proxy = []
        for server in proxies[wish.proxy]:
            place = wish.of(node_of(server, nodes))
            commands = _commands(server, place) if place else ()
            if place is Place.READY and wish.others is Place.OUT and not server.weight:
                # Somebody has drained it so. Among readers a weight of 0 may be meant to stay.
                commands += (f"set server {server.path} weight {'100%' if server.configured_weight else 1}",)
            if place and commands:
                of_proxy.append(Step(server, place, commands))
        out_first = wish.others is not None
        found += sorted(of_proxy, key=lambda step: (step.place is Place.READY) is out_first)
    return found


def _commands(server: Server, place: Place) -> tuple[str, ...]:
    """The commands that bring ``server`` to ``place``, none when it is there."""
    path = server.path
    if place is Place.READY:
        if server.ready:
            return ()
        # Out of maintenance it is up at once. Found down by a check, it would be so only after `rise` good checks.
        return (f"set server {path} state ready",) if server.out else (f"set server {path} health up",)
    if place is Place.DRAINED:
        return () if server.out else (f"set server {path} state drain",)
    # Maintenance alone leaves the sessions where they are, for ever. They are cut where nothing new can come.
    cut = f"shutdown sessions server {path}"
    if not server.in_maintenance:
        return (f"set server {path} state maint", cut)
    return (cut,) if server.sessions else ()
