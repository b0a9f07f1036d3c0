"""The clock jumps, forwards and backwards, between calls and in the middle of them.

No call is lost, or put off for ever. What is in maintenance comes out of it again. The history can be read.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from efm_lb.rehearsal.cluster import Cluster, Server
from efm_lb.rehearsal.haproxy import Haproxy
from efm_lb.rehearsal.hooks import BARE_ENVIRONMENT, Hook, Run, hook_environment
from efm_lb.rehearsal.pgbouncer import Pgbouncer
from efm_lb.rehearsal.pgpool import Pgpool
from efm_lb.rehearsal.verdict import misbeliefs
from efm_lb.rehearsal.waiting import wait_until
from faults.servers import on_disk
from integration.real import follow_ups

pytestmark = pytest.mark.fault("a clock that jumps")
SEED = int(os.environ.get("EFM_LB_SEED", "1"))
CLOCK = Path(__file__).with_name("clock.py")
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
SETTINGS = {**on_disk.SETTINGS, "EFM_LB_BALANCERS__PGB1__HOLD": 2}


class Stand:
    """All balancers, and efm-lb on a host whose clock the test sets.

    :ivar runs: all of them
    """

    def __init__(self, cluster: Cluster, pgpool: Pgpool, haproxy: Haproxy, pgbouncer: Pgbouncer, name: str) -> None:
        self.cluster = cluster
        self.balancers = (pgpool, haproxy, pgbouncer)
        self.pgbouncer = pgbouncer
        self.env_file = hook_environment(cluster, self.balancers, name, SETTINGS)
        self.state = cluster.stage.directory / f"{name}.state"
        self._clock = cluster.stage.directory / f"{name}.clock"
        self._ahead = 0.0
        self.jump(0.0)
        self.runs: list[Run] = []
        self.hook = Hook(self.command)

    def command(self, words: tuple[str, ...] | list[str]) -> list[str]:
        return [sys.executable, "-I", str(CLOCK), str(self._clock), *words, f"--env-file={self.env_file}"]

    def jump(self, seconds: float) -> None:
        """Forwards, or backwards."""
        self._ahead += seconds
        beside = self._clock.with_suffix(".new")
        beside.write_text(str(self._ahead))
        beside.rename(self._clock)

    def set_right(self) -> None:
        self.jump(-self._ahead)

    def __call__(self, *words: str) -> Run:
        """Run efm-lb."""
        run = self.hook(*words)
        assert "Traceback" not in run.output, run.output
        assert "a bug in efm-lb" not in run.output, run.output
        self.runs.append(run)
        return run

    def calls(self, *words: str) -> None:
        """A call that must be carried out."""
        run = self(*words)
        assert run.exit_code == 0, run.output
        assert "deferred" not in run.output, run.output

    @contextmanager
    def service(self) -> Iterator[Path]:
        """``efm-lb reconcile --watch`` at work; the file with what it says."""
        log = self.env_file.with_suffix(".log")
        with log.open("w") as output:
            process = subprocess.Popen(
                self.command(["reconcile", "--watch"]),
                stdout=output, stderr=output, env=dict(BARE_ENVIRONMENT), cwd="/",
            )  # fmt: skip
        try:
            yield log
            process.terminate()
            assert process.wait(timeout=20) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()

    def wrong(self) -> list[str]:
        return [line for each in self.balancers for line in misbeliefs(self.cluster, each)]

    def becomes_right(self, seconds: float = 30.0) -> bool:
        return wait_until(lambda: not self.wrong(), seconds, interval=0.1)


@pytest.fixture
def stand(cluster: Cluster, pgpool: Pgpool, haproxy: Haproxy, pgbouncer: Pgbouncer, tmp_path: Path) -> Iterator[Stand]:
    yield Stand(cluster, pgpool, haproxy, pgbouncer, tmp_path.name)
    for pid in follow_ups(cluster):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def switch_over(stand: Stand, jump: Callable[[], None]) -> None:
    """As EFM does it, with a jump before each call."""
    old, new, other = stand.cluster.nodes
    jump()
    assert stand("detach", old.name, "p").exit_code == 0
    old.stop()
    new.promote()
    other.follow(new)
    jump()
    stand.calls("attach", new.name, "p")
    old.follow(new)
    old.start()
    jump()
    stand.calls("attach", old.name, "s")
    assert stand.becomes_right(), stand.wrong()


@pytest.mark.parametrize("jump", [-3.0, *(pytest.param(jump, marks=pytest.mark.long) for jump in (-DAY, DAY))])
def test_a_jump_before_each_call(stand: Stand, jump: float) -> None:
    switch_over(stand, lambda: stand.jump(jump))
    comes_and_goes(stand, jump, jump)
    assert_history(stand)


def comes_and_goes(stand: Stand, *jumps: float) -> None:
    """A standby, of which every call must be carried out, however the clock stands."""
    standby = stand.cluster.standbys[-1].name
    for kind, jump in zip(("detach", "attach"), jumps, strict=True):
        stand.jump(jump)
        stand.calls(kind, standby, "s")
    assert not stand.wrong()


def assert_history(stand: Stand) -> None:
    history = stand("history", "--limit", "0")
    assert history.exit_code == 0, history.output
    made = [run for run in stand.runs if run.argv[4] in ("attach", "detach")]
    assert history.output.count(": exit 0 in") >= len(made), history.output
    assert "damaged" not in history.output
    assert stand("history", "--since", "1h").exit_code == 0
    for words in (("show", "last"), ("--json",)):
        assert stand("history", *words).exit_code == 0


@pytest.mark.parametrize("count", [6, pytest.param(300, marks=pytest.mark.long)])
def test_random_jumps(stand: Stand, count: int, tried: Callable[[int], None]) -> None:
    print(f"EFM_LB_SEED={SEED}")
    chance = random.Random(SEED)
    for _ in range(count // 2):
        jumps = [chance.choice((-1, 1)) * chance.choice((0.2, 2.0, MINUTE, HOUR, DAY, 400 * DAY)) for _ in range(2)]
        print(jumps, flush=True)
        comes_and_goes(stand, *jumps)
        tried(2)
    assert_history(stand)


def late_start(node: Server, seconds: float) -> None:
    time.sleep(seconds)
    node.start()


def test_a_call_that_is_under_way_while_the_clock_passes_an_older_one(stand: Stand) -> None:
    """It was made after that one, whatever the clock said then: EFM's last word counts."""
    standby = stand.cluster.nodes[2]
    standby.stop()
    stand.calls("detach", standby.name, "s")
    stand.jump(-2.5)
    argv = stand.command(["attach", standby.name, "s"])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=dict(BARE_ENVIRONMENT), cwd="/", text=True) as attach:
        late_start(standby, 3.0)
        output, _ = attach.communicate(timeout=30)
    assert attach.returncode == 0, output
    assert "the newer call counts" not in output
    assert not stand.wrong(), output


