"""The command itself: what it does when the settings, the disk or the terminal are not as they should be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from efm_lb.reconcile import service
from efm_lb.reconcile.rounds import Round
from efm_lb.reconcile.supervisor import Supervisor
from efm_lb.rehearsal.waiting import wait_until

SETTINGS = """\
EFM_LB_NODES=127.0.0.1:9
EFM_LB_PROBE__USER=efm
EFM_LB_STATE_DIR={state_dir}
EFM_LB_BALANCERS__EDGE__ADAPTER=haproxy
EFM_LB_BALANCERS__EDGE__SOCKET={directory}/none.sock
EFM_LB_BALANCERS__EDGE__WRITE=w
"""


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    path = tmp_path / "efm.env"
    path.write_text(SETTINGS.format(directory=tmp_path, state_dir=tmp_path / "no" / "such"))
    path.chmod(0o600)
    return path


def test_a_state_directory_that_takes_nothing_does_not_keep_it_from_looking(env_file: Path, tmp_path: Path) -> None:
    """Without a compiled plan it must not take the settings for changed, and start anew for ever."""
    log = tmp_path / "log"
    with log.open("w") as output:
        watching = subprocess.Popen(
            [sys.executable, "-m", "efm_lb", "reconcile", "--watch", f"--env-file={env_file}"],
            stdout=output,
            stderr=output,
            env={},
            cwd="/",
        )
    try:
        assert wait_until(lambda: "edge: cannot connect" in log.read_text(), timeout=30), log.read_text()
        assert "starting anew" not in log.read_text()
        env_file.write_text(env_file.read_text().replace("none.sock", "other.sock"))
        assert wait_until(lambda: "other.sock" in log.read_text(), timeout=30), log.read_text()
        assert log.read_text().count("the settings have changed: starting anew") == 1
    finally:
        watching.terminate()
        watching.wait(timeout=20)


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """This process goes on behind the end of a command."""
    usual = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    for number, handler in usual:
        signal.signal(number, handler)


def failing(error: Exception) -> Callable[..., int]:
    def run(*_: object) -> int:
        raise error

    return run


@pytest.mark.parametrize("error", [RuntimeError("dictionary changed size"), PermissionError(13, "Permission denied")])
def test_no_bug_makes_efm_promote(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(service, "run", failing(error))
    logged: list[str] = []
    monkeypatch.setattr("syslog.syslog", lambda priority, line: logged.append(line))
    assert service.main(["--custom-monitor"]) == 0
    assert service.main([]) == 70
    said = capfd.readouterr().out.splitlines()
    assert said == [f"efm-lb reconcile: a bug in efm-lb: {type(error).__name__}: {error}"] * 2
    assert logged == said[:1], "EFM does not pass on what it says"


def test_a_signal_while_it_says_why_it_ends_changes_nothing(
    env_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def complain(lines: Sequence[str]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(service, "complain", complain)
    env_file.write_text("EFM_LB_DEADLIN=5\n")
    assert service.main(["--custom-monitor", f"--env-file={env_file}"]) == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--custom-monitor"], 0, "efm-lb reconcile: terminated by a signal before it was done\n"),
        ([], 75, "efm-lb reconcile: terminated by a signal before it was done\n"),
        (["--watch"], 0, ""),
    ],
)
def test_what_is_terminated_says_so(
    words: list[str], code: int, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("syslog.syslog", lambda priority, line: None)
    monkeypatch.setattr(service, "run", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert service.main(words) == code
    assert capfd.readouterr().out == said


def test_each_line_of_a_service_for_programs_is_json(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also the one before it starts anew, which another process does."""
    monkeypatch.setattr(service, "_start_anew", failing(InterruptedError()))
    changes = iter([False, True])
    rounds = SimpleNamespace(play=lambda patience: Round(("edge: wrong",), {}, False, 0.0))
    configuration = SimpleNamespace(cluster="efm", reconcile=SimpleNamespace(period=0.0))
    vigil = SimpleNamespace(wait=lambda until: True)
    with pytest.raises(InterruptedError):
        service._watch(configuration, True, lambda: next(changes), vigil, rounds, Supervisor({}))  # type: ignore[arg-type]
    first, last = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert first["lines"] == ["edge: wrong"]
    assert last == first | {"lines": ["the settings have changed: starting anew"]}


@pytest.mark.parametrize("words", [["--custom-monitor"], [], ["--watch"]])
def test_wrong_settings_are_told_to_the_systems_log_where_nobody_hears_of_them(
    words: list[str], env_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    env_file.write_text(f"{env_file.read_text()}EFM_LB_DEADLIN=5\nEFM_LB_CONNECT_TIMEOUT=x\n")
    logged: list[str] = []
    monkeypatch.setattr("syslog.syslog", lambda priority, line: logged.append(line))
    code = service.main([*words, f"--env-file={env_file}"])
    said = capfd.readouterr().out.splitlines()
    assert len(said) == 2
    assert said[0].startswith("efm-lb reconcile: EFM_LB_")
    assert (code, logged) == ((0, said) if words == ["--custom-monitor"] else (78, []))


def test_what_is_not_right_is_never_called_right(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The databases say something else each time that they are asked, so nothing is done, and nothing waits."""
    configuration = SimpleNamespace(deadline=0.0)
    rounds = SimpleNamespace(play=lambda patience: Round((), {}, False, float("inf")))
    assert service._once(configuration, rounds, as_json=False) == 75  # type: ignore[arg-type]
    assert capfd.readouterr().out == "not right yet: the databases change while they are looked at\n"


def test_words_that_the_terminal_cannot_show_do_no_harm(env_file: Path) -> None:
    """libpq and the servers speak the language of the system."""
    text = env_file.read_text().replace("none.sock", "„none“.sock")
    env_file.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "efm_lb", "reconcile", "--custom-monitor", f"--env-file={env_file}"],
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii"},
        cwd="/",
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert "„none“" in done.stdout.decode()
