"""What a HAProxy believes about the nodes of the cluster."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from efm_lb import Node, NodeView, PermanentError, TemporaryError, View
from efm_lb_haproxy.persist import Files, changes, read
from efm_lb_haproxy.runtime import Runtime
from efm_lb_haproxy.servers import Server, node_of
from efm_lb_haproxy.settings import Reads, Setup
from efm_lb_haproxy.wishes import Place, Wish

__all__ = ["unkept", "view", "view_of"]


def view(nodes: tuple[Node, ...], setup: Setup, deadline: float) -> View:
    """Read all proxies, and the files that a reload would bring. Files that cannot be read say nothing here.

    :raises TemporaryError: no answer
    :raises PermanentError: it is no HAProxy, or has none of the proxies
    """
    proxies = Runtime(setup.endpoint, setup.connect_timeout, setup.tls).look(setup.proxies, deadline).proxies
    if not proxies:
        raise PermanentError(f"{setup.endpoint}: HAProxy has no proxy {' and no proxy '.join(setup.proxies)}")
    try:
        files = read(setup.config)
    except (TemporaryError, PermanentError):  # `efm-lb check` and the next event tell
        files = {}
    return view_of(nodes, setup, proxies, unkept(files, nodes, proxies))


def unkept(
    files: Files, nodes: tuple[Node, ...], proxies: Mapping[str, tuple[Server, ...]]
) -> frozenset[tuple[str, Node]]:
    """The proxies and nodes about which the files say otherwise than HAProxy runs. Pure.

    Whoever changed the running HAProxy was killed before the files were written, or somebody else wrote them.
    """
    found = set()
    for name, servers in proxies.items():
        for node in nodes:
            mine = [server for server in servers if server.is_node(node)]
            place = Place.OUT if all(server.out for server in mine) else Place.READY
            if mine and changes(files, (Wish(name, {node: place}),), nodes, proxies):
                found.add((name, node))
    return frozenset(found)


def view_of(
    nodes: tuple[Node, ...],
    setup: Setup,
    proxies: Mapping[str, tuple[Server, ...]],
    otherwise: Collection[tuple[str, Node]] = (),
) -> View:
    """The view that ``proxies`` amount to. Pure.

    A node is attached when it serves anything: the primary may well be ready in no proxy for reads. Not so where nobody
    serves reads, and the primary should, nor where it serves them still, in place of a standby that does so again.

    How the primary serves reads is left as it is with ``always``, in the files, too.

    :param otherwise: the proxies and nodes about which the files say something else. Where it is about writes, nobody
        has them
    """
    would_move = any((name, node) in otherwise for name in setup.write for node in nodes)
    views = []
    unserved = any(
        not any(server.ready for server in proxies[name])
        for name in setup.read
        if setup.reads is not Reads.NEVER and name in proxies
    )
    for node in nodes:
        found = {name: [server for server in servers if server.is_node(node)] for name, servers in proxies.items()}
        if not any(found.values()):
            continue
        writes = any(server.ready and server.weight for name in setup.write for server in found.get(name, ()))
        readers = [server for name in setup.read for server in found.get(name, ())]
        serves = any(server.ready for server in readers) if readers else None
        beside = _beside(node, nodes, setup, proxies) if writes else ()
        attached = not (readers and (unserved or beside)) if writes else serves
        stands_in = [other for other in beside if other] if not unserved and None not in beside else []
        detail = ", ".join(
            f"{server.path} {server.state}{' (weight 0)' * (not server.weight)}"
            f"{' (CONFIG says otherwise)' * ((name, node) in otherwise)}"
            for name, servers in found.items()
            for server in servers
        )
        is_kept = not any((server.proxy, node) in otherwise for server in readers)
        kept = is_kept or (writes and setup.reads is Reads.ALWAYS)
        views.append(NodeView(node, attached, writes and not would_move, detail, kept, tuple(stands_in)))
    strangers = dict.fromkeys(
        f"{server.host}:{server.port}"
        for servers in proxies.values()
        for server in servers
        if node_of(server, nodes) is None
    )
    return View(tuple(views), tuple(strangers))


def _beside(
    node: Node, nodes: tuple[Node, ...], setup: Setup, proxies: Mapping[str, tuple[Server, ...]]
) -> tuple[Node | None, ...]:
    """Who else is ready where a node serves reads that is to do so only while nobody else does; None for a stranger."""
    found: dict[Node | None, None] = {}
    for name in setup.read if setup.reads is Reads.FALLBACK else ():
        ready = [server for server in proxies.get(name, ()) if server.ready]
        if any(server.is_node(node) for server in ready):
            found |= dict.fromkeys(node_of(server, nodes) for server in ready if not server.is_node(node))
    return tuple(found)
