"""One hook run from beginning to end: call -> truth -> decide -> dispatch -> outcomes -> exit code.

This is the hot path. It starts during an outage, so it imports nothing that it does
not need (tests/integration/core/test_hot_path.py has the list, `make bench` the instruction budget).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from efm_lb import follow_up, lock, signals
from efm_lb import journal as journals
from efm_lb.calls import Arguments, Call, Kind, parse, without_options
from efm_lb.configuration import Configuration
from efm_lb.decide import Decision, Policy, Verdict, decide
from efm_lb.errors import (
    EX_CONFIG,
    EX_NOPERM,
    EX_OK,
    EX_TEMPFAIL,
    EX_UNAVAILABLE,
    EX_USAGE,
    EfmLbError,
    NotInstalledError,
    UnknownNodeError,
    unforeseen,
)
from efm_lb.events import Event, Origin, Promote
from efm_lb.libpq import LibpqNotFoundError
from efm_lb.maintenance import Maintenance, in_force
from efm_lb.outcomes import Outcome, exit_code_of
from efm_lb.probe import Answers, Probe
from efm_lb.report import Report, as_document, as_lines
from efm_lb.settings import settings_of
from efm_lb.signals import Terminated
from efm_lb.state import State, new_call, write_all
from efm_lb.truth import Node, Truth

if TYPE_CHECKING:
    from efm_lb.dispatch import Dispatcher
    from efm_lb.handover import Login
    from efm_lb.head_start import HeadStart
    from efm_lb.remote.client import Client

__all__ = ["main", "run"]

PATIENCE = 0.6
"""The part of the deadline that may go into waiting for a node; the rest is the balancers'."""
POLL = 0.05
"""Seconds between two questions to a node that is on its way."""
FOLLOW_UP_POLL = 0.5
"""The same of a follow-up, for which nobody waits."""
_UNRECORDED = (EX_USAGE, EX_NOPERM, EX_CONFIG)
"""The exit codes of a call that is in no journal: it is not known in whose, and EFM may keep to itself what it said."""


class _Cluster:
    """A cluster, and what a run has to reach it with.

    Not a named tuple: to make that class takes as long as a question to a database.

    :ivar clients: by balancer: ssh, under way to the balancer's host; whoever takes one removes it
    :ivar logins: by balancer and connection string: those under way; none after `Probe.start_over`
    """

    def __init__(self, configuration: Configuration, state: State, begun: HeadStart | None) -> None:
        self.configuration = configuration
        self.state = state
        self.probe = Probe(configuration.probe, configuration.connect_timeout, begun)
        self.clients: dict[str, Client] = begun.clients if begun else {}
        self.logins: dict[str, dict[str, Login]] = begun.balancers if begun else {}

    def dispatcher(self, call: str = "") -> Dispatcher:
        """One that begins to import the adapters, and is not connected yet."""
        from efm_lb.dispatch import Dispatcher

        return Dispatcher(self.configuration, call)


def main(argv: Sequence[str], begun: HeadStart | None = None) -> int:
    """Run the hook for a command line and print its report.

    :param argv: the command line without the program's name
    :param begun: what is under way for it already
    :return: the exit code (see `efm_lb.errors`)
    """
    words = without_options(argv)
    try:
        try:
            signals.raise_terminated()
            report = run(parse(argv), os.environ, begun)
        except EfmLbError as error:
            report = Report(words, error.exit_code, notes=tuple(error.messages))
        except Exception as error:  # a traceback in a mail at 3 a.m. helps nobody
            code, why = unforeseen(error)
            report = Report(words, code, notes=(why,))
        signals.ignore()
    except Terminated:
        report = Report(words, EX_TEMPFAIL, notes=("terminated by a signal before it was done",))
    _say(as_document(report) if "--json" in argv else "\n".join(as_lines(report)))
    is_follow_up = any(word.startswith("--follow-up") for word in argv)  # nobody waits for it
    if report.exit_code in _UNRECORDED or (report.exit_code and is_follow_up):
        from efm_lb.system_log import complain

        complain(as_lines(report))
    return report.exit_code


