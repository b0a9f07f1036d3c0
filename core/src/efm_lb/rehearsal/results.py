"""What a rehearsal found out, as data: for tests, the benchmark and ``--json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from efm_lb.rehearsal.clients import Accounts, Experience
from efm_lb.rehearsal.efm import Step
from efm_lb.rehearsal.scenarios import Order, Scenario

__all__ = ["RehearsalResult", "ScenarioResult"]


@dataclass(frozen=True)
class ScenarioResult:
    """One scenario.

    :param started: by ``time.monotonic()``
    :param resumed: seconds from the promotion to the first write, None when nothing was promoted
    :param before: ``show pool_nodes`` before it
    :param after: ``show pool_nodes`` once it was over
    :param roles: what the databases themselves say then: primary, standby, or down
    :param wrong: what was wrong at the end, one line each; empty when pgpool was right
    :param owed: what was wrong for want of a call that was lost, until that was made by hand
    :param settled: seconds from the end of EFM's last step until pgpool was right
    :param writing: what the writer saw
    :param reading: what the readers saw together
    :param accounts: acknowledged rows against the primary's
    """

    scenario: Scenario
    started: float
    resumed: float | None
    steps: tuple[Step, ...]
    before: Sequence[Mapping[str, str]]
    after: Sequence[Mapping[str, str]]
    roles: tuple[str, ...]
    wrong: tuple[str, ...]
    owed: tuple[str, ...]
    settled: float
    writing: Experience
    reading: Experience
    accounts: Accounts

    @property
    def right(self) -> bool:
        """Pgpool was right at the end, and no acknowledged row was lost or doubled for a reason of the balancer's."""
        return not (self.wrong or self.accounts.lost or self.accounts.doubled)

    @property
    def calls(self) -> list[str]:
        """What the hook was called with, in order."""
        return [step.what for step in self.steps if step.runs]

    @property
    def exit_codes(self) -> list[int | None]:
        """Of the hook's runs, in order; None is a run that did not end."""
        return [run.exit_code for step in self.steps for run in step.runs]

    @property
    def hook_seconds(self) -> float:
        """The time that EFM waited for the hook."""
        return sum(step.seconds for step in self.steps if step.runs)


@dataclass(frozen=True)
class RehearsalResult:
    """A whole rehearsal.

    :param set_up: seconds until the servers and clients were running
    """

    order: Order
    set_up: float
    scenarios: tuple[ScenarioResult, ...]

    @property
    def right(self) -> bool:
        return all(scenario.right for scenario in self.scenarios)

    def as_json(self) -> dict[str, Any]:
        """Plain data; the moments of steps count from the scenario's start, in seconds."""
        return {
            "right": self.right,
            "order": self.order.value,
            "set_up": round(self.set_up, 3),
            "scenarios": [_scenario(scenario) for scenario in self.scenarios],
        }


def _scenario(result: ScenarioResult) -> dict[str, Any]:
    return {
        "scenario": result.scenario.value,
        "right": result.right,
        "wrong": list(result.wrong),
        "owed": list(result.owed),
        "settled": round(result.settled, 3),
        "resumed": None if result.resumed is None else round(result.resumed, 3),
        "hook_seconds": round(result.hook_seconds, 3),
        "steps": [
            {
                "what": step.what,
                "started": round(step.started - result.started, 3),
                "seconds": round(step.seconds, 3),
                "runs": [
                    {"seconds": round(run.seconds, 3), "exit_code": run.exit_code, "output": run.output}
                    for run in step.runs
                ],
            }
            for step in result.steps
        ],
        "before": [dict(row) for row in result.before],
        "after": [dict(row) for row in result.after],
        "roles": list(result.roles),
        "writing": _rounded(asdict(result.writing)),
        "reading": _rounded(asdict(result.reading)),
        "rows": asdict(result.accounts),
    }


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in values.items()}
