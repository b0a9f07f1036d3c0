"""HAProxy's runtime API: one short connection per request, everything bounded, every answer judged.

A request is one line of commands with a ``;`` between them. HAProxy carries them out in order, one that fails
does not stop the others, and each answer ends with an empty line. There is no exit code: a command that changes
something and succeeds answers nothing, one that fails answers a text.
"""

from __future__ import annotations

import _socket
import os
from collections.abc import Iterable, Mapping
from time import monotonic, sleep
from typing import NamedTuple

from efm_lb import PermanentError, TemporaryError
from efm_lb_haproxy.servers import FormatError, Server, parse_sessions, parse_state
from efm_lb_haproxy.settings import Endpoint, Tls

__all__ = ["Interrupted", "Look", "Runtime", "Unreachable", "answers_of"]

_MAX_RECEIVED = 16 * 1024 * 1024
"""Bytes; HAProxy tells about 150 per server."""
_RETRY_PAUSE = 0.01
"""Seconds before asking again after a broken connection, or a worker that is about to end."""


class Interrupted(TemporaryError):
    """The connection broke, or the answer makes no sense: a new one may do better."""


class Unreachable(TemporaryError):
    """Nobody listens, or nobody answers: HAProxy is down, or frozen."""


class Look(NamedTuple):
    """What HAProxy believes at one moment.

    :param pid: of the worker that answered
    :param stopping: it was replaced by a reload, and only serves old sessions
    :param proxies: the servers by proxy; a proxy that HAProxy does not have is left out
    :param refusals: what the commands of the same request answered, where they should answer nothing
    """

    pid: int
    stopping: bool
    version: str
    proxies: Mapping[str, tuple[Server, ...]]
    refusals: tuple[str, ...] = ()


class Runtime:
    """The runtime API of one HAProxy. Holds no connection.

    :param connect_timeout: seconds that a connect, and the answer to a request, may take
    """

    def __init__(self, endpoint: Endpoint, connect_timeout: float, tls: Tls | None = None) -> None:
        self.endpoint = endpoint
        self._connect_timeout = connect_timeout
        self._tls = tls

    def look(self, proxies: Iterable[str], deadline: float, commands: tuple[str, ...] = ()) -> Look:
        """Carry out ``commands`` and tell how things are after them, in one request to one worker.

        Without commands, a connection that breaks is tried anew for as long as a connect may take.

        :param deadline: by ``time.monotonic()``
        :raises Unreachable: it is down, or does not answer
        :raises TemporaryError: its answer is none
        :raises PermanentError: HAProxy does not allow the commands, or it is no HAProxy
        """
        names = tuple(proxies)
        give_up = min(deadline, monotonic() + self._connect_timeout)
        while True:
            try:
                look = self._look(names, deadline, commands)
                if not look.stopping or commands:
                    return look
                problem = Interrupted(f"{self.endpoint}: worker {look.pid} is stopping, and no other one answers")
            except Interrupted as error:
                if commands:
                    raise
                problem = error
            if monotonic() + _RETRY_PAUSE >= give_up:
                raise problem
            sleep(_RETRY_PAUSE)

    def ask(self, command: str, deadline: float) -> str:
        """The answer to one command. Raises as `look`."""
        return self._request((command,), deadline)[1]

    def _look(self, proxies: tuple[str, ...], deadline: float, commands: tuple[str, ...]) -> Look:
        queries = [query for name in proxies for query in (f"show servers state {name}", f"show stat {name} 4 -1")]
        info, *answers = self._request((*commands, *queries), deadline)
        facts = dict(line.split(": ", 1) for line in info.splitlines() if ": " in line)
        told = {}
        try:
            for i, name in enumerate(proxies):
                state, statistics = answers[len(commands) + 2 * i : len(commands) + 2 * i + 2]
                if state.startswith("Can't find backend"):
                    continue
                sessions = parse_sessions(statistics)
                servers = parse_state(state)
                told[name] = tuple([server._replace(sessions=sessions.get(server.name, 0)) for server in servers])
            pid = int(facts["Pid"])
        except (FormatError, KeyError, ValueError) as error:
            raise Interrupted(f"{self.endpoint} answered {error}") from None
        refusals = tuple(
            f"{command}: {answer.strip().splitlines()[0][:200]}"
            for command, answer in zip(commands, answers, strict=False)
            if answer
        )
        if any(refusal.endswith("Permission denied") for refusal in refusals):
            level = self._level(deadline)
            raise PermanentError(
                f"{self.endpoint} is at level {level}: changes need `level admin` on its `stats socket` line"
            )
        return Look(pid, facts.get("Stopping") == "1", facts.get("Version", ""), told, refusals)

    def _level(self, deadline: float) -> str:
        try:
            return self.ask("show cli level", deadline).strip() or "user"
        except TemporaryError:
            return "user or operator"

    def _request(self, commands: tuple[str, ...], deadline: float) -> list[str]:
        """The answers to ``show info`` and to ``commands``, on one connection."""
        limit = min(deadline, monotonic() + self._connect_timeout)
        line = ";".join(("show info", *commands)) + "\n"
        connection = _open(self.endpoint, limit)
        try:
            if self._tls:
                # 30 ms to import: only where it is asked for.
                from efm_lb_haproxy.tls import wrapped

                connection = wrapped(connection, self.endpoint, self._tls)
            return self._answers(connection, line.encode("ascii"), len(commands) + 1, limit)
        except OSError as error:
            raise Interrupted(f"{self.endpoint} broke the connection ({error.strerror})") from None
        finally:
            connection.close()

    def _answers(self, connection: _socket.socket, line: bytes, count: int, limit: float) -> list[str]:
        received = b""
        try:
            _patience(connection, limit)
            connection.sendall(line)
            while True:
                _patience(connection, limit)
                piece = connection.recv(262144)
                if not piece:
                    break
                received += piece
                if len(received) > _MAX_RECEIVED:
                    raise Interrupted(f"{self.endpoint} sent more than {_MAX_RECEIVED} bytes")
                answers = answers_of(received, count) if received.endswith(b"\n") else None
                if answers is not None:
                    break
        except TimeoutError:
            if not received:
                raise Unreachable(f"{self.endpoint} accepted the connection and did not answer in time") from None
        self._demand_haproxy(received)
        answers = answers_of(received, count)
        if answers is None:
            raise Interrupted(f"{self.endpoint} ended in the middle of an answer")
        return answers

    def _demand_haproxy(self, received: bytes) -> None:
        if not received:
            raise Interrupted(f"{self.endpoint} closed the connection without an answer: is it a `stats socket`?")
        if received.startswith(b"Unknown command"):
            raise PermanentError(f"{self.endpoint} is the command line of HAProxy's master: name a `stats socket`")
        if not received.startswith(b"Name: "):
            raise PermanentError(f"{self.endpoint} answers, but is no `stats socket` of HAProxy")


