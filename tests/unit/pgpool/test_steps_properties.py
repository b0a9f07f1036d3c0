"""What no event may bring about in any world, against a model of pgpool."""

from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from efm_lb import Attach, Detach, Node, NodeState, Origin, Promote, Reach, Role, Truth
from efm_lb_pgpool.plan import told
from efm_lb_pgpool.steps import Ask, Command, Defer, Done, Fail, Memory, backend_of, next_step, observed, sent
from unit.pgpool.pgpool_model import PgpoolModel

LOOK = 0.1
"""Seconds between two looks."""
DEADLINE = 10.0
REACHES = {"x": Reach.REFUSED, "-": Reach.NO_RESPONSE}
ROLES = {"P": Role.PRIMARY, "s": Role.STANDBY}
KINDS = (Attach, Detach, Promote)


class Run(NamedTuple):
    """One event, driven to its end."""

    event: Attach | Detach | Promote
    step: object
    memory: Memory
    moved: list
    """The node ids that writes were moved to on the way."""

    @property
    def first(self):
        return self.memory.first

    @property
    def target(self):
        return backend_of(self.event.node, self.first).id


def nodes_of(model):
    return tuple(Node(f"10.0.0.{n}", f"10.0.0.{n}", 5444) for n in range(len(model.databases)))


def truth_of(model):
    return Truth(
        tuple(
            NodeState(node, REACHES.get(state, Reach.ACCEPTING), ROLES.get(state))
            for node, state in zip(nodes_of(model), model.databases, strict=True)
        )
    )


def drive(model, event):
    """As `efm_lb_pgpool.drive` does it."""
    nodes = nodes_of(model)
    memory = Memory(model.backends(nodes))
    moved = []
    for _ in range(int(DEADLINE / LOOK)):
        backends = model.backends(nodes)
        memory = observed(memory, backends)
        step = next_step(event, backends, memory)
        if isinstance(step, Ask):
            memory = memory._replace(search_timeout=model.search_timeout)
            step = next_step(event, backends, memory)
        if isinstance(step, Done | Defer | Fail):
            break
        if isinstance(step, Command) and model.request(step.verb, step.backend.id):
            memory = sent(memory, step)
        before = model.primary
        model.work(LOOK)
        if model.primary not in (before, None):
            moved.append(model.primary)
        memory = memory._replace(quiet=memory.quiet + LOOK)
    return Run(event, step, memory, moved)


def settle(model, seconds=5):
    for _ in range(int(seconds / LOOK)):
        model.work(LOOK)


@st.composite
def worlds(draw, states="Psx-", searching=False):
    """A pgpool that believes anything, in front of databases in any state; it is idle unless ``searching``."""
    databases = draw(st.text(states, min_size=2, max_size=4))
    model = PgpoolModel(databases, draw(st.sampled_from([0, 1, 3, 300])))
    model.attached = [draw(st.booleans()) for _ in databases]
    attached = [i for i, is_attached in enumerate(model.attached) if is_attached]
    detached = [i for i, is_attached in enumerate(model.attached) if not is_attached]
    model.searching = None
    model.primary = draw(st.sampled_from([None, *attached]))
    if searching and detached:
        model.primary = draw(st.sampled_from(detached))
        model.searching = 0.0
    return model


@st.composite
def runs(draw, kind, proven=False, **options):
    """A world and what became of an event in it; ``proven`` when its node is the only primary."""
    model = draw(worlds(**options))
    node = draw(st.sampled_from(nodes_of(model)))
    if proven:
        model.databases = ["s" if state == "P" else state for state in model.databases]
        model.databases[nodes_of(model).index(node)] = "P"
    return model, drive(model, kind(node, truth_of(model), draw(st.sampled_from(Origin))))


def known_primary(run):
    return next((backend.id for backend in run.first if backend.is_primary), None)


MANY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("kind", KINDS)
def test_writes_only_ever_move_to_the_proven_primary(kind):
    @MANY
    @given(runs(kind))
    def prove(case):
        _, run = case
        primary = run.event.truth.primary
        assert all(primary and node_id == backend_of(primary, run.first).id for node_id in run.moved)
        if kind is Attach:
            assert run.moved in ([], [run.target])

    prove()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_event_again_sends_nothing(kind):
    @MANY
    @given(runs(kind, proven=kind is Promote, searching=True))
    def prove(case):
        model, run = case
        assume(isinstance(run.step, Done))
        settle(model)
        again = drive(model, run.event)
        assert isinstance(again.step, Done)
        assert not again.memory.sent

    prove()


@pytest.mark.parametrize("kind", KINDS)
def test_it_ends_within_a_few_commands(kind):
    @MANY
    @given(runs(kind, proven=kind is Promote, searching=True))
    def prove(case):
        model, run = case
        assert len(run.memory.sent) <= 2 * len(model.databases) + 1

    prove()


@MANY
@given(runs(Promote, proven=True, states="Psx"))
def test_a_proven_primary_always_gets_the_writes(case):
    model, run = case
    assert isinstance(run.step, Done), run.step
    assert model.primary == run.target
    assert model.attached[run.target]


