"""One hook run from beginning to end: call -> truth -> decide -> dispatch -> outcomes -> exit code.

This is the hot path. It starts during an outage, so it imports nothing that it does
not need (tests/integration/core/test_hot_path.py has the list, `make bench` the instruction budget).
"""

from __future__ import annotations

import os
import time

# The C functions behind `signal`, without the enumerations that it builds at import.
from _signal import SIGINT, SIGTERM  # type: ignore[import-not-found]
from _signal import signal as handle_signal
from collections.abc import Mapping, Sequence
from sys import setswitchinterval
from typing import TYPE_CHECKING

from efm_lb import follow_up, lock
from efm_lb import journal as journals
from efm_lb.calls import Arguments, Call, parse
from efm_lb.configuration import Configuration
from efm_lb.decide import Decision, Policy, Verdict, decide
from efm_lb.errors import (
    EX_OK,
    EX_SOFTWARE,
    EX_TEMPFAIL,
    EX_UNAVAILABLE,
    EfmLbError,
    NotInstalledError,
    UnknownNodeError,
)
from efm_lb.events import Origin
from efm_lb.libpq import LibpqNotFoundError
from efm_lb.outcomes import Outcome, Result
from efm_lb.probe import Probe
from efm_lb.report import Report, as_document, as_lines
from efm_lb.settings import settings_of
from efm_lb.truth import Truth

if TYPE_CHECKING:
    from efm_lb.dispatch import Dispatcher

__all__ = ["main", "run"]

PATIENCE = 0.6
"""The part of the deadline that may go into waiting for a node; the rest is the balancers'."""
POLL = 0.05
"""Seconds between two questions to a node that is on its way."""


SWITCH = 0.0005
"""Seconds between thread switches: a tenth of the default, so that an answer is not kept waiting by an import."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGINT came; whatever was being done is left to the next call."""


def main(argv: Sequence[str]) -> int:
    """Run the hook for a command line and print its report.

    :param argv: the command line without the program's name
    :return: the exit code (see `efm_lb.errors`)
    """
    as_json = "--json" in argv
    words = " ".join(word for word in argv if not word.startswith("-"))
    try:
        arguments = parse(argv)
        report = run(arguments, os.environ)
    except EfmLbError as error:
        report = Report(words, error.exit_code, notes=tuple(error.messages))
    except Terminated:
        report = Report(words, EX_TEMPFAIL, notes=("terminated by a signal before it was done",))
    except Exception as error:  # a traceback in a mail at 3 a.m. helps nobody
        report = Report(words, EX_SOFTWARE, notes=(f"a bug in efm-lb: {type(error).__name__}: {error}",))
    print(as_document(report) if as_json else "\n".join(as_lines(report)))
    return report.exit_code


def run(arguments: Arguments, environ: Mapping[str, str]) -> Report:
    """Judge a call and bring every balancer in line with the truth.

    :raises EfmLbError: wrong call or settings; no balancer was touched
    :raises Terminated: by SIGTERM or SIGINT
    """
    started = time.monotonic()
    for number in (SIGTERM, SIGINT):
        handle_signal(number, _terminate)
    if arguments.follow_up is not None:
        time.sleep(arguments.follow_up)
    configuration, stale = settings_of(arguments.cluster, arguments.env_file, environ)
    notes = [f"took the slow way: {stale}"] if stale else []
    journal = journals.Journal(
        f"{configuration.state_dir}/{configuration.cluster}.journal", f"{time.time_ns():x}-{os.getpid()}"
    )
    if not arguments.dry_run:
        journal.record(
            "call",
            kind=arguments.kind.value,
            host=arguments.host,
            type=arguments.role and arguments.role.value,
            follow_up=arguments.follow_up is not None,
        )
    call = _call(arguments, configuration)
    if arguments.dry_run:
        report = _rehearse(call, configuration)
    else:
        held = _lock(configuration, notes)
        try:
            report = _act(call, configuration, journal)
        except Terminated:
            journal.record("outcome", exit_code=EX_TEMPFAIL, notes=["terminated by a signal"])
            raise
        finally:
            if held is not None:
                os.close(held)
        if journal.failure:
            notes.append(f"not journalled: {journal.failure}")
        owed = follow_up.owed(report)
        if owed is not None and call.origin is Origin.HOOK:
            try:
                follow_up.start(owed)
            except OSError as error:
                notes.append(f"will not be judged again: {error}")
    return report._replace(notes=(*report.notes, *notes), seconds=time.monotonic() - started)


