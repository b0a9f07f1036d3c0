"""A hook run from the call to the exit code, with made-up databases and balancers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from efm_lb import (
    Attach,
    Balancer,
    Detach,
    Event,
    Node,
    NodeState,
    Origin,
    Outcome,
    PermanentError,
    Promote,
    Reach,
    Role,
    TemporaryError,
    Truth,
    follow_up,
    hook,
    hookimpl,
    journal,
    lock,
    maintenance,
    watch,
)
from efm_lb.configuration import AdapterSource, Configuration, DetachLivePrimary
from efm_lb.decide import SUCCESSION
from efm_lb.maintenance import Maintenance
from efm_lb.signals import Terminated
from efm_lb.state import State, new_call

P, S = Role.PRIMARY, Role.STANDBY
DB1, DB2 = (Node(f"db{n}", f"10.0.0.{n}", 5444) for n in (1, 2))


def state(node: Node, role: Role | None, reach: Reach = Reach.ACCEPTING) -> NodeState:
    return NodeState(node, reach, role, 1 if role else None)


FAILED_OVER = Truth((state(DB1, None, Reach.REFUSED), state(DB2, Role.PRIMARY)))
PROMOTING = Truth((state(DB1, None, Reach.REFUSED), state(DB2, Role.STANDBY)))
HEALTHY = Truth((state(DB1, Role.PRIMARY), state(DB2, Role.STANDBY)))


Answer = Outcome | Exception
"""What a balancer's adapter returns or raises."""


class World:
    """The databases, the balancers and what was started."""

    def __init__(self, state_dir: Path) -> None:
        self.truths: list[Truth] = [FAILED_OVER]
        self.events: list[Event] = []
        self.given: list[float] = []
        self.followed_up: list[tuple[float, str]] = []
        self.answers: dict[str, Answer | list[Answer]] = {"pool1": Outcome.changed("done")}
        self.holds: dict[str, Outcome | Exception | None] = {}
        self.held: list[Event] = []
        self.deadline = 2.0
        self.policy = DetachLivePrimary.DEFER
        self.state_dir = state_dir
        self.asked: Callable[[], object] = lambda: None
        self.sightings: list[tuple[Truth, ...]] = []
        self.watched: list[tuple[Node, ...]] = []

    def configuration(self) -> Configuration:
        return Configuration(
            "efm",
            (DB1, DB2),
            {},
            self.deadline,
            0.5,
            str(self.state_dir),
            self.policy,
            tuple(Balancer(name, "fake", {}) for name in self.answers),
            (AdapterSource("fake", "fake_hook_adapter", "", "fake-dist", "1"),),
        )

    def records(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in (self.state_dir / "efm.journal").read_text().splitlines()]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)

    class Databases:
        def __init__(self, keywords: object, timeout: float, begun: object) -> None: ...

        def start_over(self) -> None: ...

        def ask(self, nodes: Iterable[Node], timeout: float | None = None) -> SimpleNamespace:
            return SimpleNamespace(truth=lambda: self.truth(nodes))

        def truth(self, nodes: Iterable[Node], timeout: float | None = None) -> Truth:
            made.asked()
            seen = made.truths.pop(0) if len(made.truths) > 1 else made.truths[0]
            return Truth(tuple(seen.state(node) for node in nodes))

    def wait_for_primary(nodes: Iterable[Node], probe: object, until: float) -> bool:
        made.watched.append(tuple(nodes))
        if not made.sightings:
            time.sleep(max(0.0, until - time.monotonic()))
            return False
        made.truths = list(made.sightings.pop(0)) or made.truths
        return any(truth.primaries for truth in made.truths)

    module = ModuleType("fake_hook_adapter")

    def answer(event: Event, balancer: Balancer, deadline: float) -> Outcome:
        made.events.append(event)
        made.given.append(deadline - time.monotonic())
        answer = made.answers[balancer.name]
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    for name in ("attach", "detach", "promote"):
        setattr(
            module,
            f"efm_lb_{name}",
            hookimpl(specname=f"efm_lb_{name}")(lambda event, balancer, deadline: answer(event, balancer, deadline)),
        )

    def hold(event: Event, balancer: Balancer) -> Outcome | None:
        made.held.append(event)
        answer = made.holds.get(balancer.name)
        if isinstance(answer, Exception):
            raise answer
        return answer

    module.efm_lb_hold = hookimpl(specname="efm_lb_hold")(hold)  # type: ignore[attr-defined]
    module.efm_lb_plan = hookimpl(specname="efm_lb_plan")(lambda event: [f"would {type(event).__name__}"])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(hook, "Probe", Databases)
    monkeypatch.setattr(watch, "wait_for_primary", wait_for_primary)
    monkeypatch.setattr(hook, "settings_of", lambda cluster, env_file, environ: (made.configuration(), ""))
    monkeypatch.setattr(follow_up, "PATIENCE", 1.5)
    monkeypatch.setattr(follow_up, "_PAUSE", 0.05)
    monkeypatch.setattr(follow_up, "start", lambda seconds, call, run: made.followed_up.append((seconds, call)))
    return made


