"""Say what an event would do to a PgBouncer, and do nothing."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack

from efm_lb import Event
from efm_lb_pgbouncer.console import Database
from efm_lb_pgbouncer.pooler import Pooler
from efm_lb_pgbouncer.targets import Targets
from efm_lb_pgbouncer.wishes import changes, leftovers, may_lose_writes, to_resume, wanted_of, wrong

__all__ = ["plan"]


def plan(event: Event, pooler: Pooler, deadline: float) -> list[str]:
    """One line per step, none when the file and every process are right already.

    :raises TemporaryError: no answer, or the event would fail now
    :raises PermanentError: the event would fail for good
    """
    content = pooler.content()
    wanted = wanted_of(event, pooler, content)
    with ExitStack() as stack:
        sessions = []
        for console in pooler.consoles:
            session = console.session(deadline)
            stack.callback(session.close)
            sessions.append(session)
        running = [session.databases(deadline) for session in sessions]
        if may_lose_writes(event, wanted, pooler):
            wanted = wanted_of(event, pooler, content, running)
        servers = [session.servers(deadline) if wanted.writer else [] for session in sessions]
    changed = changes(wanted, pooler.locations(content))
    lines = [f"{pooler.config}: {name} -> {location}" for name, location in changed.items()]
    abandoned = pooler.is_abandoned()
    for console, databases, connections in zip(pooler.consoles, running, servers, strict=True):
        steps = _reload(databases, wanted, changed)
        steps += [f"RESUME {name}" for name in to_resume(databases, pooler, wanted, abandoned)]
        if wanted.writer and (left := leftovers(connections, pooler.write, wanted.writer, wanted.nodes)):
            steps.append(f"KILL for what is left of {len(left)} sessions after {pooler.kill_after:g} s")
        if steps:
            lines.append(f"{', '.join(steps)} at {console}")
    if wanted.kept and not lines:
        lines.append(f"hold back: {', '.join(wanted.kept)} stays until another primary is proven")
    return lines + [f"note: {note}" for note in wanted.notes if lines]


def _reload(databases: dict[str, Database], wanted: Targets, changed: Collection[str]) -> list[str]:
    """The RELOAD, if a process needs one, and the entries that it moves though the file is right.

    :param changed: the entries that the file has otherwise
    """
    moved = wrong(databases, wanted)
    if not moved:
        return []
    unloaded = [f"{name} -> {wanted.locations[name]}" for name in moved if name not in changed]
    return [f"RELOAD ({', '.join(unloaded)})" if unloaded else "RELOAD"]
