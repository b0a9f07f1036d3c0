"""Kill a call at a point, let reconcile run, and look at what is there then."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

from efm_lb.rehearsal.hooks import BARE_ENVIRONMENT
from efm_lb.rehearsal.verdict import misbeliefs
from efm_lb.rehearsal.waiting import wait_until
from efm_lb.state import TEMPORARY
from faults.kill.calls import GUARD, Call, Moment
from faults.kill.stand import FOLLOW_UP, HOLD, Killed, Point, Stand, Step
from faults.watch import Service

__all__ = ["Strike", "judged", "strike"]

_PATIENCE = 4.0
"""Seconds on top of HOLD for a machine that is busy."""
_IS_COMPILED = """
import sys
from efm_lb import compiled
from efm_lb.sources import gather
plan = compiled.read(gather("efm", sys.argv[1], {}))
sys.exit(plan.reason if isinstance(plan, compiled.Stale) else 0)
"""


class Strike(NamedTuple):
    """What came of it.

    :param wrong: what is not as it must be, one line each
    :param held: seconds that clients were held after the kill
    :param leftovers: names of temporary files that the call has left
    """

    killed: Killed
    wrong: tuple[str, ...]
    held: float
    leftovers: tuple[str, ...]


def strike(stand: Stand, call: Call, point: Point | None) -> Strike:
    """Make a call, kill it at ``point`` if there is one, and then run ``efm-lb reconcile``."""

    meanwhile = {Moment.LEAVING: stand.switch, Moment.STOPPED: stand.promote, Moment.RETIRED: stand.promote}

    def make() -> Killed:
        return stand.traced(
            *call.words(stand),
            stdin=call.given(stand),
            kill=point,
            of=call.of,
            settings=dict(call.settings),
            then=meanwhile.get(call.moment),
            until=(lambda: not _unlike(stand)) if call.is_service else None,
        )

    result = judged(stand, call, make)
    return result if point else result._replace(wrong=(*result.wrong, *_undisturbed(call, result.killed)))


def _undisturbed(call: Call, killed: Killed) -> Iterator[str]:
    if killed.exit_code != call.ends_in:
        yield f"undisturbed, it ends with {killed.exit_code}: {killed.output}"
    if call.of == FOLLOW_UP and not any(step.is_change for step in killed.steps):
        yield f"undisturbed, it changes nothing: {[step.name for step in killed.steps]}, {killed.output}"


def judged(stand: Stand, call: Call, make: Callable[[], Killed]) -> Strike:
    """Make a call in a way in which it may fail, and then run ``efm-lb reconcile``.

    :param make: makes the call
    """
    if not call.compiled:
        stand.plan.unlink(missing_ok=True)
    files, records, lying = stand.files(), len(stand.records()), stand.leftovers()
    frames = stand.frames()
    killed = make()
    at = time.monotonic()
    torn, frames_now = stand.files(), stand.frames()
    stand.forget_follow_ups()
    wrong = list(_lost(stand, call, killed.steps, records))
    wrong += _set_right_by_service(stand) if call.is_service else _set_right(stand)
    if not wait_until(lambda: not stand.pgbouncer.paused(), HOLD + _PATIENCE):
        wrong.append(f"{', '.join(stand.pgbouncer.paused())} is still paused")
    held = time.monotonic() - at
    wait_until(lambda: not stand.is_guarded(), HOLD + _PATIENCE)
    leftovers = tuple(name for name in stand.leftovers() if name not in lying)
    wrong += _unlike(stand)
    changes_twice = call.moment in (Moment.LEAVING, Moment.STOPPED, Moment.RETIRED)
    wrong += _torn(frames_now, (frames,)) if changes_twice else _torn(torn, (files, stand.files()))
    wrong += _state(stand)
    # What haproxy -f DIRECTORY or an %include takes in has another ending. Of a guard that is killed the mark stays.
    wrong += [f"{name} was left" for name in leftovers if not (name.endswith(TEMPORARY) or call.of == GUARD)]
    return Strike(killed, tuple(wrong), held, leftovers)


def _set_right(stand: Stand) -> Iterator[str]:
    # On a busy machine ssh takes longer than the seconds that a look gives to each balancer.
    for _ in range(3 if stand.by_ssh else 1):
        reconciled = stand.efm_lb("reconcile")
        if not reconciled.returncode:
            break
    else:
        yield f"reconcile ended with {reconciled.returncode}: {reconciled.stdout.decode(errors='replace')}"


def _set_right_by_service(stand: Stand) -> Iterator[str]:
    """It is started anew, as systemd does it."""
    with Service(stand.env_file) as service:
        if not wait_until(lambda: not _unlike(stand), _PATIENCE):
            yield f"started anew, the service sets nothing right: {service.output}"


def _unlike(stand: Stand) -> list[str]:
    """What is not as the databases are."""
    return [*(line for balancer in stand.balancers for line in misbeliefs(stand.cluster, balancer)), *_kept(stand)]


def _torn(torn: Mapping[str, bytes], whole: Collection[Mapping[str, bytes]]) -> Iterator[str]:
    """A file must be as it was or as it is in the end."""
    for name, content in torn.items():
        if content not in [each[name] for each in whole]:
            yield f"{name} was neither as before nor as after: {content!r}"


def _kept(stand: Stand) -> Iterator[str]:
    """The files must say what the balancers do, so that a reload or a restart changes nothing."""
    for name, content, wanted in (
        (stand.haproxy.config.name, stand.haproxy.config.read_text(), stand.haproxy_config()),
        (stand.pgbouncer.entries.name, stand.pgbouncer.entries.read_text(), stand.pgbouncer_entries()),
    ):
        if content != wanted:
            yield f"{name} is {content!r}, not {wanted!r}"


def _lost(stand: Stand, call: Call, steps: Collection[Step], before: int) -> Iterator[str]:
    """Whoever has changed anything has written down before what it is about."""
    try:
        fresh = stand.records()[before:]
    except (AssertionError, ValueError) as error:
        yield f"the journal: {error}"
        return
    command = call.words(stand)[0]
    kinds = ("act attach", "act detach", "act promote", "hold detach") if command == "apply" else (command,)
    has_record = any(each["record"] == "call" and each["kind"] in kinds for each in fresh)
    if any(step.is_change for step in steps) and call.of in ("", FOLLOW_UP) and not has_record:
        yield f"the journal has no record of the call: {fresh}"


def _state(stand: Stand) -> Iterator[str]:
    descriptor = os.open(stand.state_dir / "efm.lock", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield "the lock is held"
    finally:
        os.close(descriptor)
    done = subprocess.run(
        [sys.executable, "-I", "-c", _IS_COMPILED, str(stand.env_file)],
        cwd="/", env=dict(BARE_ENVIRONMENT), capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    if done.returncode:
        yield f"the settings are not compiled: {done.stderr.strip()}"
