"""One connection to a PostgreSQL server or to PgBouncer's console, with a deadline for everything.

libpq does the talking (`efm_lb.libpq`), in the simple protocol, which is the only one that
PgBouncer's console speaks. Nothing here blocks longer than it is told, except a name look-up,
which libpq cannot bound.
"""

from __future__ import annotations

import select
import time
from collections.abc import Mapping
from ctypes import c_char_p, c_void_p, cast
from os import environ
from typing import Any, NamedTuple

from efm_lb import libpq

__all__ = ["Connection", "ConnectionFailed", "Reply", "StatementFailed", "library"]

# Variables that would send a connection elsewhere or let libpq skip a standby, or that a pooler's console refuses.
_MISLEADING = (
    *("PGHOSTADDR", "PGSERVICE", "PGSERVICEFILE", "PGTARGETSESSIONATTRS", "PGLOADBALANCEHOSTS"),
    *("PGOPTIONS", "PGGEQO"),
)

# Lines of a message that do not say what went wrong.
_ASIDES = ("\t", "LOCATION:", "HINT:", "password retrieved from file")

_loaded: Any = None


class _Failed(Exception):
    """:ivar words: all that libpq or the server said, with SQLSTATEs"""

    def __init__(self, detail: str, words: str = "") -> None:
        super().__init__(detail)
        self.words = words

    @property
    def sqlstates(self) -> list[str]:
        """The SQLSTATEs in the words, ``SEVERITY:  SQLSTATE: text``; the severity is in the server's language."""
        parts = self.words.split(":  ")[1:]
        return [part[:5] for part in parts if part[5:7] == ": " and part[:5].isalnum() and part[:5].isascii()]


class ConnectionFailed(_Failed):
    """There is no connection, or none any more.

    :ivar silent: the deadline was over before anything else went wrong
    :ivar reached: the server had taken the connection
    :ivar needs_password: the server wanted a password and there was none
    """

    def __init__(
        self,
        detail: str,
        words: str = "",
        *,
        silent: bool = False,
        reached: bool = False,
        needs_password: bool = False,
    ) -> None:
        super().__init__(detail, words)
        self.silent = silent
        self.reached = reached
        self.needs_password = needs_password


class StatementFailed(_Failed):
    """The server answered a statement with an error; the connection can be used further."""


class Reply(NamedTuple):
    """The answer to a statement.

    :param rows: by column name, as texts; None is NULL
    :param tag: the command tag, such as ``SHOW``
    """

    rows: tuple[dict[str, str | None], ...]
    tag: str


def library() -> Any:
    """libpq, loaded once; the environment variables that would mislead it are gone from then on.

    :raises libpq.LibpqNotFoundError: this host has none
    """
    global _loaded
    if _loaded is None:
        for name in _MISLEADING:
            environ.pop(name, None)
        _loaded = libpq.load()
    return _loaded


