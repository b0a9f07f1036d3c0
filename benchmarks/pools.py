"""Measurements with a pgpool: efm-lb, and the bash hooks of today, in turns on the same servers."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from statistics import median

from arms import bash_hook, efm_lb_hook
from rows import Row

from efm_lb.rehearsal.clients import Clients
from efm_lb.rehearsal.cluster import PROBE_USER, SUPERUSER, Cluster, Server
from efm_lb.rehearsal.hooks import BARE_ENVIRONMENT, Hook, Run
from efm_lb.rehearsal.pgpool import Pgpool
from efm_lb.rehearsal.play import Front, Play
from efm_lb.rehearsal.results import BalancerResult, ScenarioResult
from efm_lb.rehearsal.scenarios import Scenario
from efm_lb.rehearsal.waiting import wait_until

__all__ = ["Pools"]

ARMS = ("bash", "efm-lb")
CONNECT_TIMEOUT = 2.0
"""efm-lb's EFM_LB_CONNECT_TIMEOUT, its default."""
BASH_LIMIT = 20.0
"""Seconds after which a bash hook that hangs is killed; it would hang for two minutes or for ever."""
RETRY = 0.01
"""Seconds that a client waits after a refused session, before it tries again.

Five that wait 5 ms keep two processors busy with refusing them; the times are then the machine's, and no hook's.
"""
STORM = 0.005
"""The same of clients that do that."""
TRUSTED: Mapping[str, object] = {"EFM_LB_PROBE__USER": SUPERUSER, "EFM_LB_PROBE__PASSFILE": None}
"""Settings of a hook that logs in at the databases without a password."""
QUIET = 1.3
"""Seconds that pgpool takes to handle a request at once again, after it has handled one."""


