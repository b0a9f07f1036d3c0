"""Bring a HAProxy in line with an event, prove it by reading it back, and keep it for the next reload."""

from __future__ import annotations

from contextlib import suppress
from time import monotonic, sleep
from typing import TYPE_CHECKING, NamedTuple

from efm_lb import Attach, Event, Node, Outcome, PermanentError, TemporaryError
from efm_lb_haproxy.reloads import is_reloading, replaced
from efm_lb_haproxy.runtime import Interrupted, Look, Runtime, Unreachable
from efm_lb_haproxy.servers import node_of
from efm_lb_haproxy.settings import Setup
from efm_lb_haproxy.wishes import Place, Step, Wish, steps, wishes

if TYPE_CHECKING:
    from efm_lb_haproxy.replaced import Ended

__all__ = ["drive"]

_MARGIN = 0.1
"""Seconds before the deadline at which to give up, so that the reason is still told."""
_FIRST_PAUSE = 0.001
"""Seconds between a request that did not do all and the next one; sessions end a little after they were shut down."""
_LONGEST_PAUSE = 0.1
_TRIES = 8
"""How often a run sends commands: what is undone that often is undone by somebody else."""
_EMPTYING = 1.5
"""Seconds that sessions get to end after they were shut down: HAProxy lets go of some at its own time-outs only, and
EFM may be waiting to promote another node."""
_WORKERS = 3
"""How many workers, one replaced by the next in a reload, a run brings right."""
_RELOAD_PAUSE = 0.01
_RESTART_PAUSE = 0.02
_LONGEST_RELOAD = 5.0
"""Seconds that a reload in flight is waited for."""


class _Brought(NamedTuple):
    """What a run did to one worker, and how things are now."""

    look: Look
    did: tuple[Step, ...]
    wanted: tuple[Wish, ...]
    problems: tuple[str, ...]


def drive(event: Event, setup: Setup, deadline: float) -> Outcome:
    """Bring HAProxy in line with ``event``: the running process first, because clients wait, then the files.

    A reload that is in flight has read the files already, and would come up without the change. It is waited for, and
    the new worker is brought right as well. The files of a HAProxy that does not answer are for its next start.

    :param deadline: by ``time.monotonic()``
    :return: changed or unchanged
    :raises TemporaryError: no answer, not done in time, or not kept in the files; says what was done
    :raises PermanentError: HAProxy refuses, does not know the node, or the files cannot hold the change
    """
    limit = deadline - _MARGIN
    runtime = Runtime(setup.endpoint, setup.connect_timeout, setup.tls)
    did: list[Step] = []
    written: list[str] = []
    left: list[str] = []
    problem: TemporaryError | PermanentError | None = None
    give_up = min(limit, monotonic() + setup.connect_timeout)
    try:
        # First, because it takes 2 ms, and the files with their validation 90: the next client is right after it.
        brought = _bring(event, setup, runtime, limit)
    except Unreachable as error:
        if not setup.config:
            raise
        brought = _bring_started(event, setup, runtime, limit, give_up, error, written)
    for _ in range(_WORKERS):
        did += brought.did
        ended = _end_replaced(setup, brought, event.truth.nodes, limit)
        if ended:
            written += ended.did
            left += ended.unknown
        if setup.config:
            problem = _keep(event, setup, runtime, brought, limit, written)
        try:
            if not _is_replaced(setup, runtime, brought.look, bool(did or written), limit):
                break
            brought = _bring(event, setup, runtime, limit)
        except (TemporaryError, PermanentError) as error:
            raise type(error)("; ".join([*map(str, did), *written, f"but then {error}"])) from None
    if written and setup.config and isinstance(event, Attach):
        _learn(setup, runtime, limit)
    return _outcome(setup, brought, did, written, problem, left, list(ended.open) if ended else [])


