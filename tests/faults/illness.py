"""An illness of pgpool's own: what it makes wrong, and its cure, at which efm-lb has no part.

Seen with 4.3.5, also without any load balancer script: restart the standby that is backend 0, tell nobody. Each child
that was refused goes on without that backend, and then misses it: pgpool lets nobody in. A detach and an attach of that
node cure it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable

from efm_lb.rehearsal import programs
from efm_lb.rehearsal.pgpool import PCP_USER, Pgpool
from efm_lb.rehearsal.stage import ServerError
from efm_lb.rehearsal.waiting import wait_until

__all__ = ["CURED", "beside_the_illness", "cure", "is_pgpool_ill", "pcp"]

CURED = "pgpool cured of an illness of its own"
"""As the report counts it."""
_SIGN = "unable to read message kind"
_STATUS = 4
_DOWN = "down"


def is_pgpool_ill(wrong: Iterable[str]) -> bool:
    """Whether a line says so.

    :param wrong: what is wrong, one line each
    """
    return any(_SIGN in line for line in wrong)


def beside_the_illness(wrong: Iterable[str]) -> list[str]:
    """The lines that it does not excuse."""
    return [line for line in wrong if _SIGN not in line]


def cure(pool: Pgpool) -> None:
    """Take its first backend out and put it back, by PCP: nothing else is mended by that.

    :raises ServerError: it was not done
    """
    for program, is_out in (("pcp_detach_node", True), ("pcp_attach_node", False)):
        pcp(pool, program, "-n", "0")
        if not wait_until(lambda is_out=is_out: _is_out(pool) is is_out, timeout=10, interval=0.1):
            raise ServerError(f"{program} -n 0 made no difference at {pool.name}")


def pcp(pool: Pgpool, program: str, *arguments: str, timeout: float = 20.0) -> str:
    """Run a program of pgpool's; what it prints, nothing when it failed.

    :param timeout: seconds
    :raises subprocess.TimeoutExpired: it has not ended within them
    """
    argv = [programs.pgpool().parent / program, "-w", "-h", pool.host, "-p", str(pool.pcp_port), "-U", PCP_USER]
    environment = {**os.environ, "PCPPASSFILE": str(pool.pcp_passfile)}
    done = subprocess.run(
        [*argv, *arguments], env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    return "" if done.returncode else done.stdout


def _is_out(pool: Pgpool) -> bool | None:
    fields = pcp(pool, "pcp_node_info", "-n", "0").split()
    return fields[_STATUS] == _DOWN if len(fields) > _STATUS else None
