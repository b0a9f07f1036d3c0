"""Bring a PgBouncer in line with an event: the file first, then every process that reads it, and prove it.

The order is that of these facts, all measured with PgBouncer 1.18:

* The file decides what a restart or the next RELOAD brings, so it is written first, and also while no console answers.
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

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import getpid
from time import monotonic, sleep

from efm_lb import (
    Attach,
    Event,
    Node,
    Outcome,
    PermanentError,
    Promote,
    TemporaryError,
    Truth,
    demand_not_older,
    replace_file,
)
from efm_lb_pgbouncer.console import LOGIN_RETRY, Console, Database, Interrupted, Refused, Server, Session, quoted
from efm_lb_pgbouncer.entries import EntryError, Location, edited, marked
from efm_lb_pgbouncer.pooler import Pooler
from efm_lb_pgbouncer.targets import Targets, is_at, nodes_at, targets

__all__ = [
    "changes",
    "demand_newest",
    "drive",
    "in_parallel",
    "leftovers",
    "may_have_failed",
    "to_resume",
    "wanted_of",
    "wrong",
]

_MARGIN = 0.1
"""Seconds before the deadline at which to give up, so that the reason is still told."""
_RETRY_PAUSE = 0.05
_FIRST_PAUSE = 0.005
_LONGEST_PAUSE = 0.1
_GUARD = 5.0
"""Seconds after which a KILL whose hook was killed is made good."""
_FILE_TRIES = 3
_CROSSING = 0.5
"""Seconds that another event has from writing the file to its RELOAD. What is not loaded by then, nobody loads."""
_RETRY_DEFAULT = 15
_REMOVAL = ("sed", "-i", "--follow-symlinks", "/^; efm-lb: writes follow timeline [0-9]*$/d")


def drive(event: Event, pooler: Pooler, deadline: float) -> Outcome:
    """Bring the file and all processes in line with ``event``.

    :param deadline: by ``time.monotonic()``
    :return: changed, unchanged, or deferred where writes stay on a dead primary until another one is proven
    :raises TemporaryError: no answer, or not done in time; says what is still wrong
    :raises PermanentError: PgBouncer refuses, or the file cannot be edited
    """
    started = monotonic()
    limit = deadline - _MARGIN
    if started >= limit:
        raise TemporaryError("no time was left to do anything")
    wanted = wanted_of(event, pooler, pooler.content())
    # Clients wait for a promote; what is only out of reach otherwise costs no more than a connect.
    give_up = limit if wanted.writer else min(limit, started + pooler.connect_timeout)
    sessions = _log_in(pooler, give_up)
    logins: Sequence[tuple[Console, Session | None]] = sessions
    did: list[str] = []
    try:
        for tries in range(_FILE_TRIES, 0, -1):
            wanted, edits = _write(event, pooler, [session for _, session in sessions if session], give_up)
            did += edits
            abandoned = pooler.is_abandoned()
            settled = in_parallel(
                [_settler(console, session, pooler, wanted, abandoned, give_up) for console, session in logins]
            )
            is_overtaken = any(isinstance(outcome, _Overtaken) for outcome in settled)
            if tries == 1 or not is_overtaken or _are_moved(wanted, pooler):
                break
            logins = [(console, None) for console, _ in sessions]
    finally:
        for _, session in sessions:
            if isinstance(session, Session):
                session.close()
    for (console, _), outcome in zip(sessions, settled, strict=True):
        if isinstance(outcome, list) and outcome:
            did.append(", ".join(outcome) + (f" at {console}" if len(sessions) > 1 else ""))
    failures = [outcome for outcome in settled if isinstance(outcome, Exception)]
    if failures:
        done = f"{'; '.join(did)}; but " if did else ""
        kind = PermanentError if any(isinstance(failure, PermanentError) for failure in failures) else TemporaryError
        raise kind(done + "; ".join(map(str, failures)))
    primary = wanted.primary
    if abandoned and primary and all(is_at(wanted.locations[name], primary) for name in pooler.write):
        from efm_lb_pgbouncer.mark import remove

        remove(pooler.mark)
    return _outcome(event, wanted, did)


def wanted_of(event: Event, pooler: Pooler, content: bytes, running: Sequence[dict[str, Database]] = ()) -> Targets:
    """What an event wants of the entries in ``content``.

    :param running: what the processes have instead
    :raises PermanentError: an entry is missing, PgBouncer would not take the file, or writes would be moved to an
        older timeline than the file says that they follow
    :raises TemporaryError: the event's node is not what it must be
    """
    truth = event.truth
    if isinstance(event, Attach) and truth.role(event.node) is None:
        raise TemporaryError(f"{event.node.address} does not answer, so it is not attached")
    if isinstance(event, Promote) and truth.primary != event.node:
        raise TemporaryError(f"{event.node.address} is not proven to be the only primary")
    locations = pooler.locations(content)
    write = {name: _not_lost(name, locations[name], truth, running) for name in pooler.write}
    read = {name: locations[name] for name in pooler.read}
    wanted = targets(event, write, read, pooler.policy)
    if wanted.writer:
        demand_newest(pooler, content, wanted.writer, wanted.timeline)
    return wanted


def demand_newest(pooler: Pooler, content: bytes, writer: Node, timeline: int | None) -> None:
    """Refuse to move writes to an older timeline than the file says that they follow. Pure.

    :param timeline: the writer's; None when it is not known
    :raises PermanentError: it does; or PgBouncer would not take the file
    """
    if timeline is None:
        return
    try:
        found = marked(content, pooler.write)
    except EntryError as error:
        raise PermanentError(pooler.said(error)) from None
    demand_not_older(writer, timeline, [(pooler.config, *mark) for mark in found], _REMOVAL)


def _not_lost(name: str, location: Location, truth: Truth, running: Sequence[dict[str, Database]]) -> Location:
    """Where a write entry leads to: where the process has it, when the file has a node that is not the proven primary.

    Somebody has put an old file back, and has not loaded it. The RELOAD for a read entry must not do so: that node may
    be a standby, or be down and come back as an old primary.
    """
    if _is_unproven(location, truth):
        for databases in running:
            now = databases[name].location if name in databases else location
            if not any(is_at(now, standby) for standby in truth.standbys):
                return now
    return location


def changes(wanted: Targets, locations: dict[str, Location]) -> dict[str, Location]:
    """The entries of the file that must be edited. Pure."""
    return {name: location for name, location in wanted.locations.items() if location != locations[name]}


def wrong(databases: dict[str, Database], wanted: Targets) -> list[str]:
    """The entries that a running PgBouncer has otherwise. Pure."""
    return [
        name
        for name, location in wanted.locations.items()
        if name not in databases or databases[name].location != location
    ]


def may_have_failed(databases: dict[str, Database], wanted: Targets) -> list[str]:
    """The entries that lead to a node at which a login fails, also where they lead to others as well. Pure."""
    return [
        name
        for name in wanted.locations
        if name in databases and any(node in wanted.down for node in nodes_at(databases[name].location, wanted.nodes))
    ]


def to_resume(databases: dict[str, Database], pooler: Pooler, wanted: Targets, abandoned: bool) -> list[str]:
    """The paused entries whose clients may go. Pure.

    What an operator has paused is the operator's, until writes are moved.

    :param abandoned: we paused them, and nobody is left to let go
    """
    paused = [name for name in pooler.write if name in databases and databases[name].paused]
    if wanted.writer:
        return paused
    if not abandoned or wanted.primary is None:
        return []
    return [name for name in paused if is_at(databases[name].location, wanted.primary)]


def leftovers(servers: Sequence[Server], write: Sequence[str], writer: Node, nodes: Sequence[Node]) -> list[Server]:
    """The connections of write entries that do not lead to the primary. Pure."""
    return [
        server
        for server in servers
        if server.database in write
        and not writer.is_at(server.host, server.port)
        and (server.close_needed or any(node.is_at(server.host, server.port) for node in nodes))
    ]


def in_parallel(works: Sequence[Callable[[], list[str]]]) -> list[list[str] | Exception]:
    """Do several things at once; what one raises is its result."""
    results: list[list[str] | Exception] = [[] for _ in works]

    def run(number: int) -> None:
        try:
            results[number] = works[number]()
        except Exception as error:
            results[number] = error

    others = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(1, len(works))]
    for thread in others:
        thread.start()
    run(0)
    for thread in others:
        thread.join()
    for result in results:
        if isinstance(result, Exception) and not isinstance(result, TemporaryError | PermanentError):
            raise result
    return results


def _outcome(event: Event, wanted: Targets, did: list[str]) -> Outcome:
    notes = "".join(f"; {note}" for note in wanted.notes)
    if wanted.kept:
        notes += f"; {', '.join(wanted.kept)} stays on {event.node.name} until another primary is proven"
    if did:
        return Outcome.changed("; ".join(did) + notes)
    if wanted.kept:
        return Outcome.deferred(notes.removeprefix("; "))
    if wanted.writer:
        return Outcome.unchanged(f"writes go to {wanted.writer.address}{notes}")
    return Outcome.unchanged(f"nothing to change for {event.node.name}{notes}")


def _log_in(pooler: Pooler, limit: float) -> list[tuple[Console, Session | None]]:
    """One try at every console. What refuses the login ends it all, before anything is changed.

    :raises PermanentError: a login was refused
    """
    sessions: dict[int, Session] = {}

    def log_in(number: int, console: Console) -> list[str]:
        sessions[number] = console.session(limit)
        return []

    results = in_parallel([partial(log_in, number, console) for number, console in enumerate(pooler.consoles)])
    refused = [result for result in results if isinstance(result, PermanentError)]
    if refused:
        for session in sessions.values():
            session.close()
        raise refused[0]
    return [(console, sessions.get(number)) for number, console in enumerate(pooler.consoles)]


def _write(event: Event, pooler: Pooler, sessions: Sequence[Session], limit: float) -> tuple[Targets, list[str]]:
    """Edit the file, if it is not right.

    :return: what is wanted of the entries as they are now, and what was changed, in words
    """
    began = monotonic()
    loaded_by = began + min(_CROSSING, (limit - began) / 2)
    tries = _FILE_TRIES
    while True:
        content = pooler.content()
        wanted = wanted_of(event, pooler, content)
        locations = pooler.locations(content)
        if _may_lose_writes(event, wanted, pooler):
            wanted = wanted_of(event, pooler, content, _running(sessions, limit))
            if _takes_writes_back(wanted, locations, pooler) and monotonic() < loaded_by:
                sleep(_RETRY_PAUSE)
                continue
        changed = changes(wanted, locations)
        if not changed:
            return wanted, []
        try:
            # Only where something else changes: a file that is right is not replaced because of a comment.
            timelines = {} if wanted.timeline is None else dict.fromkeys(pooler.write, wanted.timeline)
            replace_file(pooler.config, content, edited(content, changed, timelines))
        except EntryError as error:
            raise PermanentError(pooler.said(error)) from None
        except TemporaryError:
            # Somebody else may have written it meanwhile: judge what it is now.
            tries -= 1
            if not tries or pooler.content() == content:
                raise
            continue
        return wanted, [f"{name} -> {location}" for name, location in changed.items()]


def _are_moved(wanted: Targets, pooler: Pooler) -> bool:
    """Whether somebody else has sent the writes elsewhere since: whoever asked the databases later knows better."""
    locations = pooler.locations(pooler.content())
    return wanted.writer is not None and any(locations[name] != wanted.locations[name] for name in pooler.write)


def _may_lose_writes(event: Event, wanted: Targets, pooler: Pooler) -> bool:
    """Whether a RELOAD may send writes to a node that is not the proven primary."""
    return any(_is_unproven(wanted.locations[name], event.truth) for name in pooler.write)


def _is_unproven(location: Location, truth: Truth) -> bool:
    """Whether an entry leads to a node that is not the proven primary; a host that is no node is somebody else's."""
    return any(is_at(location, node) for node in truth.nodes if node != truth.primary)