def run(arguments: Arguments, environ: Mapping[str, str], begun: HeadStart | None = None) -> Report:
    """Judge a call and bring every balancer in line with the truth.

    :raises EfmLbError: wrong call or settings; no balancer was touched
    :raises Terminated: by SIGTERM or SIGINT
    """
    started = time.monotonic()
    if begun:
        configuration, stale = Configuration.of(begun.plan), ""
    else:
        configuration, stale = settings_of(arguments.cluster, arguments.env_file, environ)
    notes = [f"took the slow way: {stale}"] if stale else []
    if arguments.strange:
        notes.append(
            f"TYPE is {arguments.strange!r}, expected p or s (also m, primary, master, standby):"
            " the database was asked; check the line in efm.properties"
        )
    if stale:
        configuration = _left_of(configuration, time.monotonic() - started)
    cluster = _Cluster(configuration, State(configuration.state_dir, configuration.cluster), begun)
    signals.end_after((arguments.follow_up or 0.0) + signals.hangs_after(configuration.deadline))
    try:
        if arguments.dry_run:
            report = _rehearse(_call(arguments, configuration), cluster)
        elif arguments.follow_up is not None:
            report = _follow_up(arguments, arguments.follow_up, cluster)
        else:
            report = _record(arguments, cluster, PATIENCE * configuration.deadline)
    finally:
        signals.end_after(0)
    return report._replace(notes=(*report.notes, *notes), seconds=time.monotonic() - started)


def _left_of(configuration: Configuration, spent: float) -> Configuration:
    """The settings with what is left of the deadline after ``spent`` seconds. Half of it is left in any case.

    The databases get less than the connect time-out only where that would leave nothing to the balancers.
    """
    left = max(configuration.deadline / 2, configuration.deadline - spent)
    most = max(left / 2, configuration.connect_timeout - spent)
    return configuration._replace(deadline=left, connect_timeout=min(configuration.connect_timeout, most))


def _follow_up(arguments: Arguments, seconds: float, cluster: _Cluster) -> Report:
    """Judge a deferred call again: after ``seconds``, and a detach when a new primary is seen as well.

    EFM's call for the new primary may come late or never; nobody waits for this process, so it can.
    """
    configuration = cluster.configuration
    own = _call(arguments, configuration).node
    others = [node for node in configuration.nodes if node != own]
    if arguments.kind is Kind.DETACH:
        _asked(cluster.probe, [own])  # a host that is silent has had its time-out when the promotion comes

    def is_promoted(until: float) -> bool:
        if arguments.kind is not Kind.DETACH:
            # Deferred because a balancer is not as the truth is: the call that makes it so must come first.
            time.sleep(max(0.0, until - time.monotonic()))
            return False
        from efm_lb.watch import wait_for_primary

        cluster.dispatcher()  # imported by the time it is wanted
        return wait_for_primary(others, cluster.probe, until)

    def judge(patience: float) -> Report:
        return _record(arguments, cluster, patience)

    return follow_up.judge_until_done(seconds, judge, is_promoted)


def _record(arguments: Arguments, cluster: _Cluster, patience: float) -> Report:
    """Act on a call, with the journal, the lock and the follow-up around it.

    :param patience: seconds that a node which is on its way may be waited for
    """
    began = time.monotonic()
    configuration, state = cluster.configuration, cluster.state
    node = configuration.node(arguments.host)
    if node and not arguments.call:
        state.begin(node)
    name = arguments.call or new_call()
    journal = journals.Journal(f"{configuration.state_dir}/{configuration.cluster}.journal", name)
    journal.record(
        "call",
        kind=arguments.kind.value,
        host=arguments.host,
        type=arguments.role and arguments.role.value,
        follow_up=arguments.follow_up is not None,
    )
    try:
        call = _call(arguments, configuration)._replace(name=name)
    except UnknownNodeError as error:
        _break_off(journal, error)
        raise
    wants_in = call.kind is not Kind.DETACH
    notes: list[str] = []
    turn = _Turn(configuration, notes, call.origin)
    try:
        if not turn.take():
            cluster.probe.start_over()
        overtaken = _overtaken(call, state)
        if overtaken:
            journal.record("decision", **journals.decided(overtaken, None))
            report = Report(str(call), EX_OK, overtaken)
        else:
            report = _act(call, cluster, journal, turn, patience)
            if follow_up.is_carried_out(report):
                state.note(call.node, name, wants_in, _was_up(call.node, report))
    except BaseException as error:
        _break_off(journal, error)
        raise
    finally:
        turn.give_up()
    owed = follow_up.owed(report)
    if owed is not None and call.origin is Origin.HOOK:
        try:
            follow_up.start(owed, name, main)
        except OSError as error:
            notes.append(f"will not be judged again: {error}: run efm-lb reconcile")
            report = report._replace(exit_code=report.exit_code or EX_TEMPFAIL)
    journal.record(
        "outcome",
        exit_code=report.exit_code,
        seconds=time.monotonic() - began,
        outcomes=journals.outcomes_of(report.outcomes),
        again_after=owed,
        notes=[*report.notes, *notes],
    )
    journal.settle(journals.AT_LAST)
    if journal.failure:
        notes.append(journal.failure)
    return report._replace(notes=(*report.notes, *notes))


