"""The documents between a hook and ``efm-lb apply``, to and from efm-lb's own types."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from efm_lb import __version__
from efm_lb.events import Attach, Detach, Event, Origin, Promote
from efm_lb.outcomes import Outcome, Result
from efm_lb.remote.conformity import conforms, objection
from efm_lb.remote.schemas import ANSWER, ANSWER_NAME, LIMIT, REQUEST, REQUEST_NAME
from efm_lb.truth import Node, NodeState, Reach, Role, Truth

if TYPE_CHECKING:
    from efm_lb.views import Finding, View

__all__ = [
    "Malformed",
    "OtherVersion",
    "Request",
    "encoded",
    "event_document",
    "event_of",
    "findings_document",
    "findings_of",
    "outcome_document",
    "outcome_of",
    "read_answer",
    "read_request",
    "truth_document",
    "truth_of",
    "view_document",
    "view_of",
]

_KINDS: Mapping[str, type[Event]] = {"attach": Attach, "detach": Detach, "promote": Promote}


class Malformed(Exception):
    """It is not the document that was expected; the message says what is wrong, and where in it."""


class OtherVersion(Malformed):
    """It is the document of another version of efm-lb."""


class Request(NamedTuple):
    """One question about one balancer.

    :param call: the sender's name for the call that it belongs to
    :param seconds: how long the sender waits
    :param nodes: the names of the cluster's nodes
    :param ask: ``act``, ``hold``, ``plan``, ``view`` or ``check``
    :param given: what is asked about: ``event`` and ``truth`` as documents, as far as there are any
    """

    call: str
    cluster: str
    balancer: str
    seconds: float
    nodes: tuple[str, ...]
    ask: str
    given: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        """The request as `REQUEST` describes it."""
        return {
            "schema": REQUEST_NAME,
            "version": __version__,
            "call": self.call,
            "cluster": self.cluster,
            "balancer": self.balancer,
            "seconds": self.seconds,
            "nodes": list(self.nodes),
            "ask": {self.ask: dict(self.given)},
        }


def read_request(data: bytes) -> Request:
    """Read what a hook sent.

    :raises OtherVersion: it was written by another version of efm-lb
    :raises Malformed: it is no request
    """
    document = _read(data, REQUEST, REQUEST_NAME)
    ((ask, given),) = document["ask"].items()
    return Request(
        document["call"],
        document["cluster"],
        document["balancer"],
        float(document["seconds"]),
        tuple(document["nodes"]),
        ask,
        given,
    )


def read_answer(data: bytes) -> tuple[str, Any]:
    """Read what ``efm-lb apply`` answered: the last line, for what a start-up file of the account says comes before it.

    :return: the kind of answer (``outcome``, ``nothing``, ``steps``, ``view``, ``findings``), and the answer
    :raises OtherVersion: it was written by another version of efm-lb
    :raises Malformed: it is no answer
    """
    last = data.rstrip(b"\n").rpartition(b"\n")[2]
    ((kind, answer),) = _read(last, ANSWER, ANSWER_NAME)["answer"].items()
    return kind, answer


def encoded(document: Mapping[str, Any]) -> bytes:
    """A document as one line."""
    return json.dumps(document, allow_nan=False).encode() + b"\n"


def answer_document(kind: str, answer: Any) -> dict[str, Any]:
    """An answer as `ANSWER` describes it."""
    return {"schema": ANSWER_NAME, "version": __version__, "answer": {kind: answer}}


def event_document(event: Event) -> dict[str, Any]:
    return {"kind": type(event).__name__.lower(), "node": event.node.name, "origin": event.origin.value}


def event_of(document: Mapping[str, Any], truth: Truth) -> Event:
    """:raises Malformed: it is about a node that ``truth`` does not know"""
    node = next((node for node in truth.nodes if node.name == document["node"]), None)
    if node is None:
        raise Malformed(f"the event is about {document['node']}, which is not among the nodes")
    return _KINDS[document["kind"]](node, truth, Origin(document["origin"]))


def truth_document(truth: Truth) -> dict[str, Any]:
    return {
        "newest": truth.newest,
        "states": [
            {
                "reach": state.reach.value,
                "role": state.role and state.role.value,
                "timeline": state.timeline,
                "detail": state.detail[:1000],
                "seconds": round(state.seconds, 3),
            }
            for state in truth.states
        ],
    }


def truth_of(document: Mapping[str, Any], nodes: Sequence[Node]) -> Truth:
    """:raises Malformed: it has not one state for each of ``nodes``"""
    states = document["states"]
    if len(states) != len(nodes):
        raise Malformed(f"the truth has {len(states)} states for {len(nodes)} nodes")
    return Truth(
        tuple(
            NodeState(
                node,
                Reach(state["reach"]),
                Role(state["role"]) if state["role"] else None,
                None if state["timeline"] is None else int(state["timeline"]),
                state["detail"],
                float(state["seconds"]),
            )
            for node, state in zip(nodes, states, strict=True)
        ),
        int(document["newest"]),
    )


def outcome_document(outcome: Outcome) -> dict[str, Any]:
    return {
        "result": outcome.result.value,
        "detail": outcome.detail[:5000],
        "again_after": outcome.again_after,
    }


def outcome_of(document: Mapping[str, Any]) -> Outcome:
    again_after = document["again_after"]
    return Outcome(Result(document["result"]), document["detail"], None if again_after is None else float(again_after))


def view_document(view: View) -> dict[str, Any]:
    return {
        "nodes": [
            {"node": seen.node.name, "attached": seen.attached, "writes": seen.writes, "detail": seen.detail[:1000]}
            for seen in view.nodes
        ],
        "strangers": list(view.strangers),
    }


def view_of(document: Mapping[str, Any], nodes: Iterable[Node]) -> View:
    """The view; what it says of nodes that are none of ``nodes`` is left out."""
    from efm_lb.views import NodeView, View

    by_name = {node.name: node for node in nodes}
    return View(
        tuple(
            NodeView(by_name[seen["node"]], seen["attached"], seen["writes"], seen["detail"])
            for seen in document["nodes"]
            if seen["node"] in by_name
        ),
        tuple(document["strangers"]),
    )


def findings_document(findings: Iterable[Finding]) -> list[dict[str, str]]:
    return [
        {"severity": f.severity.value, "subject": f.subject, "detail": f.detail[:5000], "remedy": f.remedy}
        for f in findings
    ]


def findings_of(documents: Iterable[Mapping[str, str]]) -> tuple[Finding, ...]:
    from efm_lb.views import Finding, Severity

    return tuple(Finding(Severity(f["severity"]), f["subject"], f["detail"], f["remedy"]) for f in documents)


def _read(data: bytes, schema: Mapping[str, Any], name: str) -> dict[str, Any]:
    if len(data) > LIMIT:
        raise Malformed(f"it is longer than {LIMIT} bytes")
    try:
        document = json.loads(data, parse_constant=_refuse, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"it is no JSON: {error}") from None
    if conforms(document, schema):
        assert isinstance(document, dict)
        return document
    theirs = document.get("schema") if isinstance(document, dict) else None
    if isinstance(theirs, str) and theirs != name and theirs.rpartition("/")[0] == name.rpartition("/")[0]:
        raise OtherVersion(
            f"it is written in {theirs[:100]} by efm-lb {str(document.get('version'))[:100]},"
            f" and this efm-lb {__version__} reads {name}: upgrade the older one"
        )
    raise Malformed(f"it is no {name}: {objection(document, schema)}")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name occurs twice in one object")
    return made
