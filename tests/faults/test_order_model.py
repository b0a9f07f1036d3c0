"""Random sequences of calls against random truths, in a model of the cluster, the balancers and EFM: `faults.model`."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efm_lb import hook
from efm_lb.decide import Policy, decide
from efm_lb.events import Promote
from efm_lb.reconcile.others import Others
from efm_lb.truth import Role, Truth
from efm_lb_haproxy import drive as haproxy
from efm_lb_haproxy import wishes
from efm_lb_pgbouncer import wishes as pgbouncer
from efm_lb_pgpool import drive as pgpool
from efm_lb_pgpool.steps import Done, next_step
from faults.model.hosts import installed
from faults.model.sequence import play

TESTS = Path(__file__).parents[1]
pytestmark = pytest.mark.fault("calls in any order, in a model")
SEEDS = 4000
"""In how many a breakage must be found."""
FIXED = 1000
"""The first seed in ``make test``, which is the same everywhere; `make faults` tries others."""


def played(first: int, count: int) -> dict[str, Any]:
    """Play ``count`` sequences, of the seeds from ``first`` on, in as many processes as there are processors."""
    processors = os.cpu_count() or 1
    shares = [count // processors + (number < count % processors) for number in range(processors)]
    starts = [first + sum(shares[:number]) for number in range(processors)]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "faults.model", str(start), str(share)],
            cwd=TESTS,
            stdout=subprocess.PIPE,
            text=True,
        )
        for start, share in zip(starts, shares, strict=True)
        if share
    ]
    try:
        told = [json.loads(process.communicate()[0] or "{}") for process in running]
    finally:
        for process in running:
            process.kill()
    counts: Counter[str] = Counter()
    for each in told:
        counts.update(each["counts"])
    return {
        "counts": counts,
        "slowest": max(each["slowest"] for each in told),
        "failed": [failure for each in told for failure in each["failed"]],
    }


@pytest.mark.parametrize("count", [1000, pytest.param(100_000, marks=pytest.mark.long)])
def test_sequences(count: int, tried: Callable[[int], None]) -> None:
    tried(count)
    base = int(os.environ.get("EFM_LB_SEED", FIXED if count == 1000 else random.randrange(10**9)))
    print(f"seeds {base} to {base + count - 1}; EFM_LB_SEED={base} plays the same ones")
    result = played(base, count)
    print(f"{dict(result['counts'])}; right at the latest {result['slowest']:.1f} s after the last fault")
    for failure in result["failed"]:
        print("\n".join(failure["trace"]))
        print(f"seed {failure['seed']}: {failure['failure']} (python -m faults.model {failure['seed']})")
    assert result["counts"]["sequences"] == count
    assert not result["failed"]
    assert result["counts"]["refused because of what the file remembers"] > 0


def promotes_on_any_attach(call, truth, policy=Policy()):  # type: ignore[no-untyped-def]  # noqa: B008
    decision = decide(call, truth, policy)
    if truth.role(call.node) is Role.PRIMARY and decision.event:
        return decision._replace(event=Promote(call.node, truth, call.origin))
    return decision


def with_the_others_left_in(event, setup, proxies):  # type: ignore[no-untyped-def]
    wanted, problems = wishes.wishes(event, setup, proxies)
    return tuple(wish._replace(others=None) for wish in wanted), problems


def done_when_sent(event, backends, memory):  # type: ignore[no-untyped-def]
    return Done("sent") if memory.sent else next_step(event, backends, memory)


def nothing(*arguments, **named):  # type: ignore[no-untyped-def]
    return None


BREAKAGES = {
    "what a HAProxy's file remembers is not looked at": (haproxy, "_demand_newest", nothing),
    "what a PgBouncer's file remembers is not looked at": (pgbouncer, "demand_not_older", nothing),
    "an attach of type s moves writes": (hook, "decide", promotes_on_any_attach),
    "the first node counts as the primary": (Truth, "primaries", property(lambda self: self.nodes[:1])),
    "a HAProxy keeps its other writers": (haproxy, "wishes", with_the_others_left_in),
    "what pgpool was told is not read back": (pgpool, "next_step", done_when_sent),
    "what EFM has taken out does not stay out": (Others, "_stays_out", nothing),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_it_finds_what_is_broken(breakage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*BREAKAGES[breakage])
    with installed():
        assert any(play(str(seed)).failure for seed in range(SEEDS))
