"""Random sequences of calls against real servers: three hosts, reconcile on one or on all of them, and all balancers.

What `faults.model` does by the hundred thousand is done here with the real things: the invariants are looked for at the
balancers themselves, all the time. A sequence begins where the one before it ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

import pytest

from efm_lb.rehearsal import sql
from efm_lb.rehearsal.cluster import Cluster, Server
from efm_lb.rehearsal.haproxy import Haproxy
from efm_lb.rehearsal.hooks import Hook, Run, efm_lb_hook, hook_environment
from efm_lb.rehearsal.pgbouncer import Pgbouncer
from efm_lb.rehearsal.pgpool import Pgpool
from efm_lb.rehearsal.stage import ServerError
from efm_lb.rehearsal.verdict import misbeliefs
from efm_lb.rehearsal.waiting import wait_until
from faults.illness import CURED, cure, is_pgpool_ill
from faults.watch import AnyBalancer, Service, Watch
from integration.real import follow_ups

pytestmark = pytest.mark.fault("calls in any order, with real servers")
BASE = int(os.environ.get("EFM_LB_SEED", 1000))
SETTINGS = {
    "EFM_LB_RECONCILE__PERIOD": 1,
    "EFM_LB_RECONCILE__SETTLE": 0.5,
    "EFM_LB_RECONCILE__DETACH_AFTER": 1,
    "EFM_LB_RECONCILE__HOLD": 1,
    "EFM_LB_CONNECT_TIMEOUT": 1,
    "EFM_LB_DEADLINE": 6,
}
USUAL = 15.0
"""Seconds that it takes at most, nearly always."""
RIGHT = 90.0
"""Seconds after which a balancer that is not right will not be."""


class Efm:
    """What happens to the cluster, and what EFM calls about it, or does not.

    :param first_files: the balancers' files as they were at first
    :ivar told: everything, in words
    """

    def __init__(
        self,
        cluster: Cluster,
        balancers: Sequence[AnyBalancer],
        hooks: Sequence[Hook],
        watch: Watch,
        first_files: dict[Path, str],
        seed: str,
    ) -> None:
        self._cluster = cluster
        self._balancers = balancers
        self._hooks = hooks
        self._watch = watch
        self._random = Random(seed)
        self._calls: list[threading.Thread] = []
        self._began = time.monotonic()
        self._first_files = first_files
        self.told: list[str] = []
        self.runs: list[Run] = []

    @property
    def bugs(self) -> list[str]:
        """What hooks said that ended in a way that they must not."""
        return [run.output for run in self.runs if run.exit_code in (None, 70) or "Traceback" in run.output]

    def say(self, text: str) -> None:
        self.told.append(f"{time.monotonic() - self._began:7.3f} {text}")

    def play(self) -> None:
        """Make two to five things happen."""
        kinds: list[Callable[[], None]] = [
            *([self.failover, self.switchover] * 3),
            *([self.standby_fails, self.agent_fails] * 2),
            *(self.old_primary_returns, self.freezes, self.balancer_restarts, self.balancer_is_down, self.reloads),
            *(self.old_file, self.by_hand, self.stray_call),
        ]
        for _ in range(self._random.choice((2, 2, 3, 3, 4, 5))):
            self._random.choice(kinds)()
            self._pause(0.6)
        for call in self._calls:
            call.join()

    def _pause(self, most: float) -> None:
        time.sleep(self._random.random() * most)

    def _chance(self, of: float) -> bool:
        return self._random.random() < of

    @property
    def _primary(self) -> Server | None:
        found = [node for node in self._cluster.nodes if node.in_recovery() is False]
        return found[0] if len(found) == 1 else None

    # calls

    def _call(self, kind: str, node: Server, letter: str) -> None:
        if self._chance(0.15):
            self.say(f"lost: {kind} {node.name} {letter}")
            return
        chance = self._random.random()
        if chance < 0.1:
            letter = self._random.choice(("p", "s", "m"))
        elif chance < 0.2:
            letter = ""
        words = [kind, node.name, *([letter] if letter and kind != "promote" else [])]
        delay = self._random.choice((0.0, 0.0, self._random.random() * 0.5, self._random.random() * 3))
        self._run(words, delay)
        chance = self._random.random()
        if chance < 0.25:
            self._run(words, delay + (0.0 if chance < 0.15 else self._random.random() * 2))

    def _run(self, words: Sequence[str], delay: float) -> None:
        host = self._random.randrange(len(self._hooks))

        def run() -> None:
            time.sleep(delay)
            self.say(f"host{host + 1}: {' '.join(words)}")
            done = self._hooks[host](*words)
            self.runs.append(done)
            self.say(f"host{host + 1}: {' '.join(words)} ends with {done.exit_code}: {done.output}")

        self._calls.append(threading.Thread(target=run))
        self._calls[-1].start()

    # what happens

    def _promotes(self, old: Server, comes_back: bool) -> None:
        standbys = [node for node in self._cluster.standbys if node is not old]
        if not standbys or self._chance(0.05):
            return
        new = max(standbys, key=lambda node: node.received())
        if self._chance(0.15):
            self._call("attach", new, "p")
        self._watch.leaves_recovery(new)
        self.say(f"{new.name} is promoted")
        new.promote()
        for other in standbys:
            if other is new:
                continue
            other.follow(new)
            if self._chance(0.4):
                self._call("detach", other, "s")
                other.stop()
                self._pause(0.3)
                other.start()
                self._call("attach", other, "s")
        self._call("attach", new, "p")
        if self._chance(0.2):
            self._call("promote", new, "")
        if comes_back:
            self._pause(0.5)
            self._rejoins(old, new)
            self._call("attach", old, "s")

    def _rejoins(self, node: Server, primary: Server) -> None:
        self.say(f"{node.name} comes back as a standby")
        if node.running:
            node.stop("immediate")
        node.rejoin(primary)
        self._watch.is_in_recovery(node)

    def failover(self) -> None:
        old = self._primary
        if old is None:
            return
        if self._chance(0.75):
            self.say(f"{old.name} is killed")
            old.kill()
        else:
            self.say(f"{old.name} is frozen")
            old.freeze()
        self._pause(0.5)
        self._call("detach", old, "p")
        self._pause(0.5)
        self._promotes(old, comes_back=old.process.running is False and self._chance(0.4))

    def switchover(self) -> None:
        old = self._primary
        if old is None:
            return
        self._call("detach", old, "p")
        self._pause(0.3)
        self.say(f"{old.name} is stopped")
        old.stop()
        self._promotes(old, comes_back=True)

    def standby_fails(self) -> None:
        standbys = self._cluster.standbys
        if not standbys:
            return
        standby = self._random.choice(standbys)
        self.say(f"{standby.name} is killed")
        standby.kill()
        self._call("detach", standby, "s")
        if self._chance(0.6):
            self._pause(1.0)
            standby.start()
            self._call("attach", standby, "s")

    def agent_fails(self) -> None:
        node = self._random.choice(self._cluster.nodes)
        letter = "s" if node.in_recovery() else "p"
        self._call("detach", node, letter)
        if self._chance(0.6):
            self._pause(1.0)
            self._call("attach", node, letter)

    def old_primary_returns(self) -> None:
        down = [
            node for node in self._cluster.nodes if not node.running and not (node.data / "standby.signal").exists()
        ]
        if not down:
            return
        old = self._random.choice(down)
        self.say(f"{old.name} is started as the primary that it was")
        old.start()
        if self._chance(0.6):
            self._call("attach", old, self._random.choice(("p", "s", "")))
        self._pause(1.5)
        old.stop("immediate")

    def freezes(self) -> None:
        running = [node for node in self._cluster.nodes if node.running]
        if not running:
            return
        node = self._random.choice(running)
        self.say(f"{node.name} is frozen for a while")
        node.freeze()
        self._pause(2.0)
        if self._chance(0.5):
            self._call("detach", node, self._random.choice("ps"))
        self._pause(1.0)
        node.thaw()

    def balancer_restarts(self) -> None:
        self._stops(0.0)

    def balancer_is_down(self) -> None:
        self._stops(3.0)

    def _stops(self, most: float) -> None:
        balancer = self._random.choice(self._balancers)
        self.say(f"{balancer.name} is stopped")
        balancer.process.kill()
        self._pause(most)
        self._watch.reads_its_file(balancer)
        with contextlib.suppress(ServerError):
            balancer.launch()
        self._watch.reads_its_file(balancer)
        self.say(f"{balancer.name} was started")

    def reloads(self) -> None:
        self._reload(self._random.choice([each for each in self._balancers if not isinstance(each, Pgpool)]))

    def _reload(self, balancer: Haproxy | Pgbouncer) -> None:
        if not balancer.process.running:
            return
        self.say(f"{balancer.name} reloads")
        self._watch.reads_its_file(balancer)
        if isinstance(balancer, Haproxy):
            balancer.reload()
        else:
            with contextlib.suppress(sql.SqlError):
                balancer.console("RELOAD")

    def old_file(self) -> None:
        """Somebody's automation puts an old file back, and has it loaded, or not."""
        balancer = self._random.choice([each for each in self._balancers if not isinstance(each, Pgpool)])
        file = _file(balancer)
        file.write_text(self._first_files[file])
        self.say(f"{file.name} is as it was at first")
        if self._chance(0.5):
            self._pause(1.0)
            self._reload(balancer)

    def by_hand(self) -> None:
        (haproxy,) = [each for each in self._balancers if isinstance(each, Haproxy)]
        number = self._random.randrange(len(self._cluster.nodes)) + 1
        state = self._random.choice(("maint", "drain"))
        self.say(f"by hand: pg_read/n{number} {state}")
        with contextlib.suppress(OSError):
            haproxy.command(f"set server pg_read/n{number} state {state}")

    def stray_call(self) -> None:
        kind = self._random.choice(("attach", "attach", "detach", "promote"))
        self._call(kind, self._random.choice(self._cluster.nodes), self._random.choice(("p", "s", "")))

    # the end

    def ends(self) -> None:
        """The last faults, about which nobody is called: one primary, standbys of it, perhaps one node down."""
        nodes = self._cluster.nodes
        for node in nodes:
            node.thaw()
        primary = self._last_promoted()
        if not primary.running:
            primary.start()
        may_be_down = True
        for node in nodes:
            if node is primary:
                continue
            if node.running and node.in_recovery():
                node.follow(primary)
                if wait_until(node.is_streaming, timeout=3, interval=0.05):
                    continue
            if not node.running and may_be_down and self._chance(0.3):
                may_be_down = False
                self.say(f"{node.name} stays down")
                continue
            self._rejoins(node, primary)
        for balancer in self._balancers:
            if not balancer.process.running:
                balancer.launch()
        self.say(f"the last fault is over; {primary.name} is the primary")

    def _last_promoted(self) -> Server:
        """The node on the newest timeline that is no standby."""
        out = [node for node in self._cluster.nodes if not (node.data / "standby.signal").exists()]
        return max(
            out, key=lambda node: max(path.name for path in (node.data / "pg_wal").glob("????????????????????????"))
        )


