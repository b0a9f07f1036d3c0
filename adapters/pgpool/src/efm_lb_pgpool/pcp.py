"""A PCP client: one short, logged-in connection to one pgpool.

Connections are meant to be short on purpose. Up to pgpool 4.4 an open PCP connection blocks
pgpool's main process during a state change (its PCP listener waits for its workers), so a
connection is closed before anything is waited for longer than a moment.

The protocol has no encryption; only the password is protected, by an md5 challenge.
"""

from __future__ import annotations

# _socket, not socket: the module around it costs ten times as many instructions to load, in a process that
# starts during an outage, for file objects and enums that are not used here. The same goes for _md5.
import _socket
from collections.abc import Iterator
from time import monotonic
from typing import NamedTuple, Self

from efm_lb import PermanentError, TemporaryError
from efm_lb_pgpool import frames, node_info
from efm_lb_pgpool.frames import HEADER_SIZE, FrameError, Notice
from efm_lb_pgpool.node_info import Backend

try:
    from _md5 import md5  # type: ignore[import-not-found]
except ImportError:  # a Python built without digests of its own
    from hashlib import md5

__all__ = ["Interrupted", "Nodes", "Refusal", "Server", "Session", "connect"]

_MAX_RECEIVED = 4 << 20
"""Bytes that one session may receive: hundreds of times what the longest real answer takes."""
_MAX_BACKENDS = 128
"""MAX_NUM_BACKENDS in pgpool's pool_type.h."""
_SALT_SIZE = 4
_SSL_REQUEST = b"\0\0\0\x08\x04\xd2\x16\x2f"
"""PostgreSQL's SSLRequest (protocol, 55.7): answered by one byte, S or N."""
_POSTGRESQL_PATIENCE = 0.5
"""Seconds for that answer."""
_COMPLETE = "CommandComplete"


class Interrupted(TemporaryError):
    """The connection broke, or went out of step; asking again on a new one is worth it at once.

    pgpool restarts its PCP listener about 1 s after every state change, which resets a connection now and then.
    """


class _NoGreeting(Interrupted):
    """It broke before the server had said anything: a restart, or another protocol."""


class Refusal(TemporaryError):
    """pgpool answered a request with an error. Whether another try may help, only its words tell."""

    def __init__(self, server: Server, notice: Notice) -> None:
        super().__init__(f"{server} says: {notice}")
        self.notice = notice


class Server(NamedTuple):
    """Where one pgpool listens for PCP.

    :param host: a name, an address, or a directory with a Unix socket in it when it begins with ``/``
    """

    host: str
    port: int

    @property
    def socket_path(self) -> str | None:
        return f"{self.host}/.s.PGSQL.{self.port}" if self.host.startswith("/") else None

    def __str__(self) -> str:
        return self.socket_path or (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}")


class Nodes(NamedTuple):
    """All backends of a pgpool, in the order of their ids.

    :param since_4_3: it speaks the dialect of pgpool 4.3 and later
    """

    backends: tuple[Backend, ...]
    since_4_3: bool


def connect(server: Server, user: str, password: str, deadline: float, connect_timeout: float) -> Session:
    """Connect and log in.

    :param deadline: for everything that is done with the session, by ``time.monotonic()``
    :param connect_timeout: seconds that connecting and logging in may take together
    :raises TemporaryError: no connection, no answer in time, or no PCP at all
    :raises Interrupted: the connection broke during the login
    :raises PermanentError: the login was refused
    """
    limit = min(deadline, monotonic() + connect_timeout)
    session = Session(server, _open(server, limit), limit)
    try:
        session.log_in(user, password)
    except _NoGreeting:
        session.close()
        if _speaks_postgresql(server, limit):
            raise TemporaryError(
                f"{server} speaks PostgreSQL's protocol and not PCP: is it pgpool's pcp_port?"
            ) from None
        raise
    except BaseException:
        session.close()
        raise
    session.deadline = deadline
    return session


