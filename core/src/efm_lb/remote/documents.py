"""The documents between a hook and ``efm-lb apply``, to and from efm-lb's own types."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from efm_lb import __version__
from efm_lb.events import Attach, Detach, Event, Origin, Promote
from efm_lb.outcomes import Outcome, Result
from efm_lb.remote.conformity import conforms, objection
from efm_lb.remote.schemas import (
    ANSWER,
    ANSWER_NAME,
    FAMILY,
    LIMIT,
    PROTOCOL,
    READY,
    READY_NAME,
    REQUEST,
    REQUEST_NAME,
)
from efm_lb.truth import Node, NodeState, Reach, Role, Truth

if TYPE_CHECKING:
    from efm_lb.views import Finding, View

__all__ = [
    "KNOCK",
    "READY_MARK",
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
    "read_ready",
    "read_request",
    "ready_document",
    "truth_document",
    "truth_of",
    "view_document",
    "view_of",
]

READY_MARK = b'{"schema": "' + f"{FAMILY}-ready/".encode()
"""How the line begins, in any version, with which ``efm-lb apply`` says that it reads."""

_SENDER = "on the host that asks"
_THERE = "on the load balancer's host"
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


def ready_document() -> dict[str, Any]:
    """What ``efm-lb apply`` says first, as `READY` describes it."""
    return {"schema": READY_NAME, "version": __version__}


def read_ready(data: bytes) -> None:
    """Read what ``efm-lb apply`` said first: the last line.

    :raises OtherVersion: it is another version of efm-lb, which says it in this way or another
    :raises Malformed: it does not say that it is ready
    """
    _read(_last_line(data), READY, READY_NAME, _SENDER, _THERE)


def read_request(data: bytes) -> Request:
    """Read what a hook sent.

    :raises OtherVersion: it was written by another version of efm-lb
    :raises Malformed: it is no request
    """
    document = _read(data, REQUEST, REQUEST_NAME, _THERE, _SENDER)
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
    """Read what ``efm-lb apply`` answered: the last line.

    :return: the kind of answer (``outcome``, ``nothing``, ``steps``, ``view``, ``findings``), and the answer
    :raises OtherVersion: it was written by another version of efm-lb
    :raises Malformed: it is no answer
    """
    ((kind, answer),) = _read(_last_line(data), ANSWER, ANSWER_NAME, _SENDER, _THERE)["answer"].items()
    return kind, answer


def encoded(document: Mapping[str, Any]) -> bytes:
    """A document as one line."""
    return json.dumps(document, allow_nan=False).encode() + b"\n"


KNOCK = encoded({"schema": REQUEST_NAME, "version": __version__})
"""Asks for nothing, but every version that reads it answers, and tells its own version."""


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
            {
                "node": seen.node.name,
                "attached": seen.attached,
                "writes": seen.writes,
                "detail": seen.detail[:1000],
                "kept": seen.kept,
                "beside": [other.name for other in seen.beside],
            }
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
            NodeView(
                by_name[seen["node"]],
                seen["attached"],
                seen["writes"],
                seen["detail"],
                seen["kept"],
                tuple(by_name[name] for name in seen["beside"] if name in by_name),
            )
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


def _last_line(data: bytes) -> bytes:
    """What a start-up file of the account says comes before it."""
    return data.rstrip(b"\n").rpartition(b"\n")[2]


def _read(data: bytes, schema: Mapping[str, Any], name: str, here: str, there: str) -> dict[str, Any]:
    """:param here, there: where this efm-lb runs, and the one that wrote the document"""
    if len(data) > LIMIT:
        raise Malformed(f"it is longer than {LIMIT} bytes")
    try:
        document = json.loads(data, parse_constant=_refuse, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"it is no JSON: {error}") from None
    if conforms(document, schema):
        assert isinstance(document, dict)
        return document
    theirs = _protocol(document)
    if theirs is not None and theirs != PROTOCOL:
        raise OtherVersion(
            f"efm-lb {str(document.get('version'))[:100]} {there} speaks version {theirs} of the protocol, efm-lb"
            f" {__version__} {here} version {PROTOCOL}: upgrade efm-lb {there if theirs < PROTOCOL else here}"
        )
    raise Malformed(f"it is no {name}: {objection(document, schema)}")


def _protocol(document: Any) -> int | None:
    """The version of the protocol that a document is written in, None when it is none of ours."""
    schema = document.get("schema") if isinstance(document, dict) else None
    if not isinstance(schema, str) or not schema.startswith(FAMILY):
        return None
    number = schema.rpartition("/v")[2]
    return int(number) if number.isdecimal() and number.isascii() and len(number) < 6 else None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name occurs twice in one object")
    return made
