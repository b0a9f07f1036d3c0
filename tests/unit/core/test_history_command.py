"""What ``efm-lb history`` shows an operator, from journals as hooks write them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from efm_lb import journal
from efm_lb.commands.explain import CHAPTERS, find
from efm_lb.commands.history import LIMIT, _abbreviated, moment, reading_of
from efm_lb.errors import CallError, NotReadableError
from efm_lb.history import PastCall
from efm_lb.journal import Journal, Value, outcomes_of
from efm_lb.outcomes import Outcome, Result
from efm_lb.settings import settings_of

TRUTH: dict[str, Value] = {
    "db1": {
        "reach": "no response",
        "role": None,
        "timeline": None,
        "detail": "no answer\nwithin 2.0 s",
        "seconds": 2.0,
    },
    "db2": {"reach": "accepting", "role": "primary", "timeline": 2, "detail": "", "seconds": 0.01},
}
NOTHING_TO_DO = "Nothing: every load balancer was proven right, or rightly left alone."


class Host:
    """A host with a journal, and the command on it."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "state"
        self.state.mkdir(mode=0o700)
        self.path = self.state / "efm.journal"
        self.env_file = directory / "efm.env"
        self.env_file.touch(mode=0o644)
        self.env_file.write_text(
            f"EFM_LB_NODES=db1=10.0.0.1:5444,db2=10.0.0.2:5444\nEFM_LB_STATE_DIR={self.state}\n"
            "EFM_LB_BALANCERS__POOL1__ADAPTER=pgpool\nEFM_LB_BALANCERS__POOL1__HOST=127.0.0.1\n"
            "EFM_LB_BALANCERS__POOL1__USER=x\n"
        )

    def record(self, call: str, what: str, **fields: Value) -> None:
        journal = Journal(str(self.path), call)
        journal.record(what, **fields)
        journal.settle(10)

    def call(
        self,
        call: str,
        kind: str = "attach",
        host: str = "db2",
        type: str | None = "primary",
        *,
        follow_up: bool = False,
        exit_code: int | None = 0,
        result: str = "changed",
        rule: str = "R3",
        verdict: str = "act",
        again_after: float | None = None,
        notes: Sequence[str] = (),
        shortfall: str = "",
    ) -> None:
        """One attempt; without an exit code it never ends."""
        self.record(call, "call", kind=kind, host=host, type=type, follow_up=follow_up)
        told = f"promote {host}" if verdict == "act" else None
        self.record(
            call, "decision", verdict=verdict, rule=rule, reason=f"{host} is what it is", shortfall=shortfall,
            told=told, held=False, newest=1, truth=TRUTH,
        )  # fmt: skip
        if exit_code is not None:
            outcome: Value = {"result": result, "detail": "done", "seconds": 0.5, "again_after": again_after}
            outcomes: Value = {"pool1": outcome} if told else {}
            self.record(
                call, "outcome", exit_code=exit_code, seconds=1.25, outcomes=outcomes, again_after=again_after,
                notes=notes,
            )  # fmt: skip

    def run(self, *words: str, code: int = 0) -> str:
        """The output of ``efm-lb history``; its errors when there are any."""
        argv = [sys.executable, "-m", "efm_lb", "history", *words, f"--env-file={self.env_file}"]
        environment = {**os.environ, "TZ": "UTC"}
        done = subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=60, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr if code else done.stdout

    def advice(self, name: str) -> str:
        return self.run("show", name).partition("What to do now\n")[2]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    return Host(tmp_path)


# The list


def test_before_the_first_call(host: Host) -> None:
    assert host.run() == f"no call is in the journal {host.path}\n"
    assert host.run("show", code=2) == "efm-lb: no call is in the journal of this host\n"


def test_the_last_call_is_shown_when_none_is_named(host: Host) -> None:
    host.call("a1")
    host.call("b2", "detach", "db1")
    assert "called: detach db1" in host.run("show")
    assert host.run("show") == host.run("show", "last")


