"""What ``efm-lb apply`` answers, whatever an adapter does and whatever happens to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from efm_lb import Balancer, Node, NodeState, Outcome, Reach, Role, Truth, __version__, history, hookimpl, lock
from efm_lb.configuration import AdapterSource, Configuration, DetachLivePrimary
from efm_lb.remote import apply, documents

NODES = (Node("db1", "10.0.0.1", 5444), Node("db2", "10.0.0.2", 5444))
TRUTH = Truth((NodeState(NODES[0], Reach.ACCEPTING, Role.PRIMARY, 1), NodeState(NODES[1], Reach.REFUSED)))

Ask = Callable[[str, Any], dict[str, Any]]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ask:
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
        module.efm_lb_hold = hookimpl(specname="efm_lb_hold")(lambda: returned)  # type: ignore[attr-defined]
        module.efm_lb_plan = hookimpl(specname="efm_lb_plan")(lambda: returned)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        request = documents.Request("1-1", "efm", "odd", 5.0, ("db1", "db2"), ask, given)
        monkeypatch.setattr(apply, "_read", lambda limit: documents.encoded(request.document()))
        apply.main([])
        ready, said = capfd.readouterr().out.encode().splitlines()
        documents.read_ready(ready)
        answer: dict[str, Any] = json.loads(said)["answer"]
        return answer

    monkeypatch.setattr(apply, "settings_of", lambda *_, **__: (configuration, ""))
    return asked


class Step:
    def __str__(self) -> str:
        return "disable db2"


def test_steps_are_told_in_words(ask: Ask) -> None:
    assert ask("plan", [Step(), "RELOAD"]) == {"steps": ["disable db2", "RELOAD"]}


def test_nothing_to_say_of_its_host(ask: Ask) -> None:
    assert ask("act", Outcome.changed("done"))["outcome"]["detail"] == "done"


def test_another_call_that_holds_the_lock_is_told(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acquire = lock.acquire
    held = acquire(str(tmp_path / "efm.odd.apply.lock"), 0)
    monkeypatch.setattr(lock, "acquire", lambda path, patience, **how: acquire(path, 0, **how))
    detail = ask("act", Outcome.changed("done"))["outcome"]["detail"]
    os.close(held)
    assert detail == f"done; on its host: another call holds {tmp_path}/efm.odd.apply.lock for more than 0 s"


def test_a_lock_that_cannot_be_had_is_told(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "efm.odd.apply.lock").symlink_to("elsewhere")
    detail = ask("act", Outcome.changed("done"))["outcome"]["detail"]
    assert detail == f"done; on its host: no lock: {tmp_path}/efm.odd.apply.lock: Too many levels of symbolic links"


def test_the_slow_way_to_the_settings_is_told(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration, _ = apply.settings_of("efm", None, {})
    monkeypatch.setattr(apply, "settings_of", lambda *_, **__: (configuration, "efm.env has changed"))
    detail = ask("hold", Outcome.changed("done"))["outcome"]["detail"]
    assert detail == "done; on its host: took the slow way: efm.env has changed"


@pytest.mark.parametrize("outcome", [Outcome.changed(None), Outcome.deferred("later", float("inf"))])  # type: ignore[arg-type]
def test_what_cannot_be_said_is_a_bug_and_an_answer(ask: Ask, outcome: Outcome) -> None:
    answer = ask("act", outcome)
    assert answer["outcome"]["result"] == "failed by a bug"


def test_both_ends_of_what_was_asked_are_in_the_journal(ask: Ask, tmp_path: Path) -> None:
    ask("act", Outcome.changed("db2 is out"))
    call, outcome = (record.fields for record in history.read(str(tmp_path / "efm.journal")).records)
    assert (call["kind"], call["host"], call["balancer"]) == ("act detach", "db2", "odd")
    assert call["truth"]["db1"]["role"] == "primary"
    assert outcome["outcomes"]["odd"]["result"] == "changed"


def test_what_was_refused_is_in_the_journal(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> None:
        raise apply.Refused("this host has seen timeline 7")

    monkeypatch.setattr(apply, "_fenced", refuse)
    assert ask("act", Outcome.changed("never"))["outcome"]["result"] == "failed"
    (_, outcome) = history.read(str(tmp_path / "efm.journal")).records
    assert outcome.fields["notes"] == ["this host has seen timeline 7"]


def test_settings_of_the_environment_are_forgotten(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter, and what it starts, must not find them either."""
    names = ("EFM_LB_DEADLINE", "EFM_LB_ENV_FILE", "PGPASSFILE", "PCPPASSFILE")
    for name in names:
        monkeypatch.setenv(name, "/somebody/else's")
    monkeypatch.setenv("LC_ALL", "C")
    ask("act", Outcome.changed("done"))
    assert not set(names) & set(os.environ)
    assert os.environ["LC_ALL"] == "C"


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """The command line of a process of its own, and settings for it."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    env_file = tmp_path / "efm.env"
    env_file.touch(mode=0o600)
    env_file.write_text(
        f"EFM_LB_NODES=10.0.0.1:5444\nEFM_LB_STATE_DIR={state}\nEFM_LB_BALANCERS__P__ADAPTER=pgpool\n"
        "EFM_LB_BALANCERS__P__HOST=127.0.0.1\nEFM_LB_BALANCERS__P__USER=x\n"
    )
    return [sys.executable, "-m", "efm_lb", "apply", f"--env-file={env_file}"]


def test_a_signal_is_answered_as_a_temporary_failure(command: list[str]) -> None:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        documents.read_ready(process.stdout.readline())
        os.kill(process.pid, signal.SIGTERM)
        outcome = json.loads(process.stdout.read())["answer"]["outcome"]
    assert process.returncode == 75
    assert outcome["result"] == "failed temporarily"
    assert "terminated by a signal" in outcome["detail"]


HANGING = """
import os, sys, threading
from efm_lb import signals
from efm_lb.remote import apply

