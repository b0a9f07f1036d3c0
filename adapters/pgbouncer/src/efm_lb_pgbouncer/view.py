"""What the PgBouncer processes of one balancer believe about the nodes of the cluster."""

from __future__ import annotations

from collections.abc import Mapping

from efm_lb import Node, NodeView, PermanentError, TemporaryError, View
from efm_lb_pgbouncer.console import Console, Database
from efm_lb_pgbouncer.entries import Location
from efm_lb_pgbouncer.pooler import Pooler
from efm_lb_pgbouncer.targets import is_at, nodes_at

__all__ = ["view", "view_of"]


def view(nodes: tuple[Node, ...], pooler: Pooler, deadline: float) -> View:
    """Ask every process, and read the file that a reload would bring. One that cannot be read says nothing here.

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
    try:
        kept = pooler.locations(pooler.content())
    except (TemporaryError, PermanentError):  # `efm-lb check` and the next event tell
        kept = None
    return view_of(nodes, pooler, list(seen.values()), problems, pooler.is_abandoned(), kept)


def view_of(
    nodes: tuple[Node, ...],
    pooler: Pooler,
    seen: list[dict[str, Database]],
    problems: list[str],
    abandoned: bool = False,
    kept: Mapping[str, Location] | None = None,
) -> View:
    """The view that SHOW DATABASES of all processes amounts to. Pure.

    A node gets the writes when every write entry of every process leads to it, by the file, too, and nobody waits there
    for good. It is attached when any entry leads to it.

    :param problems: what is to be said of processes that did not answer
    :param abandoned: what we paused, nobody is left to let go
    :param kept: where the entries lead to by the file; None when it is not known
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
        in_file = {name for name in kept if node in nodes_at(kept[name], nodes)} if kept else {*entries}
        writes = all(gets(databases, name, node) for databases in seen for name in pooler.write)
        writes = writes and (kept is None or all(is_at(kept[name], node) for name in pooler.write))
        said = [
            f"{name}{f' ({word})' * paused}{' (CONFIG says otherwise)' * (name not in in_file)}"
            for name, paused in entries.items()
        ]
        said += [f"{name} in CONFIG alone" for name in pooler.entries if name in in_file and name not in entries]
        attached = True if entries else False if pooler.read else None
        told = "; ".join([", ".join(said) or "in no entry", *problems])
        views.append(NodeView(node, attached, writes, told, in_file == {*entries}))
    strangers = {
        str(database.location._replace(hosts=(host,)))
        for databases in seen
        for name in pooler.entries
        if (database := databases.get(name))
        for host in database.location.hosts
        if not any(node.is_at(host, database.location.port) for node in nodes)
    }
    return View(tuple(views), tuple(sorted(strangers)))
