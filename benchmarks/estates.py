"""Measurements of a whole estate: a balancer behind ssh, and twenty balancers of which two are dead."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from arms import command, efm_lb_hook
from rows import Row

from efm_lb.rehearsal.balancer import Balancer
from efm_lb.rehearsal.cluster import Cluster, Server
from efm_lb.rehearsal.haproxy import Haproxy
from efm_lb.rehearsal.hooks import BARE_ENVIRONMENT, Hook, hook_environment
from efm_lb.rehearsal.pgbouncer import Pgbouncer
from efm_lb.rehearsal.pgpool import Pgpool
from efm_lb.rehearsal.sshd import Sshd

__all__ = ["TWENTY", "Estates", "start_balancers"]

KINDS: tuple[type[Pgpool] | type[Haproxy] | type[Pgbouncer], ...] = (Pgpool, Haproxy, Pgbouncer)
TWENTY = 20
FEW_CHILDREN = {"num_init_children": 4, "max_pool": 1}
QUIET = 1.3
"""Seconds that pgpool takes to handle a request at once again, after it has handled one."""


class Estates:
    """One cluster.

    :param say: told what is going on
    """

    def __init__(self, cluster: Cluster, runs: int, say: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._runs = runs
        self._say = say

    def over_ssh(self) -> list[Row]:
        """``attach`` of a standby at a PgBouncer whose host is reached by ssh, beside ``ssh true``."""
        bare: list[float] = []
        shared: list[float] = []
        attach: list[float] = []
        self._cluster.reset()
        with tempfile.TemporaryDirectory() as directory, Pgbouncer.start(self._cluster) as pooler:
            there = hook_environment(self._cluster, [pooler], "bench-there")
            forced = " ".join([*command(), "apply", f"--env-file={there}"])
            with Sshd(Path(directory), forced) as sshd:
                extra = {
                    "EFM_LB_BALANCERS__PGB1__ADAPTER": "pgbouncer",
                    "EFM_LB_BALANCERS__PGB1__HOST_SSH": sshd.destination,
                }
                here = hook_environment(self._cluster, [], "bench-here", extra)
                hook = Hook(lambda words: [*command(), *words, f"--env-file={here}"], {"PATH": sshd.path})
                sharing = ["ControlMaster=auto", f"ControlPath={directory}/shared", "ControlPersist=60"]
                for _ in range(self._runs):
                    sshd.force("")
                    bare.append(_ssh_true(sshd))
                    _ssh_true(sshd, sharing)
                    shared.append(_ssh_true(sshd, sharing))
                    sshd.force(forced)
                    hook("detach", self._standby.name, "s")
                    run = hook("attach", self._standby.name, "s")
                    if "changed" not in run.output:
                        raise RuntimeError(run.output)
                    attach.append(run.seconds)
        row = Row("attach over ssh, warm: whole hook", "s", shared, attach).aim_ratio(2)
        row.notes.append("today: `ssh true` on a connection that is shared already, as efm-lb's is")
        row.notes.append(f"`ssh true` with a login of its own: {' '.join(f'{value:.3f}' for value in bare)}")
        return [row]

    def twenty_balancers(self) -> list[Row]:
        """Twenty balancers of the three kinds, two of them black holes: until the other eighteen are right."""
        one_of_each: list[float] = []
        eighteen: list[float] = []
        self._cluster.reset()
        with ExitStack() as running:
            self._say("twenty balancers")
            balancers = start_balancers(running, self._cluster, TWENTY)
            few = efm_lb_hook(self._cluster, balancers[: len(KINDS)], "bench-three")
            all_ = efm_lb_hook(self._cluster, balancers, "bench-twenty")
            dead = [balancer for balancer in balancers[-3:] if isinstance(balancer, Pgpool | Haproxy)]
            for number in range(self._runs):
                self._say(f"twenty balancers {number + 1}/{self._runs}")
                one_of_each.append(self._attach(few, 0))
                for balancer in dead:
                    balancer.process.freeze()
                try:
                    eighteen.append(self._attach(all_, len(dead)))
                finally:
                    for balancer in dead:
                        balancer.process.thaw()
                        time.sleep(0.5)
        row = Row("twenty balancers, two black holes: until the eighteen are right", "s", [], eighteen)
        row.target = "<= 2 x one of each"
        row.reached = median(eighteen) <= 2 * median(one_of_each)
        row.notes.append(f"one of each: {' '.join(f'{value:.3f}' for value in one_of_each)}")
        row.notes.append("haproxy -c is asked about its files in the first run; the others know that it accepts them")
        return [row]

    @property
    def _standby(self) -> Server:
        return self._cluster.nodes[-1]

    def _attach(self, hook: Hook, dead: int) -> float:
        """Detach the standby and attach it: seconds until all balancers but ``dead`` are right."""
        hook("detach", self._standby.name, "s")
        time.sleep(QUIET)
        run = hook("attach", self._standby.name, "s", "--json")
        outcomes = json.loads(run.stdout)["outcomes"]
        right = [outcome["seconds"] for outcome in outcomes if outcome["result"] in ("changed", "unchanged")]
        if len(right) != len(outcomes) - dead:
            raise RuntimeError(run.output)
        slowest = max(outcome["seconds"] for outcome in outcomes)
        return float(run.seconds - slowest + max(right))


def start_balancers(running: ExitStack, cluster: Cluster, count: int) -> list[Balancer]:
    """Start ``count`` balancers, of the three kinds in turn."""
    return [running.enter_context(_start(KINDS[number % len(KINDS)], cluster)) for number in range(count)]


def _start(kind: type[Pgpool] | type[Haproxy] | type[Pgbouncer], cluster: Cluster) -> Balancer:
    return kind.start(cluster, FEW_CHILDREN) if kind is Pgpool else kind.start(cluster)


def _ssh_true(sshd: Sshd, options: list[str] | None = None) -> float:
    words = [word for option in ["BatchMode=yes", *(options or [])] for word in ("-o", option)]
    began = time.monotonic()
    subprocess.run(
        ["ssh", *words, sshd.destination, "true"],
        env={**BARE_ENVIRONMENT, "PATH": sshd.path},
        check=True,
        capture_output=True,
        timeout=30,
    )
    return time.monotonic() - began
