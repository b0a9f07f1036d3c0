"""Look at the databases and the balancers: the ground of ``status`` and ``plan``."""

from __future__ import annotations

import time
from typing import NamedTuple

from efm_lb.configuration import Configuration
from efm_lb.dispatch import Answer, Dispatcher
from efm_lb.errors import EfmLbError
from efm_lb.libpq import LibpqNotFoundError
from efm_lb.probe import Probe
from efm_lb.truth import Truth

__all__ = ["Observation", "ask", "observe"]


class Observation(NamedTuple):
    """The truth, and per balancer its `efm_lb.View` or why there is none."""

    truth: Truth
    views: dict[str, Answer]


def ask(configuration: Configuration) -> Truth:
    """What all databases say; every node gets the whole connect time-out.

    :raises EfmLbError: there is no libpq on this host
    """
    try:
        return Probe(configuration.probe, configuration.connect_timeout).truth(configuration.nodes)
    except LibpqNotFoundError as error:
        raise EfmLbError(str(error)) from None


def observe(configuration: Configuration) -> Observation:
    """Ask the databases, then the balancers.

    :raises EfmLbError: there is no libpq on this host
    """
    truth = ask(configuration)
    deadline = time.monotonic() + configuration.deadline
    return Observation(truth, Dispatcher(configuration).views(configuration.nodes, deadline))
