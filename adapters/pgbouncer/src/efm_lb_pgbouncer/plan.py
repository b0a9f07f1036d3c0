"""Say what an event would do to a PgBouncer, and do nothing."""

from __future__ import annotations

from efm_lb import Event
from efm_lb_pgbouncer.pooler import Pooler
from efm_lb_pgbouncer.wishes import changes, leftovers, to_resume, wanted_of, wrong

__all__ = ["plan"]


def plan(event: Event, pooler: Pooler, deadline: float) -> list[str]:
    """One line per step, none when the file and every process are right already.

    :raises TemporaryError: no answer, or the event would fail now
    :raises PermanentError: the event would fail for good
    """
    content = pooler.content()
    wanted = wanted_of(event, pooler, content)
    changed = changes(wanted, pooler.locations(content))
    lines = [f"{pooler.config}: {name} -> {location}" for name, location in changed.items()]
    abandoned = pooler.is_abandoned()
    for console in pooler.consoles:
        session = console.session(deadline)
        try:
            databases = session.databases(deadline)
            servers = session.servers(deadline) if wanted.writer else []
        finally:
            session.close()
        steps = []
        if changed or wrong(databases, wanted):
            steps.append("RELOAD")
        steps += [f"RESUME {name}" for name in to_resume(databases, pooler, wanted, abandoned)]
        if wanted.writer and (left := leftovers(servers, pooler.write, wanted.writer, wanted.nodes)):
            steps.append(f"KILL for what is left of {len(left)} sessions after {pooler.kill_after:g} s")
        if steps:
            lines.append(f"{', '.join(steps)} at {console}")
    if wanted.kept and not lines:
        lines.append(f"hold back: {', '.join(wanted.kept)} stays until another primary is proven")
    return lines + [f"note: {note}" for note in wanted.notes if lines]
