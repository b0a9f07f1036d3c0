"""From the truth and a balancer's view to the events that would make the view right. Pure."""

from __future__ import annotations

from efm_lb.events import Attach, Detach, Event, Origin, Promote
from efm_lb.truth import Node, Reach, Role, Truth
from efm_lb.views import View

__all__ = ["differences", "disagreement", "gone", "no_primary", "untold"]


def differences(truth: Truth, view: View) -> tuple[Event, ...]:
    """The events that would bring a balancer in line with the truth, in the order to send them.

    Writes first, then what cannot serve, then what can, and that only while there is a
    primary to follow. Nothing is wanted while more than one node is writable: that is
    for a person to end.

    :param truth: what the databases say
    :param view: what the balancer believes
    :return: no event when they agree, or when the truth is not clear enough to act on
    """
    if len(truth.primaries) > 1:
        return ()
    events: list[Event] = []
    origin = Origin.RECONCILE
    primary = truth.primary
    if primary:
        seen = view.of(primary)
        others = any(other.writes for other in view.nodes if other.node != primary)
        if seen and (others or not (seen.writes and seen.attached and seen.kept)):
            events.append(Promote(primary, truth, origin))
    events += [
        Detach(seen.node, truth, origin)
        for seen in view.nodes
        if not truth.state(seen.node).reach.serves and (seen.attached or not seen.kept) and (primary or not seen.writes)
    ]
    events += [
        Attach(seen.node, truth, origin)
        for seen in view.nodes
        if truth.role(seen.node) is Role.STANDBY and (seen.attached is False or not seen.kept) and primary
    ]
    return tuple(events)


def disagreement(truth: Truth, view: View) -> dict[str, str]:
    """What is wrong with a view, per node name, in a few words; empty when nothing is.

    :param truth: what the databases say
    :param view: what the balancer believes
    """
    wrong: dict[str, str] = {}
    for node in truth.nodes:
        seen, state = view.of(node), truth.state(node)
        if seen is None:
            wrong[node.name] = "not known to this balancer"
        elif seen.writes and state.role is Role.STANDBY:
            wrong[node.name] = "gets writes, but is a standby"
        elif seen.writes and not state.reach.serves:
            wrong[node.name] = "gets writes, but is down"
        elif state.role is Role.PRIMARY and truth.outdated(node):
            wrong[node.name] = "is an old primary: it missed a promotion" + (", and gets writes" * seen.writes)
        elif not seen.writes and state.role is Role.PRIMARY:
            wrong[node.name] = "is a primary, but gets no writes"
        elif seen.attached is False and not seen.beside and state.reach is Reach.ACCEPTING:
            wrong[node.name] = "is up, but detached"
        elif back := [other.name for other in seen.beside if truth.role(other) is Role.STANDBY]:
            wrong[node.name] = f"still serves reads in place of {' and '.join(back)}"
        elif seen.attached and not state.reach.serves:
            wrong[node.name] = "is down, but attached"
        elif not seen.kept:
            wrong[node.name] = "would be otherwise after a reload"
    return wrong


def no_primary(truth: Truth) -> str:
    """Why it cannot be told where writes belong, when ``truth.primary`` is None."""
    primaries = truth.primaries
    if len(primaries) > 1:
        names = " and ".join(node.name for node in primaries)
        return f"more than one writable primary ({names}): stop the wrong one"
    for node in primaries:
        newer = truth.outdated(node)
        if newer:
            return f"{node.name} is an old primary: {newer}; stop {node.name}"
    return "no node is a primary"


def untold(truth: Truth) -> dict[str, str]:
    """The nodes that are up and do not tell their role, by name, and what they say instead."""
    return {
        state.node.name: f"does not tell its role: {state.detail}" for state in truth.states if state.reach.is_untold
    }


def gone(truth: Truth) -> list[Node]:
    """The nodes that serve nobody."""
    return [state.node for state in truth.states if not state.reach.serves]
