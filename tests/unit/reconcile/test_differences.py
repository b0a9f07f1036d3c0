"""What would make a view right, and what is wrong with it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efm_lb import Attach, Detach, Node, NodeState, NodeView, Promote, Reach, Role, Truth, View
from efm_lb.reconcile.differences import differences, disagreement

NODES = tuple(Node(f"db{n}", f"10.0.0.{n}", 5444) for n in (1, 2, 3))
STATES = {
    "P": (Reach.ACCEPTING, Role.PRIMARY),
    "s": (Reach.ACCEPTING, Role.STANDBY),
    "x": (Reach.REFUSED, None),
    "-": (Reach.NO_RESPONSE, None),
    "?": (Reach.DENIED, None),
}


def truth(letters: str) -> Truth:
    return Truth(tuple(NodeState(node, *STATES[letter], 1) for node, letter in zip(NODES, letters, strict=False)))


def view(letters: str) -> View:
    """``W`` gets writes, ``w`` too but is detached, ``a`` is attached, ``d`` detached, ``.`` not known.

    ``n`` has no place unless it gets the writes. A reload takes ``i`` out, which is attached, and ``o`` in, which is
    not; it changes something about ``K``, which gets writes.
    """
    return View(
        tuple(
            NodeView(node, None if letter == "n" else letter in "WKai", letter in "WKw", "", letter not in "Kio")
            for node, letter in zip(NODES, letters, strict=False)
            if letter != "."
        )
    )


@pytest.mark.parametrize(
    ("databases", "believed", "wanted"),
    [
        ("Pss", "Waa", ""),
        ("sPs", "Waa", "promote db2"),
        ("xPs", "Waa", "promote db2, detach db1"),
        ("xPs", "dWd", "attach db3"),
        ("Psx", "Waa", "detach db3"),
        ("Ps-", "Wad", ""),
        ("Pss", "waa", "promote db1"),
        ("Ps?", "Waa", ""),
        ("Ps?", "Wad", ""),
        ("PPs", "Wda", ""),
        ("xss", "Wad", ""),
        ("Pss", "Wa.", ""),
        ("-Ps", "Wad", "promote db2, detach db1, attach db3"),
        ("Pss", "WWa", "promote db1"),
        ("Psx", "Wnn", ""),
        ("sPs", "Wnn", "promote db2"),
        ("Psx", "Wio", "detach db3, attach db2"),
        ("Psx", "Wai", "detach db3"),
        ("xPs", "oWa", "detach db1"),
        ("xss", "oao", "detach db1"),
        ("Pss", "Kaa", "promote db1"),
        ("Ps?", "Wai", ""),
    ],
)
def test_differences(databases: str, believed: str, wanted: str) -> None:
    events = differences(truth(databases), view(believed))
    assert ", ".join(f"{type(event).__name__.lower()} {event.node.name}" for event in events) == wanted


def test_where_no_reads_are_served_no_standby_is_missing() -> None:
    believed = view("Wnn")
    assert differences(truth("Pss"), believed) == ()
    assert disagreement(truth("Pss"), believed) == {}
    moved = disagreement(truth("sPs"), believed)
    assert set(moved) == {"db1", "db2"}, "writes are judged as ever"


@given(
    st.text("".join(STATES), min_size=1, max_size=3),
    st.text("WKawiod.", min_size=3, max_size=3),
)
def test_never(databases: str, believed: str) -> None:
    said = truth(databases)
    for event in differences(said, view(believed[: len(databases)])):
        if isinstance(event, Promote):
            assert said.primary == event.node
        if isinstance(event, Attach):
            assert said.role(event.node) is Role.STANDBY
        if isinstance(event, Detach):
            assert said.state(event.node).reach is not Reach.ACCEPTING


@pytest.mark.parametrize(
    ("databases", "believed", "wrong"),
    [
        ("Pss", "Waa", {}),
        ("sPs", "Waa", {"db1": "gets writes, but is a standby", "db2": "is a primary, but gets no writes"}),
        ("xss", "Waa", {"db1": "gets writes, but is down"}),
        ("Psx", "Waa", {"db3": "is down, but attached"}),
        ("Pss", "Wad", {"db3": "is up, but detached"}),
        ("Psx", "Kio", dict.fromkeys(("db1", "db2", "db3"), "would be otherwise after a reload")),
        ("Ps-", "Wad", {}),
        ("Pss", "Wa.", {"db3": "not known to this balancer"}),
    ],
)
def test_disagreement(databases: str, believed: str, wrong: dict[str, str]) -> None:
    assert disagreement(truth(databases), view(believed)) == wrong


@pytest.mark.parametrize(
    ("databases", "wrong"),
    [
        ("P--", {"db2": "is down, but attached", "db3": "is down, but attached"}),
        ("P?-", {"db3": "is down, but attached"}),
        ("Ps-", {"db1": "still serves reads in place of db2", "db3": "is down, but attached"}),
        ("Pss", {"db1": "still serves reads in place of db2 and db3"}),
    ],
)
def test_who_serves_reads_in_place_of_standbys(databases: str, wrong: dict[str, str]) -> None:
    primary, *standbys = view("waa").nodes
    believed = View((primary._replace(beside=NODES[1:]), *standbys))
    said = truth(databases)
    assert disagreement(said, believed) == wrong
    assert differences(said, believed) == differences(said, view("waa")), "reconcile judges it as ever"


def test_an_old_primary_is_named_and_gets_nothing() -> None:
    said = Truth(
        (
            NodeState(NODES[0], Reach.ACCEPTING, Role.PRIMARY, 1),
            NodeState(NODES[1], Reach.REFUSED),
            NodeState(NODES[2], Reach.ACCEPTING, Role.STANDBY, 2),
        )
    )
    assert differences(said, view("dWa")) == ()
    assert disagreement(said, view("dWa"))["db1"] == "is an old primary: it missed a promotion"
    assert disagreement(said, view("Wda"))["db1"] == "is an old primary: it missed a promotion, and gets writes"
