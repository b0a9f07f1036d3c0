"""The documents between a hook and ``efm-lb apply``, as JSON Schemas (draft 2020-12): both ends hold to them.

A document that differs is refused as a whole. A change of these schemas, be it one more property, needs a new number in
`PROTOCOL`: a peer of another version then knows why it is not understood.
"""

from __future__ import annotations

from typing import Any, Final

__all__ = ["ANSWER", "ANSWER_NAME", "FAMILY", "LIMIT", "PROTOCOL", "READY", "READY_NAME", "REQUEST", "REQUEST_NAME"]

PROTOCOL: Final = 4
FAMILY: Final = "efm-lb/apply"
"""What the names of all of them begin with, in every version."""
READY_NAME: Final = f"{FAMILY}-ready/v{PROTOCOL}"
REQUEST_NAME: Final = f"{FAMILY}/v{PROTOCOL}"
ANSWER_NAME: Final = f"{FAMILY}-answer/v{PROTOCOL}"
LIMIT: Final = 1024 * 1024
"""Bytes that a document may have."""

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def _object(**properties: Any) -> dict[str, Any]:
    """All properties required, no other allowed."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _one_of(**properties: Any) -> dict[str, Any]:
    """An object with exactly one of the properties."""
    return {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }


def _text(longest: int, description: str = "") -> dict[str, Any]:
    return {"type": "string", "maxLength": longest, **({"description": description} if description else {})}


def _list(items: Any, longest: int = 1000) -> dict[str, Any]:
    return {"type": "array", "items": items, "maxItems": longest}


_NAME = _text(255)
_WORDS = _text(10_000)
_SECONDS = {"type": "number", "minimum": 0, "maximum": 86_400}
_TIMELINE = {"type": "integer", "minimum": 0, "maximum": 0xFFFFFFFF}

_STATE = _object(
    reach={"enum": ["accepting", "rejecting", "denied", "full", "refused", "no response"]},
    role={"enum": ["primary", "standby", None]},
    timeline={**_TIMELINE, "type": ["integer", "null"]},
    detail=_WORDS,
    seconds=_SECONDS,
)
_TRUTH = _object(
    newest={**_TIMELINE, "description": "The newest timeline that the sender has seen a primary on, 0 for none."},
    states={**_list(_STATE, 100), "description": "What each node said, in the order of `nodes`."},
)
_EVENT = _object(
    kind={"enum": ["attach", "detach", "promote"]},
    node={**_NAME, "description": "The node that it is about, one of `nodes`."},
    origin={"enum": ["hook", "follow-up", "reconcile", "operator"]},
)

READY: Final[dict[str, Any]] = {
    "$schema": _DRAFT,
    "$id": f"urn:{READY_NAME.replace('/', ':')}",
    "title": "What efm-lb apply writes first, before it reads: its host is there, and which protocol it speaks",
    **_object(
        schema={"const": READY_NAME},
        version=_text(100, "The answering efm-lb's version."),
    ),
}

REQUEST: Final[dict[str, Any]] = {
    "$schema": _DRAFT,
    "$id": f"urn:{REQUEST_NAME.replace('/', ':')}",
    "title": "What efm-lb apply reads: one question about one balancer",
    **_object(
        schema={"const": REQUEST_NAME},
        version=_text(100, "The sender's version of efm-lb."),
        call=_text(100, "The call that this belongs to, as in the sender's journal."),
        cluster=_NAME,
        balancer=_text(255, "The balancer's name in the env file of the host that it runs on."),
        seconds={**_SECONDS, "description": "How long the sender waits for the answer, from when it sends this."},
        nodes={**_list(_NAME, 100), "description": "The names of the cluster's nodes, in the order of EFM_LB_NODES."},
        ask=_one_of(
            act=_object(event=_EVENT, truth=_TRUTH),
            hold=_object(event=_EVENT, truth=_TRUTH),
            plan=_object(event=_EVENT, truth=_TRUTH),
            view=_object(),
            check=_object(truth=_TRUTH),
        ),
    ),
}

_OUTCOME = _object(
    result={"enum": ["changed", "unchanged", "deferred", "failed temporarily", "failed", "failed by a bug"]},
    detail=_WORDS,
    again_after={**_SECONDS, "type": ["number", "null"]},
)
_NODE_VIEW = _object(
    node=_NAME,
    attached={"enum": [True, False, None]},
    writes={"enum": [True, False]},
    detail=_WORDS,
    kept={"enum": [True, False]},
    beside=_list(_NAME, 100),
)
_FINDING = _object(
    severity={"enum": ["ok", "warning", "error"]},
    subject=_WORDS,
    detail=_WORDS,
    remedy=_WORDS,
)

ANSWER: Final[dict[str, Any]] = {
    "$schema": _DRAFT,
    "$id": f"urn:{ANSWER_NAME.replace('/', ':')}",
    "title": "What efm-lb apply answers",
    **_object(
        schema={"const": ANSWER_NAME},
        version=_text(100, "The answering efm-lb's version."),
        answer=_one_of(
            outcome={**_OUTCOME, "description": "Of act and hold, and of every question that failed."},
            nothing={"const": None, "description": "The adapter has nothing to say."},
            steps=_list(_WORDS),
            view=_object(nodes=_list(_NODE_VIEW, 100), strangers=_list(_NAME)),
            findings=_list(_FINDING),
        ),
    ),
}
