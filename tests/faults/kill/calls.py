"""The calls that are killed, and when in a switchover each is made."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from efm_lb.events import Detach, Event, Promote
from efm_lb.remote.documents import Request, encoded, event_document, truth_document
from efm_lb.truth import Node
from faults.kill.stand import Stand
from integration.real import nodes_of

__all__ = ["CALLS", "Call", "Moment"]


class Moment(Enum):
    """When a call is made."""

    BEFORE = "the primary is about to be stopped"
    PROMOTED = "another node was promoted, and the old primary is down"
    REJOINED = "the old primary is back as a standby"


class Call(NamedTuple):
    """A command of efm-lb.

    :param words: its command line
    :param given: its standard input
    :param of: in the command line of the process that is killed, when it is one that the command starts
    :param compiled: it finds its settings compiled
    """

    name: str
    moment: Moment
    words: Callable[[Stand], tuple[str, ...]]
    given: Callable[[Stand], bytes] = lambda stand: b""
    of: str = ""
    compiled: bool = True


def _apply(balancer: str, moment: Moment, ask: str, event_of: Callable[[Stand], tuple[type[Event], str]]) -> Call:
    def document(stand: Stand) -> bytes:
        kind, name = event_of(stand)
        nodes = nodes_of(stand.cluster)
        node: Node = next(node for node in nodes if node.name == name)
        truth = stand.truth()
        given = {"event": event_document(kind(node, truth)), "truth": truth_document(truth)}
        return encoded(Request("1-1", "efm", balancer, 8.0, tuple(node.name for node in nodes), ask, given).document())

    return Call(f"apply: {ask} at {balancer}", moment, lambda stand: ("apply",), document)


CALLS = (
    Call("detach of the live primary", Moment.BEFORE, lambda stand: ("detach", stand.old.name, "p")),
    Call(
        "detach of the live primary: the process that lets clients go",
        Moment.BEFORE,
        lambda stand: ("detach", stand.old.name, "p"),
        of="efm_lb_pgbouncer.guard",
    ),
    _apply("pgb1", Moment.BEFORE, "hold", lambda stand: (Detach, stand.old.name)),
    Call("attach of the new primary", Moment.PROMOTED, lambda stand: ("attach", stand.new.name, "p")),
    Call("reconcile after a promotion", Moment.PROMOTED, lambda stand: ("reconcile",)),
    _apply("pool1", Moment.PROMOTED, "act", lambda stand: (Promote, stand.new.name)),
    _apply("edge1", Moment.PROMOTED, "act", lambda stand: (Promote, stand.new.name)),
    _apply("pgb1", Moment.PROMOTED, "act", lambda stand: (Promote, stand.new.name)),
    Call("attach of a standby", Moment.REJOINED, lambda stand: ("attach", stand.old.name, "s")),
    Call(
        "attach of a standby, with new settings",
        Moment.REJOINED,
        lambda stand: ("attach", stand.old.name, "s"),
        compiled=False,
    ),
    Call("reconcile about a standby", Moment.REJOINED, lambda stand: ("reconcile",)),
)