def test_a_call_and_its_follow_ups(host: Host) -> None:
    host.call("a1", "detach", "db1", result="deferred", again_after=2.0)
    for _ in range(3):
        host.call("a1", "detach", "db1", follow_up=True, result="failed temporarily", exit_code=75)
    host.call("a1", "detach", "db1", follow_up=True)
    host.call("b1", shortfall="writes were not moved", notes=["no lock"], exit_code=75)
    lines = host.run().splitlines()
    assert [line.lstrip() for line in lines[1::2]] == [
        "db1 is what it is; pool1 deferred",
        "db1 is what it is; pool1 failed temporarily",
        "db1 is what it is; pool1 changed",
        "db2 is what it is; not done: writes were not moved; pool1 changed; no lock",
    ]
    first, several, last, second = lines[::2]
    assert first.endswith("  a1  detach db1 primary: exit 0 in 1.25 s")
    assert several.startswith("    follow-up at ")
    assert ", 3 times until " in several
    assert several.endswith(": exit 75 in 1.25 s")
    assert last.endswith(": exit 0 in 1.25 s")
    assert "times" not in last
    assert second.endswith("b1  attach db2 primary: exit 75 in 1.25 s")


def test_it_fits_on_a_screen_and_says_how_to_see_more(host: Host) -> None:
    names = [f"{number:x}" for number in range(100, 100 + LIMIT + 3)]
    for name in names:
        host.call(name)
    note, *lines = host.run().splitlines()
    assert note == f"(3 older: --limit {LIMIT + 3}, or --since 2d)"
    assert len(lines) <= 22
    assert [line.split()[2] for line in lines[::2]] == names[3:], "newest last"
    assert len(host.run("--limit", "0").splitlines()) == 2 * len(names)
    assert len(host.run("--since", "1h").splitlines()) == 2 * len(names)
    assert len(host.run("--since", "1h", "--limit", "2").splitlines()) == 1 + 2 * 2


def test_what_is_asked_for(host: Host) -> None:
    host.call("a1", "attach", "db2")
    host.call("b1", "attach", "10.0.0.2")
    host.call("c1", "detach", "db1", verdict="defer", rule="R15")
    host.call("d1", "attach", "db9", exit_code=69)

    def names(*words: str) -> list[str]:
        return [call["id"] for call in json.loads(host.run("--json", *words))["calls"]]

    assert names() == ["a1", "b1", "c1", "d1"]
    assert names("--node", "db2") == names("--node", "10.0.0.2") == ["a1", "b1"], "EFM's name and the address"
    assert names("--node", "db9") == ["d1"], "not in the settings"
    assert names("--balancer", "POOL1") == ["a1", "b1", "d1"], "the third told nobody"
    assert names("--since", (datetime.now(UTC) + timedelta(hours=1)).isoformat()) == []
    assert host.run("--since", "2199-01-01") == "no call is in the journal that fits\n"
    assert "there are 10.0.0.2, db1, db2, db9" in host.run("--node", "db7", code=2)
    assert "there are pool1" in host.run("--balancer", "edge1", code=2)
    assert "expected how long ago" in host.run("--since", "yesterday", code=2)
    assert "behind the word show" in host.run("--since", "2h", "show", "a1", code=2)


def test_the_beginning_of_an_interrupted_call_is_enough(host: Host) -> None:
    host.call("a1", exit_code=None)
    first, second = host.run().splitlines()
    assert first.endswith("attach db2 primary: no end was written down")
    assert second == "    db2 is what it is"


