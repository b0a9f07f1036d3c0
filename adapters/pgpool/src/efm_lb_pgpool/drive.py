"""Drive a pgpool step by step until it is as an event wants it, and prove it by reading it back."""

from __future__ import annotations

from time import monotonic, sleep
from typing import NamedTuple

from efm_lb import Event, Outcome, PermanentError, TemporaryError
from efm_lb_pgpool.members import Member, Members, answers
from efm_lb_pgpool.node_info import Backend
from efm_lb_pgpool.pcp import Refusal, Session
from efm_lb_pgpool.steps import Ask, Command, Defer, Done, Fail, Memory, Step, Wait, next_step, observed, sent

__all__ = ["begin", "drive"]

_MARGIN = 0.1
"""Seconds before the deadline at which to give up, so that the reason is still told."""
_LOOKS = (0.003, 0.004, 0.006, 0.009)
"""Seconds before each look after a command on its own connection, which costs nothing but a request; most effects show
by then. An open connection keeps pgpool's main process from its next state change, in which it restarts its PCP
listener a second after the last one: so no longer."""
_AT_ONCE = 0.1
"""Seconds for the answer to such a look."""
_FIRST_PAUSE = 0.01
"""Seconds before the next look, on a connection of its own."""
_LONGEST_PAUSE = 0.1
_CANCELLED_PAUSE = 0.5
"""Seconds after a request that the watchdog cancelled: it does so until the pgpools have elected a new leader."""
_MAX_REFUSALS = 3


class _Halt(NamedTuple):
    """Where a run ended.

    :param step: the last decision; a Wait or a Command when time ran out
    :param problem: the last thing that went wrong on the way, or empty
    """

    step: Step
    memory: Memory
    problem: str


class _NotTaken(TemporaryError):
    """pgpool has not taken a command."""

    @property
    def passing(self) -> bool:
        """Whether only the watchdog said no: it has no leader, or the leader did not answer."""
        return "by other pgpool" in str(self) or "not in stable state" in str(self)


def drive(event: Event, members: Members, deadline: float) -> Outcome:
    """Bring the pgpools in line with ``event``.

    A command goes on the connection of the look that gave the reason for it, and so do the looks for its effect in the
    next milliseconds; that connection is closed before anything is waited for longer.

    :param deadline: by ``time.monotonic()``
    :return: changed, unchanged or deferred
    :raises TemporaryError: no answer, or not done in time; says what is still wrong
    :raises PermanentError: pgpool refuses, or does not know the node
    """
    limit = deadline - _MARGIN
    step, memory, problem = _run(event, members, limit)
    did = ", ".join(map(str, memory.sent))
    if isinstance(step, Defer):
        return Outcome.deferred(step.why, step.again_after)
    if isinstance(step, Fail) and step.permanent:
        raise PermanentError(step.why)
    if not isinstance(step, Done):
        wrong = f"{step} is not done" if isinstance(step, Command | Ask) else step.why
        parts = (f"{did} was sent, but" if did else "", wrong, f"({problem})" if problem else "")
        raise TemporaryError(" ".join(part for part in parts if part))
    done = f"{did}; {step.detail}" if did else step.detail
    unproven = _prove_on_others(event, members, memory, limit)
    owed = [*unproven, step.owed] if step.owed else unproven
    if owed:
        raise TemporaryError(f"{done}; but {'; '.join(owed)}")
    return Outcome.changed(done) if did else Outcome.unchanged(done)


def begin(event: Event, members: Members, deadline: float) -> tuple[Step, Memory]:
    """The first step, with nothing sent. Raises as `drive`."""
    nodes, session = members.look(deadline)
    with session:
        return _first_step(event, members, nodes.backends, session)


def _first_step(event: Event, members: Members, backends: tuple[Backend, ...], session: Session) -> tuple[Step, Memory]:
    if len(members.all) > 1:
        _demand_watchdog(members.current, session)
    memory = Memory(backends)
    step = next_step(event, backends, memory)
    if isinstance(step, Ask):
        memory = memory._replace(search_timeout=_setting(step.setting, session))
        step = next_step(event, backends, memory)
    return step, memory


