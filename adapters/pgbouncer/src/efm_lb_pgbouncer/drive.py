"""Bring a PgBouncer in line with an event: the file first, then every process that reads it.

The file decides what a restart or the next RELOAD brings, so it is written first, and also while no console answers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic, sleep

from efm_lb import Event, Outcome, PermanentError, TemporaryError, replace_file
from efm_lb_pgbouncer.console import Console, Database, Session
from efm_lb_pgbouncer.entries import EntryError, edited
from efm_lb_pgbouncer.pooler import Pooler
from efm_lb_pgbouncer.settle import RETRY_PAUSE, Overtaken, settler
from efm_lb_pgbouncer.targets import Targets, is_at
from efm_lb_pgbouncer.wishes import changes, may_lose_writes, takes_writes_back, wanted_of

__all__ = ["drive", "in_parallel"]

_MARGIN = 0.1
"""Seconds before the deadline at which to give up, so that the reason is still told."""
_FILE_TRIES = 3
_CROSSING = 0.5
"""Seconds that another event has from writing the file to its RELOAD. What is not loaded by then, nobody loads."""


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
                [settler(console, session, pooler, wanted, abandoned, give_up) for console, session in logins]
            )
            is_overtaken = any(isinstance(outcome, Overtaken) for outcome in settled)
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
        if may_lose_writes(event, wanted, pooler):
            wanted = wanted_of(event, pooler, content, _running(sessions, limit))
            if takes_writes_back(wanted, locations, pooler) and monotonic() < loaded_by:
                sleep(RETRY_PAUSE)
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


def _running(sessions: Sequence[Session], limit: float) -> list[dict[str, Database]]:
    """The entries of those processes that tell."""
    found = []
    for session in sessions:
        try:
            found.append(session.databases(limit))
        except TemporaryError:
            continue
    return found
