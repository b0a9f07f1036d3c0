"""The measurements. Each returns raw runs of both arms, taken in turns on the same servers."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median

from arms import bash_hook, efm_lb_hook

from efm_lb.rehearsal.clients import Clients
from efm_lb.rehearsal.cluster import SUPERUSER, Cluster, Server
from efm_lb.rehearsal.hooks import BARE_ENVIRONMENT, Hook, Run
from efm_lb.rehearsal.pgpool import Pgpool
from efm_lb.rehearsal.play import Play
from efm_lb.rehearsal.results import ScenarioResult
from efm_lb.rehearsal.scenarios import Scenario
from efm_lb.rehearsal.waiting import wait_until

__all__ = ["Bench", "Row"]

CONNECT_TIMEOUT = 2.0
"""efm-lb's EFM_LB_CONNECT_TIMEOUT, its default."""
BASH_LIMIT = 20.0
"""Seconds after which a bash hook that hangs is killed; it would hang for two minutes or for ever."""
QUIET = 1.3
"""Seconds that pgpool takes to handle a request at once again, after it has handled one."""


@dataclass
class Row:
    """One line of the table.

    :param bash: raw runs of the bash hooks
    :param efm_lb: raw runs of efm-lb
    :param target: for a person
    :param reached: None when nothing was to be reached, or it could not be measured
    """

    what: str
    unit: str
    bash: list[float]
    efm_lb: list[float]
    target: str = ""
    reached: bool | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        """Median of efm-lb over median of bash."""
        if not self.bash or not self.efm_lb or not median(self.bash):
            return None
        return median(self.efm_lb) / median(self.bash)

    def aim_ratio(self, limit: float) -> Row:
        self.target = f"ratio <= {limit:.2f}"
        self.reached = self.ratio is not None and self.ratio <= limit
        return self

    def aim_value(self, limit: float) -> Row:
        self.target = f"<= {limit:g} {self.unit}"
        self.reached = bool(self.efm_lb) and median(self.efm_lb) <= limit
        return self


