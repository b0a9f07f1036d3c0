"""One connection to a PostgreSQL server or to PgBouncer's console, with a deadline for everything.

libpq does the talking (`efm_lb.libpq`), in the simple protocol, which is the only one that
PgBouncer's console speaks. Nothing here blocks longer than it is told, except a name look-up,
which nobody can bound.
"""

from __future__ import annotations

import select
import time

# Not socket, whose import costs more than all that is done here.
from _socket import SOCK_STREAM, getaddrinfo
from _thread import allocate_lock
from ctypes import c_char_p, c_void_p, cast
from os import environ

from efm_lb import libpq

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

__all__ = ["Connection", "ConnectionFailed", "Reply", "StatementFailed", "drop_misleading", "library"]

# Variables that would send a connection elsewhere or let libpq skip a standby, or that a pooler's console refuses.
_MISLEADING = (
    *("PGHOSTADDR", "PGSERVICE", "PGSERVICEFILE", "PGTARGETSESSIONATTRS", "PGLOADBALANCEHOSTS"),
    *("PGOPTIONS", "PGGEQO"),
)

# Lines of a message that do not say what went wrong.
_ASIDES = ("\t", "LOCATION:", "HINT:", "password retrieved from file")

_loading = allocate_lock()
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


class Reply:
    """The answer to a statement.

    :ivar rows: by column name, as texts; None is NULL
    :ivar tag: the command tag, such as ``SHOW``
    """

    __slots__ = ("rows", "tag")

    def __init__(self, rows: tuple[dict[str, str | None], ...], tag: str) -> None:
        self.rows = rows
        self.tag = tag


def drop_misleading() -> None:
    """Take out of the environment what would mislead libpq, before there are threads that read it."""
    for name in _MISLEADING:
        environ.pop(name, None)


def library() -> Any:
    """libpq, loaded once; the environment variables that would mislead it are gone from then on.

    :raises libpq.LibpqNotFoundError: this host has none
    """
    global _loaded
    with _loading:
        if _loaded is None:
            drop_misleading()
            _loaded = libpq.load()
    return _loaded


class Connection:
    """An open connection, to be used by one thread at a time.

    Where the host is a name with several addresses, they are tried in turn until one answers, each with a fair share
    of the time: libpq itself would wait for a silent one until all of it is over.

    :param keywords: libpq's connection keywords (host, port, user, dbname, passfile, ...)
    :param deadline: when the login must be done, by ``time.monotonic()``
    :param conninfo: a connection string; ``keywords`` win over what it says
    :raises ConnectionFailed: no connection within the deadline
    :raises libpq.LibpqNotFoundError: this host has no libpq

    .. versionadded:: 0.1
    """

    def __init__(self, keywords: Mapping[str, str], deadline: float, conninfo: str = "") -> None:
        self._library = library()
        self._connection: Any = None
        parameters = [("application_name", "efm-lb"), ("client_encoding", "UTF8")]
        if "PGGSSENCMODE" not in environ:
            # Looking for Kerberos credentials costs more than the question; those who encrypt with GSSAPI say so.
            parameters.append(("gssencmode", "disable"))
        if conninfo:
            # libpq reads the first dbname as a connection string; later keywords win.
            parameters.append(("dbname", conninfo))
        parameters += keywords.items()
        given = {**libpq.conninfo_keywords(self._library, conninfo), **keywords} if conninfo else keywords
        addresses = _addresses(given)
        if addresses:
            self._open_any(addresses, parameters, bool(conninfo), deadline)
        else:
            self._open(parameters, bool(conninfo), deadline)

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
                elif status in libpq.PGRES_COPIES:
                    raise ConnectionFailed("sends or wants data that nobody asked for", reached=True)
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

    def _open_any(
        self, addresses: Sequence[str], parameters: Sequence[tuple[str, str]], expand: bool, deadline: float
    ) -> None:
        """Connect to the first address that answers, and log in."""
        failures: list[ConnectionFailed] = []
        for number, address in enumerate(addresses):
            now = time.monotonic()
            share = (deadline - now) / (len(addresses) - number)
            try:
                self._open([*parameters, ("hostaddr", address)], expand, now + share)
                return
            except ConnectionFailed as failure:
                if failure.reached and not failure.silent:
                    raise  # an answer, if not the wanted one
                failures.append(failure)
        raise _of_all(addresses, failures)

    def _open(self, parameters: Sequence[tuple[str, str]], expand: bool, deadline: float) -> None:
        """Connect and log in.

        :param expand: the first dbname is a connection string
        """
        names = (c_char_p * (len(parameters) + 1))(*[name.encode() for name, _ in parameters], None)
        values = (c_char_p * (len(parameters) + 1))(*[value.encode() for _, value in parameters], None)
        self._connection = self._library.PQconnectStartParams(cast(names, c_void_p), cast(values, c_void_p), expand)
        self._library.PQsetErrorVerbosity(self._connection, libpq.VERBOSE)
        # libpq prints a server's notices to standard error as they are. PQclear of nothing receives them instead: a
        # function of Python's would need memory that can be written and executed, which some systems forbid.
        self._library.PQsetNoticeReceiver(self._connection, cast(self._library.PQclear, c_void_p), None)
        try:
            self._connect(deadline)
        except BaseException:
            self.close()
            raise

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

        def text(row: int, column: int) -> str | None:
            value: bytes = pg.PQgetvalue(result, row, column)
            # Each call costs, and a value that is not empty is not NULL.
            if not value and pg.PQgetisnull(result, row, column):
                return None
            return value.decode("utf-8", "replace")

        return tuple({name: text(row, column) for column, name in enumerate(names)} for row in range(count))

    def _failure(self, reached: bool, words: str = "") -> ConnectionFailed:
        words = words or self._words()
        needs_password = bool(self._library.PQconnectionNeedsPassword(self._connection))
        return ConnectionFailed(_detail(words), words, reached=reached, needs_password=needs_password)

    def _words(self) -> str:
        """libpq's or the server's message."""
        message: bytes = self._library.PQerrorMessage(self._connection) or b""
        return message.decode("utf-8", "replace").strip()


def _addresses(given: Mapping[str, str]) -> list[str]:
    """The addresses of the host that is to be connected to; none where libpq needs no look-up.

    :raises ConnectionFailed: there is no such name
    """
    host = given.get("host", "")
    # A socket's directory, an IPv6 address, several hosts, an IPv4 address.
    if not host or host[0] in "/@" or ":" in host or "," in host or host.replace(".", "").isdigit():
        return []
    if given.get("hostaddr"):
        return []
    try:
        # as bytes: a text would load the IDNA codec
        found = getaddrinfo(host.encode(), None, 0, SOCK_STREAM)
    except OSError as error:
        words = f'could not translate host name "{host}" to address: {error.strerror}'
        raise ConnectionFailed(words, words) from None
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _of_all(addresses: Sequence[str], failures: Sequence[ConnectionFailed]) -> ConnectionFailed:
    """What to say when no address answered."""
    if len(failures) == 1:
        return failures[0]
    said = [
        f"{address}: {failure}" if failure.silent else str(failure)  # libpq's own words name the address
        for address, failure in zip(addresses, failures, strict=True)
    ]
    return ConnectionFailed(
        "; ".join(said),
        "\n".join(failure.words for failure in failures),
        silent=any(failure.silent for failure in failures),
        reached=any(failure.reached for failure in failures),
    )


def _detail(words: str) -> str:
    """The line of a message that says what went wrong."""
    said = [line for line in words.splitlines() if line and not line.startswith(_ASIDES)]
    return said[-1] if said else "no message from libpq"
