"""What goes between a hook and efm-lb apply: read as jsonschema reads it, and the same on both ends."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from efm_lb import (
    Attach,
    Detach,
    Event,
    Finding,
    Node,
    NodeState,
    NodeView,
    Origin,
    Outcome,
    Promote,
    Reach,
    Result,
    Role,
    Severity,
    Truth,
    View,
)
from efm_lb.remote import documents
from efm_lb.remote.conformity import conforms, objection
from efm_lb.remote.schemas import ANSWER, LIMIT, READY, REQUEST

NODES = tuple(Node(f"db{n}", f"10.0.0.{n}", 5444) for n in (1, 2, 3))

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 2),
    st.sampled_from([2**32, 1e300, -0.5, 1.0, 1.5, "", "x" * 300, [], [[]], {}, {"x": 1}, "primary", "failed"]),
)


def valid(schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Documents that a schema describes."""
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return st.one_of([_valid(kind, schema) for kind in types])


def _valid(kind: str, schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    if kind == "null":
        return st.none()
    if kind == "string":
        return st.text(max_size=min(8, schema["maxLength"]))
    if kind == "integer":
        return st.integers(schema["minimum"], schema["maximum"])
    if kind == "number":
        return st.floats(schema["minimum"], schema["maximum"]) | st.integers(schema["minimum"], schema["maximum"])
    if kind == "array":
        return st.lists(valid(schema["items"]), max_size=min(3, schema["maxItems"]))
    properties = {name: valid(each) for name, each in schema["properties"].items()}
    if "maxProperties" in schema:
        return st.one_of([st.fixed_dictionaries({name: each}) for name, each in properties.items()])
    return st.fixed_dictionaries(properties)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


@st.composite
def damaged(draw: st.DrawFn, schema: Mapping[str, Any]) -> Any:
    """A valid document with up to two changes, each of which may or may not be one too many."""
    document = draw(valid(schema))
    for _ in range(draw(st.integers(0, 2))):
        holder: list[Any] = [copy.deepcopy(document)]
        *way, last = (0, *draw(st.sampled_from(places(document))))
        parent: Any = holder
        for key in way:
            parent = parent[key]
        change = draw(st.sampled_from(["replace", "remove", "add"]))
        if change == "replace" or not way:
            parent[last] = draw(ODD)
        elif change == "remove":
            del parent[last]
        elif isinstance(parent[last], dict):
            parent[last][draw(st.sampled_from(["extra", "detail", "event", "view", "steps"]))] = draw(ODD)
        elif isinstance(parent[last], list):
            parent[last].append(draw(ODD))
        document = holder[0]
    return document


@pytest.mark.parametrize("schema", [READY, REQUEST, ANSWER], ids=["ready", "request", "answer"])
def test_the_schemas_are_valid_and_use_what_the_reader_knows(schema: dict[str, Any]) -> None:
    Draft202012Validator.check_schema(schema)
    known = {"type", "properties", "required", "additionalProperties", "minProperties", "maxProperties", "items"}
    known |= {"maxItems", "maxLength", "minimum", "maximum", "enum", "const", "description", "title", "$schema", "$id"}

    def look(part: Mapping[str, Any]) -> None:
        assert set(part) <= known
        for each in part.get("properties", {}).values():
            look(each)
        if "items" in part:
            look(part["items"])

    look(schema)


@pytest.mark.parametrize("schema", [READY, REQUEST, ANSWER], ids=["ready", "request", "answer"])
@given(data=st.data())
def test_the_reader_agrees_with_jsonschema(schema: dict[str, Any], data: st.DataObject) -> None:
    document = data.draw(damaged(schema))
    said = objection(document, schema)
    assert conforms(document, schema) == (not said), said


def truths() -> st.SearchStrategy[Truth]:
    def states(node: Node) -> st.SearchStrategy[NodeState]:
        return st.builds(
            NodeState,
            st.just(node),
            st.sampled_from(Reach),
            st.none() | st.sampled_from(Role),
            st.none() | st.integers(1, 9),
            st.text(max_size=5),
            st.floats(0, 60).map(lambda seconds: round(seconds, 3)),
        )

    return st.builds(Truth, st.tuples(*map(states, NODES)), st.integers(0, 9))


def events() -> st.SearchStrategy[Event]:
    return st.builds(
        lambda kind, node, truth, origin: kind(node, truth, origin),
        st.sampled_from([Attach, Detach, Promote]),
        st.sampled_from(NODES),
        truths(),
        st.sampled_from(Origin),
    )


@given(event=events())
def test_an_event_arrives_as_it_was_sent(event: Event) -> None:
    given = {"event": documents.event_document(event), "truth": documents.truth_document(event.truth)}
    request = documents.Request("1-2", "efm", "pgb1", 9.5, tuple(node.name for node in NODES), "act", given)
    read = documents.read_request(documents.encoded(request.document()))
    assert read == request
    truth = documents.truth_of(read.given["truth"], NODES)
    assert documents.event_of(read.given["event"], truth) == event


@given(
    outcome=st.builds(
        lambda *fields: Outcome(*fields),
        st.sampled_from(Result),
        st.text(max_size=9),
        st.none() | st.floats(0, 99) | st.integers(0, 9),
    )
)
def test_an_outcome_arrives_as_it_was_sent(outcome: Outcome) -> None:
    sent = documents.answer_document("outcome", documents.outcome_document(outcome))
    kind, answer = documents.read_answer(documents.encoded(sent))
    assert kind == "outcome"
    assert documents.outcome_of(answer) == outcome


def test_what_people_are_told_arrives_as_it_was_sent() -> None:
    view = View(
        (NodeView(NODES[0], False, True, "app", True, (NODES[2],)), NodeView(NODES[2], None, False, "", False)),
        ("10.9.9.9:1",),
    )
    findings = (Finding(Severity.WARNING, "x", "y", "z"), Finding(Severity.OK, "a", "b"))
    for kind, document in (
        ("view", documents.view_document(view)),
        ("findings", documents.findings_document(findings)),
        ("steps", ["RELOAD"]),
        ("nothing", None),
    ):
        sent = documents.answer_document(kind, document)
        assert documents.read_answer(documents.encoded(sent)) == (kind, document)
    assert documents.view_of(documents.view_document(view), NODES) == view
    (first,) = documents.view_of(documents.view_document(view), NODES[:1]).nodes
    assert first == view.nodes[0]._replace(beside=()), "nothing is said of what is no node here"
    assert documents.findings_of(documents.findings_document(findings)) == findings


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 50_000, "no JSON"),
        (b'{"schema": NaN}', "NaN is no number"),
        (b'{"schema": 1, "schema": 2}', "a name occurs twice"),
        (b" " * (LIMIT + 1), "longer than"),
        (b"[]", "is not of type 'object'"),
        (b'{"schema": "efm-lb/apply/v4"}', "is a required property"),
        (b'{"schema": "efm-lb/status/v1"}', "it is no efm-lb/apply/v4"),
        (b'{"schema": "efm-lb/apply-answer/v4", "version": "0.1.0"}', "it is no efm-lb/apply/v4"),
    ],
)
def test_what_is_no_request(data: bytes, message: str) -> None:
    with pytest.raises(documents.Malformed, match=message) as caught:
        documents.read_request(data)
    assert not isinstance(caught.value, documents.OtherVersion)
    assert len(str(caught.value)) < 400