class Session:
    """A connection to pgpool's PCP port, usable as a context manager.

    Every method raises `Refusal` when pgpool refuses, TemporaryError when ``deadline`` passes, and `Interrupted`
    when the connection breaks or answers something that it was not asked.

    :param deadline: by ``time.monotonic()``; may be moved between requests
    """

    def __init__(self, server: Server, connection: _socket.socket, deadline: float) -> None:
        self.server = server
        self.deadline = deadline
        self.notices: list[Notice] = []
        self._connection = connection
        self._received = 0
        self._buffer = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Say goodbye and close; never raises."""
        try:
            self._connection.settimeout(0)
            self._connection.send(frames.encode(b"X"))
        except OSError:
            pass  # it is closed anyway
        finally:
            self._connection.close()

    def log_in(self, user: str, password: str) -> None:
        """Answer the md5 challenge.

        :raises TemporaryError: what listens there speaks another protocol
        :raises PermanentError: pgpool refuses the login
        """
        try:
            self._send(b"M")
            kind, salt = self._frame(b"mE")
        except FrameError:
            raise TemporaryError(
                f"{self.server} does not speak PCP, it sent {bytes(self._buffer[:16])!r}: is it pgpool's pcp_port?"
            ) from None
        except Interrupted as error:
            broken = Interrupted if self._buffer else _NoGreeting
            raise broken(f"{error} before the login: is it pgpool's pcp_port?") from None
        if kind == b"E":
            raise self._login_refused(user, salt)
        if len(salt) != _SALT_SIZE:
            raise TemporaryError(f"{self.server} does not speak PCP: a salt of {len(salt)} bytes")
        stored = _md5_hex(_bytes(password))
        answer = _md5_hex(_md5_hex(stored + _bytes(user)) + salt)
        try:
            request = frames.encode(b"R", _bytes(user) + b"\0" + answer + b"\0")
        except ValueError:
            raise PermanentError("the PCP user name is too long") from None
        try:
            self._connection_send(request)
            kind, body = self._frame(b"rEN")
            while kind == b"N":
                kind, body = self._frame(b"rEN")
        except FrameError as error:
            raise Interrupted(f"{self.server} sent an {error} in answer to the login") from None
        if kind == b"E":
            raise self._login_refused(user, body)
        if frames.fields(body) != ["AuthenticationOK"]:
            raise TemporaryError(f"{self.server} answered the login with something other than AuthenticationOK")

    def nodes(self, since_4_3: bool = False) -> Nodes:
        """Read all backends.

        :param since_4_3: the dialect is known already: one request does it
        """
        if since_4_3:
            return Nodes(tuple(self._all_nodes()), True)
        count = self._number(self._ask(b"L", b"", b"l"))
        if not 0 < count <= _MAX_BACKENDS:
            raise Interrupted(f"{self.server} says that it has {count} backends")
        first = self._ask(b"I", b"0\0", b"i")
        if first[:1] != ["ArraySize"]:
            others = (self._ask(b"I", b"%d\0" % node_id, b"i") for node_id in range(1, count))
            return Nodes(tuple(self._backend(i, values) for i, values in enumerate((first, *others))), False)
        backends = [self._backend(0, self._next(b"i"))]
        self._complete(b"i")
        if count > 1:
            backends = list(self._all_nodes())
        if len(backends) != count:
            raise Interrupted(f"{self.server} sent {len(backends)} of its {count} backends")
        return Nodes(tuple(backends), True)

    def attach(self, node_id: int) -> None:
        """Ask to attach a node. The answer means "queued"; nothing about the node is checked by pgpool."""
        self._command(b"C", b"%d\0" % node_id, b"c")

    def detach(self, node_id: int) -> None:
        """Ask to detach a node. The answer means "queued"."""
        self._command(b"D", b"%d\0" % node_id, b"d")

    def promote(self, node_id: int, since_4_3: bool) -> None:
        """Ask to take a node for the primary. pgpool throws every other node out, and does not look at PostgreSQL.

        :param since_4_3: a server from 4.3 on reads an option byte, past the end of a request without one
        """
        body = b"%d \0n" % node_id if since_4_3 else b"%d\0" % node_id
        self._command(b"J", body, b"d")

    def settings(self) -> dict[str, str]:
        """pgpool's settings as it runs with them. Some hold passwords: never show one unasked."""
        self._ask(b"B", b"", b"b")
        settings = {}
        while (row := self._next(b"b"))[:1] != [_COMPLETE]:
            if len(row) < 2 or row[0] != "ProcessConfig":
                raise Interrupted(f"{self.server} sent a setting that is none")
            settings[row[1]] = row[2] if len(row) > 2 else ""
        return settings

    def watchdog(self) -> str | None:
        """The watchdog cluster as JSON text, or None when the watchdog is off."""
        try:
            reply = self._ask(b"W", b"-1\0", b"w")
        except Refusal as refusal:
            if "not enabled" in str(refusal.notice):
                return None
            raise
        return reply[1] if len(reply) > 1 else ""

    def want_log(self) -> None:
        """Have pgpool send its LOG lines about this session too: the only sign of what its reply hides."""
        self._ask(b"A", b"client_min_messages\0log\0", b"a")

    def _command(self, kind: bytes, body: bytes, reply: bytes) -> None:
        if self._ask(kind, body, reply)[:1] != [_COMPLETE]:
            raise Interrupted(f"{self.server} did not complete the command")

    def _all_nodes(self) -> Iterator[Backend]:
        count = self._number(self._ask(b"I", b"-1\0", b"i"))
        if not 0 < count <= _MAX_BACKENDS:
            raise Interrupted(f"{self.server} says that it has {count} backends")
        for node_id in range(count):
            yield self._backend(node_id, self._next(b"i"))
        self._complete(b"i")

    def _backend(self, node_id: int, row: list[str]) -> Backend:
        try:
            return node_info.parse(node_id, row[1:])
        except FrameError as error:
            raise Interrupted(f"{self.server} sent {error}") from None

    def _number(self, row: list[str]) -> int:
        try:
            return int(row[1])
        except (IndexError, ValueError):
            raise Interrupted(f"{self.server} sent no number where one belongs") from None

    def _complete(self, reply: bytes) -> None:
        if self._next(reply)[:1] != [_COMPLETE]:
            raise Interrupted(f"{self.server} sent more than it announced")

    def _ask(self, kind: bytes, body: bytes, reply: bytes) -> list[str]:
        self._send(kind, body)
        return self._next(reply)

    def _next(self, reply: bytes) -> list[str]:
        """The texts of the next message of type ``reply``; notices before it are collected."""
        while True:
            try:
                kind, body = self._frame(reply + b"EN")
            except FrameError as error:
                raise Interrupted(f"{self.server} sent an {error}") from None
            if kind == reply:
                return frames.fields(body)
            if kind == b"E":
                raise Refusal(self.server, frames.notice(body))
            self.notices.append(frames.notice(body))

    def _login_refused(self, user: str, body: bytes) -> PermanentError:
        return PermanentError(f"{self.server} refuses the login of PCP user {user}: {frames.notice(body)}")

    def _frame(self, expected: bytes) -> tuple[bytes, bytes]:
        self._fill(HEADER_SIZE)
        kind, length = frames.body_length(bytes(self._buffer[:HEADER_SIZE]), expected)
        self._fill(HEADER_SIZE + length)
        body = bytes(self._buffer[HEADER_SIZE : HEADER_SIZE + length])
        del self._buffer[: HEADER_SIZE + length]
        return kind, body

    def _fill(self, size: int) -> None:
        """Receive until the buffer holds ``size`` bytes."""
        while len(self._buffer) < size:
            self._patience()
            try:
                received = self._connection.recv(65536)
            except TimeoutError:
                raise self._too_late() from None
            except OSError as error:
                raise Interrupted(f"{self.server} broke the connection ({error.strerror})") from None
            if not received:
                raise Interrupted(f"{self.server} closed the connection")
            self._received += len(received)
            if self._received > _MAX_RECEIVED:
                raise Interrupted(f"{self.server} sent more than {_MAX_RECEIVED} bytes")
            self._buffer += received

    def _send(self, kind: bytes, body: bytes = b"") -> None:
        self._connection_send(frames.encode(kind, body))

    def _connection_send(self, request: bytes) -> None:
        self._patience()
        try:
            self._connection.sendall(request)
        except TimeoutError:
            raise self._too_late() from None
        except OSError as error:
            raise Interrupted(f"{self.server} broke the connection ({error.strerror})") from None

    def _patience(self) -> None:
        left = self.deadline - monotonic()
        if left <= 0:
            raise self._too_late()
        self._connection.settimeout(left)

    def _too_late(self) -> TemporaryError:
        return TemporaryError(f"{self.server} accepted the connection and did not answer in time")


