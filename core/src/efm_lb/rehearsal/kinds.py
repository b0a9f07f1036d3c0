"""The kinds of balancers that can be rehearsed, and which of them this machine has."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from efm_lb.errors import CallError
from efm_lb.rehearsal import programs
from efm_lb.rehearsal.balancer import Balancer
from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.haproxy import Haproxy
from efm_lb.rehearsal.pgbouncer import Pgbouncer
from efm_lb.rehearsal.pgpool import Pgpool
from efm_lb.rehearsal.programs import MissingProgramError

__all__ = ["KINDS", "Kind", "chosen"]


class Kind(NamedTuple):
    """A kind of balancer.

    :param program: finds its program, or raises `MissingProgramError`
    :param start: starts one in front of a cluster
    """

    program: Callable[[], Path]
    start: Callable[[Cluster], Balancer]


_RECOMMENDED = {"server_login_retry": 1}
"""Where PgBouncer's own default is not what efm-lb's page says."""

KINDS = {
    "pgpool": Kind(programs.pgpool, Pgpool.start),
    "haproxy": Kind(programs.haproxy, Haproxy.start),
    "pgbouncer": Kind(programs.pgbouncer, partial(Pgbouncer.start, settings=_RECOMMENDED)),
}
"""Each kind by the name of its adapter."""


def chosen(names: Sequence[str] = ()) -> list[Kind]:
    """The kinds called ``names``; none means all whose program is on this machine.

    :raises CallError: there is no such kind
    :raises MissingProgramError: the program of a named kind is not installed, or none is
    """
    for name in names:
        if name not in KINDS:
            raise CallError(f"no such balancer: {name or 'an empty name'}; there are {', '.join(KINDS)}")
    if names:
        for name in names:
            KINDS[name].program()
        return [KINDS[name] for name in dict.fromkeys(names)]
    found = []
    for kind in KINDS.values():
        with contextlib.suppress(MissingProgramError):
            kind.program()
            found.append(kind)
    if not found:
        raise MissingProgramError(
            "no load balancer was found: install one of the packages pgpool2 (pgpool-II on Red Hat), haproxy, pgbouncer"
        )
    return found