class Pools:
    """One cluster, and a new pgpool for each run: a late follow-up of one run never helps or hurts another.

    :param say: told what is going on
    """

    def __init__(self, cluster: Cluster, runs: int, say: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._runs = runs
        self._say = say

    def switchover(self) -> list[Row]:
        """A planned switchover under load."""
        played = self._played(Scenario.SWITCHOVER)
        cuts = Row("switchover: writer's sessions cut", "", *_both(played, lambda result: _pgpool(result).writing.cuts))
        return [
            self._outage("switchover: longest write outage", played).aim_ratio(0.40),
            self._resumed("switchover", played),
            cuts.aim_value(2),
            Row("switchover: EFM waits for the hook", "s", *_both(played, lambda result: result.hook_seconds)),
        ]

    def failover(self) -> list[Row]:
        """A crash of the primary under load, and different times that EFM takes from the detach to the promotion.

        With the bash hooks pgpool looks for a primary once a second from the detach on,
        so their outage is a whole number of seconds; efm-lb's is the promotion and two
        hook runs. By much later promotions both are kept waiting alike. In a storm of clients
        pgpool may be too busy to look before the promotion: then the bash hooks are lucky.
        EFM's detection time is not played.
        """
        return [
            *self._failover("failover", 0.0, RETRY, 0.30),
            *self._failover("failover, promoted 0.1 s after the detach", 0.1, RETRY),
            *self._failover("failover, promoted 1.5 s after the detach", 1.5, RETRY),
            *self._failover("failover in a storm of clients", 0.0, STORM),
        ]

    def _failover(self, name: str, deliberation: float, retry: float, target: float | None = None) -> list[Row]:
        """With ``deliberation``, in seconds, from the end of the detach to the choice of the standby to promote."""
        played = self._played(Scenario.FAILOVER, deliberation, retry)
        outage = self._outage(f"{name}: longest write outage", played)
        return [
            outage.aim_ratio(target) if target else outage,
            self._resumed(name, played),
            Row(f"{name}: writer's sessions cut", "", *_both(played, lambda result: _pgpool(result).writing.cuts)),
            Row(f"{name}: EFM waits for the hook", "s", *_both(played, lambda result: result.hook_seconds)),
        ]

    def attach_standby(self) -> list[Row]:
        """``attach`` of a standby that is detached, from the start of the process.

        A SCRAM login is the same computing for both, but bash logs in at one database and efm-lb at all three.
        """
        return [*self._attach_standby("no password", TRUSTED), *self._attach_standby("SCRAM", {})]

    def _attach_standby(self, login: str, settings: Mapping[str, object]) -> list[Row]:
        told: dict[str, list[float]] = {arm: [] for arm in ARMS}
        ended: dict[str, list[float]] = {arm: [] for arm in ARMS}
        self._cluster.reset()
        with Pgpool.start(self._cluster) as pool:
            bash = bash_hook(self._cluster, [pool], 60, SUPERUSER if settings else PROBE_USER)
            hooks = {"bash": bash, "efm-lb": efm_lb_hook(self._cluster, [pool], "attach", settings)}
            for _ in range(self._runs):
                for arm in ARMS:
                    run, seconds = self._attach_detached(hooks[arm], pool)
                    told[arm].append(seconds)
                    ended[arm].append(run.seconds)
        return [
            Row(f"attach s, {login}: until pgpool has been told", "s", *told.values()).aim_ratio(1.0),
            Row(f"attach s, {login}: whole hook, efm-lb reads back", "s", *ended.values()).aim_ratio(1.5),
        ]

    def hung_pgpool(self) -> list[Row]:
        """Two pgpools, one of which takes connections and never answers."""
        alone: list[float] = []
        beside: list[float] = []
        whole: list[float] = []
        codes: set[int | None] = set()
        self._cluster.reset()
        with Pgpool.start(self._cluster) as hung, Pgpool.start(self._cluster) as live:
            one = self._hook("efm-lb", live)
            both = self._hook("efm-lb", hung, live)
            bash = bash_hook(self._cluster, [hung, live], BASH_LIMIT)
            for _ in range(self._runs):
                alone.append(self._attach_detached(one, live)[1])
                hung.process.freeze()
                run, seconds = self._attach_detached(both, live)
                hung.process.thaw()
                beside.append(seconds)
                whole.append(run.seconds)
                codes.add(run.exit_code)
            hung.process.freeze()
            bash_whole = bash("attach", self._standby.name, "s").seconds
        told = Row("one pgpool hung: until the live one has been told", "s", [], beside, "<= 1.2 x alone")
        told.reached = median(beside) <= 1.2 * median(alone)
        told.notes.append(f"alone: {' '.join(f'{value:.3f}' for value in alone)}")
        told.notes.append("the bash hook never gets to the live one")
        back = Row("one pgpool hung: whole hook", "s", [bash_whole], whole).aim_value(CONNECT_TIMEOUT + 1)
        back.reached = bool(back.reached) and codes == {75}
        back.target += ", exit 75"
        back.notes.append(f"efm-lb's exit codes: {sorted(map(str, codes))}; bash is killed after {BASH_LIMIT:g} s")
        return [told, back]

    def frozen_primary(self) -> list[Row]:
        """The failed database host takes connections and never answers."""
        old, new, *_ = self._cluster.nodes
        detach: list[float] = []
        attach: list[float] = []
        for _ in range(self._runs):
            with self._frozen(old) as (_, hook):
                detach.append(hook("detach", old.name, "p").seconds)
                new.promote()
                attach.append(hook("attach", new.name, "p").seconds)
        with self._frozen(old) as (pool, _):
            bash = bash_hook(self._cluster, [pool], BASH_LIMIT)
            bash_detach = bash("detach", old.name, "p").seconds
        row = Row("primary's host hangs: detach hook", "s", [bash_detach], detach).aim_value(3)
        row.notes.append(f"bash is killed after {BASH_LIMIT:g} s")
        return [row, Row("primary's host hangs: attach hook of the new one", "s", [], attach).aim_value(3)]

    def start_up(self) -> list[Row]:
        """Instructions of a whole attach; unlike seconds they do not depend on the machine's load."""
        with_password = self._instructions("with-password", {})
        with_password.notes.append("libpq hashes a SCRAM password 8192 times per node; that is not start-up")
        return [self._instructions("no-password", TRUSTED).aim_value(200), with_password]

    def _instructions(self, name: str, login: Mapping[str, object]) -> Row:
        row = Row(f"attach s: instructions of the whole hook, {name.replace('-', ' ')}", "M", [], [])
        if not shutil.which("valgrind"):
            row.notes.append("not measured: install valgrind")
            return row
        # Everything takes fifty times as long under callgrind.
        patient = {"EFM_LB_CONNECT_TIMEOUT": 60, "EFM_LB_DEADLINE": 240}
        self._cluster.reset()
        with Pgpool.start(self._cluster) as pool:
            hook = efm_lb_hook(self._cluster, [pool], f"callgrind-{name}", {**patient, **login})
            for _ in range(2):
                self._detach(pool)
                done = subprocess.run(
                    [
                        *("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"),
                        *_interpreted(hook.command(["attach", self._standby.name, "s"])),
                    ],
                    capture_output=True,
                    text=True,
                    timeout=300,
                    env={**BARE_ENVIRONMENT, "PYTHONHASHSEED": "0"},
                    cwd="/",
                    check=False,
                )
                collected = re.search(r"Collected\s*:\s*(\d+)", done.stderr)
                if done.returncode or not collected:
                    row.notes.append(f"a run failed with status {done.returncode}: {done.stdout.strip()[-200:]}")
                else:
                    row.efm_lb.append(int(collected[1]) / 1e6)
        return row

    @property
    def _standby(self) -> Server:
        return self._cluster.nodes[-1]

    def _hook(self, arm: str, *pools: Pgpool) -> Hook:
        if arm == "bash":
            return bash_hook(self._cluster, pools, timeout=60)
        return efm_lb_hook(self._cluster, pools, f"bench-{'-'.join(pool.name for pool in pools)}")

    def _played(
        self, scenario: Scenario, deliberation: float = 0.0, retry: float = STORM
    ) -> dict[str, list[ScenarioResult]]:
        played: dict[str, list[ScenarioResult]] = {arm: [] for arm in ARMS}
        for number in range(self._runs):
            for arm in ARMS:
                self._say(f"{scenario.value} {number + 1}/{self._runs} {arm}")
                self._cluster.reset()
                with Pgpool.start(self._cluster) as pool, Clients(pool.writing, pool.reading, retry=retry) as clients:
                    hook = self._hook(arm, pool)
                    play = Play(self._cluster, [Front(pool, clients)], [hook], deliberation=deliberation)
                    played[arm].append(play.scenario(scenario))
        return played

    def _resumed(self, what: str, played: dict[str, list[ScenarioResult]]) -> Row:
        values = _both(played, lambda result: _first_write(_pgpool(result)))
        return Row(f"{what}: from the promotion to the first write", "s", *values)

    def _outage(self, what: str, played: dict[str, list[ScenarioResult]]) -> Row:
        row = Row(what, "s", *_both(played, lambda result: _pgpool(result).writing.longest_gap))
        for arm, results in played.items():
            if wrong := [fault for result in results for fault in _pgpool(result).wrong]:
                row.notes.append(f"{arm} ended wrong {len(wrong)} times: {wrong[0]}")
            if lost := sum(_pgpool(result).accounts.lost for result in results):
                row.notes.append(f"{arm} lost {lost} rows")
        return row

    @contextmanager
    def _frozen(self, node: Server) -> Iterator[tuple[Pgpool, Hook]]:
        """A pgpool, an efm-lb hook for it, and ``node`` frozen."""
        self._cluster.reset()
        with Pgpool.start(self._cluster) as pool:
            hook = self._hook("efm-lb", pool)
            node.freeze()
            try:
                yield pool, hook
            finally:
                node.thaw()

    def _attach_detached(self, hook: Hook, pool: Pgpool) -> tuple[Run, float]:
        """Detach the standby, and run the attach hook: the run, and the seconds until pgpool had the request."""
        node = self._standby
        self._detach(pool)
        seen = pool.log.stat().st_size
        began = time.time()
        run = hook("attach", node.name, "s")
        request = f"received failback request for node_id: {node.number}"
        wait_until(lambda: request in _since(pool, seen), timeout=2)
        line = next(line for line in _since(pool, seen).splitlines() if request in line)
        moment = datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=UTC)
        return run, moment.timestamp() - began

    def _detach(self, pool: Pgpool) -> None:
        node = self._standby
        environment = {**BARE_ENVIRONMENT, "PCPPASSFILE": str(pool.pcp_passfile)}
        target = ["-h", pool.host, "-p", str(pool.pcp_port), "-U", pool.pcp_user, "-w", "-n", str(node.number)]
        subprocess.run(["pcp_detach_node", *target], env=environment, check=True, capture_output=True, timeout=20)
        wait_until(lambda: node.host not in pool.attached(), timeout=5)
        time.sleep(QUIET)


def _both(
    played: dict[str, list[ScenarioResult]], value: Callable[[ScenarioResult], float]
) -> tuple[list[float], list[float]]:
    return [value(result) for result in played["bash"]], [value(result) for result in played["efm-lb"]]


def _pgpool(result: ScenarioResult) -> BalancerResult:
    """What became of the only balancer of a run."""
    (pgpool,) = result.balancers
    return pgpool


def _first_write(pgpool: BalancerResult) -> float:
    return math.inf if pgpool.resumed is None else pgpool.resumed


def _since(pool: Pgpool, position: int) -> str:
    with pool.log.open(errors="replace") as log:
        log.seek(position)
        return log.read()


def _interpreted(argv: Sequence[str]) -> list[str]:
    """A script's command line with its interpreter in front, which valgrind would not follow by itself."""
    with open(argv[0], "rb") as script:
        first = script.readline().decode("utf-8", "replace").strip()
    return [*first[2:].split(), *argv] if first.startswith("#!") else list(argv)
