"""Where entries must lead to: the rules one by one, and what no rule may ever do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efm_lb import Attach, Detach, Node, NodeState, Promote, Reach, Role, Truth
from efm_lb_pgbouncer.entries import Location
from efm_lb_pgbouncer.targets import is_at, nodes_at, targets

N1, N2, N3 = NODES = tuple(Node(f"db{n}", f"10.0.0.{n}", 5444) for n in (1, 2, 3))
STATES = {
    "P": (Reach.ACCEPTING, Role.PRIMARY),
    "s": (Reach.ACCEPTING, Role.STANDBY),
    "x": (Reach.REFUSED, None),
    "-": (Reach.NO_RESPONSE, None),
}


def truth(letters: str) -> Truth:
    return Truth(tuple(NodeState(node, *STATES[letter], 1) for node, letter in zip(NODES, letters, strict=True)))


def at(*hosts: str, port: int = 5444) -> Location:
    return Location(tuple(f"10.0.0.{host}" if host.isdigit() else host for host in hosts), port)


def readers(event, present, policy="fallback", writer="1"):
    wanted = targets(event, {"app": at(writer)}, {"ro": present}, policy)
    return ",".join(host.removeprefix("10.0.0.") for host in wanted.locations["ro"].hosts), wanted.notes


@pytest.mark.parametrize(
    ("event", "present", "policy", "expected"),
    [
        (Detach(N3, truth("Pss")), "23", "fallback", "2"),
        (Detach(N3, truth("Psx")), "3", "fallback", "1"),
        (Detach(N3, truth("Psx")), "3", "never", "3"),
        (Detach(N3, truth("Psx")), "13", "always", "1"),
        (Detach(N3, truth("xsx")), "3", "fallback", "3"),
        (Detach(N3, truth("Pss")), "2", "fallback", "2"),
        (Attach(N3, truth("Pss")), "2", "fallback", "2,3"),
        (Attach(N3, truth("Pss")), "1", "fallback", "3"),
        (Attach(N3, truth("Pss")), "21", "always", "2,1,3"),
        (Attach(N3, truth("Pxs")), "2", "never", "3"),
        (Attach(N3, truth("xss")), "2", "fallback", "2,3"),
        (Attach(N1, truth("Pss")), "23", "fallback", "2,3"),
        (Attach(N1, truth("Pss")), "23", "always", "2,3,1"),
        (Promote(N2, truth("xPs")), "23", "fallback", "3"),
        (Promote(N2, truth("xPs")), "23", "always", "2,3"),
        (Promote(N2, truth("xPx")), "2", "fallback", "2"),
        (Promote(N2, truth("xPs")), "1", "fallback", "2"),
        (Promote(N2, truth("sPs")), "123", "fallback", "1,3"),
        (Promote(N2, truth("xPs")), "123", "always", "2,3"),
        (Promote(N2, truth("xPx")), "2", "never", "1"),
        (Detach(N1, truth("xss")), "123", "always", "2,3"),
        (Detach(N1, truth("xss")), "23", "fallback", "2,3"),
        # the live primary, because the operator says so
        (Detach(N1, truth("Pss")), "123", "always", "1,2,3"),
        (Detach(N1, truth("Pss")), "123", "fallback", "2,3"),
        (Detach(N1, truth("Pxx")), "1", "fallback", "1"),
    ],
)
def test_readers(event, present, policy, expected) -> None:
    assert readers(event, at(*present), policy)[0] == expected


@pytest.mark.parametrize(
    ("event", "present", "writer", "kept"),
    [
        (Promote(N2, truth("xPs")), "1", "2", ()),
        (Promote(N1, truth("Pss")), "1", "1", ()),
        (Attach(N2, truth("xPs")), "1", None, ()),
        (Detach(N1, truth("xss")), "1", None, ("app",)),
        (Detach(N1, truth("xPs")), "1", "2", ()),
        (Detach(N1, truth("Pss")), "1", None, ("app",)),
        (Detach(N3, truth("sPs")), "1", None, ()),
        (Detach(N1, truth("PPs")), "1", None, ("app",)),
    ],
)
def test_writes(event, present, writer, kept) -> None:
    wanted = targets(event, {"app": at(present)}, {}, "fallback")
    assert (wanted.writer and wanted.writer.host[-1], wanted.kept) == (writer, kept)
    assert wanted.locations["app"] == at(writer or present)


def test_another_name_of_the_same_node_is_right() -> None:
    aliased = N2._replace(aliases=("pg-2", "/run/postgresql"))
    said = Truth((NodeState(aliased, Reach.ACCEPTING, Role.PRIMARY, 1),))
    for host in ("pg-2", "PG-2", "/run/postgresql"):
        wanted = targets(Promote(aliased, said), {"app": at(host)}, {}, "fallback")
        assert wanted.locations["app"] == at(host), "left as it is written"
    assert targets(Promote(aliased, said), {"app": at("pg-20")}, {}, "fallback").locations["app"] == at("2")


def test_the_same_host_at_another_port_is_another_server() -> None:
    wanted = targets(Promote(N1, truth("Pss")), {"app": at("1", port=5432)}, {}, "fallback")
    assert wanted.locations["app"] == at("1")


def test_an_entry_without_a_host() -> None:
    wanted = targets(Promote(N1, truth("Pss")), {"app": Location((), 5432)}, {"ro": Location((), 5432)}, "fallback")
    assert wanted.locations == {"app": at("1"), "ro": at("1")}


def test_ports_that_differ_cannot_be_in_one_list() -> None:
    odd = N3._replace(port=6000)
    said = Truth((*truth("Pss").states[:2], NodeState(odd, Reach.ACCEPTING, Role.STANDBY, 1)))
    wanted = targets(Attach(odd, said), {"app": at("1")}, {"ro": at("2")}, "fallback")
    assert wanted.locations["ro"] == at("2")
    assert wanted.notes == ("ro leaves out 10.0.0.3:6000: PgBouncer has one port for all hosts of an entry",)
    alone = targets(Detach(N2, said), {"app": at("1")}, {"ro": at("2")}, "fallback")
    assert alone.locations["ro"] == at("1")


def test_hosts_of_somebody_else_stay() -> None:
    assert readers(Attach(N3, truth("Pss")), at("2", "replica.example"))[0] == "2,3,replica.example"
    assert readers(Detach(N2, truth("Pss")), at("2", "replica.example"))[0] == "replica.example"


@pytest.mark.parametrize(
    ("event", "primary"),
    [
        (Promote(N2, truth("xPs")), N2),
        (Attach(N1, truth("Pss")), N1),
        (Attach(N3, truth("Pss")), N1),
        (Attach(N3, truth("xss")), None),
        (Detach(N3, truth("Pss")), N1),
        (Detach(N1, truth("Pss")), None),
    ],
)
def test_the_primary_whose_clients_may_be_let_go(event, primary) -> None:
    assert targets(event, {"app": at("1")}, {}, "fallback").primary == primary


EVENTS = st.builds(
    lambda kind, node, letters: kind(node, truth(letters)),
    st.sampled_from([Attach, Detach, Promote]),
    st.sampled_from(NODES),
    st.text("Psx-", min_size=3, max_size=3),
).filter(lambda event: not isinstance(event, Promote) or event.truth.primary == event.node)


@given(
    EVENTS,
    st.sampled_from("123"),
    st.lists(st.sampled_from("123"), min_size=1, max_size=3, unique=True),
    st.sampled_from(["never", "always", "fallback"]),
)
def test_never(event, writer, present, policy) -> None:
    wanted = targets(event, {"app": at(writer)}, {"ro": at(*present)}, policy)
    app, ro = wanted.locations["app"], wanted.locations["ro"]
    if app != at(writer):
        assert event.truth.primary is not None, "writes move to a proven primary alone"
        assert is_at(app, event.truth.primary)
    assert ro.hosts, "an entry is never empty"
    listed = nodes_at(ro, NODES)
    assert len(set(listed)) == len(listed) == len(ro.hosts)
    if policy == "never" and event.truth.primary:
        assert event.truth.primary not in listed
    if isinstance(event, Detach) and event.node in listed:
        assert event.node == event.truth.primary or set(listed) == {event.node}
    again = targets(event, {"app": app}, {"ro": ro}, policy)
    assert (again.locations["app"], set(again.locations["ro"].hosts)) == (app, set(ro.hosts)), "the same again"