def _bring_started(
    event: Event,
    setup: Setup,
    runtime: Runtime,
    limit: float,
    give_up: float,
    problem: Unreachable,
    written: list[str],
) -> _Brought:
    """Bring the files right, then a HAProxy that is being started: it may have read them before.

    :param give_up: when it counts as down
    :param written: what was written is appended to it
    :raises TemporaryError: it is down; says whether it will be right when it starts
    """
    # Not needed where HAProxy runs.
    from efm_lb_haproxy.down import keep_alone

    not_kept = ""
    try:
        keep_alone(event, setup, limit, written)
    except (TemporaryError, PermanentError) as error:
        not_kept = str(error)
    while monotonic() + _RESTART_PAUSE < give_up:
        sleep(_RESTART_PAUSE)
        try:
            return _bring(event, setup, runtime, limit)
        except Unreachable as error:
            problem = error
    told = "; ".join([str(problem), *written])
    if not_kept:
        raise TemporaryError(f"{told}; CONFIG is not right for its next start: {not_kept}")
    raise TemporaryError(f"{told}; CONFIG is right for its next start")


def _outcome(
    setup: Setup,
    brought: _Brought,
    did: list[Step],
    written: list[str],
    problem: TemporaryError | PermanentError | None,
    unknown: list[str],
    still_open: list[str],
) -> Outcome:
    detail = "; ".join([*dict.fromkeys(map(str, did)), *dict.fromkeys(written)])
    left = "".join(f"; {words}" for words in dict.fromkeys((*unknown, *still_open)))
    if brought.problems:
        raise PermanentError("; ".join([*brought.problems, *([detail] if detail else [])]) + left)
    done = detail or _summary(brought)
    if problem:
        raise type(problem)(f"{done}{left}; not kept, so that a reload undoes it: {problem}")
    if still_open:
        raise TemporaryError(f"{done}{left}")
    return Outcome.changed(f"{done}{_emptied(setup, brought)}{left}") if detail else Outcome.unchanged(f"{done}{left}")


def _end_replaced(setup: Setup, brought: _Brought, nodes: tuple[Node, ...], limit: float) -> Ended | None:
    """Shut down what workers of earlier reloads have left where nothing may be.

    :return: None when there are none; only a host tells of its own
    """
    wished = {wish.proxy: wish for wish in brought.wanted if Place.OUT in (wish.others, *wish.nodes.values())}
    workers = replaced(brought.look.pid) if wished and setup.endpoint.port is None else ()
    if not workers:
        return None
    # Hardly ever is there one.
    from efm_lb_haproxy.replaced import end_sessions

    servers = {(server.proxy, server.name): server for proxy in wished for server in brought.look.proxies[proxy]}

    def is_out(proxy: str, name: str) -> bool:
        server = servers.get((proxy, name))
        return proxy in wished and wished[proxy].of(server and node_of(server, nodes)) is Place.OUT

    return end_sessions(brought.look.pid, workers, is_out, min(limit, monotonic() + setup.connect_timeout))


def _summary(brought: _Brought) -> str:
    """How things are, in a few words."""
    places = []
    for wish in brought.wanted:
        for server in brought.look.proxies[wish.proxy]:
            if server.ready and wish.others is Place.OUT:
                places.append(f"writes of {wish.proxy} go to {server}")
            elif wish.others is None and any(server.is_node(node) for node in wish.nodes):
                places.append(f"{server} is {'ready' if server.ready else 'out'}")
    return "; ".join(places) or "nothing to do in any proxy"


def _emptied(setup: Setup, brought: _Brought) -> str:
    empty = [name for name in setup.read if name in brought.look.proxies and not _serves(brought.look, name)]
    return f"; no server of {', '.join(empty)} is ready" if empty else ""


def _serves(look: Look, proxy: str) -> bool:
    return any(server.ready for server in look.proxies[proxy])