def answers_of(received: bytes, count: int) -> list[str] | None:
    """The answers to ``count`` commands, None while there are fewer. Pure.

    A command that has nothing to say answers an empty line, any other one its text and an empty line.
    """
    text = received.decode("utf-8", "replace")
    answers: list[str] = []
    start = 0
    while len(answers) < count:
        if text.startswith("\n", start):
            answers.append("")
            start += 1
            continue
        end = text.find("\n\n", start)
        if end < 0:
            return None
        answers.append(text[start : end + 1])
        start = end + 2
    return answers


def _patience(connection: _socket.socket, limit: float) -> None:
    left = limit - monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)


def _open(endpoint: Endpoint, limit: float) -> _socket.socket:
    """Connect to the first address that accepts, giving each a fair share of the time."""
    candidates = _addresses(endpoint)
    problem = "it has no address"
    for number, (family, address) in enumerate(candidates):
        share = (limit - monotonic()) / (len(candidates) - number)
        if share <= 0:
            problem = "time is up"
            break
        connection = _socket.socket(family, _socket.SOCK_STREAM)
        try:
            connection.settimeout(share)
            connection.connect(address)
            return connection
        except TimeoutError:
            problem = "no answer in time"
        except PermissionError as error:
            connection.close()
            raise PermanentError(
                f"cannot connect to {endpoint}: {error.strerror}; give uid {os.geteuid()} access to it with"
                " `mode`, `user` or `group` on its `stats socket` line"
            ) from None
        except OSError as error:
            problem = error.strerror or str(error)
        except BaseException:
            connection.close()
            raise
        connection.close()
    raise Unreachable(f"cannot connect to {endpoint}: {problem}")


def _addresses(endpoint: Endpoint) -> list[tuple[int, str | tuple[object, ...]]]:
    if endpoint.port is None:
        return [(_socket.AF_UNIX, endpoint.host)]
    try:
        # as bytes: a text would load the IDNA codec
        host = endpoint.host.encode("ascii")
    except UnicodeEncodeError:
        raise PermanentError(f"SOCKET: {endpoint.host!r} is no host name") from None
    try:
        found = _socket.getaddrinfo(host, str(endpoint.port), 0, _socket.SOCK_STREAM)
    except OSError as error:
        raise TemporaryError(f"cannot resolve {endpoint.host}: {error.strerror or error}") from None
    return [(family, address) for family, _, _, _, address in found]
