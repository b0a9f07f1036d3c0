"""PgBouncer's admin console: log in, look, tell. Every answer is read by column name, for the columns moved often."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from time import monotonic, sleep
from typing import TYPE_CHECKING, NamedTuple

from efm_lb import Connection, ConnectionFailed, PermanentError, Reply, StatementFailed, TemporaryError
from efm_lb_pgbouncer.entries import Location

if TYPE_CHECKING:
    from efm_lb import Login

__all__ = ["LOGIN", "LOGIN_RETRY", "Console", "Database", "Interrupted", "Refused", "Server", "Session", "quoted"]

LOGIN: Mapping[str, str | None] = {"dbname": "pgbouncer", "passfile": None}
"""What wins over ADMIN, by libpq's keyword; None is the setting of that name."""
LOGIN_RETRY = "server_login_retry"
"""The setting: seconds for which no login is tried after one that failed, or that was broken off by PAUSE or KILL."""
_CONNECTED = 1.0
"""Seconds that clients have to come and be connected before that setting has its own value again."""
_FIRST_PAUSE = 0.005
_LONGEST_PAUSE = 0.1
_NO_RETRY = ("connection option", "connection string", "connection info string", "invalid port number")
"""What libpq says of an ADMIN that is no connection string."""
_LOGIN_REFUSED = ("28000", "28P01")
_REFUSALS = ("not allowed", "no such user", "authentication failed", "auth failed", "login rejected", "SSL required")
"""What PgBouncer says when it lets nobody in; most of it has the SQLSTATE of a protocol violation."""
_NO_PGBOUNCER = (
    *("expected authentication request", "invalid response to SSL negotiation"),
    *("error response during SSL exchange", ":  3D000: "),
)
"""What is said of a server that speaks another protocol; and what PostgreSQL says, which has no such database."""


class Interrupted(TemporaryError):
    """No console, or none any more: it may restart, so it may be tried anew."""


class Refused(Exception):
    """The console answers a command with an error."""


class Database(NamedTuple):
    """One row of SHOW DATABASES.

    :param pool_mode: empty where it has none of its own
    """

    location: Location
    paused: bool
    disabled: bool
    pool_mode: str


class Server(NamedTuple):
    """One connection to a database server, a row of SHOW SERVERS.

    :param pool: the entry, and the user
    :param host: an address, or ``unix``
    :param close_needed: it leads to where the entry led before
    :param logged_in: it can be given to a client
    """

    pool: tuple[str, str]
    host: str
    port: int
    close_needed: bool
    logged_in: bool

    @property
    def database(self) -> str:
        return self.pool[0]


class Console:
    """Where one PgBouncer process is told something. Holds no connection.

    :param conninfo: a libpq connection string without a password
    :param passfile: libpq's, or empty for its default
    :param connect_timeout: seconds that a login, and then each answer, may take
    :param begun: the first login, which is under way
    """

    def __init__(self, conninfo: str, passfile: str, connect_timeout: float, begun: Login | None = None) -> None:
        self.conninfo = conninfo
        self.passfile = passfile
        self.connect_timeout = connect_timeout
        self._begun = begun

    def __str__(self) -> str:
        return self.conninfo

    def session(self, limit: float) -> Session:
        """Log in.

        :param limit: by ``time.monotonic()``
        :raises Interrupted: no answer
        :raises PermanentError: the login is refused, or ADMIN is no connection string, or leads to another service
        """
        try:
            connection = self._connection(min(limit, monotonic() + self.connect_timeout))
        except ConnectionFailed as failure:
            if any(words in failure.words for words in _NO_RETRY):
                raise PermanentError(f"ADMIN {self} is no connection string: {failure}") from None
            if any(words in failure.words for words in _NO_PGBOUNCER):
                raise PermanentError(f"ADMIN {self} is no PgBouncer: {failure}") from None
            if failure.needs_password:
                raise PermanentError(f"{self} wants a password: {failure}; PASSFILE must have a line for it") from None
            if _is_refusal(failure):
                raise PermanentError(f"{self} refuses the login: {failure}; the user must be in admin_users") from None
            raise Interrupted(f"{self}: {failure}") from None
        return Session(self, connection, self.connect_timeout)

    def _connection(self, until: float) -> Connection:
        begun, self._begun = self._begun, None
        if begun:
            try:
                return begun.connection(until)
            except ConnectionFailed:
                pass  # that was some time ago, and what was wrong then may be over
        keywords = {name: value or self.passfile for name, value in LOGIN.items() if value or self.passfile}
        return Connection(keywords, until, self.conninfo)