Run = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def run(world: World, capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*argv: str) -> tuple[int, list[str]]:
        code = hook.main(argv)
        return code, capfd.readouterr().out.splitlines()

    return call


@pytest.mark.parametrize(("truth", "is_meant"), [(Reach.ACCEPTING, True), (Reach.REFUSED, False)])
def test_a_node_that_was_up_was_taken_out_on_purpose(world: World, run: Run, truth: Reach, is_meant: bool) -> None:
    role = Role.STANDBY if truth is Reach.ACCEPTING else None
    world.truths = [Truth((state(DB1, Role.PRIMARY), state(DB2, role, truth)))]
    assert run("detach", "db2", "s")[0] == 0
    assert (State(str(world.state_dir), "efm").taken_out(DB2) is not None) == is_meant


def test_a_dead_old_primary_was_not_taken_out_on_purpose(world: World, run: Run) -> None:
    """The event is about the new primary, which is up."""
    world.truths = [FAILED_OVER]
    assert run("detach", "db1", "p")[0] == 0
    assert State(str(world.state_dir), "efm").taken_out(DB1) is None


def test_what_is_in_no_journal_is_in_the_systems_log(world: World, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []
    monkeypatch.setattr("syslog.syslog", lambda priority, line: logged.append(line))
    code, lines = run("attach", "%h", "s")
    assert code == 2
    assert logged == lines
    code, lines = run("attach", "db9", "s")
    assert code == 69
    assert logged != lines, "it is in the journal"


def test_a_promotion(world: World, run: Run) -> None:
    code, lines = run("attach", "db2", "p")
    assert code == 0
    assert world.events == [Promote(DB2, FAILED_OVER, Origin.HOOK)]
    assert lines[0] == "attach db2 primary: db2 is the primary (timeline 1)"
    assert lines[1].startswith("pool1: changed in 0.0")
    assert [record["record"] for record in world.records()] == ["call", "decision", "outcome"]
    assert world.followed_up == []


def test_a_node_that_is_still_promoting_is_waited_for(world: World, run: Run) -> None:
    world.truths = [PROMOTING] * 5 + [FAILED_OVER]
    code, _ = run("promote", "db2")
    assert code == 0
    assert world.events == [Promote(DB2, FAILED_OVER)]


def test_a_promotion_that_is_seen_while_a_node_is_waited_for_counts(world: World, run: Run) -> None:
    """By reconcile on this host: the node that came up is an old primary."""
    world.truths = [PROMOTING] * 5 + [FAILED_OVER]
    asked = iter(range(100))

    def see() -> None:
        if next(asked) == 2:
            State(str(world.state_dir), "efm").timeline = 2

    world.asked = see
    code, lines = run("promote", "db2")
    assert code == 75
    assert "this host has seen timeline 2: an old primary gets no writes" in lines[0]
    assert world.events == []


def test_a_node_that_never_leaves_recovery_is_attached_and_the_shortfall_said(world: World, run: Run) -> None:
    world.truths = [PROMOTING]
    world.deadline = 0.5
    started = time.monotonic()
    code, lines = run("attach", "db2", "p")
    assert code == 75
    assert time.monotonic() - started < 2
    assert lines[1] == "not done: db2 is still in recovery and no primary was found: writes were not moved"


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        ([Outcome.unchanged("so already")], 0),
        ([Outcome.deferred("later")], 0),
        ([TemporaryError("no answer")], 75),
        ([PermanentError("unknown")], 69),
        ([ValueError("bug")], 70),
        ([Outcome.changed("done"), TemporaryError("no answer")], 75),
        ([PermanentError("unknown"), TemporaryError("no answer")], 75),
        ([PermanentError("unknown"), ValueError("bug")], 69),
    ],
)
def test_exit_codes(world: World, run: Run, answers: Sequence[Outcome | Exception], code: int) -> None:
    world.answers = {f"pool{n}": answer for n, answer in enumerate(answers)}
    assert run("attach", "db2", "p")[0] == code