@MANY
@given(runs(Promote, proven=True, states="Psx", searching=True))
def test_a_promotion_ends_a_search(case):
    model, run = case
    assume(backend_of(run.event.node, run.first).attached or 0 < model.search_timeout < DEADLINE)
    assert isinstance(run.step, Done), run.step


@MANY
@given(runs(Promote, proven=True))
def test_a_promotion_loses_no_standby_and_touches_none_that_was_out(case):
    model, run = case
    assume(isinstance(run.step, Done))
    for node in run.event.truth.standbys:
        backend = backend_of(node, run.first)
        if backend.attached:
            assert model.attached[backend.id]
        elif known_primary(run) is not None:
            assert not model.attached[backend.id]


@MANY
@given(runs(Attach))
def test_an_attach_never_blocks_pgpool(case):
    model, run = case
    settle(model)
    assert model.idle, model
    if isinstance(run.step, Done):
        assert model.attached[run.target]
    else:
        assert [backend.attached for backend in run.first] == model.attached


@MANY
@given(runs(Detach))
def test_a_detach_blocks_pgpool_never_for_ever_unless_a_person_wants_it(case):
    model, run = case
    if run.event.origin is Origin.OPERATOR:
        return
    settle(model, model.search_timeout + 15)
    silent = sum(state == "-" and seen.attached for state, seen in zip(model.databases, run.first, strict=True))
    primary = run.event.truth.primary
    found = backend_of(primary, run.first) if primary else None
    if known_primary(run) is None and silent and not (found and found.attached and silent == 1):
        return  # whatever is sent, pgpool looks, and meets a silent node or finds none
    assert model.idle, model
    if isinstance(run.step, Done):
        assert not model.attached[run.target]


@MANY
@given(runs(Detach))
def test_a_detach_never_leaves_pgpool_without_a_node_that_answers_unless_a_person_wants_it(case):
    model, run = case
    assume(run.event.origin is not Origin.OPERATOR)
    answering = [i for i, state in enumerate(model.databases) if state in "Ps"]
    assume(any(run.first[i].attached for i in answering))
    assert any(model.attached[i] for i in answering)


@MANY
@given(runs(Detach))
def test_a_detach_attaches_nothing(case):
    _, run = case
    assert all(command.verb == "detach" for command in run.memory.sent)


@pytest.mark.parametrize("kind", KINDS)
def test_two_primaries_are_left_as_they_are(kind):
    @MANY
    @given(runs(kind, states="PPs"))
    def prove(case):
        model, run = case
        assume(len(run.event.truth.primaries) > 1)
        settle(model)
        assert model.primary == known_primary(run)

    prove()


@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_is_what_happens(kind):
    @MANY
    @given(worlds(states="Psx"), st.data())
    def prove(model, data):
        model.search_timeout = 3
        node = data.draw(st.sampled_from(nodes_of(model)))
        event = kind(node, truth_of(model), data.draw(st.sampled_from(Origin)))
        memory = Memory(model.backends(nodes_of(model)), search_timeout=3)
        lines = told(event, next_step(event, memory.first, memory), memory)
        run = drive(model, event)
        assert [line.partition(",")[0] for line in lines if line.startswith("pcp_")] == [
            str(command) for command in run.memory.sent
        ]

    prove()


class Pgpool(RuleBasedStateMachine):
    """Databases that fail and recover, events in any order, and somebody else who sends commands too."""

    @initialize(databases=st.text("Psx", min_size=2, max_size=4), timeout=st.sampled_from([0, 1, 3, 300]))
    def start(self, databases, timeout):
        self.model = PgpoolModel(databases, timeout)

    @rule(node_id=st.integers(0, 3), state=st.sampled_from("Pssxx-"))
    def database_changes(self, node_id, state):
        self.model.databases[node_id % len(self.model.databases)] = state

    @rule(node_id=st.integers(0, 3))
    def failover(self, node_id):
        self.model.databases = ["x" if state == "P" else state for state in self.model.databases]
        self.model.databases[node_id % len(self.model.databases)] = "P"

    @rule(seconds=st.sampled_from([0.1, 1, 5]))
    def time_passes(self, seconds):
        settle(self.model, seconds)

    @rule(verb=st.sampled_from(["attach", "detach", "promote"]), node_id=st.integers(0, 3))
    def somebody_else(self, verb, node_id):
        self.model.request(verb, node_id % len(self.model.databases))

    @rule(kind=st.sampled_from(KINDS), node_id=st.integers(0, 3), origin=st.sampled_from(Origin))
    def event(self, kind, node_id, origin):
        nodes = nodes_of(self.model)
        alone = self.model.idle
        run = drive(self.model, kind(nodes[node_id % len(nodes)], truth_of(self.model), origin))
        assert len(run.memory.sent) <= 2 * len(nodes) + 1
        if alone:
            assert all(self.model.databases[node_id] == "P" for node_id in run.moved)
        if isinstance(run.step, Done) and alone:
            settle(self.model)
            again = drive(self.model, run.event)
            assert isinstance(again.step, Done)
            assert not again.memory.sent


TestPgpool = Pgpool.TestCase
TestPgpool.settings = settings(max_examples=100, stateful_step_count=20, deadline=None)
