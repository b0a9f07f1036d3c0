"""The next step that brings a pgpool in line with an event: pure decisions, no I/O and no clock.

`next_step` looks only at what pgpool believes now, so the same event again sends nothing,
and it does not matter who else changed something in between. What it must remember of
its own run is in `Memory`. Every rule below is about one fact of pgpool's failover():

* An effective attach of any node, and a detach of the node that pgpool calls primary (of any node
  while it calls none so), make pgpool look for the primary: the attached node that is not in
  recovery; of two, the one with the highest id. While it finds none, its main process is blocked and
  clients wait, up to search_primary_node_timeout. Such a search shows as a node that is down and primary.
* A detach of the old primary therefore moves writes by itself once PostgreSQL was promoted, and
  leaves the standbys alone. pcp_promote_node throws every other node out, asks no database, and is
  executed again when it is sent again.
* That search asks every attached node, one after the other, and waits for a silent one without end (it retries a
  connect that timed out, and has no time-out after that): such nodes have to be detached before.
* A reply means "queued". Each request takes pgpool about 1 s, most of it after its effect.
"""

from typing import Literal, NamedTuple

from efm_lb import Attach, Detach, Event, Node, Origin, Promote, Reach, Role, Truth
from efm_lb_pgpool.node_info import Backend

__all__ = [
    "HOLD",
    "RESEND",
    "SETTLE",
    "TRIES",
    "Ask",
    "Command",
    "Defer",
    "Done",
    "Fail",
    "Memory",
    "Step",
    "Wait",
    "backend_of",
    "next_step",
    "observed",
    "primary_of",
    "sent",
]

HOLD = 2.0
"""Seconds until a held back event is judged again: see `_detach_blocks`."""

SETTLE = 1.5
"""Seconds that pgpool gets to find its primary after an attach, whoever sent it: that search cannot be seen."""

TRIES = 2
"""How often a run sends one command: when it is undone that often, something else manages this pgpool."""

RESEND = 3.0
"""Seconds without effect after which an attach or detach is sent again: pgpool's queue drops what does not fit."""


class Command(NamedTuple):
    """Send this to pgpool, then look again."""

    verb: Literal["attach", "detach", "promote"]
    backend: Backend

    def __str__(self) -> str:
        return f"pcp_{self.verb}_node {self.backend}"


class Wait(NamedTuple):
    """Look again a little later; out of time, ``why`` is the error."""

    why: str


class Done(NamedTuple):
    """pgpool is as the event wants it.

    :param owed: what was given up for it and no call of EFM's will bring back, in words; empty when nothing
    """

    detail: str
    owed: str = ""


class Defer(NamedTuple):
    """Acting now would be wrong, and it is not an error."""

    why: str
    again_after: float | None


class Fail(NamedTuple):
    """It cannot be done; ``permanent`` when no retry can help."""

    why: str
    permanent: bool = False


class Ask(NamedTuple):
    """Put pgpool's value of this setting, in seconds, into `Memory.search_timeout`, then decide again."""

    setting: str


Step = Ask | Command | Wait | Done | Defer | Fail


class Memory(NamedTuple):
    """What a run knows beyond pgpool's present state.

    :param first: the backends as they were before anything was sent
    :param sent: all commands that pgpool accepted, in order
    :param pending: the last of them while its effect was not seen
    :param quiet: seconds since the last one was sent, or since the first look
    :param search_timeout: pgpool's search_primary_node_timeout in seconds (0 is for ever), None before it is asked
    """

    first: tuple[Backend, ...]
    sent: tuple[Command, ...] = ()
    pending: Command | None = None
    quiet: float = 0.0
    search_timeout: int | None = None


def sent(memory: Memory, command: Command) -> Memory:
    """The memory after ``command`` was accepted."""
    return memory._replace(sent=(*memory.sent, command), pending=command, quiet=0.0)


def observed(memory: Memory, backends: tuple[Backend, ...]) -> Memory:
    """The memory after a look at pgpool: a command whose effect shows is pending no more."""
    pending = memory.pending
    if pending is None:
        return memory
    now = next((backend for backend in backends if backend.id == pending.backend.id), None)
    if now is None:
        return memory
    landed = {"attach": now.attached, "detach": now.detached, "promote": now.is_primary}
    return memory._replace(pending=None) if landed[pending.verb] else memory