class Connection:
    """An open connection, to be used by one thread at a time.

    :param keywords: libpq's connection keywords (host, port, user, dbname, passfile, ...)
    :param deadline: when the login must be done, by ``time.monotonic()``
    :param conninfo: a connection string; ``keywords`` win over what it says
    :raises ConnectionFailed: no connection within the deadline
    :raises libpq.LibpqNotFoundError: this host has no libpq

    .. versionadded:: 0.1
    """

    def __init__(self, keywords: Mapping[str, str], deadline: float, conninfo: str = "") -> None:
        self._library = library()
        parameters = [("application_name", "efm-lb"), ("client_encoding", "UTF8")]
        if "PGGSSENCMODE" not in environ:
            # Looking for Kerberos credentials costs more than the question; those who encrypt with GSSAPI say so.
            parameters.append(("gssencmode", "disable"))
        if conninfo:
            # libpq reads the first dbname as a connection string; later keywords win.
            parameters.append(("dbname", conninfo))
        parameters += keywords.items()
        names = (c_char_p * (len(parameters) + 1))(*[name.encode() for name, _ in parameters], None)
        values = (c_char_p * (len(parameters) + 1))(*[value.encode() for _, value in parameters], None)
        expand = 1 if conninfo else 0
        self._connection = self._library.PQconnectStartParams(cast(names, c_void_p), cast(values, c_void_p), expand)
        self._library.PQsetErrorVerbosity(self._connection, libpq.VERBOSE)
        try:
            self._connect(deadline)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection. Harmless when it has ended already."""
        if self._connection:
            self._library.PQfinish(self._connection)
            self._connection = None

    def fileno(self) -> int:
        """The socket's file descriptor, which stays libpq's own."""
        return int(self._library.PQsocket(self._connection))

    @property
    def is_local(self) -> bool:
        """Whether the server runs on this host: by a Unix socket, or an address that is this host's own."""
        from _socket import AF_UNIX, dup, socket

        own = socket(fileno=dup(self.fileno()))
        try:
            # The kernel talks to one of its own addresses from that same address.
            return own.family == AF_UNIX or own.getsockname()[0] == own.getpeername()[0]
        except OSError:
            return False
        finally:
            own.close()

    def query(self, statement: str | bytes, deadline: float) -> Reply:
        """Send one statement and wait for its answer.

        :param deadline: by ``time.monotonic()``; when it is over the connection is of no more use
        :raises StatementFailed: the server refuses it
        :raises ConnectionFailed: the connection broke, or no answer came in time
        """
        pg, connection = self._library, self._connection
        if isinstance(statement, str):
            statement = statement.encode()
        if not connection:
            raise ConnectionFailed("the connection is closed", reached=True)
        pg.PQsetnonblocking(connection, 1)
        if not pg.PQsendQuery(connection, statement):
            raise self._failure(reached=True)
        while pg.PQflush(connection) == 1:
            self._wait(select.POLLOUT, deadline, "took the login and went silent", reached=True)
        reply = Reply((), "")
        failed: StatementFailed | None = None
        while True:
            while pg.PQisBusy(connection):
                self._wait(select.POLLIN, deadline, "took the login and went silent", reached=True)
                if not pg.PQconsumeInput(connection):
                    raise self._failure(reached=True)
            result = pg.PQgetResult(connection)
            if not result:
                break
            try:
                status = pg.PQresultStatus(result)
                if status in (libpq.PGRES_TUPLES_OK, libpq.PGRES_COMMAND_OK):
                    reply = Reply(self._rows(result), pg.PQcmdStatus(result).decode("utf-8", "replace"))
                else:
                    words = self._words()
                    failed = StatementFailed(_detail(words), words)
            finally:
                pg.PQclear(result)
        if pg.PQstatus(connection) == libpq.CONNECTION_BAD:
            raise self._failure(reached=True, words=failed.words if failed else "")
        if failed:
            raise failed
        return reply

    def _connect(self, deadline: float) -> None:
        pg, connection = self._library, self._connection
        reached = False
        if pg.PQstatus(connection) == libpq.CONNECTION_BAD:
            raise self._failure(reached)
        events = select.POLLOUT
        while True:
            silence = "accepted the connection and went silent" if reached else "no answer in time"
            self._wait(events, deadline, silence, reached)
            polling = pg.PQconnectPoll(connection)
            if polling == libpq.POLLING_OK:
                return
            if polling == libpq.POLLING_FAILED:
                raise self._failure(reached)
            reached = reached or pg.PQstatus(connection) > libpq.CONNECTION_STARTED
            events = select.POLLIN if polling == libpq.POLLING_READING else select.POLLOUT

    def _wait(self, events: int, deadline: float, silence: str, reached: bool) -> None:
        """Wait until the socket is ready."""
        left = deadline - time.monotonic()
        ready = select.poll()
        ready.register(self.fileno(), events)
        if left <= 0 or not ready.poll(left * 1000):
            raise ConnectionFailed(silence, silent=True, reached=reached)

    def _rows(self, result: Any) -> tuple[dict[str, str | None], ...]:
        pg = self._library
        count = pg.PQntuples(result)
        if not count:
            return ()
        names = [pg.PQfname(result, column).decode("utf-8", "replace") for column in range(pg.PQnfields(result))]
        return tuple(
            {
                name: None
                if pg.PQgetisnull(result, row, column)
                else pg.PQgetvalue(result, row, column).decode("utf-8", "replace")
                for column, name in enumerate(names)
            }
            for row in range(count)
        )

    def _failure(self, reached: bool, words: str = "") -> ConnectionFailed:
        words = words or self._words()
        needs_password = bool(self._library.PQconnectionNeedsPassword(self._connection))
        return ConnectionFailed(_detail(words), words, reached=reached, needs_password=needs_password)

    def _words(self) -> str:
        """libpq's or the server's message."""
        message: bytes = self._library.PQerrorMessage(self._connection) or b""
        return message.decode("utf-8", "replace").strip()


def _detail(words: str) -> str:
    """The line of a message that says what went wrong."""
    said = [line for line in words.splitlines() if line and not line.startswith(_ASIDES)]
    return said[-1] if said else "no message from libpq"
