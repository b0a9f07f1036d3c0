"""What the PgBouncer processes of one balancer believe about the nodes of the cluster."""

from __future__ import annotations

from efm_lb import Node, NodeView, TemporaryError, View
from efm_lb_pgbouncer.console import Console, Database
from efm_lb_pgbouncer.pooler import Pooler
from efm_lb_pgbouncer.targets import is_at, nodes_at

__all__ = ["view", "view_of"]


def view(nodes: tuple[Node, ...], pooler: Pooler, deadline: float) -> View:
    """Ask every process.

    :raises TemporaryError: none answers
    :raises PermanentError: a login was refused
    """
    seen: dict[Console, dict[str, Database]] = {}
    problems = []
    for console in pooler.consoles:
        try:
            session = console.session(deadline)
            try:
                seen[console] = session.databases(deadline)
            finally:
                session.close()
        except TemporaryError as error:
            problems.append(str(error))
    if not seen:
        raise TemporaryError("; ".join(problems))
    return view_of(nodes, pooler, list(seen.values()), problems, pooler.is_abandoned())


def view_of(
    nodes: tuple[Node, ...],
    pooler: Pooler,
    seen: list[dict[str, Database]],
    problems: list[str],
    abandoned: bool = False,
) -> View:
    """The view that SHOW DATABASES of all processes amounts to. Pure.

    A node gets the writes when every write entry of every process leads to it, and nobody waits there for good. It is
    attached when any entry leads to it.

    :param problems: what is to be said of processes that did not answer
    :param abandoned: what we paused, nobody is left to let go
    """

    def gets(databases: dict[str, Database], name: str, node: Node) -> bool:
        database = databases.get(name)
        return bool(database and is_at(database.location, node) and not (abandoned and database.paused))

    word = "paused, and nobody lets go" if abandoned else "paused"
    views = []
    for node in nodes:
        entries: dict[str, bool] = {}
        for databases in seen:
            for name in pooler.entries:
                database = databases.get(name)
                if database and node in nodes_at(database.location, nodes):
                    entries[name] = entries.get(name, False) or database.paused
        writes = all(gets(databases, name, node) for databases in seen for name in pooler.write)
        said = ", ".join(f"{name} ({word})" if paused else name for name, paused in entries.items())
        attached = True if entries else False if pooler.read else None
        views.append(NodeView(node, attached, writes, "; ".join([said or "in no entry", *problems])))
    strangers = {
        str(database.location._replace(hosts=(host,)))
        for databases in seen
        for name in pooler.entries
        if (database := databases.get(name))
        for host in database.location.hosts
        if not any(node.is_at(host, database.location.port) for node in nodes)
    }
    return View(tuple(views), tuple(sorted(strangers)))
