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
from faults.kill.calls import Call
from faults.kill.stand import HOLD, Killed, Point, Stand, Step

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

    def make() -> Killed:
        return stand.traced(*call.words(stand), stdin=call.given(stand), kill=point, of=call.of)

    result = judged(stand, call, make)
    if point is None and result.killed.exit_code:
        wrong = f"undisturbed, it ends with {result.killed.exit_code}: {result.killed.output}"
        return result._replace(wrong=(*result.wrong, wrong))
    return result


def judged(stand: Stand, call: Call, make: Callable[[], Killed]) -> Strike:
    """Make a call in a way in which it may fail, and then run ``efm-lb reconcile``.

    :param make: makes the call
    """
    if not call.compiled:
        stand.plan.unlink(missing_ok=True)
    files, records, lying = stand.files(), len(stand.records()), stand.leftovers()
    killed = make()
    at = time.monotonic()
    torn = stand.files()
    stand.forget_follow_ups()
    wrong = list(_lost(stand, call, killed.steps, records))
    reconciled = stand.efm_lb("reconcile")
    said = reconciled.stdout.decode(errors="replace")
    if reconciled.returncode:
        wrong.append(f"reconcile ended with {reconciled.returncode}: {said}")
    if not wait_until(lambda: not stand.pgbouncer.paused(), HOLD + _PATIENCE):
        wrong.append(f"{', '.join(stand.pgbouncer.paused())} is still paused")
    held = time.monotonic() - at
    wait_until(lambda: not stand.is_guarded(), HOLD + _PATIENCE)
    leftovers = tuple(name for name in stand.leftovers() if name not in lying)
    wrong += [line for balancer in stand.balancers for line in misbeliefs(stand.cluster, balancer)]
    wrong += _torn(torn, (files, stand.files()))
    wrong += _kept(stand)
    wrong += _state(stand)
    # What haproxy -f DIRECTORY or an %include takes in has another ending. Of a guard that is killed the mark stays.
    wrong += [f"{name} was left" for name in leftovers if not (name.endswith(TEMPORARY) or call.of)]
    return Strike(killed, tuple(wrong), held, leftovers)


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
    kinds = ("act promote", "hold detach") if command == "apply" else (command,)
    has_record = any(each["record"] == "call" and each["kind"] in kinds for each in fresh)
    if any(step.is_change for step in steps) and not call.of and not has_record:
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
