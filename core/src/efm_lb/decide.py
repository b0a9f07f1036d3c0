"""From a call and the truth to an event: the rules, without I/O and without a clock."""

from collections.abc import Collection
from enum import Enum
from typing import NamedTuple

from efm_lb.calls import Call, Kind
from efm_lb.configuration import DetachLivePrimary
from efm_lb.errors import lack
from efm_lb.events import Attach, Detach, Event, Origin, Promote
from efm_lb.truth import Node, NodeState, Reach, Role, Truth

__all__ = ["GRACE", "SUCCESSION", "Decision", "Policy", "Verdict", "decide"]

GRACE = 5.0
"""Seconds until a deferred detach of a live primary is judged again: has it died without a promotion?"""
SUCCESSION = 2.0
"""Seconds until the detach of a dead primary is judged again, for the balancers that hold something back."""


class Verdict(Enum):
    """What is to be done about a call."""

    ACT = "act"
    """Send the event to every balancer."""
    WAIT = "wait"
    """Ask the databases again: the node is on its way."""
    DEFER = "defer"
    """Do nothing, rightly."""
    FAIL = "fail"
    """Do nothing, because it cannot be told what is right; a later call may succeed."""
    REFUSE = "refuse"
    """Do nothing, because the policy forbids it."""


class Policy(NamedTuple):
    """What the operator wants where the rules leave a choice.

    :param detach_live_primary: for a detach that would take the last usable node away
    :param patience: the caller can still wait; when False, a decision is never WAIT
    :param in_maintenance: the names of the nodes that an operator has taken into his own hands
    """

    detach_live_primary: DetachLivePrimary = DetachLivePrimary.DEFER
    patience: bool = False
    in_maintenance: Collection[str] = ()


class Decision(NamedTuple):
    """What to do, and why, in words for a person.

    :param event: for ACT, what every balancer is told
    :param again_after: the seconds after which the call must be judged again, and earlier when a primary is seen;
        None when nothing is owed
    :param shortfall: what EFM asked for and ACT does not bring about, empty when nothing
    :param watch: for WAIT, the nodes whose answer may change the decision
    :param hold: for DEFER, the detach that may be about to stop the primary: a balancer that can hold new work back
        without cutting anybody is asked to
    :param rule: which one of `decide` it was, such as ``R3``; empty when the databases were not asked
    """

    verdict: Verdict
    reason: str
    event: Event | None = None
    again_after: float | None = None
    shortfall: str = ""
    hold: Detach | None = None
    watch: tuple[Node, ...] = ()
    rule: str = ""


def decide(call: Call, truth: Truth, policy: Policy) -> Decision:
    """Judge a call by the truth.

    ``node`` is the node that the call names; "primary" and "standby" are what the
    database itself says. The first rule that fits decides.

    ====  ==================  ============================  ===================================================
    rule  call                node                          decision
    ====  ==================  ============================  ===================================================
    R1    any                 primary, or attach p/promote  another primary is visible: FAIL, naming both
    R2    attach, promote     primary on an old timeline    FAIL: a newer timeline exists on another node
    R3    attach p, promote   primary                       Promote
    R4    attach, no TYPE     primary                       Promote: the database's role
    R5    attach s            primary                       Attach: never moves writes
    R6    attach p, promote   standby, no primary           WAIT for the promotion; then Attach, and a shortfall
    R7    attach, no TYPE     standby, no primary           as R6: it may be the one that is promoted
    R8    attach, follow-up   standby, no primary           WAIT for a primary that it can follow; then Attach
    R9    attach p, promote   standby, a primary elsewhere  Attach: the database's role wins
    R10   attach              standby                       Attach; with two primaries visible FAIL
    R11   attach, promote     rejecting, full, not there    WAIT until it takes connections; then FAIL
    R12   attach, promote     denied                        FAIL: what it is cannot be asked
    R13   detach p, follow-up not the primary, which is up  Promote that one: its call may be late or lost
    R14   detach, follow-up   accepting                     DEFER for good: it lives, nothing is owed
    R15   detach              primary, the only one         the policy: DEFER, hold, look again; Detach; REFUSE
    R16   detach              standby, the last usable      the policy, as R15, holding nothing
    R17   detach              standby                       Detach: EFM asks, others can serve
    R18   detach              denied, full: may be primary  the policy, as R15, holding nothing
    R19   detach              denied, full: another is it   Detach
    R20   detach              rejecting, refused, silent    Detach at once; without a primary look again
    R21   attach              in maintenance                instead of Attach: DEFER; a Promote goes on
    R22   detach              as R16, R18; one not asked    FAIL: this host could not ask; look again
    ====  ==================  ============================  ===================================================

    Detach says nothing about where writes go: its truth names a primary only when
    exactly one is proven, and an adapter moves writes to no other.

    :param call: what EFM says
    :param truth: what the databases say, asked after the call was made
    :param policy: the operator's choices
    :return: at most one event
    :raises KeyError: the call's node is not among the truth's nodes
    """
    state = truth.state(call.node)
    if call.kind is Kind.DETACH:
        return _detach(call, state, truth, policy)
    decision = _attach(call, state, truth, policy)
    if isinstance(decision.event, Attach) and call.node.name in policy.in_maintenance:
        return Decision(Verdict.DEFER, f"{call.node.name} is in maintenance: not attached", rule="R21")
    return decision


