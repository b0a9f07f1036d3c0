"""Ask the nodes of a cluster what they are, all at once, each within the connect time-out."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterable, Mapping
from ctypes import c_char_p, c_void_p, cast
from os import environ
from typing import Any

from efm_lb import libpq
from efm_lb.truth import Node, NodeState, Reach, Role, Truth

__all__ = ["Answers", "Probe"]

# The control file names a new timeline late: a primary's after the first checkpoint, a standby's after the first
# restartpoint. A primary's WAL names it at once, a standby's receiver to those who may see it (pg_monitor).
_ROLE_AND_TIMELINE = (
    b"SELECT pg_catalog.pg_is_in_recovery(), CASE WHEN pg_catalog.pg_is_in_recovery()"
    b" THEN GREATEST((SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()),"
    b" (SELECT min_recovery_end_timeline FROM pg_catalog.pg_control_recovery()),"
    b" (SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver))"
    b" ELSE ('x' || pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8))"
    b"::pg_catalog.bit(32)::pg_catalog.int4 END"
)

_ROLE = b"SELECT pg_catalog.pg_is_in_recovery(), NULL"
"""For a server where PUBLIC may not execute the functions that tell the timeline."""

# SQLSTATEs of a server that is up but takes no connection now: starting up or shutting
# down, shut down under the connection, out of connection slots.
_REJECTING = ("57P03", "57P01", "57P02", "53300")

# Lines of a message that do not say what went wrong.
_ASIDES = ("\t", "LOCATION:", "HINT:", "password retrieved from file")

# Variables that would send the probe of every node to one server, or let libpq skip a standby.
_MISLEADING = ("PGHOSTADDR", "PGSERVICE", "PGSERVICEFILE", "PGTARGETSESSIONATTRS", "PGLOADBALANCEHOSTS")


class Answers:
    """The answers of nodes that are being asked, as they come in from the threads that ask.

    :param timeout: seconds that every node has, from now on
    """

    def __init__(self, nodes: tuple[Node, ...], timeout: float) -> None:
        self.nodes = nodes
        self.started = time.monotonic()
        self.deadline = self.started + timeout
        self._states: dict[Node, NodeState] = {}
        self._news = threading.Condition()

    def add(self, state: NodeState) -> None:
        """Take a node's answer."""
        with self._news:
            self._states[state.node] = state
            self._news.notify()

    def truth(self) -> Truth:
        """Wait for the answers, each for the whole time-out: a node that is late may be a second primary, and one
        that is taken for silent may be taken out of a balancer.

        :return: one state per node, in their order; never raises for a node's sake
        """
        # A thread may be stuck in a name look-up, which libpq cannot bound; it is left behind.
        give_up = self.deadline + 0.1
        with self._news:
            while len(self._states) < len(self.nodes) and (left := give_up - time.monotonic()) > 0:
                self._news.wait(left)
            return Truth(tuple(self._states.get(node) or self._silence(node) for node in self.nodes))

    def _silence(self, node: Node) -> NodeState:
        seconds = time.monotonic() - self.started
        return NodeState(node, Reach.NO_RESPONSE, detail=f"no answer within {seconds:.1f} s", seconds=seconds)