def test_a_note_of_a_clock_that_was_ahead_is_forgotten(stand: Stand) -> None:
    """When that time comes, no call may take it for a newer one."""
    standby = stand.cluster.nodes[2].name
    stand.jump(DAY)
    stand.calls("detach", standby, "s")
    stand.set_right()
    stand.calls("attach", standby, "s")
    (note,) = stand.state.glob(f"*.{standby}.call")
    made, _, kind = note.read_text().strip().partition(" ")
    assert kind == "in"
    assert int(made.partition("-")[0], 16) < time.time_ns() + 1


@pytest.mark.parametrize("jump", [-DAY, pytest.param(DAY, marks=pytest.mark.long)])
def test_a_follow_up_that_waits(stand: Stand, jump: float) -> None:
    """EFM calls for the old primary only. Held clients are let go in time, and the promotion is seen."""
    old, new, other = stand.cluster.nodes
    assert stand("detach", old.name, "p").exit_code == 0
    stand.jump(jump)
    assert wait_until(lambda: not stand.pgbouncer.paused(), timeout=10)
    old.stop()
    stand.jump(-2 * jump)
    new.promote()
    other.follow(new)
    assert stand.becomes_right(), stand.wrong()
    assert stand("history", "show", "last").exit_code == 0


def test_the_service(stand: Stand) -> None:
    """It goes by a clock that does not jump."""
    old, new, other = stand.cluster.nodes
    stand.calls("attach", new.name, "s")
    with ExitStack() as undo:
        log = undo.enter_context(stand.service())
        time.sleep(1)
        stand.jump(DAY)
        other.stop()
        assert stand.becomes_right(), log.read_text()
        stand.jump(-3 * DAY)
        other.start()
        assert stand.becomes_right(), log.read_text()
        stand.jump(2 * DAY)
        old.stop()
        new.promote()
        stand.jump(-HOUR)
        other.follow(new)
        assert stand.becomes_right(), log.read_text()
        assert "Traceback" not in log.read_text()
    assert_history(stand)


def test_maintenance(stand: Stand) -> None:
    standby = stand.cluster.nodes[2].name

    def is_set() -> bool:
        shown = stand("maintenance", "list")
        assert shown.exit_code == 0
        return standby in shown.output

    assert stand("maintenance", "set", standby, "--for", "2h").exit_code == 0
    stand.jump(HOUR)
    assert is_set()
    stand.jump(-2 * HOUR)
    assert is_set(), "an hour more than it was to last"
    stand.jump(4 * HOUR)
    assert not is_set()
    stand.calls("attach", standby, "s")

    stand.jump(400 * DAY)
    assert stand("maintenance", "set", standby, "--for", "2h").exit_code == 0
    assert is_set()
    stand.set_right()
    assert not is_set(), "it would be there for more than a year"
    stand.calls("attach", standby, "s")
