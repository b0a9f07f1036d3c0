"""The network fails during a switchover or failover: between any two hosts, in any way.

Whatever is wrong, a call ends in time and tells the truth, the balancers that it can reach are right, no write goes to
a node in recovery or to two nodes at once, and reconcile makes everything right when the network is well again.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence

import pytest

from efm_lb.rehearsal.waiting import wait_until
from faults.illness import CURED
from faults.network.cut import NEVER
from faults.network.drama import Between, Event, play
from faults.network.hosts import Fault
from faults.network.samples import Samples
from faults.network.stand import BALANCERS, DEADLINE, NODES, Roles, Stand

pytestmark = pytest.mark.fault("a network that fails")
SEED = int(os.environ.get("EFM_LB_SEED", "1"))

NODE_AND_NODE = ("new", ("other",), "new")
OLD_AND_NODE = ("old", ("other",), "new")
NEW_AND_BALANCERS = ("new", BALANCERS, "other")
OLD_AND_BALANCERS = ("old", BALANCERS, "other")
CALLER_AND_NEW = ("other", ("new",), "other")
CALLER_AND_OLD = ("other", ("old",), "other")
CALLER_AND_BALANCER = {name: ("other", (name,), "other") for name in BALANCERS}
CLIENT_AND_BALANCERS = ("client", BALANCERS, "other")


LONG = pytest.mark.long
CUTS = (Fault.BLACK_HOLE, pytest.param(Fault.REJECT, marks=LONG))
MIDWAY = (Fault.BLACK_HOLE, Fault.REJECT, Fault.HALF_OPEN)
SERVED = ("new", "other", "lb")
PEERS = {**{name: (name,) for name in (*BALANCERS, "new", "other")}, "all": (*BALANCERS, "old", "new", "other")}
CUT_IN = {"detach": ("all", "pgb1"), "attach": tuple(PEERS)}

PLAYS = 4
"""Of a fault that comes in the middle of a call: the follow-up of the call before may have left nothing to say."""

Check = Callable[..., None]


@pytest.fixture
def check(stand: Stand, counted: Callable[[str], None]) -> Check:
    """Play an event, and nothing may be wrong: ``check(EVENT, CALLER, *FAULTS)``."""

    def check(event: Event, caller: str, *faults: Between, served: Sequence[str] | None = None) -> None:
        for _ in range(PLAYS):
            told = play(stand, event, caller, *faults, served=served)
            print(told)
            if told.is_cured:
                counted(CURED)
            assert not told.wrong, str(told)
            if all(cut.has_come for cut in told.cuts):
                return
        raise AssertionError(str(told))

    return check


@pytest.mark.parametrize(
    ("event", "fault", "pair"),
    [
        pytest.param(Event.SWITCHOVER, Fault.BLACK_HOLE, CALLER_AND_BALANCER["edge1"], id="caller-haproxy"),
        pytest.param(Event.FAILOVER, Fault.REJECT, CALLER_AND_NEW, id="caller-new-primary"),
        pytest.param(Event.SWITCHOVER, Fault.DELAY, CALLER_AND_BALANCER["pool1"], id="caller-pgpool"),
        pytest.param(Event.FAILOVER, Fault.HALF_OPEN, NEW_AND_BALANCERS, id="new-primary-balancers"),
    ],
)
def test_some_faults(check: Check, event: Event, fault: Fault, pair: tuple[str, tuple[str, ...], str]) -> None:
    one, others, caller = pair
    check(event, caller, Between(fault, one, others))


def test_an_old_primary_that_has_gone_with_its_host(stand: Stand) -> None:
    """A silent host costs the connect time-out, and no more."""
    told = play(stand, Event.FAILOVER, "new", Between(Fault.BLACK_HOLE, "old", ("new", "other", *BALANCERS, "lb")))
    print(told)
    assert not told.wrong, str(told)
    assert told.attach.exit_code == 0
    assert max(told.moved.values()) < DEADLINE, str(told)


@pytest.mark.parametrize("fault", CUTS, ids=lambda fault: fault.value)
def test_a_host_in_the_minority_changes_nothing(stand: Stand, fault: Fault) -> None:
    """It reaches every balancer and one node, the old primary, and that one is dead in the end."""
    old, new, other = stand.roles
    majority = [stand.host_of(new), stand.host_of(other)]
    away = stand.hosts.fault(fault, "lb", *majority)
    with Samples(stand) as samples, away, stand.reconciled("lb") as cut_off:
        assert wait_until(lambda: "reaches 1 of 3 nodes" in cut_off.output, timeout=15), cut_off.output
        old.kill()
        stand.efm_lb(majority[0], "detach", old.host, "p")
        new.promote()
        other.follow(new)
        attach = stand.efm_lb(majority[0], "attach", new.host, "p")
        assert attach.exit_code == 0, attach.output
        # Several periods.
        assert not wait_until(lambda: ": changed: " in cut_off.output, timeout=4), cut_off.output
        assert [stand.writers(name) for name in BALANCERS] == [[new]] * 3
    assert samples.wrong(new, attach.started + attach.seconds, list(BALANCERS)) == []
    stand.rejoin(new)
    with stand.reconciled("lb") as well:
        assert wait_until(stand.is_right, timeout=20, interval=0.1), well.output


@pytest.mark.parametrize(
    "fault", [pytest.param(Fault.BLACK_HOLE, marks=LONG), Fault.REJECT], ids=lambda fault: fault.value
)
def test_a_host_in_the_minority_moves_no_writes_back(stand: Stand, fault: Fault) -> None:
    """It reaches every balancer, and an old primary that does not know yet that it is one."""
    old, new, other = stand.roles
    majority = [stand.host_of(new), stand.host_of(other)]
    away = stand.hosts.fault(fault, "lb", *majority)
    with Samples(stand) as samples, away, stand.reconciled("lb") as cut_off:
        with stand.hosts.fault(Fault.BLACK_HOLE, stand.host_of(old), *majority):
            new.promote()
            other.follow(new)
            attach = stand.efm_lb(majority[0], "attach", new.host, "p")
            assert [stand.writers(name) for name in BALANCERS] == [[new]] * 3, attach.output
            # Several periods.
            assert not wait_until(lambda: ": changed: " in cut_off.output, timeout=6), cut_off.output
            assert [stand.writers(name) for name in BALANCERS] == [[new]] * 3
        old.stop("immediate")
    stand.rejoin(new)
    with stand.reconciled("lb") as well:
        assert wait_until(stand.is_right, timeout=20, interval=0.1), well.output
    assert samples.wrong(new, attach.started + attach.seconds, list(BALANCERS)) == []


@pytest.mark.parametrize("fault", CUTS, ids=lambda fault: fault.value)
def test_a_host_that_reaches_the_new_primary_alone_moves_the_writes(stand: Stand, fault: Fault) -> None:
    """EFM has its own quorum: its call counts where reconcile would wait."""
    old, new, other = stand.roles
    with stand.hosts.fault(fault, "lb", stand.host_of(old), stand.host_of(other)):
        old.kill()
        new.promote()
        other.follow(new)
        attach = stand.efm_lb("lb", "attach", new.host, "p")
        assert [stand.writers(name) for name in BALANCERS] == [[new]] * 3, attach.output
        # pgpool would wait for the other standby, so that one is out, and somebody must bring it back.
        # One that refuses looks down, and is nobody's to wait for.
        is_silent = fault is Fault.BLACK_HOLE
        assert attach.exit_code == (75 if is_silent else 0), attach.output
        assert ("was silent and is detached" in attach.output) is is_silent
    stand.rejoin(new)
    with stand.reconciled("lb") as well:
        assert wait_until(stand.is_right, timeout=20, interval=0.1), well.output


@pytest.mark.long
@pytest.mark.parametrize("reached", [True, False])
def test_a_pgpool_that_does_not_tell_the_judge(stand: Stand, monkeypatch: pytest.MonkeyPatch, reached: bool) -> None:
    """That is held against a call only where nothing was between it and pgpool."""
    monkeypatch.setattr("faults.network.stand._PATIENCE", 1.0)
    from_whom = ("observer",) if reached else ("observer", "other")
    told = play(stand, Event.FAILOVER, "other", Between(Fault.BLACK_HOLE, "pool1", from_whom))
    silence = "pool1 can be reached, but pool1 does not answer pcp_node_info within 1 s"
    assert told.wrong == ((silence,) if reached else ()), str(told)


@pytest.mark.long
@pytest.mark.parametrize("fault", CUTS, ids=lambda fault: fault.value)
@pytest.mark.parametrize("cut_off", [(), ("edge1", "client")], ids=["alone", "with a balancer"])
def test_an_isolated_primary_that_efm_stops(stand: Stand, cut_off: tuple[str, ...], fault: Fault) -> None:
    """The old primary is cut off, alone or with a balancer. EFM stops it there, and promotes another one elsewhere."""
    old, new, other = stand.roles
    here, there = stand.host_of(new), stand.host_of(old)
    majority = [name for name in (*NODES, *BALANCERS, "lb") if name not in (there, *cut_off)]
    reached = [name for name in BALANCERS if name not in cut_off]
    with Samples(stand) as samples, stand.reconciled(there) as minority, stand.reconciled(here) as service:
        with stand.hosts.partition(majority, (there, *cut_off), fault=fault):
            old.stop()
            stand.efm_lb(there, "detach", old.host, "p")
            stand.efm_lb(here, "detach", old.host, "p")
            new.promote()
            other.follow(new)
            attach = stand.efm_lb(here, "attach", new.host, "p")
            assert attach.exit_code == (75 if cut_off else 0), attach.output
            assert [stand.writers(name) for name in reached] == [[new]] * len(reached), attach.output
            assert ": changed: " not in minority.output
        stand.rejoin(new)
        assert wait_until(stand.is_right, timeout=20, interval=0.1), f"{service.output}\n{minority.output}"
    assert samples.wrong(new, attach.started + attach.seconds, reached) == []


@pytest.mark.long
@pytest.mark.parametrize("event", Event, ids=lambda event: event.value)
@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.value)
@pytest.mark.parametrize(
    "pair",
    [
        pytest.param(NODE_AND_NODE, id="node-node"),
        pytest.param(OLD_AND_NODE, id="old-node"),
        pytest.param(NEW_AND_BALANCERS, id="new-balancers"),
        pytest.param(OLD_AND_BALANCERS, id="old-balancers"),
        pytest.param(CALLER_AND_NEW, id="caller-new"),
        pytest.param(CALLER_AND_OLD, id="caller-old"),
        *(pytest.param(pair, id=f"caller-{name}") for name, pair in CALLER_AND_BALANCER.items()),
        pytest.param(CLIENT_AND_BALANCERS, id="client-balancers"),
    ],
)
def test_every_fault(check: Check, event: Event, fault: Fault, pair: tuple[str, tuple[str, ...], str]) -> None:
    one, others, caller = pair
    check(event, caller, Between(fault, one, others))


@pytest.mark.long
@pytest.mark.parametrize("event", Event, ids=lambda event: event.value)
@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(("new", "other"), ("old", "other"), ("old", "new"), ("lb", "old"), ("lb", "new"), ("lb", "other")),
        *((node, name) for node in ("old", "new", "other") for name in BALANCERS),
    ],
)
def test_each_from_each(check: Check, event: Event, one: str, other: str) -> None:
    check(event, "lb", Between(Fault.BLACK_HOLE, one, (other,)))


@pytest.mark.long
@pytest.mark.parametrize("fault", [Fault.BLACK_HOLE, Fault.REJECT, Fault.PROHIBITED], ids=lambda fault: fault.value)
@pytest.mark.parametrize(
    ("event", "alone"),
    [
        *((event, name) for event in Event for name in ("other", *BALANCERS)),
        # EFM switches over from no node that it cannot reach.
        (Event.FAILOVER, "old"),
    ],
)
def test_one_from_all(check: Check, event: Event, fault: Fault, alone: str) -> None:
    others = [name for name in ("old", "new", "other", *BALANCERS, "lb", "client") if name != alone]
    check(event, "new", Between(fault, alone, tuple(others)))


@pytest.fixture(scope="module")
def conversations() -> dict[tuple[Event, str, str], int]:
    """Bytes of what a host says in a call to `PEERS`, by event, call and peer, when nothing is wrong."""
    return {}


def cut_midway(
    stand: Stand,
    conversations: dict[tuple[Event, str, str], int],
    event: Event,
    fault: Fault,
    call: str,
    peer: str,
) -> Between:
    """Somewhere in the middle of what the host ``lb`` says to a peer in a call."""
    if (event, call, peer) not in conversations:
        listening = {
            (call, name): Between(Fault.BLACK_HOLE, "lb", PEERS[name], call, NEVER)
            for call, names in CUT_IN.items()
            for name in names
        }
        stand.efm_lb("lb", "check")  # the first call of all says more, for it knows nothing yet
        told = play(stand, event, "lb", *listening.values(), served=())
        said = {cut.fault: cut.said for cut in told.cuts}
        conversations |= {(event, *key): said[fault] for key, fault in listening.items()}
    # What a detach leaves behind goes on asking the nodes, and some of that is in the number.
    most = 0.4 if call == "detach" else 0.9
    part = random.Random(f"{SEED} {event} {fault} {call} {peer}").uniform(0.05, most)
    return Between(fault, "lb", PEERS[peer], call, int(part * conversations[event, call, peer]))


@pytest.mark.parametrize(
    ("event", "fault", "call", "peer"),
    [
        pytest.param(Event.FAILOVER, Fault.REJECT, "attach", "pool1", id="pgpool"),
        *(
            pytest.param(event, fault, call, peer, id=f"{call}-{peer}-{fault.value}-{event.value}", marks=LONG)
            for event in Event
            for fault in MIDWAY
            for call, peers in CUT_IN.items()
            for peer in peers
            if call == "attach" or event is Event.SWITCHOVER
        ),
    ],
)
def test_a_line_that_is_cut_in_the_middle_of_a_conversation(
    stand: Stand,
    check: Check,
    conversations: dict[tuple[Event, str, str], int],
    event: Event,
    fault: Fault,
    call: str,
    peer: str,
) -> None:
    """A call's, by PCP, with HAProxy, by ssh, with a node, or all of them at one moment.

    Nobody else is there to make right what it leaves: reconcile comes afterwards.
    """
    print(f"EFM_LB_SEED={SEED}")
    check(event, "lb", cut_midway(stand, conversations, event, fault, call, peer), served=())


@pytest.mark.long
@pytest.mark.parametrize("number", range(6))
def test_reconcile_that_is_cut_off_in_the_middle_of_a_conversation(stand: Stand, number: int) -> None:
    """Nobody calls, so the line fails while it does what a call would do, or soon afterwards."""
    print(f"EFM_LB_SEED={SEED}")
    chance = random.Random(f"{SEED} reconcile {number}")
    fault, peer, after = chance.choice(MIDWAY), chance.choice(list(PEERS)), chance.randrange(500, 8000)
    print(f"{fault.value} between reconcile and {peer} after {after} bytes")
    old, new, other = stand.roles
    peers = [stand.host_of(getattr(stand.roles, name)) if name in Roles._fields else name for name in PEERS[peer]]
    with Samples(stand) as samples, stand.reconciled("lb") as service:
        with stand.hosts.cut(fault, "lb", *peers, after=after) as cut:
            old.kill()
            new.promote()
            other.follow(new)
            assert wait_until(lambda: cut.has_come, timeout=60, interval=0.1), service.output
            time.sleep(DEADLINE)  # what hangs comes to its end
        stand.rejoin(new)
        assert wait_until(stand.is_right, timeout=45, interval=0.1), f"{stand.wrong()}\n{service.output}"
    assert samples.wrong(new, float("inf"), []) == []


@pytest.mark.long
@pytest.mark.parametrize("number", range(12))
def test_several_faults_at_once(check: Check, number: int) -> None:
    print(f"EFM_LB_SEED={SEED}")
    chance = random.Random(f"{SEED} {number}")
    pairs = [("new", "other"), ("old", "other"), ("old", "new")]
    pairs += [(node, name) for node in ("old", "new", "other", "client", "lb") for name in BALANCERS]
    pairs += [("lb", node) for node in ("old", "new", "other")]
    faults = [Between(chance.choice(list(Fault)), one, (other,)) for one, other in chance.sample(pairs, 3)]
    print(faults)
    event, caller, served = chance.choice(list(Event)), chance.choice(SERVED), chance.choice([None, SERVED])
    print(f"{event.value}; EFM calls on {caller}; reconcile runs {'on three hosts' if served else 'there'}")
    check(event, caller, *faults, served=served)