class Probe:
    """Asks nodes in parallel, one thread each.

    :param keywords: libpq connection keywords (user, dbname, passfile, sslmode, ...)
    :param timeout: seconds that a node has to answer, from connect to the query's result
    :raises libpq.LibpqNotFoundError: this host has no libpq
    """

    def __init__(self, keywords: Mapping[str, str], timeout: float) -> None:
        self._library = libpq.load()
        self._keywords = {"application_name": "efm-lb", "client_encoding": "UTF8", **keywords}
        if "PGGSSENCMODE" not in environ:
            # Looking for Kerberos credentials costs more than the question; those who encrypt with GSSAPI say so.
            self._keywords["gssencmode"] = "disable"
        for name in _MISLEADING:
            environ.pop(name, None)
        self._timeout = timeout

    def ask(self, nodes: Iterable[Node], timeout: float | None = None) -> Answers:
        """Start asking ``nodes``; the caller may do something else before it wants the `Answers.truth`.

        :param timeout: less than the probe's own, in seconds
        """
        answers = Answers(tuple(nodes), min(self._timeout, timeout or self._timeout))
        for node in answers.nodes:
            threading.Thread(target=self._answer, args=(node, answers), daemon=True).start()
        return answers

    def truth(self, nodes: Iterable[Node], timeout: float | None = None) -> Truth:
        """Ask ``nodes`` and wait for their answers."""
        return self.ask(nodes, timeout).truth()

    def _answer(self, node: Node, answers: Answers) -> None:
        try:
            state = self._ask(node, answers.started, answers.deadline)
        except Exception as error:  # a bug here must not make a node look dead
            state = NodeState(node, Reach.DENIED, detail=f"a bug in efm-lb: {type(error).__name__}: {error}")
        answers.add(state)

    def _ask(self, node: Node, started: float, deadline: float) -> NodeState:
        connection = self._start(node)
        try:
            reach, detail = self._connect(connection, deadline)
            role = timeline = None
            if reach is Reach.ACCEPTING:
                reach, role, timeline, detail = self._question(connection, deadline)
        finally:
            self._library.PQfinish(connection)
        return NodeState(node, reach, role, timeline, detail, time.monotonic() - started)

    def _start(self, node: Node) -> Any:
        parameters = {
            **self._keywords,
            "host": node.host,
            "port": str(node.port),
        }
        keywords = (c_char_p * (len(parameters) + 1))(*(name.encode() for name in parameters), None)
        values = (c_char_p * (len(parameters) + 1))(*(value.encode() for value in parameters.values()), None)
        connection = self._library.PQconnectStartParams(cast(keywords, c_void_p), cast(values, c_void_p), 0)
        self._library.PQsetErrorVerbosity(connection, libpq.VERBOSE)
        return connection

    def _connect(self, connection: Any, deadline: float) -> tuple[Reach, str]:
        library = self._library
        reached = False
        if library.PQstatus(connection) == libpq.CONNECTION_BAD:
            return self._failure(connection, reached)
        events = select.POLLOUT
        while True:
            if not self._wait(connection, events, deadline):
                return Reach.NO_RESPONSE, "accepted the connection and went silent" if reached else "no answer in time"
            polling = library.PQconnectPoll(connection)
            if polling == libpq.POLLING_OK:
                return Reach.ACCEPTING, ""
            if polling == libpq.POLLING_FAILED:
                return self._failure(connection, reached)
            reached = reached or library.PQstatus(connection) > libpq.CONNECTION_STARTED
            events = select.POLLIN if polling == libpq.POLLING_READING else select.POLLOUT

    def _question(
        self, connection: Any, deadline: float, query: bytes = _ROLE_AND_TIMELINE
    ) -> tuple[Reach, Role | None, int | None, str]:
        library = self._library
        library.PQsetnonblocking(connection, 1)
        if not library.PQsendQuery(connection, query):
            reach, detail = self._failure(connection, reached=True)
            return reach, None, None, detail
        while library.PQflush(connection) == 1:
            if not self._wait(connection, select.POLLOUT, deadline):
                return Reach.NO_RESPONSE, None, None, "took the login and went silent"
        while library.PQisBusy(connection):
            if not self._wait(connection, select.POLLIN, deadline):
                return Reach.NO_RESPONSE, None, None, "took the login and went silent"
            if not library.PQconsumeInput(connection):
                break
        result = library.PQgetResult(connection)
        try:
            if not result or library.PQresultStatus(result) != libpq.PGRES_TUPLES_OK:
                reach, detail = self._failure(connection, reached=True)
                if query is _ROLE or "42501" not in _sqlstates(detail):
                    return reach, None, None, detail
            else:
                role = Role.STANDBY if library.PQgetvalue(result, 0, 0) == b"t" else Role.PRIMARY
                return Reach.ACCEPTING, role, int(library.PQgetvalue(result, 0, 1) or 0) or None, ""
        finally:
            library.PQclear(result)
        while result := library.PQgetResult(connection):
            library.PQclear(result)
        return self._question(connection, deadline, _ROLE)

    def _wait(self, connection: Any, events: int, deadline: float) -> bool:
        """Wait until the socket is ready; False when the deadline is over."""
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        ready = select.poll()
        ready.register(self._library.PQsocket(connection), events)
        return bool(ready.poll(left * 1000))

    def _words(self, connection: Any) -> str:
        """libpq's or the server's message, on one line."""
        message: bytes = self._library.PQerrorMessage(connection) or b""
        return message.decode("utf-8", "replace").strip()

    def _failure(self, connection: Any, reached: bool) -> tuple[Reach, str]:
        words = self._words(connection)
        said = [line for line in words.splitlines() if line and not line.startswith(_ASIDES)]
        detail = said[-1] if said else "no message from libpq"
        states = _sqlstates(words)
        if any(state in _REJECTING for state in states):
            return Reach.REJECTING, detail
        if states or self._library.PQconnectionNeedsPassword(connection):
            return Reach.DENIED, detail
        if "Connection refused" in words or "No such file or directory" in words:
            return Reach.REFUSED, detail
        # A postmaster that dies takes the connections in its queue with it.
        dropped = "closed the connection" in words or "Connection reset" in words or "Broken pipe" in words
        return (Reach.DENIED if reached and not dropped else Reach.NO_RESPONSE), detail


def _sqlstates(words: str) -> list[str]:
    """The SQLSTATEs in a verbose message, ``SEVERITY:  SQLSTATE: text``; the severity is in the server's language."""
    return [
        part[:5] for part in words.split(":  ")[1:] if part[5:7] == ": " and part[:5].isalnum() and part[:5].isascii()
    ]
