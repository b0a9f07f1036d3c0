"""Which node EFM means."""

from __future__ import annotations

from efm_lb import Node
from efm_lb.configuration import Configuration, DetachLivePrimary

NODES = (
    Node("db1", "10.0.0.1", 5444),
    Node("db2", "10.0.0.1", 5445, ("two.example.com",)),
    Node("10.0.0.1", "10.0.0.9", 5444),
    Node("fe80::1", "fe80::1", 5444),
)


def called(name: str, *nodes: Node) -> Node | None:
    return Configuration("efm", nodes, {}, 10, 2, "/x", DetachLivePrimary.DEFER, (), ()).node(name)


def test_a_name_comes_before_a_host() -> None:
    assert called("10.0.0.1", *NODES) == NODES[2]
    assert called("db2", *NODES) == NODES[1]


def test_an_alias_and_another_spelling() -> None:
    assert called("TWO.example.com", *NODES) == NODES[1]
    assert called("fe80:0::1", *NODES) == NODES[3]


def test_a_host_that_two_nodes_share_names_neither() -> None:
    assert called("10.0.0.1", *NODES[:2]) is None


def test_alike_is_not_the_same() -> None:
    assert called("10.0.0.11", *NODES) is None
    assert called("db", *NODES) is None
