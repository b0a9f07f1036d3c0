"""Bring one PgBouncer process in line with the file, and prove it.

The order is that of these facts, all measured with PgBouncer 1.18:

* RELOAD answers success whatever happens (until 1.24), so SHOW DATABASES is the proof.
* After a failed login PgBouncer tries no other for server_login_retry (15 s), wherever the entry leads by then.
  So that is set to next to nothing, after the RELOAD, which would undo it, and the last RELOAD brings the file's value
  back. When it does not, PgBouncer stops somewhere behind the entries when it reads its files, and would not start.
* Clients that are held are let go only after that: a login that PAUSE interrupts counts as failed too.
* A transaction that is stuck on a frozen old primary commits there when it thaws, and keeps its place in the pool.
  KILL ends it, but cuts every client of the entry, so it is sent only for what is left after KILL_AFTER.
* WAIT_CLOSE is never sent: every later PAUSE of that database would return at once, without waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from os import getpid
from time import monotonic, sleep

from efm_lb import PermanentError, TemporaryError
from efm_lb_pgbouncer.console import LOGIN_RETRY, Console, Database, Interrupted, Refused, Session, quoted
from efm_lb_pgbouncer.pooler import Pooler
from efm_lb_pgbouncer.targets import Targets
from efm_lb_pgbouncer.wishes import changes, leftovers, may_have_failed, to_resume, wrong

__all__ = ["RETRY_PAUSE", "Overtaken", "settler"]

RETRY_PAUSE = 0.05
"""Seconds until what did not work is tried again."""
_FIRST_PAUSE = 0.005
_LONGEST_PAUSE = 0.1
_GUARD = 5.0
"""Seconds after which a KILL whose hook was killed is made good."""
_RETRY_DEFAULT = 15


class Overtaken(TemporaryError):
    """Somebody else has written the file since what is wanted was made of it: it must be made anew."""


class _Told:
    """What one process was told, also in sessions that broke.

    :ivar did: in words, for a person
    :ivar begun: something was told that only the last RELOAD ends
    :ivar lifted: server_login_retry was set
    :ivar failed: the entries in which a login may have failed, before they were changed
    """

    def __init__(self) -> None:
        self.did: list[str] = []
        self.begun = False
        self.lifted = False
        self.failed: set[str] = set()

    def add(self, words: str) -> None:
        if words not in self.did:
            self.did.append(words)

    def but(self, error: Exception | str) -> str:
        return f"{', '.join(self.did)}, but {error}" if self.did else str(error)


def settler(
    console: Console, session: Session | None, pooler: Pooler, wanted: Targets, abandoned: bool, limit: float
) -> Callable[[], list[str]]:
    """The work on one process: done again from its beginning while the process restarts.

    :param session: None to log in first
    :param abandoned: we have paused the write entries, and nobody is left to let their clients go
    :param limit: by ``monotonic()``
    :return: does it, and returns what was done, in words. It raises as `efm_lb_pgbouncer.drive.drive`, and `Overtaken`
    """

    def settle() -> list[str]:
        told = _Told()
        current = session
        before = ""
        while True:
            try:
                if current is None:
                    current = console.session(limit)
                _settle(current, pooler, wanted, abandoned, limit, told)
                return told.did
            except Interrupted as error:
                if current:
                    current.close()
                    current = None
                said = str(error)
                if before and before != said and monotonic() >= limit:
                    # It was cut short by the deadline, which tells less than what went wrong before.
                    raise TemporaryError(told.but(f"{said}; before: {before}")) from None
                if monotonic() + RETRY_PAUSE >= limit:
                    raise TemporaryError(told.but(said)) from None
                before = said
                sleep(RETRY_PAUSE)
            except (TemporaryError, PermanentError) as error:
                if current and told.lifted:
                    _take_back(current, limit, is_loadable=not isinstance(error, Overtaken))
                raise type(error)(told.but(error)) from None
            finally:
                if current and current is not session:
                    current.close()
                    current = None

    return settle


def _settle(session: Session, pooler: Pooler, wanted: Targets, abandoned: bool, limit: float, told: _Told) -> None:
    databases = session.databases(limit)
    told.failed.update(may_have_failed(databases, wanted))
    writer = wanted.writer
    if told.begun or wrong(databases, wanted):
        told.begun = True
        databases = _reload(session, pooler, wanted, limit)
        told.add("RELOAD")
    paused = to_resume(databases, pooler, wanted, abandoned)
    if told.begun or paused:
        told.begun = True
        _lift(session, told, limit)
    for name in paused:
        _resume(session, name, limit)
        told.add(f"RESUME {name}")
    if writer:
        _end_leftovers(session, pooler, wanted, limit, told)
    if not told.begun:
        return
    session.wait_connected([*wanted.locations], told.failed, limit)
    _demand_same_file(pooler, wanted)
    _tell(session, "RELOAD", limit)
    if told.lifted and _is_lifted(session, limit):
        raise PermanentError(
            f"{session.console} does not load its configuration to the end, and would not start with it: see its log"
        )
    databases = session.databases(limit)
    if still := wrong(databases, wanted):
        _demand_same_file(pooler, wanted)
        raise TemporaryError(_differs(session, pooler, wanted, databases, still[0]))
    if again := to_resume(databases, pooler, wanted, abandoned):
        raise TemporaryError(f"{again[0]} is paused again: something else pauses it")


def _lift(session: Session, told: _Told, limit: float) -> None:
    """Have logins tried at once, also after one that failed."""
    told.lifted = True
    # Half a microsecond more: PgBouncer cuts off, and the number on its way may be less by a hair.
    _tell(session, f"SET {LOGIN_RETRY} = '{(_lifted() + 0.5) / 1e6:.7f}'", limit)


def _lifted() -> int:
    """Microseconds. Not 0, which a file may say: it tells that RELOAD has not brought the file's value back.

    Nor what the process of another event sets at the same time: that one takes it back itself.
    """
    return 1 + getpid() % 900


def _take_back(session: Session, limit: float, is_loadable: bool) -> None:
    """End what was only for the moment; what went wrong before is what is told.

    :param is_loadable: the file says what is wanted: somebody else's may send writes anywhere
    """
    try:
        if is_loadable:
            session.command("RELOAD", limit)
        if _is_lifted(session, limit):
            session.command(f"SET {LOGIN_RETRY} = {_RETRY_DEFAULT}", limit)
    except (Refused, TemporaryError, PermanentError):
        return


def _is_lifted(session: Session, limit: float) -> bool:
    try:
        return int(float(session.settings(limit).get(LOGIN_RETRY, "")) * 1e6 + 0.25) == _lifted()
    except ValueError:
        return False


def _reload(session: Session, pooler: Pooler, wanted: Targets, limit: float) -> dict[str, Database]:
    """RELOAD until SHOW DATABASES shows the file, twice at most: another reload may have been under way."""
    refusal = ""
    for pause in (RETRY_PAUSE, 0.0):
        _demand_same_file(pooler, wanted)
        try:
            session.command("RELOAD", limit)
        except Refused as error:
            refusal = f"RELOAD: {error}; "
        databases = session.databases(limit)
        still = wrong(databases, wanted)
        if not still:
            return databases
        sleep(pause)
    _demand_same_file(pooler, wanted)
    raise PermanentError(refusal + _differs(session, pooler, wanted, databases, still[0]))


def _demand_same_file(pooler: Pooler, wanted: Targets) -> None:
    """Raises Overtaken when the file does not say any more what is wanted."""
    if changes(wanted, pooler.locations(pooler.content())):
        raise Overtaken(f"{pooler.config} was changed by somebody else meanwhile")


def _differs(session: Session, pooler: Pooler, wanted: Targets, databases: dict[str, Database], name: str) -> str:
    shown = databases[name].location if name in databases else "no such entry"
    return (
        f"after RELOAD {session.console} shows {name} as {shown}, not as {wanted.locations[name]}, which is in"
        f" {pooler.config}: PgBouncer's log says why (the file, or one that it is read with, has a syntax error or"
        " cannot be read by PgBouncer's user; or another file defines the entry)"
    )


def _end_leftovers(session: Session, pooler: Pooler, wanted: Targets, limit: float, told: _Told) -> None:
    """Give sessions on the old primary KILL_AFTER to end, then end them."""
    writer = wanted.writer
    assert writer
    until = min(monotonic() + pooler.kill_after, limit)
    pause = _FIRST_PAUSE
    while left := leftovers(session.servers(limit), pooler.write, writer, wanted.nodes):
        if monotonic() + pause > until:
            break
        sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)
    names = sorted({server.database for server in left})
    if not names:
        return
    told.begun = True
    guard = None
    if session.connection.is_local:
        from efm_lb_pgbouncer.guard import start

        # KILL pauses too: were this process killed before its RESUME, nobody would be served.
        guard = start([session.console], names, _GUARD, pooler.mark, limit)
    try:
        if not told.lifted:
            # A login that is under way between KILL and RESUME is broken off, which counts as one that failed.
            _lift(session, told, limit)
        for name in names:
            _tell(session, f"KILL {quoted(name)}", limit)
            _resume(session, name, limit)
        if guard:
            guard.tell_done()
    finally:
        if guard:
            guard.leave()
    hosts = ", ".join(sorted({f"{server.host}:{server.port}" for server in left}))
    told.add(f"KILL {', '.join(names)} ({len(left)} sessions were left on {hosts})")


def _resume(session: Session, name: str, limit: float) -> None:
    try:
        session.command(f"RESUME {quoted(name)}", limit)
    except Refused as refusal:
        # Somebody else has done it meanwhile.
        if "not paused" not in str(refusal):
            raise TemporaryError(f"{session.console}: RESUME {name}: {refusal}") from None


def _tell(session: Session, statement: str, limit: float) -> None:
    try:
        session.command(statement, limit)
    except Refused as refusal:
        raise TemporaryError(f"{session.console}: {statement}: {refusal}") from None
