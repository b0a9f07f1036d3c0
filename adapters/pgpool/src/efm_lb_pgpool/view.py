"""What the pgpools of one balancer believe about the nodes of the cluster."""

from __future__ import annotations

from efm_lb import Node, NodeView, View
from efm_lb_pgpool.members import Member, Members, answers
from efm_lb_pgpool.node_info import Backend
from efm_lb_pgpool.pcp import Nodes
from efm_lb_pgpool.steps import backend_of

__all__ = ["view", "view_of"]


def view(nodes: tuple[Node, ...], members: Members, deadline: float) -> View:
    """Read every member, and tell where they differ from the first that answers.

    :raises TemporaryError: none answers
    :raises PermanentError: a login was refused
    """
    backends = members.nodes(deadline).backends
    answered = dict(answers(members.others, lambda member: member.nodes(deadline), deadline))
    said = {member: answered[member] for member in members.others}
    others = {member: answer.backends if isinstance(answer, Nodes) else () for member, answer in said.items()}
    return view_of(nodes, backends, others)


def view_of(nodes: tuple[Node, ...], backends: tuple[Backend, ...], others: dict[Member, tuple[Backend, ...]]) -> View:
    """The view that ``backends`` amount to. Pure.

    :param others: what the other members believe, nothing for those that do not answer
    """
    views = []
    for node in nodes:
        backend = backend_of(node, backends)
        if backend:
            detail = "; ".join((backend.state, *_differences(node, backend, others)))
            views.append(NodeView(node, backend.attached, backend.attached and backend.is_primary, detail))
    strangers = (backend for backend in backends if not any(node.is_at(backend.host, backend.port) for node in nodes))
    return View(tuple(views), tuple(backend.address for backend in strangers))


def _differences(node: Node, backend: Backend, others: dict[Member, tuple[Backend, ...]]) -> list[str]:
    differences = []
    for member, backends in others.items():
        other = backend_of(node, backends)
        if other is None:
            differences.append(f"{member} does not say")
        elif (other.attached, other.is_primary) != (backend.attached, backend.is_primary):
            differences.append(f"{member} says {other.state}")
    return differences
