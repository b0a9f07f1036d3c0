"""Look at the databases and the balancers: the ground of ``status`` and ``plan``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from efm_lb.configuration import Configuration
from efm_lb.dispatch import Answer, Dispatcher
from efm_lb.errors import NotInstalledError
from efm_lb.libpq import LibpqNotFoundError
from efm_lb.probe import Probe
from efm_lb.state import State
from efm_lb.truth import Truth

__all__ = ["Observation", "ask", "log_in", "observe"]


class Observation(NamedTuple):
    """The truth, and per balancer its `efm_lb.View` or why there is none."""

    truth: Truth
    views: dict[str, Answer]


def ask(configuration: Configuration) -> Truth:
    """What all databases say; every node gets the whole connect time-out.

    :raises NotInstalledError: there is no libpq on this host
    """
    try:
        truth = Probe(configuration.probe, configuration.connect_timeout).truth(configuration.nodes)
    except LibpqNotFoundError as error:
        raise NotInstalledError(str(error)) from None
    return truth._replace(newest=State(configuration.state_dir, configuration.cluster).timeline)


def log_in(configuration: Configuration) -> Callable[[str, str], Truth]:
    """What `efm_lb.hookspecs.efm_lb_check` calls ``log_in``: `ask` as another role, in another database."""

    def ask_as(user: str, dbname: str) -> Truth:
        return ask(configuration._replace(probe={**configuration.probe, "user": user, "dbname": dbname}))

    return ask_as


def observe(configuration: Configuration) -> Observation:
    """Ask the databases, then the balancers.

    :raises NotInstalledError: there is no libpq on this host
    """
    truth = ask(configuration)
    deadline = time.monotonic() + configuration.deadline
    return Observation(truth, Dispatcher(configuration).views(configuration.nodes, deadline))
