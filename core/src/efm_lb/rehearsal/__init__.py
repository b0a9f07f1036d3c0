"""The rehearsal: real PostgreSQL servers and balancers on loopback, thrown away afterwards; EFM's part is played.

Nothing of it is used by the hook. It is what ``efm-lb rehearse``, the integration
tests and the benchmark have in common: servers that may be stopped, killed and
frozen (`cluster`, `pgpool`, `haproxy`, `pgbouncer`), clients that measure what an
application sees (`clients`), and the calls that EFM makes, in the order of the manual
and in others (`efm`).
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["rehearse"]


def rehearse(
    scenarios: Sequence[str] = (),
    order: str = "documented",
    balancers: Sequence[str] = (),
    keep: bool = False,
    as_json: bool = False,
) -> int:
    """Play scenarios on servers of their own, and tell on the standard output how they went.

    :param scenarios: values of `scenarios.Scenario`, in the order to play them; none means all
    :param order: a value of `scenarios.Order`
    :param balancers: names of `kinds.KINDS`; none means all that are installed
    :param keep: leave the servers running and say how to connect to them and how to stop them
    :param as_json: print one JSON document and nothing else
    :return: the exit code: 0 when every balancer ended right each time, 1 when one did not
    :raises EfmLbError: no such scenario, order or balancer, or a server program is not installed
    """
    from efm_lb.rehearsal.rehearse import run

    return run(scenarios, order, balancers, keep, as_json)