def _attach(call: Call, state: NodeState, truth: Truth, policy: Policy) -> Decision:
    node = call.node
    wants_writes = call.kind is Kind.PROMOTE or call.role is Role.PRIMARY
    if len(truth.primaries) > 1 and (wants_writes or state.reach is Reach.ACCEPTING):
        return _split_brain(truth, "R1" if wants_writes or state.role is Role.PRIMARY else "R10")
    if state.role is Role.PRIMARY:
        newer = truth.outdated(node)
        if newer:
            return Decision(
                Verdict.FAIL,
                f"{node.name} is out of recovery on timeline {state.timeline}, but {newer}:"
                " an old primary gets no writes",
                rule="R2",
            )
        if call.role is Role.STANDBY and call.kind is not Kind.PROMOTE:
            return Decision(
                Verdict.ACT,
                f"{node.name} is a primary although EFM calls it a standby: attached, writes not moved",
                Attach(node, truth, call.origin),
                rule="R5",
            )
        return Decision(
            Verdict.ACT,
            f"{node.name} is the primary{_on_timeline(state)}",
            Promote(node, truth, call.origin),
            rule="R3" if wants_writes else "R4",
        )
    if state.role is Role.STANDBY:
        return _attach_standby(call, wants_writes, truth, policy)
    if state.reach is Reach.DENIED:
        return Decision(Verdict.FAIL, f"{node.name} {_untold(state)}: {state.detail}", rule="R12")
    if policy.patience:
        return Decision(
            Verdict.WAIT, f"{node.name} takes no connections yet ({state.reach.value})", watch=(node,), rule="R11"
        )
    return Decision(
        Verdict.FAIL,
        f"{node.name} takes no connections ({state.reach.value}), so it was not attached: {state.detail}",
        rule="R11",
    )


def _attach_standby(call: Call, wants_writes: bool, truth: Truth, policy: Policy) -> Decision:
    node, primary = call.node, truth.primary
    attach = Attach(node, truth, call.origin)
    if primary and wants_writes:
        return Decision(
            Verdict.ACT,
            f"{node.name} is a standby although EFM calls it the primary, which is {primary.name}: writes not moved",
            attach,
            rule="R9",
        )
    may_be_promoted = wants_writes or call.role is None
    if primary or not (may_be_promoted or call.origin is Origin.FOLLOW_UP):
        return Decision(Verdict.ACT, f"{node.name} is a standby", attach, rule="R10")
    rule = "R6" if wants_writes else "R7" if call.role is None else "R8"
    if policy.patience:
        watch = (node,) if wants_writes else truth.standbys
        reason = f"{node.name} is still in recovery, and no node is a primary"
        return Decision(Verdict.WAIT, reason, watch=watch, rule=rule)
    shortfall = f"{node.name} is still in recovery and no primary was found: writes were not moved"
    shortfall = shortfall if may_be_promoted else ""
    return Decision(Verdict.ACT, f"{node.name} is a standby", attach, shortfall=shortfall, rule=rule)


