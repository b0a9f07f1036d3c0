"""What each event wants of which server, and the commands that bring it about."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efm_lb import Attach, Detach, Node, NodeState, Origin, PermanentError, Promote, Reach, Role, TemporaryError, Truth
from efm_lb_haproxy.servers import parse_sessions, parse_state
from efm_lb_haproxy.settings import setup_of
from efm_lb_haproxy.wishes import steps, wishes
from unit.haproxy.haproxy_model import NODES, STATES, Model, balancer, truth

EVENTS = {"promote": Promote, "attach": Attach, "detach": Detach}


def proxies_of(model):
    return {
        proxy: tuple(
            server._replace(sessions=parse_sessions(model.command(f"show stat {proxy} 4 -1"))[server.name])
            for server in parse_state(model.command(f"show servers state {proxy}"))
        )
        for proxy in model.servers
    }


def commands(model, event, **settings):
    """What is sent for an event; the model is as after it."""
    found, _ = wishes(event, setup_of(balancer("/a", **settings)), proxies_of(model))
    sent = [c for step in steps(found, event.truth.nodes, proxies_of(model)) for c in step.commands]
    for command in sent:
        assert model.command(command) == ""
    return sent


def letters(model, proxy):
    told = []
    for _, _, op, admin, _ in model.servers[proxy].values():
        told.append("M" if admin & 1 else "D" if admin & 8 else "R" if op else "d")
    return "".join(told)


def event_of(text, databases, origin=Origin.HOOK):
    kind, number = text.split()
    return EVENTS[kind](NODES[int(number) - 1], truth(databases), origin)


@pytest.mark.parametrize(
    ("event", "databases", "before", "after"),
    [
        # a switchover, a failover, and again
        ("promote 2", "sPs", "RMM MRR", "MRM MDR"),
        ("promote 2", "xPs", "RMM MRR", "MRM MDR"),
        ("promote 2", "xPs", "MRM MDR", "MRM MDR"),
        ("promote 2", "xPs", "CRC CMR", "MRM MMR"),
        # two ready writers, and none
        ("promote 1", "Pss", "RRR MRR", "RMM MRR"),
        ("promote 1", "Pss", "MMM MRR", "RMM MRR"),
        # found down by a check, drained, disabled in the configuration
        ("promote 1", "Pss", "dMM MRR", "RMM MRR"),
        ("promote 1", "Pss", "DMM MRR", "RMM MRR"),
        ("promote 1", "Pss", "CMM MRR", "RMM MRR"),
        # no other server for reads is left: the primary serves them
        ("promote 2", "xPx", "RMM MRM", "MRM MRM"),
        ("promote 2", "xPs", "RMM MMM", "MRM MRM"),
        # what is ready is dead, and does not count
        ("promote 2", "xP-", "RMM MRR", "MRM MRR"),
        # a dead old primary that served reads leaves them as well, a live one does not
        ("promote 2", "xPs", "RMM RRR", "MRM MDR"),
        ("promote 2", "sPs", "RMM RRR", "MRM RDR"),
        # a standby that was out before stays so
        ("promote 2", "sPs", "RMM MRM", "MRM MRM"),
        # standbys
        ("detach 3", "Psx", "RMM MRR", "RMM MRM"),
        ("detach 3", "Ps-", "RMM MRR", "RMM MRM"),
        ("detach 3", "Pss", "RMM MRR", "RMM MRD"),
        ("detach 3", "Ps?", "RMM MRR", "RMM MRD"),
        ("detach 3", "Psr", "RMM MRR", "RMM MRD"),
        ("detach 3", "Pss", "RMM MRM", "RMM MRM"),
        ("detach 3", "Psx", "RMM MRD", "RMM MRM"),
        ("attach 3", "Pss", "RMM MRM", "RMM MRR"),
        ("attach 3", "Pss", "RMM MRD", "RMM MRR"),
        ("attach 3", "Pss", "RMM MRd", "RMM MRR"),
        # the last one for reads
        ("detach 2", "Pxx", "RMM MRM", "RMM RMM"),
        ("detach 2", "Psx", "RMM MRM", "RMM RDM"),
        ("attach 2", "Psx", "RMM RMM", "RMM DRM"),
        ("detach 2", "xxx", "MMM MRM", "MMM MMM"),
        # the primary, dead: its writes must not reach it when it thaws
        ("detach 1", "-ss", "RMM MRR", "MMM MRR"),
        ("detach 1", "xss", "RMM RRR", "MMM MRR"),
        # an attach never moves writes
        ("attach 2", "sPs", "RMM MMR", "RMM MMR"),
        ("attach 1", "sPs", "RMM MRR", "RMM RDR"),
    ],
)
def test_with_the_primary_as_the_last_resort_for_reads(event, databases, before, after):
    write, read = before.split()
    model = Model(w=write, r=read)
    commands(model, event_of(event, databases))
    assert f"{letters(model, 'w')} {letters(model, 'r')}" == after
    assert commands(model, event_of(event, databases)) == [], "it is right now"


@pytest.mark.parametrize(
    ("policy", "event", "databases", "before", "after"),
    [
        ("never", "promote 2", "xPx", "RMM MRM", "MRM MDM"),
        ("never", "promote 2", "xPs", "RMM MRR", "MRM MDR"),
        ("never", "detach 2", "Psx", "RMM MRM", "RMM MDM"),
        ("never", "attach 2", "Pss", "RMM RMM", "RMM DRM"),
        ("always", "promote 2", "xPs", "RMM RRR", "MRM MRR"),
        ("always", "promote 2", "sPs", "RMM RMR", "MRM RRR"),
        ("always", "detach 3", "Psx", "RMM RRR", "RMM RRM"),
        ("always", "attach 3", "Pss", "RMM MRM", "RMM MRR"),
    ],
)
def test_other_policies_for_reads(policy, event, databases, before, after):
    write, read = before.split()
    model = Model(w=write, r=read)
    commands(model, event_of(event, databases), read_includes_primary=policy)
    assert f"{letters(model, 'w')} {letters(model, 'r')}" == after
    assert commands(model, event_of(event, databases), read_includes_primary=policy) == []


def test_an_operator_may_take_out_the_only_primary():
    model = Model(w="RMM", r="RMM")
    commands(model, event_of("detach 1", "Pss", Origin.OPERATOR))
    assert (letters(model, "w"), letters(model, "r")) == ("MMM", "DMM")


def test_the_old_ones_go_and_lose_their_sessions_before_the_new_one_comes():
    model = Model(w="RRM", r="MRR")
    assert commands(model, event_of("promote 3", "ssP")) == [
        "set server w/n1 state maint",
        "shutdown sessions server w/n1",
        "set server w/n2 state maint",
        "shutdown sessions server w/n2",
        "set server w/n3 state ready",
        "set server r/n3 state drain",
    ]


def test_sessions_that_are_left_on_a_server_in_maintenance_are_shut_down():
    """Somebody else put it there, and 5000 commits in four seconds still went to it."""
    model = Model(w="MRM", r="MRR")
    model.servers["w"]["n1"][4] = 8
    assert commands(model, event_of("promote 2", "xPs"), read_includes_primary="always") == [
        "shutdown sessions server w/n1"
    ]


def test_one_that_serves_reads_comes_before_the_last_one_goes():
    model = Model(w="RMM", r="MRM")
    assert commands(model, event_of("detach 2", "Psx")) == [
        "set server r/n1 state ready",
        "set server r/n2 state drain",
    ]


def test_a_node_may_be_several_servers_and_a_stranger_is_no_writer():
    model = Model(w="RMM", r="MRR")
    model.servers["w"]["copy"] = ["10.0.0.2", 5444, 0, 1, 0]
    model.servers["w"]["elsewhere"] = ["10.9.9.9", 5444, 2, 0, 1]
    model.servers["r"]["elsewhere"] = ["10.9.9.9", 5444, 2, 0, 1]
    commands(model, event_of("promote 2", "xPs"))
    assert model.ready("w") == ["n2", "copy"]
    assert "elsewhere" in model.ready("r"), "reads of others are left alone"


def test_names_say_nothing():
    """A server that is called like a node, at another address, is not that node."""
    model = Model(w="RMM", r="MRR")
    servers = model.servers["w"]
    servers["db2"], servers["n2"] = ["10.0.0.22", 5444, 2, 0, 0], ["10.0.0.2", 54440, 2, 0, 0]
    servers["db2-new"] = ["10.0.0.2", 5444, 0, 1, 0]
    commands(model, event_of("promote 2", "xPs"))
    assert model.ready("w") == ["db2-new"]


def test_an_alias_is_a_node_too():
    node = Node("10.0.0.1", "db1", 5444, ("10.1.1.1",))
    states = (NodeState(node, Reach.ACCEPTING, Role.PRIMARY, 1), *truth("Pss").states[1:])
    model = Model(w="MMM", r="MRR")
    model.servers["w"]["n1"][0] = "10.1.1.1"
    commands(model, Promote(node, Truth(states)))
    assert model.ready("w") == ["n1"]


def test_what_a_proxy_cannot_do_does_not_keep_the_others_from_it():
    model = Model(w="RMM", r="MRR", app="RMM")
    del model.servers["app"]["n2"]
    event = event_of("promote 2", "xPs")
    setup = setup_of(balancer("/a", write=["w", "app", "gone"]))
    wanted, problems = wishes(event, setup, proxies_of(model))
    assert [wish.proxy for wish in wanted] == ["w", "r"]
    assert problems == (
        "HAProxy has no proxy gone (EFM_LB_BALANCERS__EDGE__WRITE)",
        "proxy app has no server 10.0.0.2:5444 (db2): its writes are not moved",
    )


def test_a_node_that_haproxy_does_not_know():
    model = Model(w="RMM", r="MRR")
    stranger = Node("192.0.2.77", "192.0.2.77", 5499)
    wider = Truth((*truth("Pss").states, NodeState(stranger, Reach.ACCEPTING, Role.STANDBY, 1)))
    with pytest.raises(PermanentError, match=r"no server 192.0.2.77:5499 .* it has w/n1 \(10.0.0.1:5444\)"):
        commands(model, Attach(stranger, wider))


def test_what_cannot_be_wanted():
    model = Model(w="RMM", r="MRR")
    with pytest.raises(TemporaryError, match="does not answer, so it is not attached"):
        commands(model, event_of("attach 3", "Psx"))
    with pytest.raises(TemporaryError, match="not proven to be the only primary"):
        commands(model, event_of("promote 2", "PPs"))
    assert model.sent == []


def test_writes_only_and_reads_only():
    model = Model(w="RMM")
    assert commands(model, event_of("attach 3", "Pss"), read=None) == []
    commands(model, event_of("promote 3", "ssP"), read=None)
    assert model.ready("w") == ["n3"]
    model = Model(r="MRR")
    commands(model, event_of("promote 3", "ssP"), write=None)
    assert model.ready("r") == ["n2"]


PLACES = st.text("RMDCd", min_size=3, max_size=3)


@given(
    st.text("".join(STATES), min_size=3, max_size=3),
    PLACES,
    PLACES,
    st.sampled_from(list(EVENTS)),
    st.integers(1, 3),
    st.sampled_from(["never", "always", "fallback"]),
)
def test_whatever_the_state(databases, write, read, kind, number, policy):
    model = Model(w=write, r=read)
    before = model.ready("w")
    event = event_of(f"{kind} {number}", databases)
    try:
        commands(model, event, read_includes_primary=policy)
    except TemporaryError:
        assert not model.sent
        return
    assert commands(model, event, read_includes_primary=policy) == [], "once is enough"
    if kind == "promote":
        assert model.ready("w") == [f"n{number}"]
        came = [moment["w"] for moment in model.moments if f"n{number}" in moment["w"]]
        if f"n{number}" not in before:
            assert all(len(ready) == 1 for ready in came), "never two ready writers once the new one is"
    elif kind == "attach":
        assert model.ready("w") == before, "an attach never moves writes"
    else:
        assert f"n{number}" not in model.ready("w") + model.ready("r")
    if truth(databases).primary and policy == "fallback" and before:
        assert model.ready("r") or kind == "detach", "somebody serves reads"
    for step in model.sent:
        if "shutdown" in step:
            proxy, name = step.split()[-1].split("/")
            assert name not in model.ready(proxy), "sessions are cut only where nothing new can come"