def _open(server: Server, limit: float) -> _socket.socket:
    """Connect to the first address that accepts, giving each a fair share of the time."""
    candidates = _addresses(server)
    problem = "it has no address"
    for number, (family, address) in enumerate(candidates):
        share = (limit - monotonic()) / (len(candidates) - number)
        if share <= 0:
            problem = "time is up"
            break
        try:
            connection = _socket.socket(family, _socket.SOCK_STREAM)
        except OSError as error:  # such as an address of a family that this kernel does not have
            problem = error.strerror or str(error)
            continue
        try:
            connection.settimeout(share)
            connection.connect(address)
            return connection
        except TimeoutError:
            problem = "no answer in time"
        except OSError as error:
            problem = error.strerror or str(error)
        except BaseException:
            connection.close()
            raise
        connection.close()
    raise TemporaryError(f"cannot connect to {server}: {problem}")


def _speaks_postgresql(server: Server, limit: float) -> bool:
    """Whether PostgreSQL, pgpool or PgBouncer listens there for clients. All hang up on what PCP begins with."""
    limit = min(limit, monotonic() + _POSTGRESQL_PATIENCE)
    try:
        connection = _open(server, limit)
    except TemporaryError:
        return False
    try:
        connection.settimeout(max(0.001, limit - monotonic()))
        connection.sendall(_SSL_REQUEST)
        return connection.recv(HEADER_SIZE) in (b"S", b"N")
    except OSError:
        return False
    finally:
        connection.close()


def _addresses(server: Server) -> list[tuple[int, str | tuple[object, ...]]]:
    path = server.socket_path
    if path:
        return [(_socket.AF_UNIX, path)]
    try:
        # as bytes: a text would load the IDNA codec
        host = server.host.encode("ascii")
    except UnicodeEncodeError:
        try:
            host = server.host.encode("idna")
        except UnicodeError:
            raise PermanentError(f"{server.host!r} is no host name") from None
    try:
        found = _socket.getaddrinfo(host, str(server.port), 0, _socket.SOCK_STREAM)
    except OSError as error:
        raise TemporaryError(f"cannot resolve {server.host}: {error.strerror or error}") from None
    return [(family, address) for family, _, _, _, address in found]


def _md5_hex(data: bytes) -> bytes:
    digest: str = md5(data, usedforsecurity=False).hexdigest()
    return digest.encode("ascii")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