def backend_of(node: Node, backends: tuple[Backend, ...]) -> Backend | None:
    """The backend that is ``node``: by host and port, exactly."""
    return next((backend for backend in backends if node.is_at(backend.host, backend.port)), None)


def primary_of(backends: tuple[Backend, ...]) -> Backend | None:
    """The backend that pgpool calls primary; it is down while pgpool looks for another one."""
    return next((backend for backend in backends if backend.is_primary), None)


def next_step(event: Event, backends: tuple[Backend, ...], memory: Memory) -> Step:
    """Decide what to do next.

    :param event: what is wanted, with the truth it was decided on
    :param backends: what pgpool believes now
    :param memory: of this run, up to date by `observed`
    """
    target = backend_of(event.node, backends)
    if target is None:
        known = ", ".join(map(str, backends))
        return Fail(f"pgpool has no backend {event.node.address} ({event.node.name}); it has {known}", permanent=True)
    if any(backend.role is None for backend in backends):
        return Fail("this pgpool does not tell which backend is primary; 3.7 or newer is needed", permanent=True)
    if memory.pending and not _is_overdue(memory, backends):
        return Wait(f"pgpool has not done {memory.pending} yet")
    step: Step
    if isinstance(event, Promote):
        step = _promote(event, target, backends, memory)
    elif isinstance(event, Detach):
        step = _detach(event, target, backends, memory)
    elif isinstance(event, Attach):
        step = _attach(event, target, backends, memory)
    else:
        return Fail(f"pgpool cannot do {type(event).__name__}", permanent=True)
    return _limited(step, memory) if isinstance(step, Command) else step


def _limited(command: Command, memory: Memory) -> Step:
    """Each command cuts sessions, so a fight with somebody else must end. A promote is never sent twice."""
    times = sum(past.verb == command.verb and past.backend.id == command.backend.id for past in memory.sent)
    if command.verb == "promote" and times:
        return Wait(f"{command} did not last: sr_check_user may be unable to log in to node {command.backend}")
    if times >= TRIES and memory.pending:
        return Wait(f"{command} was sent {times} times and not carried out: pgpool's main process is busy or hangs")
    if times >= TRIES:
        return Wait(f"{command} was sent {times} times and did not last: something else manages this pgpool")
    return command


def _is_overdue(memory: Memory, backends: tuple[Backend, ...]) -> bool:
    """Whether to judge anew although the last command shows no effect. Never for a promote: it would be executed twice.

    During a search requests stay queued, up to ten; more copies would push others out.
    """
    assert memory.pending
    return memory.pending.verb != "promote" and memory.quiet >= RESEND and not _is_searching(backends)


def _is_searching(backends: tuple[Backend, ...]) -> bool:
    primary = primary_of(backends)
    return primary is not None and not primary.attached


def _is_settling(memory: Memory) -> bool:
    return bool(memory.sent) and memory.sent[-1].verb == "attach" and memory.quiet < SETTLE


def _silent(truth: Truth, backends: tuple[Backend, ...], but: Backend) -> list[Backend]:
    """The attached backends, other than ``but``, that would make pgpool's search hang; its primary last."""
    found = []
    for state in truth.states:
        backend = backend_of(state.node, backends) if state.reach is Reach.NO_RESPONSE else None
        if backend and backend.attached and backend.id != but.id:
            found.append(backend)
    return sorted(found, key=lambda backend: backend.is_primary)


def _answerable(command: Command, truth: Truth, backends: tuple[Backend, ...]) -> Command:
    """A command that makes pgpool look for its primary, or the one that has to go before it."""
    silent = _silent(truth, backends, command.backend)
    return Command("detach", silent[0]) if silent else command


