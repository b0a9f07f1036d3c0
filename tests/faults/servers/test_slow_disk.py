"""A slow disk: each step of a call that has to do with a file takes long, one after the other.

The kernel does what it is told at once, and the process hears of it late, as with a disk that is busy. The balancers
are driven within the deadline all the same, except one that cannot be driven without its file. What is late is told,
and is there in the end.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest

from faults.kill.calls import CALLS, Call
from faults.kill.stand import Killed, Stand, open_stand
from faults.kill.strike import judged
from faults.servers.rounds import Rounds

pytestmark = pytest.mark.fault("a slow disk")
SEED = int(os.environ.get("EFM_LB_SEED", "1"))
DEADLINE = 8
LATE = 3.0
"""Seconds that a step takes: longer than anybody waits for the disk."""
HANGS = 60.0
"""The same, longer than a call may take."""
_ENDS = DEADLINE + 1 + DEADLINE
"""Seconds: the lock is waited for, too. Under ptrace everything is slow."""
ON_DISK = ("open ", "write ", "fsync ", "fdatasync ", "rename", "unlink", "fchmod ", "fchown ", "ftruncate ")
PROMOTION = "attach of the new primary"
OWN = [call for call in CALLS if not call.of]
SETTINGS = {"EFM_LB_DEADLINE": DEADLINE, "EFM_LB_CONNECT_TIMEOUT": 3, "EFM_LB_RECONCILE__HOLD": 1}


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with open_stand(SETTINGS) as stand:
        yield stand


def wrong_with(stand: Stand, call: Call, slow: dict[str, float], steps: dict[str, list[str]]) -> Iterable[str]:
    """What no slow disk may do.

    :param slow: seconds, by step
    :param steps: gets those on the disk, by the call's name
    """
    seconds = 0.0
    behind: list[str] = []

    def make() -> Killed:
        nonlocal seconds
        began = time.monotonic()
        killed = stand.traced(*call.words(stand), stdin=call.given(stand), slow=slow)
        seconds = time.monotonic() - began
        if call.name == PROMOTION:
            behind.extend(not_moved(stand, slow))
        return killed

    result = judged(stand, call, make)
    code, output = result.killed.exit_code, result.killed.output
    found = [step.name for step in result.killed.steps if step.name.startswith(ON_DISK) and "output" not in step.name]
    steps.setdefault(call.name, list(dict.fromkeys(found)))
    is_told = "the disk has not taken it in time" in output
    # A record that the process has not even begun to write when it ends is lost, and that is what it says.
    yield from (line for line in result.wrong if not (is_told and line.startswith("the journal has no record")))
    yield from behind
    is_late = any("efm.journal" in step and late >= LATE for step, late in slow.items())
    if call.name == PROMOTION and is_late and not is_told:
        yield f"that the journal is late is not told: {output}"
    if "Traceback" in output or "a bug in efm-lb" in output or code not in (0, 75):
        yield f"it ended with {code}: {output}"
    if seconds > _ENDS:
        yield f"it took {seconds:.1f} s: {output}"
    print(f"{call.name}, {slow}: {seconds:.1f} s, exit {code}", flush=True)


def not_moved(stand: Stand, slow: Iterable[str]) -> Iterator[str]:
    """The balancers that do not send writes to the new primary, right after the call about it."""
    for balancer, file in (("pool1", ""), ("edge1", ""), ("pgb1", "databases.ini")):
        if file and any(file in step for step in slow):
            continue  # PgBouncer takes its entries from its file and from nowhere else
        (one,) = [each for each in stand.balancers if each.name == balancer]
        writers = [node.name for node, belief in zip(stand.cluster.nodes, one.beliefs(), strict=True) if belief.writes]
        if writers != [stand.new.name]:
            yield f"{balancer} sends writes to {writers}"


def play(stand: Stand, ways: Sequence[tuple[Call, dict[str, float]]]) -> dict[str, list[str]]:
    steps: dict[str, list[str]] = {}
    rounds = Rounds[dict[str, float]](stand, lambda call, slow: wrong_with(stand, call, slow, steps))
    rounds.play(ways)
    assert not rounds.failed, "\n".join(rounds.failed)
    return steps


FEW = [call for call in OWN if call.name == PROMOTION]


@pytest.mark.parametrize("calls", [FEW, pytest.param(OWN, marks=pytest.mark.long)], ids=["few", "all"])
def test_everything_is_slow(stand: Stand, calls: Sequence[Call], tried: Callable[[int], None]) -> None:
    """Each step on the disk takes a fifth of a second."""
    tried(len(calls))
    play(stand, [(call, dict.fromkeys(ON_DISK, 0.2)) for call in calls])


@pytest.mark.parametrize("calls", [FEW, pytest.param(OWN, marks=pytest.mark.long)], ids=["few", "all"])
def test_one_step_is_slow(stand: Stand, calls: Sequence[Call], tried: Callable[[int], None]) -> None:
    """Longer than anybody waits, or longer than all that a call has."""
    print(f"EFM_LB_SEED={SEED}")
    steps = play(stand, [(call, {}) for call in calls])
    ways = [(call, {step: late}) for call in calls for step in steps[call.name] for late in (LATE, HANGS)]
    chosen = random.Random(SEED).sample(ways, 4 if calls is FEW else len(ways))
    print(f"{len(chosen)} of {len(ways)}")
    tried(len(chosen))
    play(stand, chosen)