def _run(event: Event, members: Members, limit: float) -> _Halt:
    nodes, session = members.look(limit)
    memory: Memory | None = None
    sent_at = monotonic()
    pause = _FIRST_PAUSE
    problem = ""
    refusals = 0
    while True:
        # A command follows on the connection that gave the reason for it; before anything is waited for it is closed.
        with session:
            if memory is None:
                step, memory = _first_step(event, members, nodes.backends, session)
            else:
                step, memory = _looked(event, nodes.backends, memory, sent_at)
            while isinstance(step, Command):
                try:
                    _send(step, session, nodes.since_4_3)
                    memory, sent_at, pause = sent(memory, step), monotonic(), _FIRST_PAUSE
                    step, memory = _effect(event, session, nodes.since_4_3, memory, limit)
                except _NotTaken as error:
                    problem = str(error)
                    refusals += not error.passing
                    pause = _CANCELLED_PAUSE if error.passing else pause
                    break
                except TemporaryError as error:
                    problem = str(error)
                    break
        while True:
            if isinstance(step, Done | Defer | Fail) or refusals == _MAX_REFUSALS or monotonic() + pause >= limit:
                return _Halt(step, memory, problem)
            sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE)
            try:
                nodes, session = members.look(limit)
                break
            except TemporaryError as error:
                problem = str(error)
                step = step if isinstance(step, Wait) else Wait(f"{step} is not proven")


def _looked(event: Event, backends: tuple[Backend, ...], memory: Memory, sent_at: float) -> tuple[Step, Memory]:
    """The next step after a look.

    :param sent_at: when the last command was sent, by ``time.monotonic()``
    """
    memory = observed(memory._replace(quiet=monotonic() - sent_at), backends)
    return next_step(event, backends, memory), memory


def _effect(event: Event, session: Session, since_4_3: bool, memory: Memory, limit: float) -> tuple[Step, Memory]:
    """The next step when the command that was just sent shows at once; else to wait for it."""
    sent_at = monotonic()
    step: Step = Wait(f"{memory.pending} is not proven")
    try:
        for pause in _LOOKS:
            if monotonic() + pause >= limit:
                break
            sleep(pause)
            session.deadline = min(limit, monotonic() + _AT_ONCE)
            step, memory = _looked(event, session.nodes(since_4_3).backends, memory, sent_at)
            if memory.pending is None:
                break
    except TemporaryError:
        pass  # a new connection may do better
    session.deadline = limit
    return step, memory


def _send(command: Command, session: Session, since_4_3: bool) -> None:
    """Send a command, which pgpool then has taken, or may have.

    :raises _NotTaken: pgpool has not
    :raises TemporaryError: it was certainly not sent
    :raises PermanentError: pgpool's configuration forbids it
    """
    # what a reply hides is only in the log: a promote that does nothing is answered like any other
    session.want_log()
    session.notices.clear()
    try:
        _request(command, session, since_4_3)
    except Refusal as refusal:
        text = str(refusal.notice)
        if "disallowed" in text:
            raise PermanentError(f"{command}: {text}; backend_flag must be ALLOW_TO_FAILOVER") from None
        if "pgpool mode" in text:
            raise PermanentError(f"{command}: {text}") from None
        raise _NotTaken(text) from None
    except TemporaryError:
        return
    for notice in session.notices:
        if _denies(notice.message):
            raise _NotTaken(str(notice))


def _request(command: Command, session: Session, since_4_3: bool) -> None:
    node_id = command.backend.id
    if command.verb == "attach":
        session.attach(node_id)
    elif command.verb == "detach":
        session.detach(node_id)
    else:
        session.promote(node_id, since_4_3)


def _denies(message: str) -> bool:
    """Whether a log line says that a request was dropped (pgpool's src/main/pool_internal_comms.c)."""
    return any(words in message for words in ("is canceled", "not valid", "not in stable state"))


def _setting(name: str, session: Session) -> int:
    """A setting of pgpool in seconds; 0 when it does not say."""
    try:
        return int(session.settings().get(name, "0"))
    except (Refusal, ValueError):
        return 0


def _demand_watchdog(member: Member, session: Session) -> None:
    """Several pgpools without a watchdog know nothing of each other: a command to one would leave the rest wrong."""
    if session.watchdog() is None:
        raise PermanentError(
            f"HOST lists several pgpools, but {member} runs without watchdog: make each a balancer of its own"
        )


def _prove_on_others(event: Event, members: Members, memory: Memory, limit: float) -> list[str]:
    """Wait until every other member believes the same.

    :return: what is wrong with those that do not, or do not say; clients may still be served by them
    """
    told = members.current
    proofs = answers(members.others, lambda member: _prove(event, member, told, memory, limit), limit)
    return sorted(str(proof) for _, proof in proofs if isinstance(proof, Exception))


def _prove(event: Event, member: Member, told: Member, memory: Memory, limit: float) -> None:
    """Wait until ``member`` believes what ``told``, to which the commands went, does.

    :raises TemporaryError: it does not in time, or does not answer
    :raises PermanentError: it refuses the login
    """
    while True:
        step = next_step(event, member.nodes(limit).backends, memory)
        if isinstance(step, Done):
            return
        if monotonic() + _LONGEST_PAUSE >= limit:
            raise TemporaryError(f"{member} does not follow {told}: {step}")
        sleep(_LONGEST_PAUSE)
