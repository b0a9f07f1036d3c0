"""What ``efm-lb apply`` answers, whatever an adapter does and whatever happens to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from efm_lb import Balancer, Node, NodeState, Outcome, Reach, Role, Truth, hookimpl
from efm_lb.configuration import AdapterSource, Configuration, DetachLivePrimary
from efm_lb.rehearsal.waiting import wait_until
from efm_lb.remote import apply, documents

NODES = (Node("db1", "10.0.0.1", 5444), Node("db2", "10.0.0.2", 5444))
TRUTH = Truth((NodeState(NODES[0], Reach.ACCEPTING, Role.PRIMARY, 1), NodeState(NODES[1], Reach.REFUSED)))

Ask = Callable[[str, Any], dict[str, Any]]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Ask]:
    """Ask one question of an adapter that returns what it is given; the answer."""
    configuration = Configuration(
        "efm",
        NODES,
        {},
        10.0,
        1.0,
        str(tmp_path),
        DetachLivePrimary.DEFER,
        (Balancer("odd", "fake", {}),),
        (AdapterSource("fake", "fake_apply_adapter", "", "fake-dist", "1"),),
    )
    given = {"event": {"kind": "detach", "node": "db2", "origin": "hook"}, "truth": documents.truth_document(TRUTH)}

    def asked(ask: str, returned: Any) -> dict[str, Any]:
        module = ModuleType("fake_apply_adapter")
        module.efm_lb_detach = hookimpl(specname="efm_lb_detach")(lambda: returned)  # type: ignore[attr-defined]
        module.efm_lb_plan = hookimpl(specname="efm_lb_plan")(lambda: returned)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        request = documents.Request("1-1", "efm", "odd", 5.0, ("db1", "db2"), ask, given)
        monkeypatch.setattr(apply, "_read", lambda limit: documents.encoded(request.document()))
        apply.main([])
        answer: dict[str, Any] = json.loads(capfd.readouterr().out)["answer"]
        return answer

    monkeypatch.setattr(apply, "settings_of", lambda *_, **__: (configuration, ""))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield asked
    for number, handler in handlers.items():
        signal.signal(number, handler)


class Step:
    def __str__(self) -> str:
        return "disable db2"


def test_steps_are_told_in_words(ask: Ask) -> None:
    assert ask("plan", [Step(), "RELOAD"]) == {"steps": ["disable db2", "RELOAD"]}


@pytest.mark.parametrize("outcome", [Outcome.changed(None), Outcome.deferred("later", float("inf"))])  # type: ignore[arg-type]
def test_what_cannot_be_said_is_a_bug_and_an_answer(ask: Ask, outcome: Outcome) -> None:
    answer = ask("act", outcome)
    assert answer["outcome"]["result"] == "failed by a bug"


def test_a_signal_is_answered_as_a_temporary_failure(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    env_file = tmp_path / "efm.env"
    env_file.touch(mode=0o600)
    env_file.write_text(
        f"EFM_LB_NODES=10.0.0.1:5444\nEFM_LB_STATE_DIR={state}\nEFM_LB_BALANCERS__P__ADAPTER=pgpool\n"
        "EFM_LB_BALANCERS__P__HOST=127.0.0.1\nEFM_LB_BALANCERS__P__USER=x\n"
    )
    argv = [sys.executable, "-m", "efm_lb", "apply", f"--env-file={env_file}"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert wait_until((state / "efm.apply.plan").exists, timeout=20), "it has begun: it waits for the request"
        os.kill(process.pid, signal.SIGTERM)
        outcome = json.loads(process.stdout.read())["answer"]["outcome"]
    assert process.returncode == 75
    assert outcome["result"] == "failed temporarily"
    assert "terminated by a signal" in outcome["detail"]
