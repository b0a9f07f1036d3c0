"""Ask the nodes of a cluster what they are, all at once, each within the connect time-out."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from efm_lb.background import Background
from efm_lb.connection import Connection, ConnectionFailed, StatementFailed, library
from efm_lb.errors import lack
from efm_lb.truth import Node, NodeState, Reach, Role, Truth

if TYPE_CHECKING:
    from efm_lb.handover import Kept
    from efm_lb.head_start import HeadStart

__all__ = ["Answers", "Probe", "failed", "question", "unasked"]

# The control file names a new timeline late: a primary's after the first checkpoint, a standby's after the first
# restartpoint. A primary's WAL names it at once, a standby's receiver to those who may see it (pg_monitor).
_ROLE_AND_TIMELINE = (
    b"SELECT pg_catalog.pg_is_in_recovery() AS recovering, CASE WHEN pg_catalog.pg_is_in_recovery()"
    b" THEN GREATEST((SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()),"
    b" (SELECT min_recovery_end_timeline FROM pg_catalog.pg_control_recovery()),"
    b" (SELECT received_tli FROM pg_catalog.pg_stat_get_wal_receiver()))"
    b" ELSE ('x' || pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8))"
    b"::pg_catalog.bit(32)::pg_catalog.int4 END AS timeline"
)

_ROLE = b"SELECT pg_catalog.pg_is_in_recovery() AS recovering, NULL AS timeline"
"""For a server where PUBLIC may not execute the functions that tell the timeline."""

# SQLSTATEs of a server that is up but takes no connection now: starting up or shutting down, shut down under the
# connection.
_REJECTING = ("57P03", "57P01", "57P02")
_TOO_MANY_CONNECTIONS = "53300"


SECOND_LOOK = 0.5
"""Seconds that a node has to answer which has been silent for the whole time-out already."""


class Answers:
    """The answers of nodes that are being asked, as they come in from the threads that ask.

    :param deadlines: of each node, by ``time.monotonic()``
    """

    def __init__(self, deadlines: Mapping[Node, float]) -> None:
        self.nodes = tuple(deadlines)
        self.started = time.monotonic()
        self.deadlines = deadlines
        self._states: dict[Node, NodeState] = {}
        self._news = threading.Condition()

    def add(self, state: NodeState) -> None:
        """Take a node's answer."""
        with self._news:
            self._states[state.node] = state
            self._news.notify()

    def truth(self) -> Truth:
        """Wait for the answers, each for all of its time: a node that is late may be a second primary, and one that is
        taken for silent may be taken out of a balancer.

        :return: one state per node, in their order; never raises for a node's sake
        """
        # A thread may be stuck in a name look-up, which libpq cannot bound; it is left behind.
        give_up = max(self.deadlines.values(), default=0.0) + 0.1
        with self._news:
            while len(self._states) < len(self.nodes) and (left := give_up - time.monotonic()) > 0:
                self._news.wait(left)
            return Truth(tuple(self._states.get(node) or self._silence(node) for node in self.nodes))

    def _silence(self, node: Node) -> NodeState:
        seconds = time.monotonic() - self.started
        return NodeState(node, Reach.NO_RESPONSE, detail=f"no answer within {seconds:.1f} s", seconds=seconds)


