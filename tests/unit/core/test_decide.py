"""The rules of `efm_lb.decide`, one by one, and what no rule may ever do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efm_lb import Attach, Detach, Node, NodeState, Origin, Promote, Reach, Role, Truth
from efm_lb.calls import Call, Kind
from efm_lb.configuration import DetachLivePrimary
from efm_lb.decide import SUCCESSION, Policy, Verdict, decide

DB1, DB2, DB3 = (Node(f"db{n}", f"10.0.0.{n}", 5444) for n in (1, 2, 3))
P, S = Role.PRIMARY, Role.STANDBY
WAIT = Policy(patience=True)
NOW = Policy()


def up(node: Node, role: Role, timeline: int = 1) -> NodeState:
    return NodeState(node, Reach.ACCEPTING, role, timeline)


def down(node: Node, reach: Reach = Reach.REFUSED) -> NodeState:
    return NodeState(node, reach, detail="why")


def truth(*states: NodeState) -> Truth:
    return Truth(states)


def call(kind: str, node: Node, role: Role | None = None, origin: Origin = Origin.HOOK) -> Call:
    return Call(Kind(kind), node, role, origin)


HEALTHY = truth(up(DB1, P), up(DB2, S), up(DB3, S))
FAILED_OVER = truth(down(DB1), up(DB2, P, 2), up(DB3, S, 1))
NO_PRIMARY = truth(down(DB1), up(DB2, S), up(DB3, S))
SPLIT = truth(up(DB1, P, 1), up(DB2, P, 2), up(DB3, S, 1))


@pytest.mark.parametrize(
    ("what", "truth", "expected"),
    [
        (call("attach", DB2, P), FAILED_OVER, Promote),
        (call("promote", DB2), FAILED_OVER, Promote),
        (call("attach", DB2), FAILED_OVER, Promote),
        (call("attach", DB2, S), FAILED_OVER, Attach),
        (call("attach", DB1, P), HEALTHY, Promote),
        (call("attach", DB3, S), FAILED_OVER, Attach),
        (call("attach", DB3), FAILED_OVER, Attach),
        (call("attach", DB3, P), FAILED_OVER, Attach),
        (call("promote", DB3), FAILED_OVER, Attach),
        (call("attach", DB2, S), NO_PRIMARY, Attach),
        (call("attach", DB2), NO_PRIMARY, Attach),
        (call("attach", DB2, S, Origin.FOLLOW_UP), NO_PRIMARY, Attach),
        (call("attach", DB2, P), NO_PRIMARY, Attach),
        (call("detach", DB1, P), FAILED_OVER, Detach),
        (call("detach", DB1, P), NO_PRIMARY, Detach),
        (call("detach", DB1), truth(down(DB1, Reach.NO_RESPONSE), down(DB2), down(DB3)), Detach),
        (call("detach", DB1, P), truth(down(DB1, Reach.REJECTING), up(DB2, S)), Detach),
        (call("detach", DB2, S), HEALTHY, Detach),
        (call("detach", DB3, S), SPLIT, Detach),
        (call("detach", DB1, P), truth(down(DB1, Reach.DENIED), up(DB2, P)), Detach),
        (call("detach", DB1, S), truth(down(DB1, Reach.DENIED), up(DB2, S)), Detach),
        (call("detach", DB1, P, Origin.FOLLOW_UP), NO_PRIMARY, Detach),
        (call("detach", DB1, S, Origin.FOLLOW_UP), FAILED_OVER, Detach),
    ],
)
def test_acts(what: Call, truth: Truth, expected: type) -> None:
    decision = decide(what, truth, NOW)
    assert decision.verdict is Verdict.ACT
    assert decision.event == expected(what.node, truth, what.origin)


@pytest.mark.parametrize("now", [FAILED_OVER, truth(up(DB1, S), up(DB2, P))], ids=["down", "a standby by now"])
def test_the_follow_up_of_an_old_primary_sends_the_writes_to_the_new_one(now: Truth) -> None:
    assert decide(call("detach", DB1, P, Origin.FOLLOW_UP), now, NOW).event == Promote(DB2, now, Origin.FOLLOW_UP)


def test_the_follow_up_of_a_node_that_efm_calls_no_primary_takes_it_out() -> None:
    for role in (S, None):
        again = call("detach", DB1, role, Origin.FOLLOW_UP)
        assert decide(again, FAILED_OVER, NOW).event == Detach(DB1, FAILED_OVER, Origin.FOLLOW_UP)


@pytest.mark.parametrize(("what", "owed"), [(P, SUCCESSION), (None, SUCCESSION), (S, None)])
def test_a_dead_primary_without_a_successor_is_judged_again(what: Role | None, owed: float | None) -> None:
    assert decide(call("detach", DB1, what), NO_PRIMARY, NOW).again_after == owed
    assert decide(call("detach", DB1, what), FAILED_OVER, NOW).again_after is None


@pytest.mark.parametrize(
    ("what", "truth"),
    [
        (call("attach", DB2, P), NO_PRIMARY),
        (call("promote", DB2), NO_PRIMARY),
        (call("attach", DB1, S), NO_PRIMARY),
        (call("attach", DB1, P), truth(down(DB1, Reach.NO_RESPONSE), up(DB2, S))),
        (call("promote", DB1), truth(down(DB1, Reach.REJECTING), up(DB2, S))),
        (call("attach", DB1, P), truth(down(DB1, Reach.FULL), up(DB2, S))),
        (call("attach", DB2), NO_PRIMARY),
    ],
)
def test_waits_while_the_node_is_on_its_way_and_ends_in_a_failure(what: Call, truth: Truth) -> None:
    assert decide(what, truth, WAIT).verdict is Verdict.WAIT
    impatient = decide(what, truth, NOW)
    assert impatient.verdict is Verdict.FAIL or impatient.shortfall


@pytest.mark.parametrize(
    "what",
    [
        call("attach", DB1, P),
        call("attach", DB2, P),
        call("attach", DB2),
        call("attach", DB3, S),
        call("attach", DB3, P),
        call("promote", DB3),
        call("detach", DB1, P),
        call("detach", DB2, S),
    ],
)
@pytest.mark.parametrize("policy", [NOW, WAIT, Policy(DetachLivePrimary.OBEY)])
def test_two_primaries_stop_everything_and_are_named(what: Call, policy: Policy) -> None:
    decision = decide(what, SPLIT, policy)
    assert decision.verdict is Verdict.FAIL
    assert "db1 (timeline 1) and db2 (timeline 2)" in decision.reason


@pytest.mark.parametrize(
    ("what", "truth"),
    [
        (call("detach", DB1, P), HEALTHY),
        (call("detach", DB1), HEALTHY),
        (call("detach", DB2, S), truth(down(DB1), up(DB2, S), down(DB3))),
        (call("detach", DB1, P), truth(down(DB1, Reach.DENIED), up(DB2, S))),
        (call("detach", DB1, S), truth(down(DB1, Reach.DENIED), down(DB2))),
        (call("detach", DB1, P), truth(down(DB1, Reach.FULL), up(DB2, S))),
    ],
)
def test_the_last_usable_node_is_the_policy_s(what: Call, truth: Truth) -> None:
    deferred = decide(what, truth, Policy(DetachLivePrimary.DEFER))
    assert deferred.verdict is Verdict.DEFER
    assert deferred.again_after is not None
    assert decide(what, truth, Policy(DetachLivePrimary.REFUSE)).verdict is Verdict.REFUSE
    assert decide(what, truth, Policy(DetachLivePrimary.OBEY)).event == Detach(what.node, truth, Origin.OPERATOR)


def test_only_a_live_primary_that_efm_has_just_named_is_held_for() -> None:
    decision = decide(call("detach", DB1, P), HEALTHY, NOW)
    assert decision.hold == Detach(DB1, HEALTHY, Origin.HOOK)
    assert decision.event is None


@pytest.mark.parametrize(
    ("what", "truth", "policy"),
    [
        (call("detach", DB1, P), HEALTHY, Policy(DetachLivePrimary.OBEY)),
        (call("detach", DB1, P), HEALTHY, Policy(DetachLivePrimary.REFUSE)),
        (call("detach", DB1, P, Origin.FOLLOW_UP), HEALTHY, NOW),
        (call("detach", DB2, S), truth(down(DB1), up(DB2, S), down(DB3)), NOW),
        (call("detach", DB1, P), truth(down(DB1, Reach.DENIED), up(DB2, S)), NOW),
        (call("detach", DB1, P), truth(up(DB1, P, 1), up(DB3, S, 2)), NOW),
        (call("detach", DB1, P), SPLIT, NOW),
        (call("detach", DB1, P), NO_PRIMARY, NOW),
        (call("attach", DB1, P), HEALTHY, NOW),
    ],
)
def test_nothing_else_is_held_for(what: Call, truth: Truth, policy: Policy) -> None:
    assert decide(what, truth, policy).hold is None


def test_a_follow_up_leaves_a_node_that_came_back_and_owes_nothing_more() -> None:
    for state in (HEALTHY, truth(up(DB1, S), up(DB2, S)), truth(up(DB1, P, 1), up(DB2, P, 2))):
        decision = decide(call("detach", DB1, P, Origin.FOLLOW_UP), state, NOW)
        assert decision.verdict is Verdict.DEFER
        assert decision.again_after is None


def test_an_old_primary_on_an_old_timeline_gets_no_writes() -> None:
    returned = truth(up(DB1, P, 1), down(DB2), up(DB3, S, 2))
    decision = decide(call("attach", DB1, P), returned, WAIT)
    assert decision.verdict is Verdict.FAIL
    assert "timeline 2" in decision.reason


def test_a_detach_never_moves_writes_to_an_old_primary() -> None:
    """The new primary goes down, and the old one was started by mistake: it is no primary to send writes to."""
    mistake = truth(up(DB1, P, 1), down(DB2), up(DB3, S, 2))
    decision = decide(call("detach", DB2, P), mistake, NOW)
    assert decision.event == Detach(DB2, mistake)
    assert decision.event.truth.primary is None
    assert mistake.outdated(DB1) == "db3 is on timeline 2"
    alone = Truth((up(DB1, P, 1), down(DB2), down(DB3)), newest=2)
    assert alone.primary is None
    assert "this host has seen timeline 2" in decide(call("attach", DB1, P), alone, WAIT).reason


def test_a_follow_up_waits_for_a_primary_that_the_standby_can_follow() -> None:
    again = call("attach", DB2, S, Origin.FOLLOW_UP)
    decision = decide(again, NO_PRIMARY, WAIT)
    assert decision.verdict is Verdict.WAIT
    assert set(decision.watch) == {DB2, DB3}, "whoever may be promoted"
    at_last = decide(again, NO_PRIMARY, NOW)
    assert (at_last.verdict, at_last.shortfall) == (Verdict.ACT, "")
    assert decide(again, HEALTHY, WAIT).verdict is Verdict.ACT


def test_who_waits_for_a_promotion_asks_the_node_that_efm_promotes() -> None:
    assert decide(call("attach", DB2, P), NO_PRIMARY, WAIT).watch == (DB2,)
    assert set(decide(call("attach", DB2), NO_PRIMARY, WAIT).watch) == {DB2, DB3}


def test_a_node_that_does_not_tell_its_role_is_not_attached() -> None:
    decision = decide(call("attach", DB1, P), truth(down(DB1, Reach.DENIED), up(DB2, S)), WAIT)
    assert decision.verdict is Verdict.FAIL
    assert "why" in decision.reason


def unasked(node: Node) -> NodeState:
    return NodeState(node, Reach.DENIED, detail="RuntimeError: can't start new thread")


NOBODY = truth(unasked(DB1), unasked(DB2), unasked(DB3))


@pytest.mark.parametrize("policy", [NOW, WAIT, Policy(DetachLivePrimary.REFUSE)])
@pytest.mark.parametrize("origin", [Origin.HOOK, Origin.FOLLOW_UP])
@pytest.mark.parametrize(
    ("what", "truth"),
    [
        (call("detach", DB1, P), NOBODY),
        (call("detach", DB1, S), NOBODY),
        (call("detach", DB1), NOBODY),
        (call("detach", DB1, P), truth(unasked(DB1), up(DB2, S), up(DB3, S))),
        (call("detach", DB1, P), truth(down(DB1, Reach.DENIED), unasked(DB2), down(DB3))),
    ],
)
def test_what_could_not_be_asked_is_not_rightly_left_alone(
    what: Call, truth: Truth, policy: Policy, origin: Origin
) -> None:
    """This process had no threads left; that says nothing about a database."""
    decision = decide(what._replace(origin=origin), truth, policy)
    assert (decision.verdict, decision.rule) == (Verdict.FAIL, "R22")
    assert "could not be asked: RuntimeError: can't start new thread" in decision.reason
    assert (decision.again_after is None) is (origin is Origin.FOLLOW_UP)


def test_a_standby_is_not_the_last_one_because_the_others_could_not_be_asked() -> None:
    decision = decide(call("detach", DB2, S), truth(unasked(DB1), up(DB2, S), down(DB3)), NOW)
    assert (decision.verdict, decision.rule) == (Verdict.FAIL, "R22")
    assert "db1 could not be asked" in decision.reason


def test_a_node_that_could_not_be_asked_otherwise() -> None:
    decision = decide(call("detach", DB1, P), truth(unasked(DB1), up(DB2, P)), NOW)
    assert (decision.verdict, decision.rule) == (Verdict.ACT, "R19")
    assert "db1 could not be asked" in decision.reason
    assert decide(call("detach", DB1, P), NOBODY, Policy(DetachLivePrimary.OBEY)).rule == "R18"
    failed = decide(call("attach", DB1, P), NOBODY, NOW)
    assert (failed.verdict, failed.rule) == (Verdict.FAIL, "R12")
    assert failed.reason == "db1 could not be asked: RuntimeError: can't start new thread"


def test_a_node_that_is_not_of_the_cluster_is_an_error() -> None:
    with pytest.raises(KeyError):
        decide(call("attach", Node("x", "x", 1)), HEALTHY, NOW)


AGAIN = Origin.FOLLOW_UP
FULL, DENIED = truth(down(DB1, Reach.FULL), up(DB2, S)), truth(down(DB1, Reach.DENIED), up(DB2, P))
LAST = truth(down(DB1), up(DB2, S), down(DB3))
OLD = truth(up(DB1, P, 1), up(DB2, S, 2))


@pytest.mark.parametrize(
    ("rule", "what", "truth"),
    [
        ("R1", call("attach", DB1, S), SPLIT),
        ("R1", call("attach", DB3, P), SPLIT),
        ("R1", call("detach", DB1, P), SPLIT),
        ("R2", call("attach", DB1, S), OLD),
        ("R3", call("attach", DB2, P), FAILED_OVER),
        ("R3", call("promote", DB2), FAILED_OVER),
        ("R4", call("attach", DB2), FAILED_OVER),
        ("R5", call("attach", DB2, S), FAILED_OVER),
        ("R6", call("promote", DB2), NO_PRIMARY),
        ("R7", call("attach", DB2), NO_PRIMARY),
        ("R8", call("attach", DB2, S, AGAIN), NO_PRIMARY),
        ("R9", call("attach", DB3, P), FAILED_OVER),
        ("R10", call("attach", DB3), FAILED_OVER),
        ("R10", call("attach", DB3, S), SPLIT),
        ("R11", call("attach", DB1, S), FAILED_OVER),
        ("R12", call("attach", DB1, S), DENIED),
        ("R13", call("detach", DB1, P, AGAIN), FAILED_OVER),
        ("R14", call("detach", DB1, P, AGAIN), HEALTHY),
        ("R15", call("detach", DB1, S), HEALTHY),
        ("R16", call("detach", DB2, S), LAST),
        ("R17", call("detach", DB2, S), HEALTHY),
        ("R18", call("detach", DB1, P), FULL),
        ("R19", call("detach", DB1, P), DENIED),
        ("R20", call("detach", DB1, P), FAILED_OVER),
    ],
)
@pytest.mark.parametrize("policy", [NOW, WAIT, *(Policy(which) for which in DetachLivePrimary)])
def test_a_decision_names_its_rule(rule: str, what: Call, truth: Truth, policy: Policy) -> None:
    assert decide(what, truth, policy).rule == rule


states = st.one_of(
    st.builds(lambda role, timeline: (Reach.ACCEPTING, role, timeline), st.sampled_from(Role), st.integers(1, 3)),
    st.sampled_from([reach for reach in Reach if reach is not Reach.ACCEPTING]).map(lambda reach: (reach, None, None)),
)
truths = st.lists(states, min_size=1, max_size=5).map(
    lambda found: Truth(
        tuple(NodeState(Node(f"db{n}", f"10.0.0.{n}", 5444), *state) for n, state in enumerate(found, 1))
    )
)
policies = st.builds(Policy, st.sampled_from(DetachLivePrimary), st.booleans())


@given(st.data(), truths, policies)
def test_never(data: st.DataObject, truth: Truth, policy: Policy) -> None:
    """Whatever EFM calls and whatever the databases say."""
    what = Call(
        data.draw(st.sampled_from(Kind)),
        data.draw(st.sampled_from(truth.nodes)),
        data.draw(st.sampled_from([None, *Role])),
        data.draw(st.sampled_from([Origin.HOOK, Origin.FOLLOW_UP])),
    )
    decision = decide(what, truth, policy)
    event = decision.event
    assert decision.reason
    assert f"\n    {decision.rule} " in (decide.__doc__ or "")
    assert (decision.verdict is Verdict.ACT) == (event is not None)
    if event is not None:
        if what.kind is Kind.DETACH and isinstance(event, Promote):
            assert what.origin is Origin.FOLLOW_UP, "a call to detach moves writes only when nobody else calls"
            assert what.role is Role.PRIMARY, "and only for a node that was one"
        else:
            assert event.node == what.node, "an event is about the node of the call"
        assert event.truth == truth
    if event is not None and event.truth.primary:
        assert truth.primaries == (event.truth.primary,), "an adapter is told of one primary or none"
        assert not truth.outdated(event.truth.primary)
    if isinstance(event, Promote):
        assert truth.primaries == (event.node,), "writes go to the only primary"
        newest = max(state.timeline or 0 for state in truth.states)
        assert truth.state(event.node).timeline == newest, "never back to an old timeline"
        assert not (what.kind is Kind.ATTACH and what.role is Role.STANDBY), "attach s never moves writes"
    if isinstance(event, Attach):
        assert truth.state(event.node).reach is Reach.ACCEPTING, "only what is up is attached"
    if isinstance(event, Detach) and policy.detach_live_primary is not DetachLivePrimary.OBEY:
        others = [state for state in truth.states if state.node != event.node and state.reach is Reach.ACCEPTING]
        assert others or truth.state(event.node).reach is not Reach.ACCEPTING, "the last usable node stays"
        assert truth.role(event.node) is not Role.PRIMARY, "a live primary stays"
    if not policy.patience:
        assert decision.verdict is not Verdict.WAIT, "waiting is bounded"
    if what.origin is Origin.FOLLOW_UP:
        assert decision.again_after is None, "a deferred call is judged again once"


def test_a_node_in_maintenance_is_not_attached_but_gets_the_writes() -> None:
    policy = Policy(in_maintenance=("db2",))
    standby = decide(call("attach", DB2, S), HEALTHY, policy)
    assert (standby.verdict, standby.event) == (Verdict.DEFER, None)
    assert "db2 is in maintenance" in standby.reason
    assert isinstance(decide(call("attach", DB2, P), FAILED_OVER, policy).event, Promote)
    assert isinstance(decide(call("detach", DB2, S), HEALTHY, policy).event, Detach)
    assert isinstance(decide(call("attach", DB2, S), HEALTHY, Policy(in_maintenance=("db1",))).event, Attach)
