"""The calls that are killed, and when in a switchover each is made."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from efm_lb.errors import EX_TEMPFAIL
from efm_lb.events import Attach, Detach, Event, Promote
from efm_lb.rehearsal.cluster import Server
from efm_lb.remote.documents import Request, encoded, event_document, truth_document
from efm_lb.truth import Node
from faults.kill.stand import FOLLOW_UP, Stand
from integration.real import nodes_of

__all__ = ["BALANCERS", "CALLS", "FURTHER", "GUARD", "Call", "Moment"]

BALANCERS = ("pool1", "edge1", "pgb1")
GUARD = "efm_lb_pgbouncer.guard"
"""In the command line of the process that lets held clients go."""


class Moment(Enum):
    """When a call is made."""

    BEFORE = "the primary is about to be stopped"
    LEAVING = "the same, and it is stopped and another node promoted before anybody else looks"
    STOPPED = "the primary is down, and another node is promoted before anybody else looks"
    RETIRED = "the same, and that one was taken out before"
    PROMOTED = "another node was promoted, and the old primary is down"
    REJOINED = "the old primary is back as a standby"
    LOST = "a standby is down"


class Call(NamedTuple):
    """A command of efm-lb.

    :param words: its command line
    :param given: its standard input
    :param of: in the command line of the process that is killed, when it is one that the command starts
    :param compiled: it finds its settings compiled
    :param is_service: it does not end by itself
    :param settings: of this call alone
    :param ends_in: its exit code
    """

    name: str
    moment: Moment
    words: Callable[[Stand], tuple[str, ...]]
    given: Callable[[Stand], bytes] = lambda stand: b""
    of: str = ""
    compiled: bool = True
    is_service: bool = False
    settings: tuple[tuple[str, str], ...] = ()
    ends_in: int = 0

    @property
    def is_apply(self) -> bool:
        return self.name.startswith("apply: ")


def _apply(balancer: str, moment: Moment, kind: type[Event], who: Callable[[Stand], Server], ask: str = "act") -> Call:
    def document(stand: Stand) -> bytes:
        nodes = nodes_of(stand.cluster)
        node: Node = next(node for node in nodes if node.name == who(stand).name)
        truth = stand.truth()
        given = {"event": event_document(kind(node, truth)), "truth": truth_document(truth)}
        return encoded(Request("1-1", "efm", balancer, 8.0, tuple(node.name for node in nodes), ask, given).document())

    what = kind.__name__.lower() if ask == "act" else ask
    return Call(f"apply: {what} at {balancer}", moment, lambda stand: ("apply",), document)


def _old(stand: Stand) -> Server:
    return stand.old


def _new(stand: Stand) -> Server:
    return stand.new


def _other(stand: Stand) -> Server:
    return stand.other


CALLS = (
    Call("detach of the live primary", Moment.BEFORE, lambda stand: ("detach", stand.old.name, "p")),
    Call(
        "detach of the live primary: the process that lets clients go",
        Moment.BEFORE,
        lambda stand: ("detach", stand.old.name, "p"),
        of=GUARD,
    ),
    _apply("pgb1", Moment.BEFORE, Detach, _old, "hold"),
    Call("attach of the new primary", Moment.PROMOTED, lambda stand: ("attach", stand.new.name, "p")),
    Call("reconcile after a promotion", Moment.PROMOTED, lambda stand: ("reconcile",)),
    _apply("pool1", Moment.PROMOTED, Promote, _new),
    _apply("edge1", Moment.PROMOTED, Promote, _new),
    _apply("pgb1", Moment.PROMOTED, Promote, _new),
    Call("attach of a standby", Moment.REJOINED, lambda stand: ("attach", stand.old.name, "s")),
    Call(
        "attach of a standby, with new settings",
        Moment.REJOINED,
        lambda stand: ("attach", stand.old.name, "s"),
        compiled=False,
    ),
    Call("reconcile about a standby", Moment.REJOINED, lambda stand: ("reconcile",)),
)
FURTHER = (
    Call("detach of the dead primary", Moment.STOPPED, lambda stand: ("detach", stand.old.name, "p")),
    Call("detach of a dead standby", Moment.LOST, lambda stand: ("detach", stand.other.name, "s")),
    *(_apply(balancer, Moment.REJOINED, Attach, _old) for balancer in BALANCERS),
    *(_apply(balancer, Moment.LOST, Detach, _other) for balancer in BALANCERS),
    Call(
        "detach of the live primary: its follow-up",
        Moment.LEAVING,
        lambda stand: ("detach", stand.old.name, "p"),
        of=FOLLOW_UP,
    ),
    Call(
        "detach of the dead primary: its follow-up",
        Moment.STOPPED,
        lambda stand: ("detach", stand.old.name, "p"),
        of=FOLLOW_UP,
    ),
    Call(
        "attach of the new primary, which is none yet: its follow-up",
        Moment.RETIRED,
        lambda stand: ("attach", stand.new.name, "p"),
        of=FOLLOW_UP,
        settings=(("EFM_LB_DEADLINE", "3"),),
        ends_in=EX_TEMPFAIL,
    ),
    Call(
        "reconcile --watch after a promotion",
        Moment.PROMOTED,
        lambda stand: ("reconcile", "--watch"),
        is_service=True,
    ),
    Call(
        "reconcile --watch about a standby",
        Moment.REJOINED,
        lambda stand: ("reconcile", "--watch"),
        is_service=True,
    ),
)
"""Of these not every repeated message is a point: what differs is what they leave behind, and what happens then."""
