"""A hook's report as a JSON document, for programs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from efm_lb.hook import Report

__all__ = ["SCHEMA", "as_document"]

SCHEMA = "efm-lb/hook/v1"


def as_document(report: Report) -> str:
    """The report as one JSON object with a versioned ``schema``."""
    decision = report.decision
    return json.dumps(
        {
            "schema": SCHEMA,
            "call": report.call,
            "exit_code": report.exit_code,
            "decision": decision
            and {
                "verdict": decision.verdict.value,
                "reason": decision.reason,
                "shortfall": decision.shortfall,
                "event": decision.event and type(decision.event).__name__.lower(),
                "node": decision.event and decision.event.node.name,
            },
            "outcomes": [
                {
                    "balancer": outcome.balancer,
                    "result": outcome.result.value,
                    "detail": outcome.detail,
                    "seconds": round(outcome.seconds, 3),
                    "again_after": outcome.again_after,
                }
                for outcome in report.outcomes
            ],
            "steps": report.steps and {name: list(steps) for name, steps in report.steps.items()},
            "notes": list(report.notes),
            "seconds": round(report.seconds, 3),
        }
    )
