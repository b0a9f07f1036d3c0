"""What a HAProxy believes about the nodes of the cluster."""

from __future__ import annotations

from collections.abc import Mapping

from efm_lb import Node, NodeView, PermanentError, View
from efm_lb_haproxy.runtime import Runtime
from efm_lb_haproxy.servers import Server, node_of
from efm_lb_haproxy.settings import Reads, Setup

__all__ = ["view", "view_of"]


def view(nodes: tuple[Node, ...], setup: Setup, deadline: float) -> View:
    """Read all proxies.

    :raises TemporaryError: no answer
    :raises PermanentError: it is no HAProxy, or has none of the proxies
    """
    proxies = Runtime(setup.endpoint, setup.connect_timeout, setup.tls).look(setup.proxies, deadline).proxies
    if not proxies:
        raise PermanentError(f"{setup.endpoint}: HAProxy has no proxy {' and no proxy '.join(setup.proxies)}")
    return view_of(nodes, setup, proxies)


def view_of(nodes: tuple[Node, ...], setup: Setup, proxies: Mapping[str, tuple[Server, ...]]) -> View:
    """The view that ``proxies`` amount to. Pure.

    A node is attached when it serves anything: the primary may well be ready in no proxy for reads. Not so where nobody
    serves reads, and the primary should.
    """
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
        writes = any(server.ready for name in setup.write for server in found.get(name, ()))
        readers = [server for name in setup.read for server in found.get(name, ())]
        serves = any(server.ready for server in readers) if readers else None
        attached = not (unserved and readers) if writes else serves
        detail = ", ".join(f"{server.path} {server.state}" for servers in found.values() for server in servers)
        views.append(NodeView(node, attached, writes, detail))
    strangers = dict.fromkeys(
        f"{server.host}:{server.port}"
        for servers in proxies.values()
        for server in servers
        if node_of(server, nodes) is None
    )
    return View(tuple(views), tuple(strangers))