def _was_up(node: Node, report: Report) -> bool:
    """Whether ``node`` was up when the call about it was carried out; the event may be about the new primary."""
    event = report.decision and report.decision.event
    return event is not None and event.truth.state(node).reach.serves


def _break_off(journal: journals.Journal, error: BaseException) -> None:
    """Record that a call ends without having been carried out, and why."""
    if isinstance(error, Terminated):
        exit_code, why = EX_TEMPFAIL, ["terminated by a signal"]
    elif isinstance(error, EfmLbError):
        exit_code, why = error.exit_code, list(error.messages)
    else:
        exit_code, said = unforeseen(error)
        why = [said]
    journal.record("outcome", exit_code=exit_code, notes=why)
    journal.settle(journals.AT_LAST)


def _overtaken(call: Call, state: State) -> Decision | None:
    """The decision about a call when a newer one that wanted the opposite was carried out; None when none was."""
    wants_in = call.kind is not Kind.DETACH
    if not state.contradicted(call.node, call.name, wants_in):
        return None
    done = "out" if wants_in else "in"
    reason = f"EFM has called about {call.node.name} again since, and it was taken {done}: the newer call counts"
    return Decision(Verdict.DEFER, reason)


def _call(arguments: Arguments, configuration: Configuration) -> Call:
    node = configuration.node(arguments.host)
    if node is None:
        known = ", ".join(node.name for node in configuration.nodes)
        raise UnknownNodeError(f"{arguments.host} is not in EFM_LB_NODES of cluster {configuration.cluster} ({known})")
    origin = Origin.HOOK if arguments.follow_up is None else Origin.FOLLOW_UP
    return Call(arguments.kind, node, arguments.role, origin)


class _Turn:
    """One call at a time on this host, except while it waits for a node.

    :param notes: takes what went wrong; a lock that cannot be had is reported, and the call goes on
    :param origin: a follow-up lets EFM's calls go first, whose hook time-out runs
    :ivar waited: seconds that other calls took
    """

    def __init__(self, configuration: Configuration, notes: list[str], origin: Origin) -> None:
        self._path = f"{configuration.state_dir}/{configuration.cluster}.lock"
        self._patience = configuration.deadline + 1
        self._notes = notes
        self._gives_way = origin is not Origin.HOOK
        self._held: int | None = None
        self.waited = 0.0

    def take(self) -> bool:
        """Wait for the calls that are at it; whether there was none."""
        began = time.monotonic()
        self._held = lock.take(self._path, self._patience, self._notes, gives_way=self._gives_way)
        waited = time.monotonic() - began
        self.waited += waited
        return waited < lock.POLL

    def give_up(self) -> None:
        """Let the others."""
        if self._held is not None:
            os.close(self._held)
            self._held = None


def _act(call: Call, cluster: _Cluster, journal: journals.Journal, turn: _Turn, patience: float) -> Report:
    configuration = cluster.configuration
    deadline = time.monotonic() + configuration.deadline
    waited = turn.waited
    decision, truth, dispatcher = _settle(call, cluster, deadline, patience, turn)
    deadline += turn.waited - waited
    if call.origin is Origin.FOLLOW_UP:
        # Whatever the waiting took; but not longer than a call of EFM's may be kept waiting for the lock.
        deadline = time.monotonic() + min(configuration.deadline, follow_up.ATTEMPT)
    journal.record("decision", **journals.decided(decision, truth))
    alone = in_force(configuration.state_dir, configuration.cluster)
    journal.settle(journals.BEFORE_ACTING)
    try:
        if decision.hold:
            # A deferred detach is right whether anybody holds or not: what comes of it is told, and is no exit code.
            held = _without(dispatcher, alone).hold(decision.hold, deadline)
            return Report(str(call), _exit_code(decision, ()), decision, held)
        outcomes, notes = _sent(decision.event, dispatcher, deadline, alone) if decision.event else ((), ())
        return Report(str(call), _exit_code(decision, outcomes), decision, outcomes, notes=notes)
    finally:
        cluster.state.remember(truth)  # it writes to a disk that may hang: the balancers come first


def _sent(
    event: Event, dispatcher: Dispatcher, deadline: float, alone: Sequence[Maintenance]
) -> tuple[tuple[Outcome, ...], tuple[str, ...]]:
    """Send an event to all balancers but those in maintenance; writes go where they belong all the same."""
    if isinstance(event, Promote):
        notes = [f"{each}: the promotion counts all the same" for each in alone if each.name in dispatcher.names]
        notes += [f"{each}: it got the writes all the same" for each in alone if each.name == event.node.name]
        return dispatcher.send(event, deadline), tuple(notes)
    left_out = {each.name: Outcome.deferred(str(each), None) for each in alone if each.name in dispatcher.names}
    if not left_out:
        return dispatcher.send(event, deadline), ()
    sent = _without(dispatcher, alone).send(event, deadline)
    others = [outcome._replace(balancer=name) for name, outcome in left_out.items()]
    return tuple(sorted([*sent, *others], key=lambda outcome: outcome.balancer)), ()


