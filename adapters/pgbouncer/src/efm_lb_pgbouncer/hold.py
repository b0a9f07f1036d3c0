"""Hold clients back in a planned switchover: PAUSE the write entries, and be sure that they are let go.

A client that is held waits for its next transaction; nobody is cut and nobody sees an error. PAUSE waits until the
transactions that run have ended. It has no time-out of its own, and it outlives whoever sent it.
"""

from __future__ import annotations

from functools import partial
from time import monotonic

from efm_lb import Detach, Outcome, PermanentError, Role, TemporaryError
from efm_lb_pgbouncer.console import Console, Database, Interrupted, Refused, Session, quoted
from efm_lb_pgbouncer.drive import in_parallel
from efm_lb_pgbouncer.guard import start
from efm_lb_pgbouncer.pooler import Pooler
from efm_lb_pgbouncer.targets import is_at

__all__ = ["hold"]

_MARGIN = 0.2
_SESSION = "session"
"""The pool mode in which PAUSE waits until every client has left."""


def hold(event: Detach, pooler: Pooler, deadline: float) -> Outcome | None:
    """Hold the clients of the write entries that lead to ``event.node``, for at most HOLD seconds.

    :return: None where HOLD is 0; unchanged when they are held already; deferred, with the reason, when they cannot be
    :raises TemporaryError: PgBouncer does not answer, or a transaction did not end in time; nobody is held
    :raises PermanentError: the login is refused
    """
    truth = event.truth
    if not pooler.hold or truth.role(event.node) is not Role.PRIMARY or truth.primary != event.node:
        return None
    # The other half is for the promotion: what is not paused by then would only make clients wait longer.
    limit = min(deadline - _MARGIN, monotonic() + pooler.hold / 2)
    sessions: list[Session] = []
    try:
        sessions.extend(console.session(limit) for console in pooler.consoles)
        why, names = _holdable(event, pooler, sessions, limit)
        if why or not names:
            return (Outcome.unchanged if "already" in why else Outcome.deferred)(why or "no write entry leads there")
        guard = start(pooler.consoles, names, pooler.hold, pooler.mark, limit)
        try:
            _pause(event, sessions, names, limit)
            if not guard.tell_done():
                untold = [
                    f"; {console} could not be told to RESUME: the next call or reconcile does it"
                    for console in _resume(sessions, names)
                ]
                raise TemporaryError("not held: the process that lets clients go was killed" + "".join(untold))
        finally:
            # When it was not told that all is done, it lets go as well.
            guard.leave()
    finally:
        for session in sessions:
            session.close()
    return Outcome.changed(f"{', '.join(names)} held for at most {pooler.hold:g} s (process {guard.pid} lets go)")


def _holdable(event: Detach, pooler: Pooler, sessions: list[Session], limit: float) -> tuple[str, list[str]]:
    """Why nobody can be held, or which entries can."""
    names: list[str] = []
    for session in sessions:
        if not session.connection.is_local:
            return f"not held: {session.console} is on another host, and would stay paused if this one died", []
        databases = session.databases(limit)
        mine = [name for name in pooler.write if name in databases and is_at(databases[name].location, event.node)]
        paused = [name for name in mine if databases[name].paused]
        if paused and not pooler.is_abandoned():
            return f"{', '.join(paused)} is paused already", []
        if any(_mode(databases[name], session, limit) == _SESSION for name in mine):
            return "not held: in session pooling PAUSE waits until every client has left", []
        names = mine
    return "", names


def _mode(database: Database, session: Session, limit: float) -> str:
    return database.pool_mode or session.settings(limit).get("pool_mode", _SESSION)


def _pause(event: Detach, sessions: list[Session], names: list[str], limit: float) -> None:
    """PAUSE everywhere, or RESUME everywhere."""
    problems = in_parallel([partial(_pause_at, event, session, names, limit) for session in sessions])
    failed = [str(problem) for problem in problems if isinstance(problem, Exception)]
    if failed:
        failed += [
            f"{console} could not be told to RESUME: it will be, in time" for console in _resume(sessions, names)
        ]
        raise TemporaryError("; ".join(failed))


def _resume(sessions: list[Session], names: list[str]) -> list[Console]:
    """RESUME everywhere; where that could not be told."""
    untold = []
    for session in sessions:
        # A session that waits for PAUSE hears nothing else: RESUME needs another one.
        try:
            other = session.console.session(monotonic() + session.console.connect_timeout)
            try:
                told = [_let_go(other, name) for name in names]
            finally:
                other.close()
        except (TemporaryError, PermanentError):
            told = [False]
        if not all(told):
            untold.append(session.console)
    return untold


def _pause_at(event: Detach, session: Session, names: list[str], limit: float) -> list[str]:
    for name in names:
        try:
            tag = session.command(f"PAUSE {quoted(name)}", limit, patience=max(0.0, limit - monotonic()))
        except Refused as refusal:
            raise TemporaryError(f"{session.console}: PAUSE {name}: {refusal}") from None
        except Interrupted as broken:
            if monotonic() < limit:
                raise TemporaryError(f"not held: {broken}") from None
            raise TemporaryError(
                f"not held: transactions of {name} did not end in time, so its clients were let go again"
            ) from None
        if tag != "PAUSE":
            raise TemporaryError(
                f"not held: PAUSE {name} did not wait, as after any WAIT_CLOSE: restart PgBouncer once"
            )
    # A promote from another host may have come between.
    databases = session.databases(monotonic() + session.console.connect_timeout)
    gone = [name for name in names if name in databases and not is_at(databases[name].location, event.node)]
    if gone:
        raise TemporaryError(f"not held: {gone[0]} leads elsewhere by now")
    free = [name for name in names if name in databases and not databases[name].paused]
    if free:
        raise TemporaryError(f"not held: somebody else has let the clients of {free[0]} go meanwhile")
    return []


def _let_go(session: Session, name: str) -> bool:
    try:
        session.command(f"RESUME {quoted(name)}", monotonic() + session.console.connect_timeout)
    except Refused as refusal:
        return "not paused" in str(refusal)  # somebody else has done it
    return True