def _call(arguments: Arguments, configuration: Configuration) -> Call:
    node = configuration.node(arguments.host)
    if node is None:
        known = ", ".join(node.name for node in configuration.nodes)
        raise UnknownNodeError(f"{arguments.host} is not in EFM_LB_NODES of cluster {configuration.cluster} ({known})")
    origin = Origin.HOOK if arguments.follow_up is None else Origin.FOLLOW_UP
    return Call(arguments.kind, node, arguments.role, origin)


def _lock(configuration: Configuration, notes: list[str]) -> int | None:
    """Wait for the calls before this one. A lock that cannot be had is reported, and the call goes on."""
    try:
        return lock.acquire(f"{configuration.state_dir}/{configuration.cluster}.lock", configuration.deadline + 1)
    except TimeoutError as error:
        notes.append(str(error))
    except OSError as error:
        notes.append(f"no lock: {error.filename}: {error.strerror}")
    return None


def _act(call: Call, configuration: Configuration, journal: journals.Journal) -> Report:
    deadline = time.monotonic() + configuration.deadline
    decision, truth, dispatcher = _settle(call, configuration, time.monotonic() + _patience(configuration))
    journal.record(
        "decision",
        verdict=decision.verdict.value,
        reason=decision.reason,
        truth={state.node.name: state.role.value if state.role else state.reach.value for state in truth.states},
    )
    outcomes = dispatcher.send(decision.event, deadline) if decision.event else ()
    report = Report(str(call), _exit_code(decision, outcomes), decision, outcomes)
    journal.record(
        "outcome",
        exit_code=report.exit_code,
        outcomes={outcome.balancer: [outcome.result.value, outcome.detail] for outcome in outcomes},
    )
    return report


def _patience(configuration: Configuration) -> float:
    """Seconds to wait for a node that is on its way; in the rest all are asked again, and the balancers act."""
    return min(PATIENCE * configuration.deadline, configuration.deadline - 2 * configuration.connect_timeout)


def _rehearse(call: Call, configuration: Configuration) -> Report:
    """What `_act` would do, done to nobody."""
    deadline = time.monotonic() + configuration.deadline
    decision, _, dispatcher = _settle(call, configuration, patient_until=0.0)
    if decision.event is None:
        return Report(str(call), EX_OK, decision, steps={})
    steps = {}
    for name, answer in dispatcher.plan(decision.event, deadline).items():
        if answer.failure:
            steps[name] = [f"would fail: {answer.failure.detail}"]
        elif answer.value is None:
            steps[name] = ["its adapter cannot tell what it would do"]
        else:
            steps[name] = [str(step) for step in answer.value] or ["nothing to do"]
    return Report(str(call), EX_OK, decision, steps=steps)


def _settle(call: Call, configuration: Configuration, patient_until: float) -> tuple[Decision, Truth, Dispatcher]:
    """Ask the databases until they allow a decision, or patience is over."""
    try:
        probe = Probe(configuration.probe, configuration.connect_timeout)
    except LibpqNotFoundError as error:
        raise NotInstalledError(str(error)) from None
    answers = probe.ask(configuration.nodes)
    # pluggy and the adapters are a third of the start-up; they are loaded while the databases answer.
    setswitchinterval(SWITCH)
    from efm_lb.dispatch import Dispatcher

    dispatcher = Dispatcher(configuration)
    while True:
        truth = answers.truth(subject=call.node)
        patience = time.monotonic() < patient_until
        decision = decide(call, truth, Policy(configuration.detach_live_primary, patience))
        if decision.verdict is not Verdict.WAIT:
            return decision, truth, dispatcher
        # The node is on its way: ask it alone, and all of them again when its answer changes.
        before = truth.state(call.node)[1:3]
        while time.monotonic() < patient_until:
            time.sleep(POLL)
            if probe.truth([call.node]).states[0][1:3] != before:
                break
        answers = probe.ask(configuration.nodes)


def _exit_code(decision: Decision, outcomes: Sequence[Outcome]) -> int:
    results = {outcome.result for outcome in outcomes}
    if Result.TEMPORARY in results or decision.shortfall or decision.verdict is Verdict.FAIL:
        return EX_TEMPFAIL
    if Result.PERMANENT in results or decision.verdict is Verdict.REFUSE:
        return EX_UNAVAILABLE
    return EX_SOFTWARE if Result.BUG in results else EX_OK


def _terminate(number: int, frame: object) -> None:
    raise Terminated