def _without(dispatcher: Dispatcher, alone: Sequence[Maintenance]) -> Dispatcher:
    """The balancers that are in nobody's hands."""
    names = {each.name for each in alone}
    return dispatcher.among([name for name in dispatcher.names if name not in names])


def _rehearse(call: Call, cluster: _Cluster) -> Report:
    """What `_act` would do, done to nobody."""
    configuration = cluster.configuration
    deadline = time.monotonic() + configuration.deadline
    decision, _, dispatcher = _settle(call, cluster, deadline, 0.0)
    alone = in_force(configuration.state_dir, configuration.cluster)
    if decision.event is None:
        holders = _without(dispatcher, alone).holders(deadline) if decision.hold else ()
        asked = ["would be asked to hold new work back"]
        return Report(str(call), EX_OK, decision, steps=dict.fromkeys(holders, asked))
    steps = {}
    if not isinstance(decision.event, Promote):
        steps = {each.name: [f"left alone: {each}"] for each in alone if each.name in dispatcher.names}
        dispatcher = _without(dispatcher, alone)
    for name, answer in dispatcher.plan(decision.event, deadline).items():
        if answer.failure:
            steps[name] = [f"would fail: {answer.failure.detail}"]
        elif answer.value is None:
            steps[name] = ["its adapter cannot tell what it would do"]
        else:
            steps[name] = [str(step) for step in answer.value] or ["nothing to do"]
    return Report(str(call), EX_OK, decision, steps=steps)


def _settle(
    call: Call, cluster: _Cluster, deadline: float, patience: float, turn: _Turn | None = None
) -> tuple[Decision, Truth, Dispatcher]:
    """Ask the databases until they allow a decision, or ``patience``, in seconds, is over.

    :param turn: given up while a node is waited for: what other calls are about must not wait for it too. Without one,
        nothing is waited for
    """
    configuration, state, probe = cluster.configuration, cluster.state, cluster.probe
    is_again = call.origin is Origin.FOLLOW_UP
    patient_until = time.monotonic() + patience
    answers = _asked(probe, configuration.nodes)
    # pluggy and the adapters are a third of the start-up; they are loaded while the databases answer, and while the
    # hosts of other balancers do.
    dispatcher = cluster.dispatcher(call.name)
    dispatcher.connect(cluster.clients, cluster.logins)
    newest = state.timeline
    alone = [each.name for each in in_force(configuration.state_dir, configuration.cluster)]
    while True:
        truth = answers.truth()._replace(newest=newest)
        is_patient = time.monotonic() < patient_until
        decision = decide(call, truth, Policy(configuration.detach_live_primary, is_patient, alone))
        if decision.verdict is not Verdict.WAIT or turn is None:
            return decision, truth, dispatcher
        turn.give_up()
        # Somebody is on the way: ask them alone, and all again when an answer changes.
        before = [truth.state(node)[1:3] for node in decision.watch]
        while (left := patient_until - time.monotonic()) > 0:
            time.sleep(FOLLOW_UP_POLL if is_again else POLL)
            if [state[1:3] for state in probe.truth(decision.watch, timeout=left).states] != before:
                break
        waited = turn.waited
        turn.take()
        overtaken = _overtaken(call, state)
        if overtaken:
            return overtaken, truth, dispatcher
        newest = state.timeline  # somebody may have seen a promotion meanwhile
        deadline += turn.waited - waited  # what others took is theirs
        # The balancers must have their part of what is left.
        left = configuration.deadline if is_again else deadline - time.monotonic()
        answers = probe.ask(configuration.nodes, timeout=max(POLL, left / 2))


def _asked(probe: Probe, nodes: Sequence[Node]) -> Answers:
    try:
        return probe.ask(nodes)
    except LibpqNotFoundError as error:
        raise NotInstalledError(str(error)) from None


def _exit_code(decision: Decision, outcomes: Sequence[Outcome]) -> int:
    if decision.shortfall or decision.verdict is Verdict.FAIL:
        return EX_TEMPFAIL
    return EX_UNAVAILABLE if decision.verdict is Verdict.REFUSE else exit_code_of(outcomes)


def _say(text: str) -> None:
    """Print to standard output, whatever it is: what was done is done, and the exit code must tell it."""
    data = text.encode("utf-8", "backslashreplace") + b"\n"
    try:
        write_all(1, data)
    except OSError:
        return
