"""Say what an event would do to a HAProxy and its files, and do nothing."""

from __future__ import annotations

from efm_lb import Event, PermanentError, TemporaryError
from efm_lb_haproxy.persist import changes, may_move, read
from efm_lb_haproxy.runtime import Runtime
from efm_lb_haproxy.settings import Setup
from efm_lb_haproxy.wishes import steps, wishes

__all__ = ["plan"]


def plan(event: Event, setup: Setup, deadline: float) -> tuple[str, ...]:
    """One line per server and per file, none when all is right already.

    :raises TemporaryError: no answer, or the event would fail now
    :raises PermanentError: the event would fail for good
    """
    look = Runtime(setup.endpoint, setup.connect_timeout, setup.tls).look(setup.proxies, deadline)
    wanted, problems = wishes(event, setup, look.proxies)
    nodes = event.truth.nodes
    told = [f"{step.server}: {'; '.join(step.commands)}" for step in steps(wanted, nodes, look.proxies)]
    told += [f"not done: {problem}" for problem in problems]
    if setup.config:
        try:
            files = read(setup.config)
        except (TemporaryError, PermanentError) as error:
            told.append(f"not kept: {error}")
        else:
            may_move(wanted, files)
            told += [f"write {change}" for change in changes(files, wanted, nodes, look.proxies)]
    return tuple(told)
