"""A process that may open too few files: the hook, ``apply``, reconcile.

With too few for Python itself nothing begins. With some more efm-lb begins, and runs out of them at one place or
another. It must say so in a line, hold no node for dead because of it, and leave no balancer half changed.
"""

from __future__ import annotations

import functools
import os
import random
import resource
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from efm_lb.rehearsal import sql
from efm_lb.rehearsal.balancer import Belief
from efm_lb.rehearsal.hooks import BARE_ENVIRONMENT, EFM_LB
from efm_lb.rehearsal.verdict import misbeliefs
from efm_lb.rehearsal.waiting import wait_until
from faults.kill.calls import CALLS, Call
from faults.kill.stand import Killed, Stand, open_stand
from faults.kill.strike import judged
from faults.servers.limits import limited
from faults.servers.rounds import Rounds
from faults.watch import Service

pytestmark = pytest.mark.fault("too few file descriptors")
SEED = int(os.environ.get("EFM_LB_SEED", "1"))
FEWEST = 5
"""Python begins with them; with fewer it does not, or says of its own files that they cannot be opened."""
MOST = 20
"""More than any call needs."""
QUICK = ("EFM_LB_RECONCILE__PERIOD", "EFM_LB_RECONCILE__HOLD", "EFM_LB_RECONCILE__DETACH_AFTER")
OWN = [call for call in CALLS if not call.of]


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with open_stand({"EFM_LB_DEADLINE": 8, **dict.fromkeys(QUICK, 1)}) as stand:
        yield stand


def made(stand: Stand, call: Call, limit: int) -> Killed:
    argv = [*EFM_LB, *call.words(stand), f"--env-file={stand.env_file}"]
    done = subprocess.run(
        limited("RLIMIT_NOFILE", limit, argv),
        input=call.given(stand), capture_output=True, cwd="/", env=dict(BARE_ENVIRONMENT), timeout=60, check=False,
    )  # fmt: skip
    return Killed((), False, done.returncode, (done.stdout + done.stderr).decode(errors="replace"))


def wrong_with(stand: Stand, call: Call, limit: int, needed: dict[str, int]) -> Iterator[str]:
    """What no lack of descriptors may do, also before reconcile has seen to it.

    :param needed: gets with how many the call is carried out, by its name
    """
    before = beliefs_of(stand)
    after: list[list[Belief]] = []

    def make() -> Killed:
        killed = made(stand, call, limit)
        after.extend(beliefs_of(stand))
        return killed

    result = judged(stand, call, make)
    yield from result.wrong
    if "detach" not in call.name:
        yield from taken_out(stand, before, after)
    code, output = result.killed.exit_code, result.killed.output
    print(f"{call.name}, {limit} descriptors: exit {code}", flush=True)
    begun = "efm-lb" in output or call.words(stand)[0] in output or '"schema"' in output
    if any(sum(belief.writes for belief in each) > 1 for each in after):
        yield f"two writers: {after}"
    if "Traceback" in output or "a bug in efm-lb" in output:
        yield f"it ended with {code}: {output}"
    if code == 0 and call.words(stand)[0] != "apply":
        needed[call.name] = min(limit, needed.get(call.name, limit))
    elif begun and code not in (0, 69, 75, 77, 78):
        yield f"it ended with {code}: {output}"


def beliefs_of(stand: Stand) -> list[list[Belief]]:
    """Of each balancer; none of a pgpool whose primary is down, for it lets nobody ask."""
    found: list[list[Belief]] = []
    for balancer in stand.balancers:
        try:
            found.append(list(balancer.beliefs()))
        except sql.SqlError:
            found.append([])
    return found


def taken_out(stand: Stand, before: list[list[Belief]], after: list[list[Belief]]) -> Iterator[str]:
    """A standby that is up and served reads goes on doing so."""
    for balancer, old, new in zip(stand.balancers, before, after, strict=True):
        for node, was, now in zip(stand.cluster.nodes, old, new, strict=False):
            if node.in_recovery() and was.reads and not now.reads:
                yield f"{balancer.name} has {node.name}, which is up, as {now.words}, and had it as {was.words}"


