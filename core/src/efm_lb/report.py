"""What came of a call: as text that EFM mails to a person, and as a document for programs."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from efm_lb.decide import Decision
from efm_lb.errors import printable
from efm_lb.outcomes import Outcome

__all__ = ["SCHEMA", "Report", "as_document", "as_lines"]

SCHEMA = "efm-lb/hook/v1"


class Report(NamedTuple):
    """What came of a call.

    :param call: the call in words
    :param outcomes: one per balancer, sorted; empty when the decision was not to act
    :param steps: for a dry run, what each balancer would be told
    :param notes: what else a person must know, such as a journal that could not be written
    """

    call: str
    exit_code: int
    decision: Decision | None = None
    outcomes: tuple[Outcome, ...] = ()
    steps: Mapping[str, Sequence[str]] | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


def as_lines(report: Report) -> list[str]:
    """The report for a person: EFM mails it, so it is short and holds no secret, nor anything that a terminal obeys."""
    return [printable(line) for line in _lines(report)]


def _lines(report: Report) -> list[str]:
    decision = report.decision
    if decision is None:
        return [f"efm-lb {report.call}: {note}" for note in report.notes]
    text = [f"{report.call}: {decision.reason}"]
    if decision.event is None:
        text[0] += f" [{decision.verdict.value}]"
    if decision.shortfall:
        text.append(f"not done: {decision.shortfall}")
    text += [
        f"{outcome.balancer}: {outcome.result.value} in {outcome.seconds:.2f} s: {outcome.detail}"
        for outcome in report.outcomes
    ]
    text += [f"{name}: {step}" for name, steps in (report.steps or {}).items() for step in steps]
    return text + [f"note: {note}" for note in report.notes]


def as_document(report: Report) -> str:
    """The report as one JSON object with a versioned ``schema``."""
    import json  # costs more than a person's report needs

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
                    "by": outcome.by,
                }
                for outcome in report.outcomes
            ],
            "steps": report.steps and {name: list(steps) for name, steps in report.steps.items()},
            "notes": list(report.notes),
            "seconds": round(report.seconds, 3),
        }
    )