@pytest.mark.parametrize(
    ("deadline", "connect_timeout", "spent", "left"),
    [
        (10.0, 2.0, 0.5, (9.5, 2.0)),
        (10.0, 2.0, 3.5, (6.5, 2.0)),
        (10.0, 9.0, 3.0, (7.0, 6.0)),
        (10.0, 2.0, 8.0, (5.0, 2.0)),
        (1.0, 0.9, 5.0, (0.5, 0.25)),
    ],
)
def test_what_the_settings_took_is_gone(
    world: World, deadline: float, connect_timeout: float, spent: float, left: tuple[float, float]
) -> None:
    """The balancers keep what the settings reserve for them, and half of the deadline is left in any case."""
    given = world.configuration()._replace(deadline=deadline, connect_timeout=connect_timeout)
    rest = hook._left_of(given, spent)
    assert (rest.deadline, rest.connect_timeout) == left


@pytest.mark.parametrize(("policy", "code", "told"), [("defer", 0, False), ("refuse", 69, False), ("obey", 0, True)])
def test_a_live_primary(world: World, run: Run, policy: str, code: int, told: bool) -> None:
    world.truths = [HEALTHY]
    world.policy = DetachLivePrimary(policy)
    assert run("detach", "db1", "p")[0] == code
    assert bool(world.events) is told
    assert bool(world.followed_up) is (policy == "defer")


def test_what_an_adapter_defers_is_judged_again(world: World, run: Run) -> None:
    world.truths = [PROMOTING]
    world.answers = {"pool1": [Outcome.deferred("a promotion is expected", again_after=3.0), Outcome.changed("out")]}
    assert run("detach", "db1", "p")[0] == 0
    ((seconds, call),) = world.followed_up
    assert seconds == 3.0
    assert run("detach", "db1", "p", "--follow-up", "0.01", "--call", call)[0] == 0
    assert len(world.followed_up) == 1
    assert [event.origin for event in world.events] == [Origin.HOOK, Origin.FOLLOW_UP]


@pytest.mark.parametrize(
    "not_yet", [Outcome.deferred("promote the other one first", again_after=2.0), TemporaryError("no answer")]
)
def test_a_follow_up_is_repeated_until_the_balancer_is_right(world: World, run: Run, not_yet: Answer) -> None:
    world.truths = [HEALTHY]
    world.answers = {"pool1": [not_yet, not_yet, Outcome.changed("attached")]}
    assert run("attach", "db2", "s", "--follow-up", "0.01", "--call", new_call())[0] == 0
    assert [type(event) for event in world.events] == [Attach] * 3


@pytest.mark.parametrize(
    "never", [Outcome.deferred("promote the other one first", again_after=2.0), TemporaryError("no answer")]
)
def test_a_follow_up_that_comes_to_nothing_ends_and_says_so(world: World, run: Run, never: Answer) -> None:
    world.truths = [HEALTHY]
    world.answers = {"pool1": never}
    assert run("attach", "db2", "s", "--follow-up", "0.01", "--call", new_call())[0] == 75
    assert 2 < len(world.events) < 10, "each pause is longer than the one before"


