"""The two arms: the same calls of EFM's, answered by the hooks of today and by efm-lb."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from efm_lb.rehearsal.balancer import Balancer
from efm_lb.rehearsal.cluster import PROBE_USER, Cluster
from efm_lb.rehearsal.hooks import EFM_LB, Hook, hook_environment, probe_passfile
from efm_lb.rehearsal.pgbouncer import Pgbouncer
from efm_lb.rehearsal.pgpool import Pgpool

__all__ = ["bash_hook", "command", "efm_lb_hook", "pgbouncer_hook"]

_SCRIPTS = Path(__file__).parent / "hooks"


def command() -> list[str]:
    """``efm-lb`` as EFM runs it: the console script of this interpreter's environment."""
    script = shutil.which("efm-lb", path=str(Path(sys.executable).parent))
    return [script] if script else list(EFM_LB)


def bash_hook(cluster: Cluster, pools: Sequence[Pgpool], timeout: float, user: str = PROBE_USER) -> Hook:
    """The bash hooks, for ``pools`` in this order, as ``user`` at the databases; killed after ``timeout`` seconds."""
    environment = {
        "LB_HOSTS": " ".join(f"{pool.host}:{pool.pcp_port}" for pool in pools),
        "PCPPASSFILE": str(pools[0].pcp_passfile),
        "LB_PCP_USER": pools[0].pcp_user,
        "LB_PGPORT": str(cluster.nodes[0].port),
        "LB_PGUSER": user,
        "PGPASSFILE": str(probe_passfile(cluster)),
    }
    return Hook(lambda words: [str(_SCRIPTS / f"{words[0]}.sh"), *words[1:]], environment, timeout)


def pgbouncer_hook(pooler: Pgbouncer) -> Hook:
    """The published recipe for PgBouncer: an edit and a signal on attach, nothing on detach."""
    environment = {"LB_INI": str(pooler.entries), "LB_PID": str(pooler.process.pid)}
    attach = str(_SCRIPTS / "pgbouncer-attach.sh")
    return Hook(lambda words: [attach if words[0] == "attach" else "true", *words[1:]], environment)


def efm_lb_hook(
    cluster: Cluster, balancers: Sequence[Balancer], name: str, extra: Mapping[str, object] | None = None
) -> Hook:
    """efm-lb for ``balancers``, its settings compiled already, as they are on a host that has run one hook before."""
    env_file = hook_environment(cluster, balancers, name, extra)
    hook = Hook(lambda words: [*command(), *words, f"--env-file={env_file}"])
    hook("attach", cluster.nodes[-1].name, "s")
    return hook