def _takes_writes_back(wanted: Targets, locations: Mapping[str, Location], pooler: Pooler) -> bool:
    """Whether the file's writes would go back to a node that is not proven to be the primary.

    Where they lead to may have been promoted since the databases were asked, and its RELOAD may be on its way.
    """
    primary = wanted.primary
    taken = [wanted.locations[name] for name in pooler.write if wanted.locations[name] != locations[name]]
    return any(primary is None or not is_at(location, primary) for location in taken)


def _running(sessions: Sequence[Session], limit: float) -> list[dict[str, Database]]:
    """The entries of those processes that tell."""
    found = []
    for session in sessions:
        try:
            found.append(session.databases(limit))
        except TemporaryError:
            continue
    return found


class _Overtaken(TemporaryError):
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


def _settler(
    console: Console, session: Session | None, pooler: Pooler, wanted: Targets, abandoned: bool, limit: float
) -> Callable[[], list[str]]:
    """The work on one process: done again from its beginning while the process restarts."""

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
                if monotonic() + _RETRY_PAUSE >= limit:
                    raise TemporaryError(told.but(said)) from None
                before = said
                sleep(_RETRY_PAUSE)
            except (TemporaryError, PermanentError) as error:
                if current and told.lifted:
                    _take_back(current, limit, is_loadable=not isinstance(error, _Overtaken))
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
    for pause in (_RETRY_PAUSE, 0.0):
        try:
            session.command("RELOAD", limit)
        except Refused as error:
            refusal = f"RELOAD: {error}; "
        databases = session.databases(limit)
        still = wrong(databases, wanted)
        if not still:
            return databases
        _demand_same_file(pooler, wanted)
        sleep(pause)
    raise PermanentError(refusal + _differs(session, pooler, wanted, databases, still[0]))


def _demand_same_file(pooler: Pooler, wanted: Targets) -> None:
    """Raises _Overtaken when the file does not say any more what is wanted."""
    if changes(wanted, pooler.locations(pooler.content())):
        raise _Overtaken(f"{pooler.config} was changed by somebody else meanwhile")


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
