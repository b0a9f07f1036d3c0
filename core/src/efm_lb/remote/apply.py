"""``efm-lb apply``: what a hook on another host asks, done here. One document in, one document out.

Meant as the forced command of a key in ``authorized_keys``. Whoever holds that key can say what the databases said, and
bring the balancers of this host's own env file in line with it. It names no host, file or socket: the nodes and all
settings are this host's.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from efm_lb import journal as journals
from efm_lb import lock, signals
from efm_lb.command_line import valued
from efm_lb.errors import EX_OK, EX_SOFTWARE, EX_TEMPFAIL, CallError, EfmLbError, unforeseen
from efm_lb.events import Detach, Event, Promote
from efm_lb.outcomes import Outcome, Result
from efm_lb.remote.documents import (
    Malformed,
    Request,
    answer_document,
    encoded,
    event_of,
    findings_document,
    outcome_document,
    read_request,
    ready_document,
    truth_of,
    view_document,
)
from efm_lb.remote.schemas import LIMIT
from efm_lb.settings import settings_of
from efm_lb.signals import Terminated
from efm_lb.state import State, write_all
from efm_lb.truth import Truth

if TYPE_CHECKING:
    from efm_lb.configuration import Configuration
    from efm_lb.dispatch import Answer, Dispatcher

__all__ = ["main", "parse"]

PATIENCE = 90.0
"""Seconds that a request may be under way: the hook connects before it has asked the databases."""

_OLD = 5.0
"""Seconds after which a login that nobody has used is made anew: the balancer may have been restarted."""

_NOT_FROM_OUTSIDE = ("EFM_LB_", "PG", "PCP")
"""What variables begin with that are settings of efm-lb, of libpq and of pgpool's tools."""


class Arguments(NamedTuple):
    """The command line, which the owner of this host has written."""

    cluster: str = "efm"
    env_file: str | None = None


class Refused(Exception):
    """This host does not do what it was asked; the message says why."""


def main(argv: Sequence[str]) -> int:
    """Say that this host is ready, read one request from standard input, do it, and answer, whatever happens.

    :param argv: the command line without the program's name and without ``apply``
    :return: 0 when there is an answer; nobody else than ssh looks at it
    """
    try:
        try:
            signals.raise_terminated()
            _write(encoded(ready_document()))
            _forget_environment()
            signals.end_after(PATIENCE + signals.HANGS)
            try:
                said = _answer(parse(argv), time.monotonic())
            finally:
                signals.end_after(0)
            code, data = EX_OK, _encoded(*said) if said else b""
        except (Refused, Malformed) as error:
            code, data = EX_OK, _failed(Result.PERMANENT, str(error))
        except EfmLbError as error:
            code, data = error.exit_code, _failed(Result.PERMANENT, "; ".join(error.messages))
        except Exception as error:
            code, why = unforeseen(error)
            data = _failed(Result.BUG if code == EX_SOFTWARE else Result.TEMPORARY, why)
        signals.ignore()
    except Terminated:
        code, data = EX_TEMPFAIL, _failed(Result.TEMPORARY, "terminated by a signal before it was done")
    _write(data)
    return code


def parse(argv: Sequence[str]) -> Arguments:
    """Read ``[--cluster NAME] [--env-file FILE]``.

    :raises CallError: there is something else
    """
    rest, options = valued(argv, ("--cluster", "--env-file"))
    if rest:
        raise CallError(f"efm-lb apply [--cluster NAME] [--env-file FILE]: what is {rest[0]!r}?")
    return Arguments(options.get("--cluster", "efm"), options.get("--env-file"))


def _forget_environment() -> None:
    """The settings are those of this host's env file: sshd may let the holder of the key set variables."""
    for name in [name for name in os.environ if name.startswith(_NOT_FROM_OUTSIDE)]:
        del os.environ[name]


def _answer(arguments: Arguments, ready: float) -> tuple[str, Any] | None:
    """The answer to what comes on standard input, None when nothing comes.

    :param ready: when the sender was told that it may ask, by ``time.monotonic()``
    """
    configuration, stale = settings_of(arguments.cluster, arguments.env_file, os.environ, here=True)
    from efm_lb.dispatch import Dispatcher
    from efm_lb.handover import logins_of

    # While the request is on its way the balancer is logged in to, if it is clear which, and the adapters are imported.
    began = time.monotonic()
    is_clear = len(configuration.balancers) == 1
    logins = logins_of(configuration.logins if is_clear else (), began + configuration.connect_timeout)
    dispatcher = Dispatcher(configuration)
    # What is here already may have come at any time since, and its sender's clock runs.
    came = ready if _waiting().poll(0) else None
    data = _read(time.monotonic() + PATIENCE)
    if not data:
        return None
    signals.end_after(signals.hangs_after(configuration.deadline))
    if time.monotonic() - began < _OLD:
        dispatcher.connect({}, logins)
    request = read_request(data)
    deadline = (came or time.monotonic()) + request.seconds
    _match(request, configuration)
    notes = [f"took the slow way: {stale}"] if stale else []
    return _do(request, configuration, dispatcher.only(request.balancer), deadline, notes)