def _bring(event: Event, setup: Setup, runtime: Runtime, limit: float) -> _Brought:
    """Bring the running HAProxy right; raises as `drive`."""
    look = runtime.look(setup.proxies, limit)
    wanted, problems = wishes(event, setup, look.proxies)
    _demand_newest(setup, wanted)
    todo = steps(wanted, event.truth.nodes, look.proxies)
    did: list[Step] = []
    pause = _FIRST_PAUSE
    trouble = ""
    tries = 0
    patient_until = monotonic() + _EMPTYING
    while todo and tries < _TRIES:
        # Telling sessions again to end is no fight with anybody.
        tries += monotonic() > patient_until or not all(_is_emptying(step) for step in todo)
        commands = tuple(command for step in todo for command in step.commands)
        try:
            look = runtime.look(setup.proxies, limit, commands)
        except Interrupted as error:  # they may have been carried out
            trouble = str(error)
            did += todo
            look = runtime.look(setup.proxies, limit)
        else:
            did += todo
            trouble = "; ".join(look.refusals)
        missing = [wish.proxy for wish in wanted if wish.proxy not in look.proxies]
        if missing:
            raise TemporaryError(f"{setup.endpoint} has lost its proxy {missing[0]} meanwhile")
        todo = steps(wanted, event.truth.nodes, look.proxies)
        if todo:
            if monotonic() + pause >= limit:
                break
            sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
            look = runtime.look(setup.proxies, limit)
            todo = steps(wanted, event.truth.nodes, look.proxies)
    if not todo:
        return _Brought(look, tuple(did), wanted, problems)
    wrong = ", ".join(f"{step.server} shall be {step.place.value} and is {_state(step)}" for step in todo)
    raise TemporaryError(f"{wrong}{f' ({trouble})' if trouble else ''}: it did not last, or did not happen in time")


def _demand_newest(setup: Setup, wanted: tuple[Wish, ...]) -> None:
    """Look at what the files remember before anything is told to the running HAProxy.

    :raises PermanentError: writes follow a newer timeline than that of the node that they shall be moved to
    """
    if not setup.config or all(wish.timeline is None for wish in wanted):
        return
    from efm_lb_haproxy.persist import may_move, read

    try:
        files = read(setup.config)
    except (TemporaryError, PermanentError):
        return  # what cannot be read fences nobody, and is told when the change is kept
    may_move(wanted, files)


def _is_emptying(step: Step) -> bool:
    """Whether nothing new can come to its server, and only sessions that were shut down are left."""
    return step.place is Place.OUT and step.server.in_maintenance


def _state(step: Step) -> str:
    sessions = f" with {step.server.sessions} sessions" if step.server.sessions else ""
    inherited = " as the server that it tracks" if step.server.admin & (2 | 16) else ""
    weight = "" if step.server.weight else " with weight 0"
    return f"{step.server.state}{inherited}{sessions}{weight}"


def _keep(
    event: Event, setup: Setup, runtime: Runtime, brought: _Brought, limit: float, written: list[str]
) -> TemporaryError | PermanentError | None:
    """Bring the files right. Clients have what they need by now, so whatever is wrong here is told, not raised.

    :param written: what was written is appended to it
    """
    # Not needed where CONFIG is not set.
    from efm_lb_haproxy.persist import keep

    try:
        keep(setup, runtime, brought.wanted, event.truth.nodes, brought.look.proxies, limit, written)
    except (TemporaryError, PermanentError) as error:
        return error
    return None


def _learn(setup: Setup, runtime: Runtime, limit: float) -> None:
    """Spare the next failover what nobody waits for now."""
    from efm_lb_haproxy.persist import read
    from efm_lb_haproxy.validate import learn

    with suppress(TemporaryError, PermanentError):  # the files are gone since: the next event tells
        learn(setup.program, runtime, read(setup.config), limit)


def _is_replaced(setup: Setup, runtime: Runtime, look: Look, changed: bool, limit: float) -> bool:
    """Whether another worker has taken over, or is about to, in which case it is waited for."""
    give_up = min(limit, monotonic() + _LONGEST_RELOAD)
    waited = False
    while setup.endpoint.port is None and is_reloading(look.pid) and monotonic() < give_up:
        waited = True
        sleep(_RELOAD_PAUSE)
    if not changed and not waited:
        return False
    return runtime.look((), limit).pid != look.pid