def hang(*given, **more):
    os.write(2, b"hangs")
    threading.Event().wait()

apply.PATIENCE = signals.HANGS = 0.5
apply.{what} = hang
sys.exit(apply.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("what", ["_act", "settings_of"])
def test_one_that_hangs_does_not_hold_the_lock_for_ever(command: list[str], tmp_path: Path, what: str) -> None:
    with open(command[-1].partition("=")[2], "a") as env_file:
        env_file.write("EFM_LB_DEADLINE=0.4\nEFM_LB_CONNECT_TIMEOUT=0.2\n")
    truth = Truth((NodeState(NODES[0]._replace(name="10.0.0.1"), Reach.ACCEPTING, Role.PRIMARY, 1),))
    given = {
        "event": {"kind": "promote", "node": "10.0.0.1", "origin": "hook"},
        "truth": documents.truth_document(truth),
    }
    request = documents.encoded(documents.Request("1-1", "efm", "p", 5.0, ("10.0.0.1",), "act", given).document())
    argv = [sys.executable, "-c", HANGING.format(what=what), command[-1]]
    done = subprocess.run(argv, input=request, capture_output=True, timeout=15, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGALRM, b"hangs")
    os.close(lock.acquire(str(tmp_path / "state" / "efm.p.apply.lock"), 0))


def test_it_says_that_it_is_ready_before_it_has_read_its_settings(tmp_path: Path) -> None:
    """What is wrong with them comes after it, and needs no question."""
    pipe = tmp_path / "efm.env"
    os.mkfifo(pipe)
    argv = [sys.executable, "-m", "efm_lb", "apply", f"--env-file={pipe}"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        documents.read_ready(process.stdout.readline())
        outcome = json.loads(process.stdout.readline())["answer"]["outcome"]
    assert "not a regular file" in outcome["detail"]


def test_no_env_file(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a variable names is not looked for."""
    monkeypatch.setenv("EFM_LB_ENV_FILE", command.pop().partition("=")[2])
    done = subprocess.run([*command, "--cluster=none"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert done.returncode == 78
    detail = json.loads(done.stdout.splitlines()[-1])["answer"]["outcome"]["detail"]
    assert detail.startswith("/etc/efm-lb/none.env: no such file: the settings of cluster none belong there")
    assert detail.endswith("or in a file named by --env-file in the forced command; variables do not count here")


def test_an_older_hook_is_told_the_version(command: list[str]) -> None:
    """Version 1 of the protocol reads the last line, and names the version that it does not know."""
    request = b'{"schema": "efm-lb/apply/v1", "version": "0.0.9"}'
    done = subprocess.run(command, input=request, capture_output=True, timeout=30, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["schema"] == "efm-lb/apply-answer/v4"
    assert answer["version"] == __version__
    assert "upgrade efm-lb on the host that asks" in answer["answer"]["outcome"]["detail"]


@pytest.mark.parametrize("is_early", [True, False])
def test_a_request_that_came_while_the_settings_were_read_has_less_time(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, is_early: bool
) -> None:
    """Its sender's clock has run since."""
    settings_of, given = apply.settings_of, []

    def slowly(*words: Any, **options: Any) -> Any:
        time.sleep(0.5)
        return settings_of(*words, **options)

    def act(*arguments: Any) -> Outcome:
        given.append(arguments[-1] - time.monotonic())
        return Outcome.unchanged("")

    class Poll:
        def poll(self, _: float) -> list[tuple[int, int]]:
            return [(0, 1)] if is_early else []

    monkeypatch.setattr(apply, "settings_of", slowly)
    monkeypatch.setattr(apply, "_waiting", Poll)
    monkeypatch.setattr(apply, "_act", act)
    ask("act", None)
    assert (given[0] <= 4.5) is is_early
