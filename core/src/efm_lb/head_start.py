"""Logins at the databases, and connections to balancers' hosts, begun before the rest of the hook is imported.

A login with a password takes as long as half of the hook's imports, and on another core, and so does libpq's own start;
ssh takes several times as long as both. Nothing is asked yet: the truth is asked on these connections later, by
`efm_lb.probe`, when the call is journalled and has the lock, and the balancers' hosts after that, by
`efm_lb.remote.balancer`. Nothing here, nor what it imports, may import typing, enum or collections: they are most of
what is saved.
"""

from __future__ import annotations

import time
from _thread import allocate_lock, start_new_thread

from efm_lb import compiled
from efm_lb.command_line import VALUED, valued
from efm_lb.connection import Connection, ConnectionFailed, drop_misleading
from efm_lb.sources import gather

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from efm_lb.remote.client import Client

__all__ = ["HeadStart", "Login", "begin"]


class Login:
    """One login under way.

    :param keywords: libpq's connection keywords, with the node's host and port
    :param deadline: when it must be done, by ``time.monotonic()``
    """

    __slots__ = ("_connection", "_done", "_failure", "_is_unwanted")

    def __init__(self, keywords: Mapping[str, str], deadline: float) -> None:
        self._connection: Connection | None = None
        self._failure: Exception | None = None
        self._is_unwanted = False
        self._done = allocate_lock()
        self._done.acquire()
        start_new_thread(self._run, (keywords, deadline))

    def _run(self, keywords: Mapping[str, str], deadline: float) -> None:
        try:
            self._connection = Connection(keywords, deadline)
        except Exception as failure:
            self._failure = failure
        self._done.release()
        if self._is_unwanted:
            self._close()

    def connection(self, deadline: float) -> Connection:
        """Wait for the connection, and take it; once.

        :param deadline: by ``time.monotonic()``
        :raises ConnectionFailed: there is none
        """
        if not self._done.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise ConnectionFailed("no answer in time", silent=True)
        if self._failure:
            raise self._failure
        assert self._connection
        return self._connection

    @property
    def is_silent(self) -> bool:
        """The server has said nothing at all up to now."""
        failure = self._failure
        return self._connection is None and (failure is None or getattr(failure, "silent", False))

    def drop(self) -> None:
        """Nobody wants it any more."""
        self._is_unwanted = True
        self._close()

    def _close(self) -> None:
        """Close the connection, if nobody has taken it: whoever gets the lock has it, and libpq must close it once."""
        if self._done.acquire(blocking=False) and self._connection:
            self._connection.close()


class HeadStart:
    """What has been begun for a command line.

    :ivar plan: the settings, as `efm_lb.compiled` keeps them
    :ivar logins: by host and port
    :ivar clients: ssh, by the name of the balancer whose host it goes to
    :ivar started: by ``time.monotonic()``
    """

    __slots__ = ("clients", "logins", "plan", "started")

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.started = time.monotonic()
        deadline = self.started + plan["connect_timeout"]
        self.logins = {
            (host, port): Login({**plan["probe"], "host": host, "port": str(port)}, deadline)
            for _, host, port, _ in plan["nodes"]
        }
        self.clients = _clients(plan)

    def drop(self) -> None:
        """Close the logins: what they would say may be out of date."""
        for login in self.logins.values():
            login.drop()
        self.logins.clear()


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
        drop_misleading()
        return HeadStart(plan)
    except Exception:
        return None