def _was_primary(node: Server) -> bool:
    return not (node.data / "standby.signal").exists()


def _file(balancer: Haproxy | Pgbouncer) -> Path:
    return balancer.config if isinstance(balancer, Haproxy) else balancer.entries


@pytest.fixture
def balancers(cluster: Cluster, pgpool: Pgpool, haproxy: Haproxy, pgbouncer: Pgbouncer) -> list[AnyBalancer]:
    return [pgpool, haproxy, pgbouncer]


@pytest.fixture
def hosts(cluster: Cluster, balancers: list[AnyBalancer], tmp_path: Path) -> Iterator[list[Path]]:
    """The settings of three hosts, each with a state directory of its own."""
    yield [hook_environment(cluster, balancers, f"{tmp_path.name}.host{number}", SETTINGS) for number in (1, 2, 3)]
    for pid in follow_ups(cluster):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("count", "services"), [(6, 3), *(pytest.param(100, services, marks=pytest.mark.long) for services in (1, 3))]
)
def test_sequences(
    cluster: Cluster,
    balancers: list[AnyBalancer],
    pgpool: Pgpool,
    hosts: list[Path],
    count: int,
    services: int,
    tried: Callable[[int], None],
    counted: Callable[[str], None],
) -> None:
    tried(count)
    print(f"seeds {BASE} to {BASE + count - 1}; EFM_LB_SEED={BASE} plays the same ones")
    hooks = [efm_lb_hook(host) for host in hosts]
    files = [_file(balancer) for balancer in balancers if not isinstance(balancer, Pgpool)]
    first_files = {file: file.read_text() for file in files}
    began, slowest, calls = time.monotonic(), 0.0, 0

    def wrong() -> list[str]:
        return [words for balancer in balancers for words in misbeliefs(cluster, balancer)]

    with Watch(balancers) as watch, contextlib.ExitStack() as ends:
        served = [ends.enter_context(Service(host)) for host in hosts[:services]]
        watch.leaves_recovery(cluster.nodes[0])
        for seed in range(BASE, BASE + count):
            efm = Efm(cluster, balancers, hooks, watch, first_files, str(seed))
            efm.play()
            efm.ends()
            last_fault = time.monotonic()
            wait_until(lambda: not wrong(), timeout=USUAL, interval=0.1)
            if is_pgpool_ill(wrong()):
                efm.say("pgpool is cured")
                cure(pgpool)
                counted(CURED)
            wait_until(lambda: not wrong(), timeout=RIGHT, interval=0.1)
            right = time.monotonic() - last_fault
            slowest = max(slowest, right)
            calls += len(efm.runs)
            print(f"seed {seed}: {len(efm.runs)} calls; right after {right:.1f} s", flush=True)
            said = [service.output for service in served]
            problems = [*watch.wrong, *wrong(), *efm.bugs, *(["a bug"] if "a bug" in "".join(said) else [])]
            assert not problems, "\n".join([f"seed {seed}: {problems}", *efm.told, *said])
    seconds = time.monotonic() - began
    print(
        f"{count} sequences, {calls} calls, {watch.looks} looks in {seconds:.0f} s; right after {slowest:.1f} s at most"
    )
