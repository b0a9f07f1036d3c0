"""What ``efm-lb status`` tells of what was seen."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from efm_lb import Node, NodeState, NodeView, Reach, Role, Truth, View
from efm_lb.commands import status as command
from efm_lb.commands.observe import Observation
from efm_lb.dispatch import Answer

DB1, DB2 = (Node(f"db{n}", f"10.0.0.{n}", 5444) for n in (1, 2))
VIEW = View((NodeView(DB1, False, True, "r/n1 ready", beside=(DB2,)), NodeView(DB2, True, False, "r/n2 ready")))


@pytest.mark.parametrize(
    ("standby", "problem"),
    [
        (NodeState(DB2, Reach.NO_RESPONSE), "edge: db2 is down, but attached"),
        (NodeState(DB2, Reach.ACCEPTING, Role.STANDBY, 1), "edge: db1 still serves reads in place of db2"),
    ],
)
def test_a_primary_that_stands_in_for_a_standby_is_in_rotation(
    standby: NodeState, problem: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = Observation(Truth((NodeState(DB1, Reach.ACCEPTING, Role.PRIMARY, 1), standby)), {"edge": Answer(VIEW)})
    monkeypatch.setattr(command, "observe", lambda configuration: seen)
    configuration: Any = SimpleNamespace(cluster="efm", state_dir="/nonexistent")
    assert command.status(configuration, as_json=True) == 75
    document = json.loads(capsys.readouterr().out)
    assert document["problems"] == [problem]
    assert [node["attached"] for node in document["balancers"]["edge"]["nodes"]] == [True, True]
    command.status(configuration, as_json=False)
    marked = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith(" !")]
    assert marked == [problem.split()[1]]