def test_a_follow_up_keeps_the_lock_for_one_short_attempt_only(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EFM's own call may be waiting, and may be what the balancer waits for."""
    world.truths = [HEALTHY]
    world.deadline = 30.0
    world.answers = {"pool1": [TemporaryError("no answer"), Outcome.changed("attached")]}
    free: list[float] = []

    def pause(seconds: float) -> None:
        os.close(lock.acquire(f"{world.state_dir}/efm.lock", 0))
        free.append(seconds)

    monkeypatch.setattr(follow_up, "time", SimpleNamespace(monotonic=time.monotonic, sleep=pause))
    assert run("attach", "db2", "s", "--follow-up", "0.01", "--call", new_call())[0] == 0
    assert len(free) == 1
    assert max(world.given) <= follow_up.ATTEMPT


def test_what_no_retry_can_help_is_not_repeated(world: World, run: Run) -> None:
    world.truths = [HEALTHY]
    world.answers = {"pool1": PermanentError("no such node")}
    assert run("attach", "db2", "s", "--follow-up", "0.01", "--call", new_call())[0] == 69
    assert len(world.events) == 1


def test_a_dead_primary_without_a_successor_is_looked_after(world: World, run: Run) -> None:
    world.truths = [PROMOTING]
    assert run("detach", "db1", "p")[0] == 0
    assert [seconds for seconds, _ in world.followed_up] == [SUCCESSION]


def test_the_follow_up_sends_writes_to_the_new_primary_as_soon_as_it_sees_it(world: World, run: Run) -> None:
    world.sightings = [(FAILED_OVER,)]
    began = time.monotonic()
    code, lines = run("detach", "db1", "p", "--follow-up", "5", "--call", new_call())
    assert (code, lines[0]) == (0, "detach db1 primary: db2 is the primary (timeline 1), and db1 is not")
    assert time.monotonic() - began < 4
    assert world.events == [Promote(DB2, FAILED_OVER, Origin.FOLLOW_UP)]
    assert world.watched == [(DB2,)]


def test_the_follow_up_goes_on_watching_once_it_has_detached(world: World, run: Run) -> None:
    world.sightings = [(PROMOTING,), (FAILED_OVER,)]
    assert run("detach", "db1", "p", "--follow-up", "0.01", "--call", new_call())[0] == 0
    assert world.events == [Detach(DB1, PROMOTING, Origin.FOLLOW_UP), Promote(DB2, FAILED_OVER, Origin.FOLLOW_UP)]


def test_a_sighting_that_was_too_early_is_judged_again_in_time(world: World, run: Run) -> None:
    both = Truth((state(DB1, P), state(DB2, P)))
    world.sightings = [(both, FAILED_OVER)]
    began = time.monotonic()
    assert run("detach", "db1", "p", "--follow-up", "0.3", "--call", new_call())[0] == 0
    assert time.monotonic() - began >= 0.3
    assert world.events == [Promote(DB2, FAILED_OVER, Origin.FOLLOW_UP)]


def test_a_sighting_that_the_truth_never_agrees_with_is_not_followed_without_a_pause(world: World, run: Run) -> None:
    """An old primary that was started by mistake is out of recovery, too."""
    outdated = FAILED_OVER._replace(newest=2)
    State(str(world.state_dir), "efm").timeline = 2
    world.sightings = [(outdated,)] * 100
    assert run("detach", "db1", "p", "--follow-up", "0.01", "--call", new_call())[0] == 0
    assert {type(event) for event in world.events} == {Detach}
    assert len(world.events) < 10


def test_an_attach_is_not_judged_again_before_its_time(world: World, run: Run) -> None:
    """A balancer may wait for the promote, with the lock held that the call for the new primary needs."""
    world.sightings = [(FAILED_OVER,)]
    began = time.monotonic()
    assert run("attach", "db2", "s", "--follow-up", "0.3", "--call", new_call())[0] == 0
    assert time.monotonic() - began >= 0.3
    assert world.watched == []
    assert len([record for record in world.records() if record["record"] == "call"]) == 1


def test_a_follow_up_yields_to_a_newer_call_that_took_the_node_out(world: World, run: Run) -> None:
    world.truths = [Truth((state(DB1, P), state(DB2, S)))]
    world.answers = {"pool1": Outcome.deferred("held", again_after=3.0)}
    run("attach", "db2", "s")
    ((_, call),) = world.followed_up
    world.answers = {"pool1": Outcome.changed("out")}
    world.truths = [Truth((state(DB1, P), state(DB2, None, Reach.REFUSED)))]
    run("detach", "db2", "s")
    world.events.clear()
    code, lines = run("attach", "db2", "s", "--follow-up", "0", "--call", call)
    assert code == 0
    assert world.events == []
    assert "EFM has called about db2 again since, and it was taken out" in lines[0]


def test_a_call_that_waits_yields_to_a_newer_one_that_was_carried_out_meanwhile(world: World, run: Run) -> None:
    world.truths = [Truth((state(DB1, P), state(DB2, None, Reach.REJECTING)))]
    looks = iter(range(100))

    def look() -> None:
        if next(looks) == 2:
            State(str(world.state_dir), "efm").note(DB2, new_call(), attached=False)
            world.truths = [Truth((state(DB1, P), state(DB2, S)))]

    world.asked = look
    code, lines = run("attach", "db2", "s")
    assert code == 0
    assert world.events == []
    assert "EFM has called about db2 again since, and it was taken out" in lines[0]


@pytest.mark.parametrize("newer", [("attach", "db2", "s"), ("detach", "db2", "p")])
def test_a_promotion_is_never_lost_to_a_newer_call_that_moved_no_writes(
    world: World, run: Run, newer: tuple[str, ...]
) -> None:
    """The lock gives no order: the call with p came first and gets it last."""
    world.truths = [Truth((state(DB1, None, Reach.REFUSED), state(DB2, P)))]
    older = new_call()
    assert run(*newer)[0] == 0
    world.events.clear()
    assert run("attach", "db2", "p", "--follow-up", "0", "--call", older)[0] == 0
    assert [type(event) for event in world.events] == [Promote]


def test_others_have_their_turn_while_a_node_is_waited_for(world: World, run: Run) -> None:
    """A standby that is still starting must not delay the call for the new primary."""
    held: list[bool] = []

    def look() -> None:
        try:
            os.close(lock.acquire(f"{world.state_dir}/efm.lock", 0))
            held.append(False)
        except TimeoutError:
            held.append(True)

    world.asked = look
    world.truths = [Truth((state(DB1, P), state(DB2, None, Reach.REJECTING)))]
    assert run("attach", "db2", "s")[0] == 75
    assert held[0], "it is held while the databases are asked for the first time"
    assert not any(held[1:-1]), "and given up while the node is waited for"
    assert held[-1], "and held again for the decision"


def test_a_primary_of_a_timeline_older_than_one_seen_before_gets_no_writes(world: World, run: Run) -> None:
    world.truths = [Truth((state(DB1, None, Reach.REFUSED), NodeState(DB2, Reach.ACCEPTING, Role.PRIMARY, 7)))]
    assert run("attach", "db2", "p")[0] == 0
    world.truths = [Truth((NodeState(DB1, Reach.ACCEPTING, Role.PRIMARY, 6), state(DB2, None, Reach.REFUSED)))]
    world.events.clear()
    code, lines = run("attach", "db1", "p")
    assert code == 75
    assert world.events == []
    assert "this host has seen timeline 7" in lines[0]


@pytest.mark.parametrize("stdout", ["/dev/full", None])
def test_an_output_that_cannot_be_written_hides_no_exit_code(stdout: str | None) -> None:
    argv = [sys.executable, "-m", "efm_lb", "attach", "%h"]
    if stdout is None:
        done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *argv], stderr=subprocess.PIPE, check=False)
    else:
        with open(stdout, "w") as full:
            done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2
    assert done.stderr == b""


