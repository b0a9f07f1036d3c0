"""Connections to databases that were begun or used by somebody else, for whoever asks there next.

Imported in the first milliseconds of a hook run, as `efm_lb.head_start` is: so it imports as little.
"""

from __future__ import annotations

import time
from _thread import allocate_lock, start_new_thread

from efm_lb.connection import Connection, ConnectionFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Kept", "Login", "logins_of"]


class Login:
    """One login, begun ahead of whoever wants the connection.

    :param keywords: libpq's connection keywords, as `Connection` takes them
    :param deadline: when it must be done, by ``time.monotonic()``
    :param conninfo: a connection string; ``keywords`` win over what it says

    .. versionadded:: 0.1
    """

    __slots__ = ("_claim", "_connection", "_deadline", "_done", "_failure", "_is_unwanted", "_place")

    def __init__(self, keywords: Mapping[str, str], deadline: float, conninfo: str = "") -> None:
        self._place = keywords, conninfo
        self._deadline = deadline
        self._connection: Connection | None = None
        self._failure: Exception | None = None
        self._is_unwanted = False
        self._claim = allocate_lock()  # held by whoever logs in, from then on
        self._done = allocate_lock()
        self._done.acquire()

    def begin(self) -> None:
        """Log in, in a thread of its own. Raises RuntimeError when this user may have no more."""
        start_new_thread(self.run, ())

    def run(self) -> None:
        """Log in, unless somebody else has come to it first."""
        if not self._claim.acquire(blocking=False):
            return
        keywords, conninfo = self._place
        try:
            self._connection = Connection(keywords, self._deadline, conninfo)
        except Exception as failure:
            self._failure = failure
        self._done.release()
        if self._is_unwanted:
            self._close()

    def connection(self, deadline: float) -> Connection:
        """Wait for the connection, and take it; once. One that nobody has begun is made here.

        :param deadline: by ``time.monotonic()``
        :raises ConnectionFailed: there is none
        """
        if self._claim.acquire(blocking=False):
            keywords, conninfo = self._place
            return Connection(keywords, deadline, conninfo)
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
        self._claim.acquire(blocking=False)
        self._close()

    def _close(self) -> None:
        """Close the connection, if nobody has taken it: whoever gets the lock has it, and libpq must close it once."""
        if self._done.acquire(blocking=False) and self._connection:
            self._connection.close()


def logins_of(places: Iterable[tuple[str, str, Mapping[str, str]]], deadline: float) -> dict[str, dict[str, Login]]:
    """Log in at balancers, one after the other in one thread: what is wanted sooner keeps the other processors.

    One that takes long keeps nobody waiting, for whoever wants one that is not begun makes it himself.

    :param places: `efm_lb.configuration.Configuration.logins`
    :return: by balancer, and by connection string; nothing when this user may have no more threads: who wants one tries
        again, and tells
    """
    logins: dict[str, dict[str, Login]] = {}
    for balancer, conninfo, keywords in places:
        logins.setdefault(balancer, {})[conninfo] = Login(keywords, deadline, conninfo)

    def run() -> None:
        for login in in_turn:
            login.run()

    in_turn = [login for of_one in logins.values() for login in of_one.values()]
    try:
        if in_turn:
            start_new_thread(run, ())
    except RuntimeError:
        return {}
    return logins


class Kept:
    """A connection that is in use up to now."""

    __slots__ = ("_connection", "_given")

    def __init__(self) -> None:
        self._connection: Connection | None = None
        self._given = allocate_lock()
        self._given.acquire()

    def give(self, connection: Connection | None) -> None:
        """Hand it over, once; None when there is none."""
        self._connection = connection
        self._given.release()

    def take(self, deadline: float) -> Connection | None:
        """Wait until it is handed over, and take it; once. None when it is not, or there is none.

        :param deadline: by ``time.monotonic()``
        """
        if not self._given.acquire(timeout=max(0.0, deadline - time.monotonic())):
            return None
        return self._connection