class Session:
    """A login to a console."""

    def __init__(self, console: Console, connection: Connection, patience: float) -> None:
        self.console = console
        self.connection = connection
        self._patience = patience

    def close(self) -> None:
        self.connection.close()

    def command(self, statement: str, limit: float, patience: float | None = None) -> str:
        """Send a command.

        :param patience: seconds for the answer, where they are not the usual ones
        :return: the command tag
        :raises Refused: the console answers with an error
        :raises Interrupted: no answer
        :raises PermanentError: the user has no right to it
        """
        return self._ask(statement, limit, patience).tag

    def databases(self, limit: float) -> dict[str, Database]:
        """SHOW DATABASES, by name."""
        found = {}
        for row in self._rows("SHOW DATABASES", limit):
            host = row["host"]
            location = Location(tuple(host.split(",")) if host else (), row.number("port"))
            found[row["name"] or ""] = Database(
                location, row["paused"] == "1", row["disabled"] == "1", row["pool_mode"] or ""
            )
        return found

    def servers(self, limit: float) -> list[Server]:
        """SHOW SERVERS."""
        return [
            Server(
                _pool(row),
                row["addr"] or "",
                row.number("port"),
                row["close_needed"] == "1",
                row["state"] != "new",
            )
            for row in self._rows("SHOW SERVERS", limit)
        ]

    def pools(self, limit: float) -> dict[tuple[str, str], bool]:
        """SHOW POOLS: each pool, and whether a client waits for a server of it."""
        return {_pool(row): row["cl_waiting"] != "0" for row in self._rows("SHOW POOLS", limit)}

    def wait_connected(self, names: Iterable[str], failed: Collection[str], limit: float) -> None:
        """Wait, for a second at most, until each pool of these databases has a server if a client waits for one.

        :param failed: those databases in which a login may have failed. Their clients may have been sent away, and come
            again in a moment, so each of their pools shall have a server. One that leads to where the entry led before
            is none: it is closed before the next client gets it.
        """
        names = set(names)
        left = limit - monotonic()
        until = monotonic() + min(_CONNECTED, left / 2)
        pause = _FIRST_PAUSE
        while True:
            pools = self.pools(limit)
            needed = {pool for pool, waits in pools.items() if pool[0] in names and (waits or pool[0] in failed)}
            if needed:
                needed -= {each.pool for each in self.servers(limit) if each.logged_in and not each.close_needed}
            if not needed or monotonic() + pause > until:
                return
            sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE)

    def settings(self, limit: float) -> dict[str, str]:
        """SHOW CONFIG."""
        return {row["key"] or "": row["value"] or "" for row in self._rows("SHOW CONFIG", limit)}

    def version(self, limit: float) -> str:
        """SHOW VERSION, such as ``PgBouncer 1.18.0``. Before 1.13 it was a notice: empty."""
        return next((row["version"] or "" for row in self._rows("SHOW VERSION", limit)), "")

    def _rows(self, statement: str, limit: float) -> tuple[_Row, ...]:
        try:
            return tuple(_Row(row, f"{self.console}: {statement}") for row in self._ask(statement, limit).rows)
        except Refused as refusal:
            raise PermanentError(f"{self.console}: {statement}: {refusal}") from None

    def _ask(self, statement: str, limit: float, patience: float | None = None) -> Reply:
        patience = self._patience if patience is None else patience
        try:
            return self.connection.query(statement, min(limit, monotonic() + patience))
        except StatementFailed as failure:
            if "admin access needed" in str(failure):
                raise PermanentError(
                    f"{self.console}: {statement}: {_words(failure)}: the user must be in admin_users"
                ) from None
            raise Refused(_words(failure)) from None
        except ConnectionFailed as failure:
            raise Interrupted(f"{self.console}: {statement}: {failure}") from None


class _Row(dict[str, "str | None"]):
    """A row that says what is wrong with it.

    :param where: which console answered it to which statement
    """

    def __init__(self, values: dict[str, str | None], where: str) -> None:
        super().__init__(values)
        self._where = where

    def number(self, name: str) -> int:
        text = self[name] or "0"
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise PermanentError(f"{self._where}: {name} is {text[:20]!r}, which is no number")
        return int(text)

    def __missing__(self, name: str) -> str | None:
        raise PermanentError(f"{self._where} has no column {name}: is this PgBouncer 1.9 or newer?")


def _pool(row: _Row) -> tuple[str, str]:
    return row["database"] or "", row["user"] or ""


def quoted(name: str) -> str:
    """A database name as the console's commands take it: bare words have no hyphen and no point there."""
    return f'"{name}"'


def _is_refusal(failure: ConnectionFailed) -> bool:
    said = str(failure)
    return any(state in _LOGIN_REFUSED for state in failure.sqlstates) or any(words in said for words in _REFUSALS)


def _words(failure: StatementFailed) -> str:
    """The message without severity and SQLSTATE."""
    return str(failure).split(": ", 2)[-1]
