"""What a rehearsal found out, as data: for tests, the benchmark and ``--json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from efm_lb.rehearsal.balancer import State
from efm_lb.rehearsal.clients import Accounts, Experience
from efm_lb.rehearsal.efm import Step
from efm_lb.rehearsal.scenarios import Order, Scenario

__all__ = ["BalancerResult", "RehearsalResult", "ScenarioResult"]


@dataclass(frozen=True)
class BalancerResult:
    """One balancer in one scenario, and what its clients saw.

    :param before: what it showed before the scenario
    :param after: what it showed once it was over
    :param wrong: what was wrong at the end, one line each; empty when it was right
    :param owed: what was wrong for want of a call that was lost, until that was made by hand
    :param settled: seconds from the end of EFM's last step until it was right
    :param resumed: seconds from the promotion to the first write, None when nothing was promoted
    :param writing: what the writer saw
    :param reading: what the readers saw together
    :param accounts: acknowledged rows against the primary's
    """

    name: str
    before: State
    after: State
    wrong: tuple[str, ...]
    owed: tuple[str, ...]
    settled: float
    resumed: float | None
    writing: Experience
    reading: Experience
    accounts: Accounts

    @property
    def right(self) -> bool:
        """It was right at the end, and no acknowledged row was lost or doubled for a reason of the balancer's."""
        return not (self.wrong or self.accounts.lost or self.accounts.doubled)


@dataclass(frozen=True)
class ScenarioResult:
    """One scenario.

    :param started: by ``time.monotonic()``
    :param roles: what each node says itself once it was over: primary, standby, or down
    """

    scenario: Scenario
    started: float
    steps: tuple[Step, ...]
    roles: Mapping[str, str]
    balancers: tuple[BalancerResult, ...]

    @property
    def right(self) -> bool:
        """All balancers were."""
        return all(balancer.right for balancer in self.balancers)

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
        "roles": dict(result.roles),
        "balancers": {balancer.name: _balancer(balancer) for balancer in result.balancers},
    }


def _balancer(result: BalancerResult) -> dict[str, Any]:
    return {
        "right": result.right,
        "wrong": list(result.wrong),
        "owed": list(result.owed),
        "settled": round(result.settled, 3),
        "resumed": None if result.resumed is None else round(result.resumed, 3),
        "before": _state(result.before),
        "after": _state(result.after),
        "writing": _rounded(asdict(result.writing)),
        "reading": _rounded(asdict(result.reading)),
        "rows": asdict(result.accounts),
    }


def _state(state: State) -> dict[str, dict[str, str]]:
    return {first: dict(zip(state.columns, others, strict=True)) for first, *others in state.rows}


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in values.items()}