class Bench:
    """One cluster, and one pgpool per arm: a late follow-up of one arm never helps or hurts the other.

    :param say: told what is going on
    """

    def __init__(self, cluster: Cluster, runs: int, say: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._runs = runs
        self._say = say
        self._bash_pool = Pgpool.start(cluster)
        self._pool = Pgpool.start(cluster)
        self._bash = bash_hook(cluster, [self._bash_pool], timeout=60)
        self._efm_lb = efm_lb_hook(cluster, [self._pool], "bench")

    @property
    def _arms(self) -> list[tuple[str, Hook, Pgpool]]:
        return [("bash", self._bash, self._bash_pool), ("efm-lb", self._efm_lb, self._pool)]

    def switchover(self) -> list[Row]:
        """A planned switchover under load."""
        played = self._played(Scenario.SWITCHOVER)
        cuts = Row("switchover: writer's sessions cut", "", *_both(played, lambda result: result.writing.cuts))
        cuts.aim_value(2)
        return [
            self._outage("switchover: longest write outage", played).aim_ratio(0.40),
            cuts,
            Row("switchover: EFM waits for the hook", "s", *_both(played, lambda result: result.hook_seconds)),
        ]

    def failover(self) -> list[Row]:
        """A crash of the primary under load; EFM's own detection time is not played."""
        played = self._played(Scenario.FAILOVER)
        return [
            self._outage("failover: longest write outage", played).aim_ratio(0.30),
            Row("failover: writer's sessions cut", "", *_both(played, lambda result: result.writing.cuts)),
            Row("failover: EFM waits for the hook", "s", *_both(played, lambda result: result.hook_seconds)),
        ]

    def attach_standby(self) -> list[Row]:
        """``attach`` of a standby that is detached, from the start of the process."""
        node = self._cluster.nodes[-1]
        self._fresh()
        told: dict[str, list[float]] = {"bash": [], "efm-lb": []}
        ended: dict[str, list[float]] = {"bash": [], "efm-lb": []}
        for _ in range(self._runs):
            for arm, hook, pool in self._arms:
                run, seconds = self._attach_detached(hook, pool, node)
                told[arm].append(seconds)
                ended[arm].append(run.seconds)
        return [
            Row("attach s: until pgpool has been told", "s", told["bash"], told["efm-lb"]).aim_ratio(1.0),
            Row("attach s: whole hook, efm-lb reads back", "s", ended["bash"], ended["efm-lb"]).aim_ratio(1.5),
        ]

    def hung_pgpool(self) -> list[Row]:
        """Two pgpools, one of which takes connections and never answers."""
        node = self._cluster.nodes[-1]
        self._fresh()
        with Pgpool.start(self._cluster) as hung:
            both = efm_lb_hook(self._cluster, [hung, self._pool], "hung")
            bash = bash_hook(self._cluster, [hung, self._bash_pool], BASH_LIMIT)
            alone, beside, whole, bash_whole = [], [], [], []
            codes: set[int | None] = set()
            for _ in range(self._runs):
                alone.append(self._attach_detached(self._efm_lb, self._pool, node)[1])
                hung.freeze()
                run, seconds = self._attach_detached(both, self._pool, node)
                hung.thaw()
                beside.append(seconds)
                whole.append(run.seconds)
                codes.add(run.exit_code)
            hung.freeze()
            bash_whole.append(bash("attach", node.name, "s").seconds)
            hung.thaw()
        told = Row("one pgpool hung: until the live one has been told", "s", [], beside, "<= 1.2 x alone")
        told.reached = median(beside) <= 1.2 * median(alone)
        told.notes.append(f"alone: {_texts(alone)}; the bash hook never gets to the live one")
        back = Row("one pgpool hung: whole hook", "s", bash_whole, whole).aim_value(CONNECT_TIMEOUT + 1)
        back.reached = bool(back.reached) and codes == {75}
        back.target += ", exit 75"
        back.notes.append(f"efm-lb's exit codes: {sorted(map(str, codes))}; bash is killed after {BASH_LIMIT:g} s")
        return [told, back]

    def frozen_primary(self) -> list[Row]:
        """The failed database host takes connections and never answers."""
        old, new, *_ = self._cluster.nodes
        detach, attach, bash_detach = [], [], []
        for _ in range(self._runs):
            self._fresh()
            old.freeze()
            detach.append(self._efm_lb("detach", old.name, "p").seconds)
            new.promote()
            run = self._efm_lb("attach", new.name, "p")
            attach.append(run.seconds)
            old.thaw()
        self._fresh()
        old.freeze()
        bash = bash_hook(self._cluster, [self._bash_pool], BASH_LIMIT)
        bash_detach.append(bash("detach", old.name, "p").seconds)
        old.thaw()
        row = Row("primary's host hangs: detach hook", "s", bash_detach, detach).aim_value(3)
        row.notes.append(f"bash is killed after {BASH_LIMIT:g} s")
        return [row, Row("primary's host hangs: attach hook of the new one", "s", [], attach).aim_value(3)]

    def start_up(self) -> list[Row]:
        """Instructions of a whole attach; unlike seconds they do not depend on the machine's load."""
        trusted = {"EFM_LB_PROBE__USER": SUPERUSER, "EFM_LB_PROBE__PASSFILE": None}
        with_password = self._instructions("with-password", {})
        with_password.notes.append("libpq hashes a SCRAM password 8192 times per node; that is not start-up")
        return [self._instructions("no-password", trusted).aim_value(200), with_password]

    def _instructions(self, name: str, login: Mapping[str, object]) -> Row:
        row = Row(f"attach s: instructions of the whole hook, {name.replace('-', ' ')}", "M", [], [])
        if not shutil.which("valgrind"):
            row.notes.append("not measured: install valgrind")
            return row
        self._fresh()
        node = self._cluster.nodes[-1]
        # Everything takes fifty times as long under callgrind.
        patient = {"EFM_LB_CONNECT_TIMEOUT": 60, "EFM_LB_DEADLINE": 240}
        hook = efm_lb_hook(self._cluster, [self._pool], f"callgrind-{name}", {**patient, **login})
        for _ in range(2):
            self._detach(self._pool, node)
            done = subprocess.run(
                [
                    *("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"),
                    *_interpreted(hook.command(["attach", node.name, "s"])),
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

    def close(self) -> None:
        """Stop the pgpools."""
        self._bash_pool.close()
        self._pool.close()

    def _played(self, scenario: Scenario) -> dict[str, list[ScenarioResult]]:
        played: dict[str, list[ScenarioResult]] = {"bash": [], "efm-lb": []}
        for number in range(self._runs):
            for arm, hook, pool in self._arms:
                self._say(f"{scenario.value} {number + 1}/{self._runs} {arm}")
                self._fresh()
                with Clients(pool.host, pool.port) as clients:
                    played[arm].append(Play(self._cluster, pool, clients, [hook]).scenario(scenario))
        return played

    def _outage(self, what: str, played: dict[str, list[ScenarioResult]]) -> Row:
        row = Row(what, "s", *_both(played, lambda result: result.writing.longest_gap))
        for arm, results in played.items():
            if wrong := [fault for result in results for fault in result.wrong]:
                row.notes.append(f"{arm} ended wrong {len(wrong)} times: {wrong[0]}")
            if lost := sum(result.accounts.lost for result in results):
                row.notes.append(f"{arm} lost {lost} rows")
        return row

    def _fresh(self) -> None:
        self._cluster.reset()
        for _, _, pool in self._arms:
            pool.reset()

    def _attach_detached(self, hook: Hook, pool: Pgpool, node: Server) -> tuple[Run, float]:
        """Detach ``node``, and run the attach hook: the run, and the seconds until pgpool had the request."""
        self._detach(pool, node)
        seen = pool.log.stat().st_size
        began = time.time()
        run = hook("attach", node.name, "s")
        request = f"received failback request for node_id: {node.number}"
        wait_until(lambda: request in _since(pool, seen), timeout=2)
        line = next(line for line in _since(pool, seen).splitlines() if request in line)
        moment = datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=UTC)
        return run, moment.timestamp() - began

    def _detach(self, pool: Pgpool, node: Server) -> None:
        environment = {**BARE_ENVIRONMENT, "PCPPASSFILE": str(pool.pcp_passfile)}
        target = ["-h", pool.host, "-p", str(pool.pcp_port), "-U", pool.pcp_user, "-w", "-n", str(node.number)]
        subprocess.run(["pcp_detach_node", *target], env=environment, check=True, capture_output=True, timeout=20)
        wait_until(lambda: node.host not in pool.attached(), timeout=5)
        time.sleep(QUIET)


def _both(
    played: dict[str, list[ScenarioResult]], value: Callable[[ScenarioResult], float]
) -> tuple[list[float], list[float]]:
    return [value(result) for result in played["bash"]], [value(result) for result in played["efm-lb"]]


def _since(pool: Pgpool, position: int) -> str:
    with pool.log.open(errors="replace") as log:
        log.seek(position)
        return log.read()


def _texts(values: list[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def _interpreted(argv: Sequence[str]) -> list[str]:
    """A script's command line with its interpreter in front, which valgrind would not follow by itself."""
    with open(argv[0], "rb") as script:
        first = script.readline().decode("utf-8", "replace").strip()
    return [*first[2:].split(), *argv] if first.startswith("#!") else list(argv)