class Probe:
    """Asks nodes in parallel, one thread each.

    A node that has been silent for the whole time-out does not get it again when it is asked once more, but
    `SECOND_LOOK`: a dead host costs its time-out once, however often the databases are asked.

    :param keywords: libpq connection keywords (user, dbname, passfile, sslmode, ...)
    :param timeout: seconds that a node has to answer, from connect to the query's result
    :param begun: logins that are under way; each serves one question
    :ivar kept: by node: open connections that are handed over to the probe; each serves one question
    """

    def __init__(self, keywords: Mapping[str, str], timeout: float, begun: HeadStart | None = None) -> None:
        self.timeout = timeout
        self.kept: dict[Node, Kept] = {}
        self._keywords = keywords
        self._begun = begun
        self._silent_since: dict[tuple[str, int], float] = {}

    def ask(self, nodes: Iterable[Node], timeout: float | None = None) -> Answers:
        """Start asking ``nodes``; the caller may do something else before it wants the `Answers.truth`.

        :param timeout: less than the probe's own, in seconds
        :raises libpq.LibpqNotFoundError: this host has no libpq
        """
        library()  # before there are threads: it changes the environment
        answers = Answers({node: self._deadline(node, min(self.timeout, timeout or self.timeout)) for node in nodes})
        for node in answers.nodes:
            try:
                Background(self._answer, node, answers)
            except RuntimeError as error:  # no more threads for this user
                answers.add(unasked(node, error))
        return answers

    def truth(self, nodes: Iterable[Node], timeout: float | None = None) -> Truth:
        """Ask ``nodes`` and wait for their answers. Raises as `ask`."""
        return self.ask(nodes, timeout).truth()

    def start_over(self) -> None:
        """Ask on new connections only: what those under way say may be out of date."""
        if self._begun:
            for place, login in self._begun.logins.items():
                if login.is_silent:
                    self._silent_since[place] = self._begun.started
            self._begun.drop()

    def connect(self, node: Node, deadline: float) -> Connection:
        """Log in to ``node``.

        :param deadline: by ``time.monotonic()``
        :raises ConnectionFailed: no connection within the deadline
        """
        return Connection(self._given(node), deadline)

    def _given(self, node: Node) -> dict[str, str]:
        return {**self._keywords, "host": node.host, "port": str(node.port)}

    def _deadline(self, node: Node, timeout: float) -> float:
        now = time.monotonic()
        place = node.host, node.port
        began = self._begun.started if self._begun and place in self._begun.logins else now
        silent_since = self._silent_since.setdefault(place, began)
        return max(now + min(SECOND_LOOK, timeout), min(silent_since + self.timeout, now + timeout))

    def _answer(self, node: Node, answers: Answers) -> None:
        try:
            state = self._ask(node, answers.started, answers.deadlines[node])
        except Exception as error:  # a bug here must not make a node look dead
            state = unasked(node, error)
        if state.reach is not Reach.NO_RESPONSE:
            self._silent_since.pop((node.host, node.port), None)
        answers.add(state)

    def _ask(self, node: Node, started: float, deadline: float) -> NodeState:
        answer = self._on_kept(node, deadline)
        if not answer:
            try:
                login = self._begun.logins.pop((node.host, node.port), None) if self._begun else None
                with login.connection(deadline) if login else self.connect(node, deadline) as connection:
                    answer = question(connection, deadline)
            except (ConnectionFailed, StatementFailed) as failure:
                return failed(node, failure, self._given(node))._replace(seconds=time.monotonic() - started)
        return NodeState(node, Reach.ACCEPTING, *answer, seconds=time.monotonic() - started)

    def _on_kept(self, node: Node, deadline: float) -> tuple[Role, int | None] | None:
        """The answer on a connection that was handed over; None when there is none.

        It may have been cut meanwhile: what has become of a server that does not answer on it, only a login tells.
        """
        kept = self.kept.pop(node, None)
        connection = kept.take(deadline) if kept else None
        if not connection:
            return None
        try:
            with connection:
                return question(connection, deadline)
        except (ConnectionFailed, StatementFailed):
            return None


def unasked(node: Node, error: Exception) -> NodeState:
    """What is known of ``node`` when it could not even be asked: nothing."""
    bug = "" if lack(error) else "a bug in efm-lb: "
    return NodeState(node, Reach.DENIED, detail=f"{bug}{type(error).__name__}: {error}")


def failed(node: Node, failure: ConnectionFailed | StatementFailed, keywords: Mapping[str, str]) -> NodeState:
    """What it says about ``node`` that it could not be asked.

    :param keywords: libpq connection keywords that were used
    """
    detail = str(failure)
    if isinstance(failure, ConnectionFailed) and failure.needs_password:
        detail += _objection(keywords.get("passfile"))
    return NodeState(node, _judged(failure), detail=detail)


def question(connection: Connection, deadline: float) -> tuple[Role, int | None]:
    """Ask for the role and the timeline, which is None when the server does not tell it.

    :param deadline: by ``time.monotonic()``
    :raises ConnectionFailed, StatementFailed: no answer
    """
    try:
        reply = connection.query(_ROLE_AND_TIMELINE, deadline)
    except StatementFailed as failure:
        if "42501" not in failure.sqlstates:
            raise
        reply = connection.query(_ROLE, deadline)
    (row,) = reply.rows
    return Role.STANDBY if row["recovering"] == "t" else Role.PRIMARY, int(row["timeline"] or 0) or None


def _objection(passfile: str | None) -> str:
    """Why libpq passed over the password file, which it does without a word or on standard error only."""
    if passfile is None:
        return ""
    try:
        mode = os.stat(passfile).st_mode & 0o777
        os.close(os.open(passfile, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return f"; EFM_LB_PROBE__PASSFILE {passfile}: {error.strerror}"
    if mode & 0o077:
        return f"; EFM_LB_PROBE__PASSFILE {passfile} has mode {mode:04o}: libpq ignores it; chmod 0600 it"
    return f"; EFM_LB_PROBE__PASSFILE {passfile} has no line for it"


def _judged(failure: ConnectionFailed | StatementFailed) -> Reach:
    """What a failure says about the server."""
    states = failure.sqlstates
    if any(state in _REJECTING for state in states):
        return Reach.REJECTING
    if _TOO_MANY_CONNECTIONS in states:
        return Reach.FULL
    if isinstance(failure, StatementFailed):
        return Reach.DENIED
    if failure.silent:
        return Reach.NO_RESPONSE
    if states or failure.needs_password:
        return Reach.DENIED
    words = failure.words
    if lack(words):
        return Reach.DENIED  # it was not asked: that must not make it look dead
    if "Connection refused" in words or "No such file or directory" in words:
        return Reach.REFUSED
    # A postmaster that dies takes the connections in its queue with it.
    dropped = "closed the connection" in words or "Connection reset" in words or "Broken pipe" in words
    return Reach.DENIED if failure.reached and not dropped else Reach.NO_RESPONSE
