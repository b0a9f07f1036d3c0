"""Connections to balancers' hosts, logins at the databases and at balancers, begun before the hook itself is imported.

A login with a password takes as long as half of the hook's imports, and on another core, and so does libpq's own start;
ssh takes several times as long as both, so it comes first. Nothing is asked yet: the truth is asked on these
connections later, by `efm_lb.probe`, when the call is journalled and has the lock, and the balancers' hosts after that,
by `efm_lb.remote.balancer`. Nothing here, nor what it imports, may import typing, enum or collections: they are most of
what is saved.
"""

from __future__ import annotations

import time

from efm_lb import compiled
from efm_lb.command_line import VALUED, valued
from efm_lb.sources import gather

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from efm_lb.handover import Login
    from efm_lb.remote.client import Client

__all__ = ["HeadStart", "begin"]


class HeadStart:
    """What has been begun for a command line.

    :ivar plan: the settings, as `efm_lb.compiled` keeps them
    :ivar logins: at the databases, by host and port; those that could be begun
    :ivar balancers: logins at the balancers, by name and by connection string; whoever takes one removes it
    :ivar clients: ssh, by the name of the balancer whose host it goes to
    :ivar started: by ``time.monotonic()``
    """

    __slots__ = ("balancers", "clients", "logins", "plan", "started")

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.started = time.monotonic()
        self.clients = _clients(plan)
        self.logins: dict[tuple[str, int], Login] = {}
        self.balancers: dict[str, dict[str, Login]] = {}
        self._log_in(plan)

    def _log_in(self, plan: Mapping[str, Any]) -> None:
        from efm_lb.connection import drop_misleading
        from efm_lb.handover import Login, logins_of

        drop_misleading()
        deadline = self.started + plan["connect_timeout"]
        try:
            for _, host, port, _ in plan["nodes"]:
                login = Login({**plan["probe"], "host": host, "port": str(port)}, deadline)
                login.begin()
                self.logins[host, port] = login
        except RuntimeError:  # no more threads for this user: `efm_lb.probe` tries again, and tells
            return
        self.balancers = logins_of(plan["logins"], deadline)

    def drop(self) -> None:
        """Close the logins: what they would say may be out of date."""
        at_balancers = [login for logins in self.balancers.values() for login in logins.values()]
        for login in [*self.logins.values(), *at_balancers]:
            login.drop()
        self.logins.clear()
        self.balancers.clear()


def _clients(plan: Mapping[str, Any]) -> dict[str, Client]:
    elsewhere = [(name, timeout, host_ssh) for name, _, _, timeout, host_ssh in plan["balancers"] if host_ssh]
    clients: dict[str, Client] = {}
    if not elsewhere:
        return clients
    from efm_lb.remote.client import Client, Destination

    for name, timeout, host_ssh in elsewhere:
        try:
            clients[name] = Client(Destination(host_ssh, timeout, plan["state_dir"], f"{plan['cluster']}.{name}"))
        except OSError:  # `efm_lb.remote` tries again, and tells
            break
    return clients


def begin(argv: Sequence[str], environ: Mapping[str, str]) -> HeadStart | None:
    """Begin to log in, if it is clear where; what is wrong is for the hook itself to find and to say.

    :param argv: the command line without the program's name
    """
    try:
        _, options = valued(argv, VALUED)
        if "--follow-up" in options:
            return None  # it waits first
        plan = compiled.read(gather(options.get("--cluster", "efm"), options.get("--env-file"), environ))
        if isinstance(plan, compiled.Stale):
            return None
        return HeadStart(plan)
    except Exception:
        return None