def _promote(event: Promote, target: Backend, backends: tuple[Backend, ...], memory: Memory) -> Step:
    """Make pgpool find ``target``, with as few cut sessions and lost standbys as possible.

    1. It is pgpool's primary: put back the standbys that were thrown out meanwhile.
    2. It is detached: attach it; that alone makes pgpool find it.
    3. pgpool looks for its primary: wait. A pcp_promote_node queued behind a search is executed after it.
    4. pgpool calls another node primary: detach that one; pgpool then finds the target.
    5. pgpool calls no node primary: attach a standby that is down, so that it looks again.
    6. All are attached: detach one, for the same; it is put back by 1.
    7. There is no standby: pcp_promote_node, which asks no database.

    Silent nodes are detached before whatever makes pgpool look (`_answerable`).
    """
    truth = event.truth
    if truth.primary != event.node:
        return Fail(f"{event.node.address} is not proven to be the only primary")
    if target.is_primary and target.attached:
        thrown_out = _put_back(event, backends, memory)
        if thrown_out:
            return _answerable(thrown_out, truth, backends)
        return Done(f"writes go to node {target}", _given_up(truth, backends, memory))
    if not target.attached:
        return _answerable(Command("attach", target), truth, backends)
    primary = primary_of(backends)
    if primary and not primary.attached:
        return Wait(f"pgpool looks for its primary and has not found node {target}")
    if _is_settling(memory):
        return Wait(f"pgpool has not found its primary, node {target}")
    if primary:
        return _answerable(Command("detach", primary), truth, backends)
    if not _silent(truth, backends, target):
        standbys = [standby for node in truth.standbys if (standby := backend_of(node, backends))]
        for standby in standbys:
            if not standby.attached:
                return Command("attach", standby)
        if standbys:
            return Command("detach", standbys[-1])
    return Command("promote", target)


def _put_back(event: Promote, backends: tuple[Backend, ...], memory: Memory) -> Command | None:
    """Attach the next standby that was attached at first, is not now, and is proven up.

    A standby that was detached before stays so: somebody may be working on it.
    """
    before = {backend.id for backend in memory.first if backend.attached}
    for node in event.truth.standbys:
        standby = backend_of(node, backends)
        if standby and not standby.attached and standby.id in before:
            return Command("attach", standby)
    return None


def _given_up(truth: Truth, backends: tuple[Backend, ...], memory: Memory) -> str:
    """Standbys that were detached because they were silent: EFM may not have seen that, and then attaches none."""
    old = primary_of(memory.first)
    out = {command.backend.id for command in memory.sent if command.verb == "detach"} - {old.id if old else None}
    silent = [
        f"{backend} was silent and is detached: efm-lb attach {state.node.name} s when it answers"
        for state in truth.states
        if state.reach is Reach.NO_RESPONSE
        and (backend := backend_of(state.node, backends))
        and backend.detached
        and backend.id in out
    ]
    return "; ".join(f"node {words}" for words in silent)


def _detach(event: Detach, target: Backend, backends: tuple[Backend, ...], memory: Memory) -> Step:
    truth = event.truth
    other = truth.primary if truth.primary != event.node else None
    successor = backend_of(other, backends) if other else None
    if target.detached:
        if not memory.sent and primary_of(backends) is None and successor and successor.attached:
            # Another host's promote may be making pgpool look again, by detaching and attaching just this standby.
            if memory.quiet < SETTLE:
                return Wait(f"node {target} is detached, but maybe not for long: pgpool has no primary")
        elif memory.sent and _searched(memory, target) and successor and not successor.is_primary:
            return Wait(f"node {target} is detached, but pgpool has not found its primary, node {successor}")
        return Done(f"node {target} is detached")
    if _is_last_answering(event, target, backends):
        why = f"node {target} is the last one of this pgpool's attached nodes that answers"
        return Defer(why, HOLD if event.origin is Origin.HOOK else None)
    primary = primary_of(backends)
    if primary and primary.id != target.id:
        return Command("detach", target)
    # from here on, pgpool will look for a primary
    if len(truth.primaries) > 1:
        return Fail(f"{_names(truth.primaries)} are both writable: pgpool would choose one by its node id")
    # One that is detached may be so on purpose: bringing it back is for the promote that names it.
    if successor is None or not successor.attached:
        return _detach_blocks(event, target, backends, memory)
    return _answerable(Command("detach", target), truth, backends)


def _is_last_answering(event: Detach, target: Backend, backends: tuple[Backend, ...]) -> bool:
    """Whether nobody would be served without ``target``; an operator may want that all the same."""
    if event.origin is Origin.OPERATOR:
        return False
    answering = [
        backend.id
        for state in event.truth.states
        if state.reach.serves and (backend := backend_of(state.node, backends)) and backend.attached
    ]
    return answering == [target.id]


def _searched(memory: Memory, target: Backend) -> bool:
    """Whether detaching ``target`` made pgpool look for a primary."""
    primary = primary_of(memory.first)
    return primary is None or primary.id == target.id


