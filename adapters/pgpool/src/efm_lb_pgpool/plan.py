"""Say what an event would do to a pgpool, and do nothing."""

from __future__ import annotations

from efm_lb import Event, PermanentError, TemporaryError, Truth
from efm_lb_pgpool.drive import begin
from efm_lb_pgpool.members import Members
from efm_lb_pgpool.node_info import PRIMARY, STANDBY, Backend
from efm_lb_pgpool.steps import (
    SETTLE,
    Command,
    Defer,
    Fail,
    Memory,
    Step,
    Wait,
    backend_of,
    next_step,
    observed,
    primary_of,
    sent,
)

__all__ = ["expected", "plan", "told"]

_DOWN, _WAITING = 3, 1
_MOST_STEPS = 50


def plan(event: Event, members: Members, deadline: float) -> tuple[str, ...]:
    """One line per step, none when pgpool is right already.

    :raises TemporaryError: no answer, or the event would fail now
    :raises PermanentError: the event would fail for good
    """
    step, memory = begin(event, members, deadline)
    if isinstance(step, Fail):
        raise (PermanentError if step.permanent else TemporaryError)(step.why)
    return tuple(told(event, step, memory))


def told(event: Event, step: Step, memory: Memory) -> list[str]:
    """The lines for a first step and what is expected to follow it. Pure."""
    lines: list[str] = []
    backends = memory.first
    while isinstance(step, Command) and len(lines) < _MOST_STEPS:
        before, backends = primary_of(backends), expected(backends, step, event.truth)
        after = primary_of(backends)
        found = f", then pgpool finds {after}" if after and after.attached and after != before else ""
        lines.append(f"{step}{found if step.verb != 'promote' else ', which throws out all others'}")
        memory = observed(sent(memory, step), backends)._replace(quiet=SETTLE)
        step = next_step(event, backends, memory)
    if isinstance(step, Wait):
        lines.append(f"wait: {step.why}")
    elif isinstance(step, Defer):
        lines.append(f"hold back: {step.why}")
    return lines


def expected(backends: tuple[Backend, ...], command: Command, truth: Truth) -> tuple[Backend, ...]:
    """What pgpool should believe after ``command``, when the truth does not change. Pure."""
    target = command.backend.id
    before = primary_of(backends)
    if command.verb == "promote":
        return tuple(
            backend._replace(status=backend.status if backend.id == target else _DOWN, role=_role(backend.id == target))
            for backend in backends
        )
    status = _WAITING if command.verb == "attach" else _DOWN
    changed = tuple(backend._replace(status=status) if backend.id == target else backend for backend in backends)
    if command.verb == "detach" and before and before.id != target:
        return changed
    primaries = (backend_of(node, changed) for node in truth.primaries)
    found = max((primary.id for primary in primaries if primary and primary.attached), default=None)
    if found is None:
        return changed
    return tuple(backend._replace(role=_role(backend.id == found)) for backend in changed)


def _role(is_primary: bool) -> int:
    return PRIMARY if is_primary else STANDBY