def test_an_output_in_another_encoding_hides_no_exit_code() -> None:
    argv = [sys.executable, "-m", "efm_lb", "attach", "d\u00e9j\u00e0", "%x"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run(argv, capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (2, b"")


def test_a_dry_run_touches_nothing(world: World, run: Run) -> None:
    code, lines = run("attach", "db2", "p", "--dry-run")
    assert code == 0
    assert lines[1] == "pool1: would Promote"
    assert world.events == []
    assert not list(world.state_dir.iterdir())


@pytest.mark.parametrize("letter", ["%t", "w"])
def test_a_type_that_nobody_knows_is_said_and_the_database_asked(world: World, run: Run, letter: str) -> None:
    code, lines = run("attach", "db2", letter)
    assert (code, world.events) == (0, [Promote(DB2, FAILED_OVER)])
    assert lines[-1].startswith(f"note: TYPE is '{letter}', expected p or s")


def test_json(world: World, run: Run) -> None:
    _, lines = run("attach", "db2", "p", "--json")
    document = json.loads("\n".join(lines))
    assert document["schema"] == "efm-lb/hook/v1"
    assert document["exit_code"] == 0
    assert document["decision"]["event"] == "promote"
    assert document["outcomes"][0]["result"] == "changed"


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["attach", "%h", "%t"], 2, "EFM did not replace %h"),
        (["attach", "db9", "p"], 69, "db9 is not in EFM_LB_NODES of cluster efm (db1, db2)"),
        (["attach", "db", "p"], 69, "db is not in EFM_LB_NODES"),
        (["attach", ""], 2, "no HOST given"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_bad_calls_touch_nothing(
    world: World, run: Run, argv: list[str], code: int, message: str, as_json: bool
) -> None:
    got, lines = run(*argv, *(["--json"] if as_json else []))
    assert got == code
    assert world.events == []
    assert message in " ".join(lines)
    assert len(lines) == 1, "one clear line"
    if as_json:
        assert json.loads("\n".join(lines))["exit_code"] == code


def test_a_state_directory_that_cannot_be_written_is_reported_and_the_balancer_driven(world: World, run: Run) -> None:
    world.state_dir = world.state_dir / "gone"
    code, lines = run("attach", "db2", "p")
    assert code == 0
    assert len(world.events) == 1
    assert any("not journalled" in line for line in lines)
    assert any("no lock" in line for line in lines)


def test_a_call_waits_for_the_one_before_and_goes_on_without_it_in_the_end(world: World, run: Run) -> None:
    from efm_lb.lock import acquire

    world.deadline = 0.3
    held = acquire(str(world.state_dir / "efm.lock"), 0)
    code, lines = run("attach", "db2", "p")
    os.close(held)
    assert code == 0
    assert len(world.events) == 1
    assert any("another call holds" in line for line in lines)


def test_an_error_names_the_call_once_and_not_its_options(world: World, run: Run) -> None:
    _, lines = run("attach", "db9", "p", "--cluster=efm")
    assert lines[0].startswith("efm-lb attach db9 p: db9 is not")


def test_without_libpq_it_says_what_to_install(world: World, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(*arguments: object, **options: object) -> None:
        raise hook.LibpqNotFoundError("no libpq.so.5 found: install libpq5")

    monkeypatch.setattr(hook.Probe, "ask", no_library)
    assert run("attach", "db2", "p") == (69, ["efm-lb attach db2 p: no libpq.so.5 found: install libpq5"])


def test_a_bug_is_a_line_and_an_exit_code(world: World, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("ouch")

    monkeypatch.setattr(hook, "decide", fail)
    code, lines = run("attach", "db2", "p")
    assert code == 70
    assert lines == ["efm-lb attach db2 p: a bug in efm-lb: ZeroDivisionError: ouch"]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (RuntimeError("can't start new thread"), "can't start new thread"),
        (MemoryError(), "no memory is left"),
        (ImportError("_json.so: failed to map segment from shared object"), "_json.so: failed to map segment"),
    ],
)
def test_what_the_process_lacks_is_no_bug(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, why: str
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(hook, "decide", fail)
    code, (line,) = run("attach", "db2", "p")
    assert code == 75
    assert line.startswith(f"efm-lb attach db2 p: this process lacks what it needs: {why}")


def test_a_signal_after_the_last_step_is_a_line_and_an_exit_code(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminate() -> None:
        raise Terminated

    monkeypatch.setattr(hook.signals, "ignore", terminate)
    assert run("attach", "db9", "p") == (75, ["efm-lb attach db9 p: terminated by a signal before it was done"])


FOLLOWED_UP = """
import os, resource, sys, threading
from efm_lb.follow_up import NAME, start

def run(argv):
    is_fork = open("/proc/self/comm").read() == f"{NAME}\\n"
    files = {os.readlink(path) for number in range(10) if os.path.lexists(path := f"/proc/self/fd/{number}")}
    with open(OUT, "w") as out:
        print(argv, is_fork, os.getpid() == os.getsid(0), files, file=out)
    return 0

if "--follow-up" in sys.argv:
    run(sys.argv[1:])
elif "hung" in sys.argv:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    start(2.5, "c1", run)
else:
    inherited = [os.open("/", os.O_RDONLY) for _ in range(5)]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (inherited[-1] + 2, hard))  # one more, and no other
    start(2.5, "c1", run)
    raise ZeroDivisionError  # the fork must not get here
"""


@pytest.mark.parametrize(("word", "is_fork"), [("db1", True), ("hung", False)])
def test_the_follow_up_is_the_same_command_in_a_session_of_its_own(tmp_path: Path, word: str, is_fork: bool) -> None:
    """The process that EFM waits for ends at once; what it started goes on without its pipes."""
    script = tmp_path / "command.py"
    out = tmp_path / "out"
    script.write_text(FOLLOWED_UP.replace("OUT", repr(str(out))))
    ended = subprocess.run([sys.executable, str(script), "detach", word, "p"], capture_output=True, timeout=20)
    assert ended.stderr.count(b"ZeroDivisionError") == (2 if is_fork else 0), ended.stderr
    deadline = time.monotonic() + 10
    while not (out.exists() and out.read_text().endswith("\n")) and time.monotonic() < deadline:
        time.sleep(0.02)
    argv = ["detach", word, "p", "--follow-up", "2.5", "--call", "c1"]
    assert out.read_text() == f"{argv} {is_fork} True {{'/dev/null'}}\n"


def test_a_deferred_detach_asks_to_hold_and_says_what_came_of_it(world: World, run: Run) -> None:
    world.truths = [HEALTHY]
    world.answers = {"pgb1": Outcome.changed("never sent"), "pgb2": Outcome.changed("never sent")}
    world.holds = {"pgb1": Outcome.changed("app waits"), "pgb2": TemporaryError("no answer")}
    code, lines = run("detach", "db1", "p")
    assert code == 0, "a deferred detach is right without anybody holding"
    assert world.events == []
    assert world.held == [Detach(DB1, HEALTHY, Origin.HOOK)] * 2
    assert lines[0].endswith("[defer]")
    assert [line.split(" in ")[0] for line in lines[1:]] == ["pgb1: changed", "pgb2: failed temporarily"]
    assert lines[1].endswith("app waits")
    assert world.records()[-2]["held"] is True
    told = world.records()[-1]["outcomes"]
    assert isinstance(told, dict)
    assert {name: (each["result"], each["detail"]) for name, each in told.items()} == {
        "pgb1": ("changed", "app waits"),
        "pgb2": ("failed temporarily", "no answer"),
    }
    assert [seconds for seconds, _ in world.followed_up] == [5.0], "and it is judged again"


def test_a_detach_that_only_holds_is_not_carried_out(world: World, run: Run) -> None:
    before = new_call()
    world.truths = [HEALTHY]
    world.answers = {"pgb1": Outcome.changed("never sent")}
    world.holds = {"pgb1": Outcome.changed("app waits")}
    assert run("detach", "db1", "p")[0] == 0
    assert not State(str(world.state_dir), "efm").contradicted(DB1, before, attached=True), "db1 is still in"


def test_a_dry_run_of_a_deferred_detach_holds_nothing(world: World, run: Run) -> None:
    world.truths = [HEALTHY]
    code, lines = run("detach", "db1", "p", "--dry-run")
    assert code == 0
    assert world.held == []
    assert lines[1:] == ["pool1: would be asked to hold new work back"]


@pytest.mark.parametrize(
    ("redirection", "code"),
    [
        (">/dev/full", 70),
        (">&-", 0),
        (">/dev/full 2>&-", 70),
        (">/dev/full 2>/dev/full", 70),
        (">&- 2>&-", 0),
    ],
)
def test_a_command_for_people_ends_without_a_traceback_wherever_its_output_goes(redirection: str, code: int) -> None:
    argv = ["sh", "-c", f'"$@" {redirection}', "sh", sys.executable, "-m", "efm_lb", "adapters"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == (1 if code and "2>" not in redirection else 0)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["adapters"], ["--help"]])
def test_a_command_for_people_whose_reader_went_away_ends_as_other_programs_do(
    words: Sequence[str], unbuffered: str
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    argv = [sys.executable, "-m", "efm_lb", *words]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    try:
        done = subprocess.run(argv, stdout=writing, stderr=subprocess.PIPE, env=environment, check=False)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_what_is_wrong_with_the_settings_is_told_by_the_exit_code_where_no_word_can_be(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "efm_lb", "status", f"--env-file={tmp_path}/none"]
    with open("/dev/full", "w") as full:
        assert subprocess.run(argv, stderr=full, check=False).returncode == 78


def test_a_balancer_in_maintenance_is_left_alone(world: World, run: Run) -> None:
    world.truths = [HEALTHY]
    world.answers = {"pool1": Outcome.changed("attached"), "pool2": Outcome.changed("attached")}
    maintenance.write(
        str(world.state_dir), "efm", [Maintenance("pool1", time.time() + 600, time.time(), "", "upgrade")]
    )
    code, lines = run("attach", "db2", "s")
    assert code == 0
    assert len(world.events) == 1
    assert lines[1].startswith("pool1: deferred in 0.00 s: pool1 is in maintenance until ")
    assert lines[1].endswith("(upgrade)")
    assert lines[2].startswith("pool2: changed")


@pytest.mark.parametrize("name", ["pool1", "db2"])
def test_a_promotion_counts_in_maintenance_too_and_says_so(world: World, run: Run, name: str) -> None:
    maintenance.write(str(world.state_dir), "efm", [Maintenance(name, time.time() + 600, time.time())])
    code, lines = run("attach", "db2", "p")
    assert code == 0
    assert world.events == [Promote(DB2, FAILED_OVER)]
    assert lines[-1].startswith(f"note: {name} is in maintenance until ")
    assert lines[-1].endswith("all the same")


# The journal


def test_the_journal_has_what_an_operator_needs(world: World, run: Run) -> None:
    silent = NodeState(DB1, Reach.NO_RESPONSE, detail="no answer within 2.0 s", seconds=2.0)
    world.truths = [Truth((silent, state(DB2, Role.STANDBY)))]
    world.answers = {"pool1": Outcome.deferred("no other primary yet", again_after=3.0)}
    assert run("detach", "db1", "p")[0] == 0
    call, decision, outcome = world.records()
    assert (call["kind"], call["host"], call["type"], call["follow_up"]) == ("detach", "db1", "primary", False)
    assert (decision["verdict"], decision["rule"], decision["told"]) == ("act", "R20", "detach db1")
    assert decision["again_after"] == SUCCESSION
    assert decision["truth"] == {
        "db1": {
            "reach": "no response", "role": None, "timeline": None, "detail": "no answer within 2.0 s", "seconds": 2.0
        },
        "db2": {"reach": "accepting", "role": "standby", "timeline": 1, "detail": "", "seconds": 0.0},
    }  # fmt: skip
    assert (outcome["exit_code"], outcome["again_after"], outcome["notes"]) == (0, 3.0, [])
    assert isinstance(outcome["seconds"], float)
    ((name, told),) = dict(outcome["outcomes"]).items()  # type: ignore[call-overload]
    assert (name, told["result"], told["detail"]) == ("pool1", "deferred", "no other primary yet")
    assert told["again_after"] == 3.0
    assert isinstance(told["seconds"], float)


def test_a_call_is_in_the_journal_before_a_balancer_is_told(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    append = journal.Journal._append

    def slow(own: journal.Journal, line: bytes, durable: bool) -> None:
        time.sleep(0.02)
        append(own, line, durable)

    monkeypatch.setattr(journal.Journal, "_append", slow)

    class Balancers(dict[str, Outcome | Exception]):
        def __getitem__(self, name: str) -> Outcome | Exception:
            seen.extend(record["record"] for record in world.records())
            return super().__getitem__(name)

    world.answers = Balancers(pool1=Outcome.changed("done"))
    assert run("attach", "db2", "p")[0] == 0
    assert seen == ["call", "decision"]


@pytest.mark.parametrize(("host", "code"), [("db9", 69), ("db2", 75)])
def test_a_call_that_breaks_off_has_an_outcome(world: World, run: Run, host: str, code: int) -> None:
    def terminate() -> None:
        raise Terminated

    world.asked = terminate
    world.truths = [PROMOTING]
    assert run("attach", host, "p")[0] == code
    last = world.records()[-1]
    assert (last["record"], last["exit_code"]) == ("outcome", code)
    assert ("terminated" if code == 75 else "is not in EFM_LB_NODES") in str(last["notes"])


def test_a_state_directory_that_hangs_costs_the_balancers_a_moment(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    thawed = threading.Event()
    append = journal.Journal._append

    def hang(own: journal.Journal, line: bytes, durable: bool) -> None:
        thawed.wait(30)
        append(own, line, durable)

    monkeypatch.setattr(journal.Journal, "_append", hang)
    began = time.monotonic()
    code, lines = run("attach", "db2", "p")
    assert time.monotonic() - began < 15
    thawed.set()
    assert (code, len(world.events)) == (0, 1)
    assert lines[-1] == f"note: not journalled: {world.state_dir}/efm.journal: the disk has not taken it in time"


def test_a_follow_up_that_cannot_be_started_is_in_the_journal(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(seconds: float, call: str, run: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(hook.follow_up, "start", refuse)
    world.truths = [PROMOTING]
    _, lines = run("detach", "db1", "p")
    assert "will not be judged again" in lines[-1]
    assert "will not be judged again" in str(world.records()[-1]["notes"])


def test_a_call_that_a_newer_one_has_overtaken_says_so_in_the_journal(world: World, run: Run) -> None:
    older = new_call()
    assert run("attach", "db2", "p")[0] == 0
    assert run("detach", "db2", "p", "--follow-up", "0.01", "--call", older)[0] == 0
    call, decision, outcome = world.records()[-3:]
    assert call["call"] == decision["call"] == outcome["call"] == older
    assert "the newer call counts" in str(decision["reason"])
    assert decision["truth"] is None


def test_what_is_in_maintenance_holds_nothing(world: World, run: Run) -> None:
    world.truths = [HEALTHY]
    world.answers = {"pgb1": Outcome.changed("done"), "pgb2": Outcome.changed("done")}
    world.holds = {"pgb1": Outcome.changed("holds"), "pgb2": Outcome.changed("holds")}
    maintenance.write(str(world.state_dir), "efm", [Maintenance("pgb1", time.time() + 60, 0.0)])
    code, lines = run("detach", "db1", "p")
    assert code == 0
    assert [line.split(":")[0] for line in lines[1:]] == ["pgb2"]
    _, lines = run("detach", "db1", "p", "--dry-run")
    assert not [line for line in lines if "pgb1" in line and "asked" in line]


def test_a_rehearsal_leaves_alone_what_is_in_maintenance(world: World, run: Run) -> None:
    world.truths = [HEALTHY]
    world.answers = {"pgb1": Outcome.changed("done"), "pgb2": Outcome.changed("done")}
    maintenance.write(str(world.state_dir), "efm", [Maintenance("pgb1", time.time() + 60, 0.0)])
    _, lines = run("attach", "db2", "s", "--dry-run")
    told = "\n".join(lines)
    assert "pgb1 is in maintenance until" in told
    assert told.count("would Attach") == 1


def test_a_follow_up_that_cannot_be_started_is_not_a_success(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody reads the output of a hook that ends with 0."""

    def start(seconds: float, call: str, run: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(follow_up, "start", start)
    world.truths = [HEALTHY]
    code, lines = run("detach", "db1", "p")
    assert code == 75
    assert any("will not be judged again" in line for line in lines)


def test_what_another_call_takes_is_not_this_ones_time(world: World, run: Run) -> None:
    """It gave the lock up while it waited for the promotion, and another call held it until its deadline was over."""
    world.deadline = 1.0
    world.truths = [PROMOTING, PROMOTING, FAILED_OVER]
    others: list[threading.Timer] = []

    def asked() -> None:
        if not others and len(world.truths) == 1:
            held = lock.acquire(f"{world.state_dir}/efm.lock", 0)
            others.append(threading.Timer(1.5, os.close, [held]))
            others[0].start()

    world.asked = asked
    code, lines = run("attach", "db2", "p")
    others[0].join()
    assert (code, lines[0]) == (0, "attach db2 primary: db2 is the primary (timeline 1)")
    assert world.given[-1] > 0.3, "the balancers have time"
