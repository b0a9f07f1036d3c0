"""The network fails during a switchover or failover: between any two hosts, in any way."""

from __future__ import annotations

import pytest

from faults.network.drama import Between, Event, play
from faults.network.hosts import Fault
from faults.network.stand import BALANCERS, Stand


@pytest.mark.long
@pytest.mark.parametrize("event", Event, ids=lambda event: event.value)
@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.value)
@pytest.mark.parametrize(
    ("one", "others", "hook"),
    [
        pytest.param("new", ("other",), "new", id="node-node"),
        pytest.param("old", ("other",), "new", id="old-node"),
        pytest.param("new", BALANCERS, "other", id="new-balancers"),
        pytest.param("old", BALANCERS, "other", id="old-balancers"),
        pytest.param("other", ("new",), "other", id="hook-new"),
        pytest.param("other", ("old",), "other", id="hook-old"),
        *(pytest.param("other", (name,), "other", id=f"hook-{name}") for name in BALANCERS),
        pytest.param("client", BALANCERS, "other", id="clients"),
    ],
)
def test_a_fault_between_two_hosts(
    stand: Stand, event: Event, fault: Fault, one: str, others: tuple[str, ...], hook: str
) -> None:
    told = play(stand, event, Between(fault, one, others, hook))
    print(told)
    assert not told.wrong, told