def test_a_call_that_is_at_work_is_no_lost_one(host: Host) -> None:
    """The process of its number is told from another one by its words."""
    sleeper = "import sys, time; print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", sleeper, "attach", "db2"], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            process.stdout.readline()
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(os, "getpid", lambda: process.pid)
                host.call("a1", "attach", exit_code=None)
                host.call("b1", "promote", exit_code=None)
            assert [line.rpartition(": ")[2] for line in host.run().splitlines()[::2]] == [
                "at work",
                "no end was written down",
            ]
            assert f"it is at work, as process {process.pid}" in host.advice("a1")
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("kind", "follow_up", "seconds", "is_at_work"),
    [
        ("reconcile", False, 10, True),
        ("reconcile", False, 100, False),
        ("attach", False, 100, True),
        ("attach", False, 200, False),
        ("attach", True, 200, True),
        ("attach", True, 300, False),
    ],
)
def test_what_began_longer_ago_than_it_may_take_is_not_at_work(
    kind: str, follow_up: bool, seconds: float, is_at_work: bool, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a process of that number lives: the disk was full when the service had done it, say."""
    clock = SimpleNamespace(**vars(time))
    clock.time = lambda: time.time() - seconds
    monkeypatch.setattr(journal, "time", clock)
    sleeper = "import sys, time; print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", sleeper, kind], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            process.stdout.readline()
            with monkeypatch.context() as patched:
                patched.setattr(os, "getpid", lambda: process.pid)
                host.call("a1", kind, exit_code=None, follow_up=follow_up)
            ((attempt,),) = (call["attempts"] for call in json.loads(host.run("--json"))["calls"])
            assert attempt["state"] == ("at work" if is_at_work else "no end was written down")
            text = host.run("show", "a1")
        finally:
            process.kill()
    assert (f"  It is still at work, as process {process.pid}.\n" in text) is is_at_work
    assert (f"Nothing yet: it is at work, as process {process.pid}.\n" in text) is is_at_work
    assert ("  No end of it was written down.\n" in text) is not is_at_work
    assert ("took no record of its end" in text) is not is_at_work


def test_a_damaged_line_is_said_and_costs_nothing_else(host: Host) -> None:
    host.call("a1")
    with host.path.open("ab") as journal:
        journal.write(b'{"at": "2026')
    host.call("b1")
    *lines, damage = host.run().splitlines()
    assert len(lines) == 4
    assert damage == f"! left out: {host.path}:4: damaged"
    assert damage in host.run("show", "a1")
    assert json.loads(host.run("--json"))["damages"] == [{"file": str(host.path), "line": 4, "detail": "damaged"}]


def test_what_was_set_aside_is_read_too(host: Host) -> None:
    host.call("a1")
    host.path.rename(f"{host.path}.1")
    host.call("b1")
    assert [line.split()[2] for line in host.run().splitlines()[::2]] == ["a1", "b1"]


def test_a_terminal_obeys_nothing_that_a_server_said(host: Host) -> None:
    host.record("a1", "call", kind="attach", host="db2", type=None, follow_up=False)
    host.record("a1", "outcome", exit_code=69, notes=["red \x1b[31m\udc80\nline"])
    for output in (host.run(), host.run("show", "a1")):
        assert "red \\x1b[31m\\udc80 line" in output


@pytest.mark.parametrize("words", [(), ("--json",), ("show", "last")])
def test_what_cannot_be_read_ends_with_one_line_and_77(host: Host, words: Sequence[str]) -> None:
    host.path.symlink_to("elsewhere")
    (error,) = host.run(*words, code=77).splitlines()
    assert error.startswith(f"efm-lb: {host.path}: Too many levels of symbolic links (uid {os.geteuid()}): run it as ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize(("owner", "hint"), [(0, ": run it as root, whose directory that is"), (12345, "")])
def test_who_may_not_read_it_is_told_who_may(owner: int, hint: str) -> None:
    with tempfile.TemporaryDirectory() as directory:  # pytest's own are closed to others as a whole
        os.chmod(directory, 0o755)
        told = told_to_another_user(Host(Path(directory)), owner)
    assert told.partition("efm.journal: ")[2] == f"Permission denied (uid 65534){hint}"


def told_to_another_user(host: Host, owner: int) -> str:
    host.call("a1")
    os.chown(host.state, owner, owner)
    configuration, _ = settings_of("efm", str(host.env_file), {})
    os.seteuid(65534)
    try:
        with pytest.raises(NotReadableError) as caught:
            reading_of(configuration)
    finally:
        os.seteuid(0)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"), [("45s", 45), ("30m", 1800), ("2h", 7200), ("2d", 172800), ("2026-11-03T10:00:00Z", 7200)]
)
def test_since(text: str, seconds: int) -> None:
    now = datetime(2026, 11, 3, 12, tzinfo=UTC)
    assert (now - moment(text, now)).total_seconds() == seconds


def test_a_time_without_a_zone_is_the_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC-3")
    time.tzset()
    try:
        assert moment("2026-11-03T12:00", datetime.now(UTC)) == datetime(2026, 11, 3, 9, tzinfo=UTC)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["", "2", "h", "-2h", "2w", "99999999d", "999999d", "2026-13-01"])
def test_since_when(text: str) -> None:
    with pytest.raises(CallError, match="expected how long ago"):
        moment(text, datetime.now(UTC))


def test_names_are_as_short_as_they_can_be() -> None:
    names = ["18eb4e4fcb890510-1", "18eb4e4fcb990510-2", "18eb500000000000-3", "c1"]
    short = _abbreviated(names)
    assert short == {names[0]: "18eb4e4fcb8", names[1]: "18eb4e4fcb9", names[2]: "18eb5000", "c1": "c1"}
    calls = [PastCall(name, ()) for name in names]
    for name in names:
        assert find(calls, short[name]).name == name
    assert find(calls, "last").name == "c1"
    with pytest.raises(CallError, match=r"3 calls begin with 18eb, the newest are .*-1, .*-2, .*-3"):
        find(calls, "18eb")


# One call


def test_a_call_from_beginning_to_end(host: Host) -> None:
    host.call("a1", "detach", "db1", rule="R20", result="deferred", again_after=2.0, notes=["no lock: why"])
    host.call("a1", "detach", "db1", follow_up=True, rule="R13")
    text = host.run("show", "a1")
    parts = text.split("\n\n")
    assert parts[0] == "call a1 of cluster efm; times are UTC+0000"
    head, *lines = parts[1].splitlines()
    assert head.endswith("EFM, or somebody by hand, called: detach db1 primary")
    assert lines[:8] == [
        "  The databases said:",
        "    db1  is silent: its host is down, cut off or frozen (2.00 s): no answer within 2.0 s",
        "    db2  is a primary, timeline 2 (0.01 s)",
        "  Decision: act (rule R20 of docs/how-it-decides.md)",
        "    because db1 is what it is",
        "  Every load balancer was told: promote db1",
        "    pool1  deferred in 0.50 s: done (to be asked again after 2 s)",
        "  Note: no lock: why",
    ]
    assert lines[8].endswith(" after 1.25 s with exit code 0.")
    assert lines[9].startswith("  Owed: a follow-up is to judge the call again by ")
    assert parts[2].splitlines()[0].endswith("  The follow-up judged the call again")
    assert "rule R13" in parts[2]
    assert parts[3] == f"What to do now\n  {NOTHING_TO_DO}\n"


def test_many_that_came_to_the_same_are_told_once(host: Host) -> None:
    host.call("a1", result="deferred", again_after=2.0)
    for _ in range(5):
        host.call("a1", follow_up=True, result="deferred", again_after=2.0)
    text = host.run("show", "a1")
    assert text.count("The follow-up judged the call again") == 1
    assert ", 5 times with the same result, the last time at " in text
    assert "The follow-up has ended, and a load balancer is still not told." in text


@pytest.mark.parametrize(
    ("exit_code", "told", "expected"),
    [
        (75, {}, "Something failed that may succeed when the call is made again."),
        (75, {"rule": "R1", "verdict": "fail"}, 'docs/runbook.md, "More than one writable primary", says more.'),
        (69, {}, "Somebody has to change something first"),
        (70, {}, "That is a bug"),
        (0, {"result": "deferred", "again_after": 5.0}, "Nothing yet: the follow-up will judge the call again"),
        (0, {}, NOTHING_TO_DO),
        (
            None,
            {},
            "The process was killed, the host lost power, or the disk, full or hung, took no record of its end.\n"
            "  What the load balancers were told is not known.",
        ),
    ],
)
def test_what_to_do_now(host: Host, exit_code: int | None, told: dict[str, str], expected: str) -> None:
    host.call("a1", exit_code=exit_code, **told)  # type: ignore[arg-type]
    advice = host.advice("a1")
    assert expected in advice
    is_wrong = bool(exit_code) or exit_code is None
    assert (f"efm-lb attach db2 p --env-file {host.env_file}" in advice) is is_wrong
    assert (f"efm-lb status --env-file {host.env_file}" in advice) is is_wrong


def test_a_call_that_was_killed_before_it_was_decided(host: Host) -> None:
    host.record("a1", "call", kind="attach", host="db2", type=None, follow_up=False)
    advice = host.advice("a1")
    assert "  No decision is recorded either: most probably no load balancer was told anything.\n" in advice
    assert "  After a power loss, or where the disk was full or hung, one may have been told all the same.\n" in advice
    assert f"  See how things are now; it changes nothing:\n      efm-lb status --env-file {host.env_file}\n" in advice
    assert f"efm-lb attach db2 --env-file {host.env_file}\n" in advice


def test_a_follow_up_that_left_no_record_is_missed(host: Host) -> None:
    host.call("a1", "detach", "db1", result="deferred", again_after=-60.0)
    assert "The follow-up that was owed is not in the journal" in host.advice("a1")


def test_a_newer_call_about_the_node_is_looked_at_first(host: Host) -> None:
    host.call("a1", exit_code=75)
    host.call("b1", host="db1")
    assert "history show" not in host.advice("a1")
    for name, known_as in (("c1", "db2"), ("d1", "10.0.0.2"), ("e1", "DB2")):
        host.call(name, "detach", known_as, exit_code=75)
        assert host.advice("a1").startswith("  The node was called about again since. Look at that call first:\n")
        assert f"efm-lb history show {name} --env-file {host.env_file}" in host.advice("a1")


def test_a_call_whose_beginning_is_gone_is_about_no_node(host: Host) -> None:
    host.record("a1", "outcome", exit_code=75)
    host.record("b1", "outcome", exit_code=75)
    assert "history show" not in host.advice("a1")


@pytest.mark.parametrize(
    ("detail", "told"), [("no answer", "no answer [adapter x (y 1.2)]"), ("adapter x (y 1.2): no",) * 2]
)
def test_whose_failure_it_is(host: Host, detail: str, told: str) -> None:
    host.record("a1", "call", kind="attach", host="db2", type="primary", follow_up=False)
    failed = Outcome(Result.TEMPORARY, detail, balancer="pool1", by="adapter x (y 1.2)")
    host.record("a1", "outcome", exit_code=75, seconds=1.0, outcomes=outcomes_of([failed]))
    assert f": {told}\n" in host.run("show", "a1")


def test_on_the_host_of_a_balancer(host: Host) -> None:
    """Records of ``efm-lb apply``, for two balancers at once."""
    for pid, (balancer, result) in enumerate((("pgb1", "changed"), ("pgb2", "failed temporarily")), 11):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(os, "getpid", lambda pid=pid: pid)
            host.record("a1", "call", kind="act promote", host="db2", balancer=balancer, sender="10.0.0.1", truth=TRUTH)
            outcome: Value = {"result": result, "detail": "done", "seconds": 0.5, "again_after": None}
            host.record("a1", "outcome", seconds=0.75, outcomes={balancer: outcome})
    listed = host.run()
    assert "a1  act promote db2 at pgb1 for 10.0.0.1: ended in 0.75 s" in listed
    assert "    act promote db2 at pgb2 for 10.0.0.1 at " in listed
    assert "pgb2 failed temporarily" in listed
    text = host.run("show", "a1")
    assert "  10.0.0.1 asked: act promote db2\n  of load balancer pgb1, which is on this host\n" in text
    assert "The databases had said to that host:" in text
    assert "The journal of the host that asked has the same call" in text
    assert "efm-lb act" not in text


def test_what_nobody_called_about(host: Host) -> None:
    host.call("a1", "reconcile", type=None, exit_code=75, result="failed temporarily", rule="")
    assert "a1  reconcile: promote db2: exit 75 in 1.25 s" in host.run()
    text = host.run("show", "a1")
    assert "Nobody called: efm-lb reconcile found something to do\n" in text
    assert "  Decision: act\n" in text
    assert "  Those that disagreed were told: promote db2\n    pool1  failed" in text
    assert f"    efm-lb reconcile --env-file {host.env_file}\n" in text


def test_what_was_tried_again_in_vain(host: Host) -> None:
    host.call("c1", "reconcile", type=None, exit_code=75, result="failed temporarily")
    assert "more until" not in host.run()
    host.record("c1", "again")
    assert ", once more until " in host.run()
    host.record("c1", "again")
    host.record("gone", "again")  # its beginning has left the journal
    listed = host.run()
    assert "exit 75 in 1.25 s, 2 times more until " in listed
    assert listed.count("reconcile") == 1
    assert "It was tried again 2 times, the last time at " in host.run("show", "c1")
    (call,) = json.loads(host.run("--json"))["calls"]
    (attempt,) = call["attempts"]
    assert attempt["again"]["times"] == 2


def test_a_document_holds_all_of_it(host: Host) -> None:
    host.call("a1")
    for words in ((), ("show", "a1")):
        document = json.loads(host.run(*words, "--json"))
        assert document["schema"] == "efm-lb/history/v1"
        ((attempt,),) = (call["attempts"] for call in document["calls"])
        assert attempt["at"].endswith("+00:00")
        assert attempt["state"] == "ended"
        assert attempt["databases"] == TRUTH
        assert attempt["decision"]["rule"] == "R3"
        assert attempt["outcome"]["outcomes"]["pool1"]["seconds"] == 0.5


def test_the_chapters_are_in_the_runbook() -> None:
    runbook = (Path(__file__).parents[3] / "docs/runbook.md").read_text()
    for chapter in CHAPTERS.values():
        assert f"\n## {chapter}\n" in runbook