def _match(request: Request, configuration: Configuration) -> None:
    """:raises Refused: the sender speaks of another cluster, other nodes, or a balancer that is not here"""
    if request.cluster != configuration.cluster:
        raise Refused(f"this host answers for cluster {configuration.cluster}, not for {request.cluster}")
    here = [balancer.name for balancer in configuration.balancers]
    if request.balancer not in here:
        known = ", ".join(here) or "none"
        raise Refused(f"no balancer {request.balancer} in the settings of its host; there are {known}")
    own = [node.name for node in configuration.nodes]
    if list(request.nodes) != own:
        raise Refused(
            f"EFM_LB_NODES is another one on the balancer's host: {', '.join(own)}; here {', '.join(request.nodes)}"
        )


def _do(
    request: Request, configuration: Configuration, dispatcher: Dispatcher, deadline: float, notes: list[str]
) -> tuple[str, Any]:
    """:param notes: what an outcome must say of this host as well; what goes wrong is added"""
    given = request.given
    state = State(configuration.state_dir, configuration.cluster)
    if request.ask == "view":
        return _told(dispatcher.views(configuration.nodes, deadline), "view", view_document)
    truth = truth_of(given["truth"], configuration.nodes)
    if request.ask == "check":
        from efm_lb.commands.observe import log_in

        return _told(dispatcher.findings(truth, log_in(configuration), deadline), "findings", findings_document)
    if request.ask == "plan":
        event = _fenced(given["event"], truth, state)
        return _told(dispatcher.plan(event, deadline), "steps", lambda steps: [str(step) for step in steps])
    began = time.monotonic()
    journal = journals.Journal(f"{configuration.state_dir}/{configuration.cluster}.journal", request.call)
    asked: Mapping[str, Any] = given["event"]
    journal.record(
        "call",
        kind=f"{request.ask} {asked['kind']}",
        host=asked["node"],
        balancer=request.balancer,
        sender=os.environ.get("SSH_CONNECTION", "").partition(" ")[0],
        truth=journals.said(truth),
    )
    journal.settle(journals.BEFORE_ACTING)
    path = f"{configuration.state_dir}/{configuration.cluster}.{request.balancer}.apply.lock"
    held = None
    try:
        # Calls from two hosts come one after the other. Not under the lock of this host's own hooks: one of them may be
        # waiting for this. Nor under one for all balancers: one that hangs costs no other.
        held = lock.take(path, round((deadline - time.monotonic()) / 2, 1), notes)
        outcome = _act(request, truth, state, dispatcher, deadline)
    except BaseException as error:
        why = "terminated by a signal" if isinstance(error, Terminated) else str(error)
        journal.record("outcome", notes=[*notes, why])
        journal.settle(journals.AT_LAST)
        raise
    finally:
        if held is not None:
            os.close(held)
    journal.record(
        "outcome",
        seconds=time.monotonic() - began,
        outcomes=journals.outcomes_of((outcome,) if outcome else ()),
        notes=notes,
    )
    journal.settle(journals.AT_LAST)
    if outcome is None:
        return "nothing", None
    if journal.failure:
        notes.append(journal.failure)
    if notes:
        outcome = outcome._replace(detail=f"{outcome.detail}; on its host: {'; '.join(notes)}")
    return "outcome", outcome


def _act(request: Request, truth: Truth, state: State, dispatcher: Dispatcher, deadline: float) -> Outcome | None:
    # Looked at under the lock: another host may have sent a newer truth in between.
    event = _fenced(request.given["event"], truth, state)
    if request.ask == "act":
        outcomes = dispatcher.send(event, deadline)
    elif isinstance(event, Detach):
        outcomes = dispatcher.hold(event, deadline)
    else:
        raise Malformed("only a detach can ask to hold")
    state.remember(truth)
    return outcomes[0] if outcomes else None


def _fenced(document: Mapping[str, Any], truth: Truth, state: State) -> Event:
    """The event, with what this host knows of newer timelines.

    :raises Refused: it would give writes to a node that has missed a promotion
    """
    event = event_of(document, truth._replace(newest=max(truth.newest, state.timeline)))
    if isinstance(event, Promote) and event.truth.primary != event.node:
        newer = event.truth.outdated(event.node)
        raise Refused(f"{event.node.name} is not proven to be the only primary" + (f": {newer}" if newer else ""))
    return event


def _encoded(kind: str, answer: Any) -> bytes:
    document = outcome_document(answer) if isinstance(answer, Outcome) else answer
    return encoded(answer_document(kind, document))


def _failed(result: Result, why: str) -> bytes:
    return _encoded("outcome", Outcome(result, why))


def _told(answers: Mapping[str, Answer], kind: str, document: Any) -> tuple[str, Any]:
    (answer,) = answers.values()
    if answer.failure:
        return "outcome", answer.failure
    return ("nothing", None) if answer.value is None else (kind, document(answer.value))


def _waiting() -> select.poll:
    """Tells whether there is something to read on standard input, or its end."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    return poll


def _read(limit: float) -> bytes:
    """All of standard input, or one byte more than a document may have.

    :raises Refused: it did not end in time
    """
    data = b""
    poll = _waiting()
    while len(data) <= LIMIT:
        left = limit - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise Refused("no request came in time")
        chunk = os.read(0, 65536)
        if not chunk:
            break
        data += chunk
    return data


def _write(data: bytes) -> None:
    try:
        write_all(1, data)
    except OSError:
        return  # the sender is gone; what was done is in the journal