def play(stand: Stand, ways: Sequence[tuple[Call, int]], tried: Callable[[int], None]) -> None:
    needed: dict[str, int] = {}
    rounds = Rounds[int](stand, lambda call, limit: wrong_with(stand, call, limit, needed))
    tried(len(ways))
    rounds.play(ways)
    print(f"descriptors that each needs: {needed}")
    assert not rounds.failed, "\n".join(rounds.failed)


def test_some_limits(stand: Stand, tried: Callable[[int], None]) -> None:
    print(f"EFM_LB_SEED={SEED}")
    chance = random.Random(SEED)
    play(stand, [(chance.choice(OWN), limit) for limit in (6, 8, 10, 11, 12, 14)], tried)


@pytest.mark.long
def test_every_limit(stand: Stand, tried: Callable[[int], None]) -> None:
    play(stand, [(call, limit) for limit in range(FEWEST, MOST) for call in OWN], tried)


@pytest.mark.parametrize("more", [3, *(pytest.param(more, marks=pytest.mark.long) for more in (0, 1, 2, 5, 8, 12))])
def test_the_service_runs_out_of_them(stand: Stand, more: int) -> None:
    """It has some open, gets ``more`` than these, and has all again later. A standby stops, another one stays."""
    stand.go_round()
    stand.start_over()
    standby, other = stand.cluster.standbys
    with Service(stand.env_file) as service:
        assert wait_until(lambda: descriptors(service.pid) > 5, timeout=10)
        time.sleep(1.5)
        soft, hard = resource.prlimit(service.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (descriptors(service.pid) + more, hard))
        try:
            standby.stop()
            time.sleep(4)
            assert service.is_running, service.output
            reading = [balancer.beliefs()[other.number].reads for balancer in stand.balancers]
            assert reading == [True] * 3, service.output
        finally:
            resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert wait_until(lambda: not wrong(stand), timeout=20, interval=0.1), service.output
        standby.start()
        assert wait_until(lambda: not wrong(stand), timeout=20, interval=0.1), service.output
        assert "Traceback" not in service.output
        assert "a bug in efm-lb" not in service.output, service.output


def test_the_service_begins_with_too_few(stand: Stand) -> None:
    """With the fewest that it goes on with; then it gets as many as it likes. A standby has stopped before."""
    stand.go_round()
    stand.start_over()
    standby, other = stand.cluster.standbys
    standby.stop()
    with begun_with_few(stand) as service:
        _, hard = resource.prlimit(service.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (hard, hard))
        assert wait_until(lambda: not wrong(stand), timeout=20, interval=0.1), service.output
        assert [balancer.beliefs()[other.number].reads for balancer in stand.balancers] == [True] * 3, service.output
        standby.start()
        assert wait_until(lambda: not wrong(stand), timeout=20, interval=0.1), service.output
        assert "Traceback" not in service.output
        assert "a bug in efm-lb" not in service.output, service.output


def begun_with_few(stand: Stand) -> Service:
    """A service that lacks descriptors, and says so, but not so many that it ends."""
    for limit in range(FEWEST, MOST):
        service = Service(stand.env_file, functools.partial(limited, "RLIMIT_NOFILE", limit))
        wait_until(lambda service=service: not service.is_running or bool(service.output), timeout=5)
        time.sleep(2)
        if service.is_running and "Too many open files" in service.output:
            print(f"{limit} descriptors", flush=True)
            return service
        service.__exit__()
    raise AssertionError("it has all that it needs, or ends")


def wrong(stand: Stand) -> list[str]:
    return [line for balancer in stand.balancers for line in misbeliefs(stand.cluster, balancer)]


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
