"""A cluster with a pgpool, a HAProxy and a PgBouncer, on which EFM's calls are made and killed.

One switchover after the other is played on it, the primary going round, so that each call meets servers as they are
when EFM makes it, and nothing is set up anew in between.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from efm_lb.probe import Probe
from efm_lb.rehearsal.cluster import SUPERUSER, Cluster
from efm_lb.rehearsal.haproxy import WRITE as WRITE_PROXY
from efm_lb.rehearsal.haproxy import Haproxy
from efm_lb.rehearsal.hooks import BARE_ENVIRONMENT, EFM_LB, hook_environment
from efm_lb.rehearsal.pgbouncer import READ as READ_ENTRY
from efm_lb.rehearsal.pgbouncer import WRITE as WRITE_ENTRY
from efm_lb.rehearsal.pgbouncer import Pgbouncer
from efm_lb.rehearsal.pgpool import Pgpool
from efm_lb.rehearsal.processes import tree
from efm_lb.rehearsal.sshd import Sshd
from efm_lb.rehearsal.waiting import wait_until
from efm_lb.state import TEMPORARY
from efm_lb.truth import Truth
from efm_lb_pgbouncer.mark import is_abandoned
from integration.real import follow_ups, nodes_of

__all__ = ["CONSOLE", "FOLLOW_UP", "HOLD", "SSH", "START", "Killed", "Point", "Stand", "Step", "open_stand"]

HOLD = 2.0
"""Seconds that PgBouncer holds clients: a part of the calls leaves it at that."""
FOLLOW_UP = "--follow-up"
"""In the command line of what judges a call again, unless that is a fork."""
PCP, SOCKET, CONSOLE = "PCP", "haproxy's socket", "the console"
_SETTINGS = {
    "EFM_LB_DEADLINE": 30,
    "EFM_LB_RECONCILE__SETTLE": 0.1,
    "EFM_LB_RECONCILE__DETACH_AFTER": 0.1,
}
START = "start a process"
SSH = "write a pipe"
"""What is told to a process that the call has started: to ssh."""
_PGB1 = "EFM_LB_BALANCERS__PGB1__"
_HELD = {f"{_PGB1}HOLD": HOLD}
_CHANGES = (
    *(f"send {PCP}: {letter}" for letter in "CDJ"),  # attach, detach, promote
    *(f"send {CONSOLE}: {word}" for word in ("PAUSE", "RESUME", "RELOAD", "KILL", "SET")),
    *(f"send {SOCKET}: {words}" for words in ("set+show", "set+show+shutdown", "show+shutdown")),
    "rename .databases.ini.PID.efm-lb",
    "rename .haproxy.cfg.PID.efm-lb",
)
_ACCEPTED = ".accepted"
"""How the name of the file ends that remembers what haproxy -c has accepted: it stays."""
_MOVES = re.compile(rb" disabled| *\n?[#;] efm-lb: writes follow timeline \d+|host=\S+")
"""What efm-lb changes in a file."""
_TRACER = Path(__file__).with_name("tracer.py")


class Step(NamedTuple):
    """Something that a process did and that others can see: the ``nth`` time that it did it, counted from 1."""

    name: str
    nth: int
    words: str

    @property
    def is_told(self) -> bool:
        """It tells a balancer something."""
        return self.name.startswith((*(f"send {balancer}: " for balancer in (PCP, CONSOLE, SOCKET)), SSH))

    @property
    def is_change(self) -> bool:
        """It makes something else of a balancer, or of its file."""
        return self.name in _CHANGES

    @property
    def is_message(self) -> bool:
        """It goes through the network, or to a socket."""
        return self.name.startswith(("send ", "connect "))

    @property
    def is_again(self) -> bool:
        """Its process has asked that often already that it is looking again and again, each time in the same way."""
        return self.nth > 5 and self.is_message


class Point(NamedTuple):
    """Where a process is killed: right before or right after a step."""

    step: Step
    when: str = "before"

    def __str__(self) -> str:
        return f"{self.when} {self.step.name} #{self.step.nth} ({self.step.words})"


class Killed(NamedTuple):
    """A call under ptrace.

    :param steps: what it did, in order; the last one only begun when it was killed before it
    :param reached: it was killed at the point that it was to be killed at; otherwise it ended by itself
    """

    steps: tuple[Step, ...]
    reached: bool
    exit_code: int
    output: str


class Stand:
    """The servers, and efm-lb for them.

    :ivar old: the primary now, or the one that was it before
    :ivar new: the one that is or will be the next
    :ivar other: a standby throughout
    :ivar by_ssh: PgBouncer is on another host
    """

    def __init__(
        self,
        cluster: Cluster,
        pgpool: Pgpool,
        haproxy: Haproxy,
        pgbouncer: Pgbouncer,
        settings: Mapping[str, object],
        sshd: Sshd | None,
    ) -> None:
        self.cluster = cluster
        self.pgpool = pgpool
        self.haproxy = haproxy
        self.pgbouncer = pgbouncer
        self.balancers = (pgpool, haproxy, pgbouncer)
        self._haproxy_config = haproxy.config.read_text()
        self.by_ssh = sshd is not None
        self._path = {"PATH": sshd.path} if sshd else {}
        own = {**_SETTINGS, **settings}
        if sshd:
            there = hook_environment(cluster, [pgbouncer], "there", {**_HELD, **own})
            sshd.force(" ".join([*EFM_LB, "apply", f"--env-file={there}"]))
            elsewhere = {f"{_PGB1}ADAPTER": "pgbouncer", f"{_PGB1}HOST_SSH": sshd.destination}
            self.env_file = hook_environment(cluster, [pgpool, haproxy], "efm", {**own, **elsewhere})
        else:
            self.env_file = hook_environment(cluster, self.balancers, "efm", {**_HELD, **own})
        self.state_dir = cluster.stage.directory / "efm.state"
        self.journal = self.state_dir / "efm.journal"
        self.plan = self.state_dir / "efm.plan"
        self.old, self.new, self.other = cluster.nodes

    def efm_lb(self, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run it to its end."""
        return subprocess.run(
            [*EFM_LB, *words, f"--env-file={self.env_file}"],
            input=stdin, capture_output=True, cwd="/", env={**BARE_ENVIRONMENT, **self._path}, timeout=60, check=False,
        )  # fmt: skip

    def traced(
        self,
        *words: str,
        stdin: bytes = b"",
        kill: Point | None = None,
        of: str = "",
        slow: Mapping[str, float] | None = None,
        settings: Mapping[str, str] | None = None,
        then: Callable[[], None] | None = None,
        until: Callable[[], bool] | None = None,
    ) -> Killed:
        """Run it, and kill it at a point, or make some of its steps slow.

        :param of: the point is one of a process that it starts, with this word in its command line;
            for `FOLLOW_UP` a fork as well
        :param slow: seconds, by what the names of the steps begin with
        :param settings: of this run alone, in its environment
        :param then: what happens when it has ended; a follow-up of it is at work meanwhile when that is what is killed
        :param until: what is waited for when it does not end by itself
        """
        with tempfile.TemporaryDirectory() as directory:
            log = Path(directory) / "steps"
            options = ["--kill", kill.step.name, str(kill.step.nth), kill.when] if kill else []
            options += [f"--of={of}"] if of else []
            options += ["--forked"] if of == FOLLOW_UP else []
            for step, seconds in (slow or {}).items():
                options += ["--slow", step, f"{seconds:g}"]
            for text, name in {**self._called(), f"{directory}/": ""}.items():
                options += ["--called", f"{text}={name}"]
            output = Path(directory) / "output"
            given = Path(directory) / "input"
            given.write_bytes(stdin)
            # Not a pipe: what the call has started may hold it open.
            argv = [sys.executable, "-I", str(_TRACER), str(log), *options, "--", *EFM_LB, *words]
            environment = {**BARE_ENVIRONMENT, **self._path, **(settings or {})}
            with output.open("wb") as out, given.open("rb") as into:
                tracing = subprocess.Popen(
                    [*argv, f"--env-file={self.env_file}"], stdin=into, stdout=out, stderr=out, cwd="/", env=environment
                )
            try:
                if until:
                    wait_until(lambda: tracing.poll() is not None or until(), 30)
                    for pid in tree(tracing.pid)[1:2]:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGTERM)
                if then:
                    self._await_end(tracing, of)
                    then()
                code = tracing.wait(90)
            finally:
                tracing.kill()
                tracing.wait()
            said = [json.loads(line) for line in log.read_text().splitlines()]
            steps = tuple(Step(each["step"], each["nth"], each["words"]) for each in said if "step" in each)
            reached = any("killed" in each for each in said)
            return Killed(steps, reached, code, output.read_text(errors="replace"))

    def _await_end(self, tracing: subprocess.Popen[bytes], of: str) -> None:
        """Until the call has ended, whatever it goes on as."""

        def has_ended() -> bool:
            return tracing.poll() is not None or (of == FOLLOW_UP and bool(follow_ups(self.cluster)))

        assert wait_until(has_ended, 60)
        if of != FOLLOW_UP:
            self.forget_follow_ups()

    def switch(self) -> None:
        """The primary stops, and the next one is promoted."""
        self.old.stop()
        self.promote()

    def promote(self) -> None:
        """The next one is promoted."""
        self.new.promote()
        self.other.follow(self.new)

    def retire(self) -> None:
        """The next primary is taken out while it is up."""
        self.efm_lb("detach", self.new.name, "s")

    def recall(self) -> None:
        """That is over: the primary is meant to be there."""
        self.efm_lb("attach", self.new.name, "p")

    def rejoin(self) -> None:
        """The old primary comes back as a standby."""
        self.old.follow(self.new)
        self.old.start()
        self.cluster.wait_streaming()

    def lose(self) -> None:
        """A standby goes down."""
        self.other.stop()

    def find(self) -> None:
        """It is there again, and has the reads."""
        self.other.start()
        self.cluster.wait_streaming()
        self.efm_lb("reconcile")

    def start_over(self) -> None:
        """As at first, whatever has happened."""
        self.forget_follow_ups()
        self.hang_up()
        self.cluster.rebuild()
        self.old, self.new, self.other = self.cluster.nodes
        for directory in self.cluster.stage.directory.glob("*.state"):
            for path in directory.iterdir():
                path.unlink(missing_ok=True)
        for balancer in self.balancers:
            balancer.reset()
        self.warm_up()

    def warm_up(self) -> None:
        """Everything is right, and what is done once only is done."""
        done = self.efm_lb("attach", self.old.name, "p")
        assert done.returncode == 0, done.stdout
        self.efm_lb("apply")

    def truth(self) -> Truth:
        """What the databases say."""
        keywords = {"user": SUPERUSER, "dbname": "postgres"}
        return Probe(keywords, 2.0).truth(nodes_of(self.cluster))

    def go_round(self) -> None:
        """What was new is old: the next switchover."""
        self.old, self.new, self.other = self.new, self.other, self.old

    def forget_follow_ups(self) -> None:
        """End what judges a call again later: it would do so in the middle of another one."""
        for pid in follow_ups(self.cluster):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def hang_up(self) -> None:
        """End the connections of ssh that calls share, which go on for a minute otherwise."""
        for path in self.state_dir.glob("*.ssh"):
            argv = ["ssh", "-o", f"ControlPath={path}", "-O", "exit", "nobody"]
            subprocess.run(argv, check=False, capture_output=True, timeout=10)

    def is_guarded(self) -> bool:
        """A process that lets held clients go is at work: it locks its mark."""
        mark = self.pgbouncer.entries.with_name(f".{self.pgbouncer.entries.name}.held")
        return mark.exists() and not is_abandoned(str(mark))

    def records(self) -> list[dict[str, Any]]:
        """The journal, with what was set aside: that many calls fill it. Raises ValueError for a line that is none."""
        files = (self.journal.with_name(f"{self.journal.name}.1"), self.journal)
        text = "".join(file.read_text() for file in files if file.exists())
        assert not text or text.endswith("\n"), f"the journal's last line is torn: {text[-200:]!r}"
        return [json.loads(line) for line in text.splitlines()]

    def files(self) -> Mapping[str, bytes]:
        """The balancers' own files that efm-lb writes."""
        return {path.name: path.read_bytes() for path in (self.haproxy.config, self.pgbouncer.entries)}

    def frames(self) -> Mapping[str, bytes]:
        """The same, without what efm-lb changes in them."""
        return {name: _MOVES.sub(b"", content) for name, content in self.files().items()}

    def haproxy_config(self) -> str:
        """haproxy.cfg as it must be: disabled is who must not get the writes, or the reads."""
        primary, standbys = self.cluster.primary, self.cluster.standbys
        lines, proxy = [], ""
        for line in self._haproxy_config.splitlines(keepends=True):
            words = line.split()
            if words[:1] == ["listen"]:
                proxy = words[1]
            elif words[:1] == ["server"]:
                serves = [primary.address] if proxy == WRITE_PROXY else [node.address for node in standbys]
                mark = self._mark(" #") if proxy == WRITE_PROXY and words[2] in serves else ""
                line = f"    {' '.join(words[:3])}{'' if words[2] in serves else ' disabled'}{mark}\n"
            lines.append(line)
        return "".join(lines)

    def pgbouncer_entries(self) -> str:
        """The file with the entries as it must be; in which order the standbys are is not for us to say."""
        primary, standbys = self.cluster.primary, {node.host for node in self.cluster.standbys}
        listed = re.search(rf"^{READ_ENTRY} = host=(\S+)", self.pgbouncer.entries.read_text(), re.MULTILINE)
        hosts = listed[1] if listed and set(listed[1].split(",")) == standbys else ",".join(sorted(standbys))
        rest = f"port={primary.port} dbname=postgres\n"
        mark = self._mark("\n;")
        return f"[databases]{mark}\n{WRITE_ENTRY} = host={primary.host} {rest}{READ_ENTRY} = host={hosts} {rest}"

    def _mark(self, sign: str) -> str:
        """The timeline that writes follow. The first primary got none moved to it."""
        (timeline,) = [state.timeline for state in self.truth().states if state.node.name == self.cluster.primary.name]
        return f"{sign} efm-lb: writes follow timeline {timeline}" if timeline != 1 else ""

    def leftovers(self) -> list[str]:
        """Files that are there for a moment, where efm-lb writes."""
        there = [path for balancer in (self.haproxy, self.pgbouncer) for path in balancer.directory.iterdir()]
        hidden = [path.name for path in there if path.name.startswith(".")]
        found = [name for name in hidden if not (name.startswith(".s.PGSQL.") or name.endswith(_ACCEPTED))]
        found += [path.name for path in self.state_dir.iterdir() if path.suffix == TEMPORARY]
        return sorted(found)

    def age_leftovers(self) -> None:
        """As if they had been left some time ago."""
        then = time.time() - 600
        for directory in (self.haproxy.directory, self.pgbouncer.directory, self.state_dir):
            for path in directory.iterdir():
                if path.name in self.leftovers():
                    os.utime(path, (then, then))

    def _called(self) -> dict[str, str]:
        names = {f"127.0.0.1:{self.pgpool.pcp_port}": PCP, str(self.haproxy.socket): SOCKET}
        names[f"{self.pgbouncer.directory}/.s.PGSQL.{self.pgbouncer.port}"] = CONSOLE
        for role, node in (("OLD", self.old), ("NEW", self.new), ("OTHER", self.other)):
            names |= {node.address: role, node.name: role}
        return names | {f"{path}/": "" for path in (self.haproxy.directory, self.pgbouncer.directory, self.state_dir)}


@contextmanager
def open_stand(settings: Mapping[str, object] | None = None, by_ssh: bool = False) -> Iterator[Stand]:
    """Start the servers; node 0 is the primary.

    :param settings: of efm-lb, other ones than usual
    :param by_ssh: PgBouncer is on another host
    """
    with ExitStack() as running:
        cluster = running.enter_context(Cluster.start(nodes=3))
        sshd = None
        if by_ssh:
            directory = Path(running.enter_context(tempfile.TemporaryDirectory()))
            sshd = running.enter_context(Sshd(directory, ""))
        stand = Stand(
            cluster,
            running.enter_context(Pgpool.start(cluster)),
            running.enter_context(Haproxy.start(cluster)),
            running.enter_context(Pgbouncer.start(cluster, {"server_login_retry": 1})),
            settings or {},
            sshd,
        )
        running.callback(stand.hang_up)
        stand.warm_up()
        yield stand