def _detach_blocks(event: Detach, target: Backend, backends: tuple[Backend, ...], memory: Memory) -> Step:
    """The only place that decides about a detach after which pgpool finds no primary.

    Measured with pgpool 4.3.5, three nodes and a dead primary, in seconds without any read:

    =======================================  =========  ==============  ======================
    the old primary                          held back  detached, 3 s   detached, 300 s search
    =======================================  =========  ==============  ======================
    refuses, promoted after 2 s              2.3        2.7             2.7
    refuses, promoted after 8 s              8.3        3.7             8.9
    silent, promoted after 8 s: old session  0.2        3.3             8.5
    silent, promoted after 8 s: new session  8.3        3.8             9.0
    =======================================  =========  ==============  ======================

    Where the promotion follows within `HOLD`, holding back brings writes back 0.1 s after it instead of 0.5 s, and
    spares every client the search. Each second more is one without reads where the old primary refuses, because every
    session of pgpool holds a connection to it, and one more pgpool child lost for good where it is silent. Where no
    promotion comes, only a detach brings reads back: after the search_primary_node_timeout, so that must be short
    (`efm-lb check` says so), and never when it is 0, for ever.
    """
    truth = event.truth
    detach = _answerable(Command("detach", target), truth, backends)
    if event.origin is Origin.OPERATOR:
        return detach
    if truth.role(event.node) is Role.PRIMARY:
        why = f"node {target} is up and the only primary"
        return Defer(why, HOLD if event.origin is Origin.HOOK else None)
    why = f"pgpool would be blocked by detaching node {target}: it would find no other primary"
    if event.origin is Origin.HOOK:
        return Defer(why, HOLD)
    if memory.search_timeout is None:
        return Ask("search_primary_node_timeout")
    if memory.search_timeout == 0:
        return Defer(f"{why}, and would look for one for ever (search_primary_node_timeout = 0)", None)
    return detach


def _attach(event: Attach, target: Backend, backends: tuple[Backend, ...], memory: Memory) -> Step:
    """Attach, unless the search that follows would move writes, or find nothing and block pgpool."""
    truth = event.truth
    primary = primary_of(backends)
    if target.attached:
        stray = _stray_writes(truth, primary)
        if not stray:
            return Done(f"node {target} is attached")
        why = f"node {target} is attached, but {stray}"
        # The promote may be at work on another host.
        return Wait(why) if memory.quiet < SETTLE else Fail(why)
    role = truth.role(event.node)
    if role is None:
        return Fail(f"{event.node.address} does not answer, so it is not attached")
    if len(truth.primaries) > 1:
        return Fail(f"{_names(truth.primaries)} are both writable: an attach would make pgpool choose one by its id")
    if truth.primary is None:
        return _hold(f"no primary is proven, and attaching node {target} would block pgpool until one is")
    silent = _silent(truth, backends, target)
    if role is Role.PRIMARY:
        if primary and primary.id == target.id and not silent:
            return Command("attach", target)
        if primary and primary.id == target.id:
            return _hold(_hangs(silent))
        return _hold(f"{event.node.address} is the primary: attaching it would move writes, which is for a promote")
    successor = backend_of(truth.primary, backends)
    if primary and not primary.attached and successor and successor.attached:
        return Wait(f"pgpool looks for its primary and has not found node {successor}")
    if successor is None or not successor.attached or not successor.is_primary:
        belief = f"node {primary}" if primary else "no node"
        return _hold(f"pgpool takes {belief} for the primary, which is {truth.primary.address}: promote it first")
    if silent:
        return _hold(_hangs(silent))
    return Command("attach", target)


def _hangs(silent: list[Backend]) -> str:
    return f"node {silent[0]} is attached and silent: pgpool would wait for it without end"


def _stray_writes(truth: Truth, primary: Backend | None) -> str:
    """How writes go to a proven standby although the primary is known: the call for that one did not come."""
    if primary is None or not primary.attached or truth.primary is None:
        return ""
    if not any(standby.is_at(primary.host, primary.port) for standby in truth.standbys):
        return ""
    name = truth.primary.name
    return f"pgpool sends writes to node {primary}, a standby; the primary is {name}: efm-lb attach {name} p"


def _hold(why: str) -> Step:
    """The call that makes it right is on its way, and waiting here would keep it waiting too."""
    return Defer(why, HOLD)


def _names(nodes: tuple[Node, ...]) -> str:
    return " and ".join(node.address for node in nodes)