OLDER = {"schema": "efm-lb/apply/v1", "version": "0.0.9", "whatever": 1}
NEWER = {"schema": "efm-lb/apply-answer/v5", "version": "9.1"}


@pytest.mark.parametrize(
    ("reader", "document", "message"),
    [
        (
            documents.read_request,
            OLDER,
            r"efm-lb 0\.0\.9 on the host that asks speaks version 1 of the protocol, efm-lb \S+ on the load balancer's"
            r" host version 4: upgrade efm-lb on the host that asks$",
        ),
        (documents.read_request, NEWER, "version 5 .* version 4: upgrade efm-lb on the load balancer's host$"),
        (documents.read_ready, OLDER, "version 1 .* version 4: upgrade efm-lb on the load balancer's host$"),
        (documents.read_answer, NEWER, r"9\.1 on the load balancer's host .* upgrade efm-lb on the host that asks$"),
    ],
)
def test_another_version_says_who_is_older_and_where(
    reader: Callable[[bytes], object], document: dict[str, object], message: str
) -> None:
    with pytest.raises(documents.OtherVersion, match=message):
        reader(documents.encoded(document))


def test_a_knock_asks_for_nothing() -> None:
    with pytest.raises(documents.Malformed, match="is a required property"):
        documents.read_request(documents.KNOCK)


def test_what_is_said_first_arrives() -> None:
    data = documents.encoded(documents.ready_document())
    documents.read_ready(data)
    assert data.startswith(documents.READY_MARK)


def test_an_event_about_a_stranger_and_a_truth_about_others() -> None:
    truth = Truth(tuple(NodeState(node, Reach.REFUSED) for node in NODES))
    with pytest.raises(documents.Malformed, match="about db9"):
        documents.event_of({"kind": "attach", "node": "db9", "origin": "hook"}, truth)
    with pytest.raises(documents.Malformed, match="3 states for 2 nodes"):
        documents.truth_of(documents.truth_document(truth), NODES[:2])
