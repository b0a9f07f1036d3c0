"""What a rehearsal tells a person, on a terminal of any usual width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from efm_lb.rehearsal.balancer import State
from efm_lb.rehearsal.clients import Accounts, Experience
from efm_lb.rehearsal.efm import Step
from efm_lb.rehearsal.hooks import Run
from efm_lb.rehearsal.report import Report
from efm_lb.rehearsal.results import BalancerResult, RehearsalResult, ScenarioResult
from efm_lb.rehearsal.scenarios import Order, Scenario

WRITING = Experience(longest_gap=11.234, cuts=12, errors=345)
READING = Experience(longest_gap=22.345, cuts=67, errors=891)
BALANCER = BalancerResult(
    name="pool1",
    before=State("show servers state", ("pg_write", "pg_read"), (("n1 127.0.0.11", "ready", "maint"),)),
    after=State("show servers state", ("pg_write", "pg_read"), (("n1 127.0.0.11", "maint", "ready"),)),
    wrong=(),
    owed=(),
    settled=0.0,
    resumed=None,
    writing=WRITING,
    reading=READING,
    accounts=Accounts(12345, 0, 0, 0),
)
RUNS = tuple(Run((), 0.0, 0.25, code, "", "") for code in (0, 75, 69, 0, 0, 78))
SCENARIO = ScenarioResult(
    Scenario.STANDBY_START,
    0.0,
    (Step("attach 127.0.0.11 s", 0.0, 12.34, RUNS),),
    {"127.0.0.11": "standby"},
    (BALANCER,),
)


@pytest.mark.parametrize("width", [80, 90, 100, 120])
def test_no_column_is_cut_off(width: int) -> None:
    output = io.StringIO()
    report = Report(Console(file=output, width=width, highlight=False))
    report.scenario_ends(SCENARIO)
    report.summary(RehearsalResult(Order.DETACH_AFTER_STOP, 1.0, (SCENARIO,)))
    lines = output.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    (suffered,) = [" ".join(line.split()) for line in lines if "12345" in line]
    assert suffered == "pool1 RIGHT 11.234 s 345 12 12345 0 0 22.345 s 891 67"
    (summary,) = [" ".join(line.split()) for line in lines if line.startswith("standby-start")]
    assert summary == "standby-start pool1 RIGHT 11.23 s 345 12 0 12.34 s 0 75 69 0 0 78"
    (state,) = [" ".join(line.split()) for line in lines if "n1 127.0.0.11" in line]
    assert state == "n1 127.0.0.11 ready -> maint maint -> ready"