def _detach(call: Call, state: NodeState, truth: Truth, policy: Policy) -> Decision:
    node = call.node
    others_usable = any(other.reach is Reach.ACCEPTING for other in truth.states if other.node != node)
    is_again = call.origin is Origin.FOLLOW_UP
    if is_again and call.role is Role.PRIMARY and truth.primary not in (None, node):
        return _succession(call, truth, truth.primary)
    if is_again and state.reach is Reach.ACCEPTING:
        return Decision(Verdict.DEFER, f"{node.name} is up: left in place", rule="R14")
    if state.role is Role.PRIMARY:
        if len(truth.primaries) > 1:
            return _split_brain(truth, "R1")
        return _last_usable(call, truth, policy, f"{node.name} is up and the only primary", "R15")
    if state.role is Role.STANDBY:
        if not others_usable:
            return _last_usable(call, truth, policy, f"{node.name} is the last node that answers", "R16")
        return _take_out(call, truth, f"{node.name} is a standby, and is up", "R17")
    is_up = state.reach.is_untold
    if is_up and not truth.primary and (call.role is not Role.STANDBY or not others_usable):
        return _last_usable(call, truth, policy, f"{node.name} is up and may be the primary ({state.detail})", "R18")
    if is_up:
        how = "" if _is_unasked(state) else "is up and "
        return _take_out(call, truth, f"{node.name} {how}{_untold(state)}, others can serve", "R19")
    down = f"{node.name} is down ({state.reach.value})"
    is_owed = call.origin is Origin.HOOK and call.role is not Role.STANDBY and not truth.primary
    owed = SUCCESSION if is_owed else None
    return _take_out(call, truth, down, "R20")._replace(again_after=owed)


def _succession(call: Call, truth: Truth, primary: Node) -> Decision:
    what = f"{primary.name} is the primary{_on_timeline(truth.state(primary))}, and {call.node.name} is not"
    return Decision(Verdict.ACT, what, Promote(primary, truth, call.origin), rule="R13")


def _take_out(call: Call, truth: Truth, reason: str, rule: str) -> Decision:
    return Decision(Verdict.ACT, reason, Detach(call.node, truth, call.origin), rule=rule)


def _last_usable(call: Call, truth: Truth, policy: Policy, what: str, rule: str) -> Decision:
    """A switchover is about to stop this node, or only its agent died: the arguments cannot tell."""
    if policy.detach_live_primary is DetachLivePrimary.OBEY:
        # The operator has said so beforehand, and an adapter holds nothing back from an operator.
        by_policy = call._replace(origin=Origin.OPERATOR)
        return _take_out(by_policy, truth, f"{what}; detached as EFM_LB_DETACH_LIVE_PRIMARY=obey says", rule)
    owed = None if call.origin is Origin.FOLLOW_UP else GRACE
    unasked = [other for other in truth.states if _is_unasked(other)]
    if unasked and rule != "R15":
        why = f"{unasked[0].node.name} could not be asked: {unasked[0].detail}"
        return Decision(Verdict.FAIL, f"{call.node.name} is left in place: {why}", again_after=owed, rule="R22")
    if policy.detach_live_primary is DetachLivePrimary.REFUSE:
        return Decision(Verdict.REFUSE, f"{what}: not detached, as EFM_LB_DETACH_LIVE_PRIMARY=refuse says", rule=rule)
    # Held only for a call that EFM has just made, and only where writes go to this node: nobody else is about to stop.
    stopping = call.origin is Origin.HOOK and truth.primary == call.node
    hold = Detach(call.node, truth, call.origin) if stopping else None
    reason = f"{what}: clients stay until another primary is proven"
    return Decision(Verdict.DEFER, reason, again_after=owed, hold=hold, rule=rule)


def _is_unasked(state: NodeState) -> bool:
    """Whether this process had no means left to ask it, which says nothing about the database."""
    return state.reach is Reach.DENIED and bool(lack(state.detail))


def _untold(state: NodeState) -> str:
    return "could not be asked" if _is_unasked(state) else "does not tell its role"


def _split_brain(truth: Truth, rule: str) -> Decision:
    both = " and ".join(
        f"{state.node.name}{_on_timeline(state)}" for state in truth.states if state.role is Role.PRIMARY
    )
    reason = f"more than one writable primary: {both}; nothing is moved until one is stopped"
    return Decision(Verdict.FAIL, reason, rule=rule)


def _on_timeline(state: NodeState) -> str:
    return f" (timeline {state.timeline})" if state.timeline is not None else ""
