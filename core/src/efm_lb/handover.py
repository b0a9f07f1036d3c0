"""Connections to databases that were begun or used by somebody else, for whoever asks there next.

Imported in the first milliseconds of a hook run, as `efm_lb.head_start` is: so it imports as little.
"""

from __future__ import annotations

import time
from _thread import allocate_lock, start_new_thread

from efm_lb.connection import Connection, ConnectionFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Kept", "Login"]


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
