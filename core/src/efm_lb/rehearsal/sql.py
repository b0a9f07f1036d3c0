"""A small synchronous SQL client on libpq, with a time limit on everything."""

from __future__ import annotations

import select
import time
from collections.abc import Mapping
from ctypes import CFUNCTYPE, c_char_p, c_int, c_void_p, cast
from functools import cache
from types import TracebackType
from typing import Any

from efm_lb import libpq

__all__ = ["Session", "SqlError", "query"]

_PGRES_COMMAND_OK = 1
_DIAG_SQLSTATE = ord("C")
_DIAG_MESSAGE_PRIMARY = ord("M")


class SqlError(Exception):
    """A connect or a statement failed.

    :param sqlstate: the server's code, empty when the words are libpq's own or the time was over
    :param cut: the session is gone
    """

    def __init__(self, message: str, sqlstate: str = "", cut: bool = False) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.cut = cut


# libpq prints notices to the standard error unless told otherwise.
_NOTICE_PROCESSOR = CFUNCTYPE(None, c_void_p, c_char_p)
_ignore_notice = _NOTICE_PROCESSOR(lambda argument, message: None)


@cache
def _library() -> Any:
    library = libpq.load()
    for name, restype, argtypes in (
        ("PQsetNoticeProcessor", c_void_p, (c_void_p, _NOTICE_PROCESSOR, c_void_p)),
        ("PQntuples", c_int, (c_void_p,)),
        ("PQnfields", c_int, (c_void_p,)),
        ("PQfname", c_char_p, (c_void_p, c_int)),
        ("PQgetisnull", c_int, (c_void_p, c_int, c_int)),
        ("PQresultErrorField", c_char_p, (c_void_p, c_int)),
    ):
        function = getattr(library, name)
        function.restype = restype
        function.argtypes = argtypes
    return library


class Session:
    """One connection, to be used by one thread at a time.

    :param host: a numeric address
    :param timeout: seconds for the connect and the login together
    :param options: further libpq keywords
    :raises SqlError: no session within the time limit
    """

    def __init__(
        self,
        host: str,
        port: int,
        user: str = "postgres",
        dbname: str = "postgres",
        timeout: float = 2.0,
        options: Mapping[str, str] | None = None,
    ) -> None:
        parameters = {
            "hostaddr": host,
            "port": str(port),
            "user": user,
            "dbname": dbname,
            "sslmode": "disable",
            "gssencmode": "disable",
            "client_encoding": "UTF8",
            "application_name": "rehearsal",
            **(options or {}),
        }
        self._pg = _library()
        keywords = (c_char_p * (len(parameters) + 1))(*(name.encode() for name in parameters), None)
        values = (c_char_p * (len(parameters) + 1))(*(value.encode() for value in parameters.values()), None)
        self._connection = self._pg.PQconnectStartParams(cast(keywords, c_void_p), cast(values, c_void_p), 0)
        self._pg.PQsetNoticeProcessor(self._connection, _ignore_notice, None)
        try:
            self._connect(time.monotonic() + timeout)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session. Harmless when it has ended already."""
        if self._connection:
            self._pg.PQfinish(self._connection)
            self._connection = None

    def execute(self, statement: str, timeout: float = 5.0) -> list[dict[str, str | None]]:
        """Run one statement and wait for its result.

        :param timeout: seconds; when they are over the session is closed
        :return: the rows as texts by column name, empty for a statement without rows
        :raises SqlError: the statement failed, the session was cut, or the time was over
        """
        if not self._connection:
            raise SqlError("the session is closed", cut=True)
        deadline = time.monotonic() + timeout
        if not self._pg.PQsendQuery(self._connection, statement.encode()):
            raise self._lost()
        rows: list[dict[str, str | None]] = []
        error: SqlError | None = None
        while True:
            while self._pg.PQisBusy(self._connection):
                if not self._wait(select.POLLIN, deadline):
                    self.close()
                    raise SqlError(f"no answer within {timeout:g} s", cut=True)
                if not self._pg.PQconsumeInput(self._connection):
                    raise self._lost()
            result = self._pg.PQgetResult(self._connection)
            if not result:
                break
            try:
                status = self._pg.PQresultStatus(result)
                if status == libpq.PGRES_TUPLES_OK:
                    rows = self._rows(result)
                elif status != _PGRES_COMMAND_OK:
                    error = self._error(result)
            finally:
                self._pg.PQclear(result)
        if error:
            if self._pg.PQstatus(self._connection) == libpq.CONNECTION_BAD:
                error.cut = True
                self.close()
            raise error
        return rows

    def _connect(self, deadline: float) -> None:
        started = time.monotonic()
        events = select.POLLOUT
        while self._pg.PQstatus(self._connection) != libpq.CONNECTION_BAD:
            if not self._wait(events, deadline):
                raise SqlError(f"no session within {deadline - started:.1f} s")
            polling = self._pg.PQconnectPoll(self._connection)
            if polling == libpq.POLLING_OK:
                return
            if polling == libpq.POLLING_FAILED:
                break
            events = select.POLLIN if polling == libpq.POLLING_READING else select.POLLOUT
        raise SqlError(self._words())

    def _wait(self, events: int, deadline: float) -> bool:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        ready = select.poll()
        ready.register(self._pg.PQsocket(self._connection), events)
        return bool(ready.poll(left * 1000))

    def _rows(self, result: Any) -> list[dict[str, str | None]]:
        pg = self._pg
        names = [pg.PQfname(result, column).decode() for column in range(pg.PQnfields(result))]
        return [
            {
                name: None
                if pg.PQgetisnull(result, row, column)
                else pg.PQgetvalue(result, row, column).decode("utf-8", "replace")
                for column, name in enumerate(names)
            }
            for row in range(pg.PQntuples(result))
        ]

    def _error(self, result: Any) -> SqlError:
        field = self._pg.PQresultErrorField
        message = field(result, _DIAG_MESSAGE_PRIMARY)
        sqlstate = (field(result, _DIAG_SQLSTATE) or b"").decode()
        return SqlError(message.decode("utf-8", "replace") if message else self._words(), sqlstate)

    def _lost(self) -> SqlError:
        error = SqlError(self._words(), cut=True)
        self.close()
        return error

    def _words(self) -> str:
        message: bytes = self._pg.PQerrorMessage(self._connection) or b""
        lines = message.decode("utf-8", "replace").strip().splitlines()
        return lines[0].strip() if lines else "no message from libpq"


def query(
    host: str, port: int, statement: str, user: str = "postgres", timeout: float = 5.0, dbname: str = "postgres"
) -> list[dict[str, Any]]:
    """Run one statement in a session of its own.

    :param timeout: seconds for the connect, and again for the statement
    :raises SqlError: as `Session` and `Session.execute`
    """
    with Session(host, port, user, dbname, timeout) as session:
        return session.execute(statement, timeout)
