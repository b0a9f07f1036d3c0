"""The value of EFM_LB_NODES."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efm_lb import Node
from efm_lb.config.nodes import parse_nodes


@pytest.mark.parametrize(
    ("text", "node"),
    [
        ("10.0.0.11:5444", Node("10.0.0.11", "10.0.0.11", 5444)),
        ("10.0.0.11", Node("10.0.0.11", "10.0.0.11", 5432)),
        ("db-1.my_domain.example:1", Node("db-1.my_domain.example", "db-1.my_domain.example", 1)),
        ("_db_1", Node("_db_1", "_db_1", 5432)),
        ("[fd00::11]:5444", Node("fd00::11", "fd00::11", 5444)),
        ("[fd00::11]", Node("fd00::11", "fd00::11", 5432)),
        ("[fe80::1%eth0]:1", Node("fe80::1%eth0", "fe80::1%eth0", 1)),
        ("db1=10.0.0.11:5444", Node("db1", "10.0.0.11", 5444)),
        ("db1 = [fd00::11]", Node("db1", "fd00::11", 5432)),
        ("fd00::1=db1:5444", Node("fd00::1", "db1", 5444)),
        ("a=b=c=host:5", Node("a", "host", 5, ("b", "c"))),
    ],
)
def test_forms(text: str, node: Node) -> None:
    assert parse_nodes(text) == (node,)
    assert parse_nodes(f" other:9 , {text} ")[1] == node


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an entry between the commas is empty"),
        ("a,", "an entry between the commas is empty"),
        ("a:", "'a:': '' is no port"),
        ("a:0", "'a:0': '0' is no port"),
        ("a:65536", "'a:65536': '65536' is no port"),
        ("a:-1", "'a:-1': '-1' is no port"),
        ("a:٣", "'a:٣': '٣' is no port"),
        ("a:5432x", "'a:5432x': '5432x' is no port"),
        ("fd00::1", "'fd00::1' is not host:port; an IPv6 address needs brackets: [fd00::1]:5432"),
        ("[fd00::1", "'[fd00::1' is not host:port; an IPv6 address needs brackets: [fd00::1]:5432"),
        ("[fd00::zz]:1", "'[fd00::zz]:1': '[fd00::zz]' is neither a host name nor an IP address"),
        ("[db1]:1", "'[db1]:1': '[db1]' is neither a host name nor an IP address"),
        ("[fe80::1%]:1", "'[fe80::1%]:1': '[fe80::1%]' is neither a host name nor an IP address"),
        ("[fe80::1%a;b]:1", "'[fe80::1%a;b]:1': '[fe80::1%a;b]' is neither a host name nor an IP address"),
        ("10.0.0.256", "'10.0.0.256': '10.0.0.256' is neither a host name nor an IP address"),
        ("10.0.0", "'10.0.0': '10.0.0' is neither a host name nor an IP address"),
        ("a b", "'a b': 'a b' is neither a host name nor an IP address"),
        ("-a", "'-a': '-a' is neither a host name nor an IP address"),
        ("a..b", "'a..b': 'a..b' is neither a host name nor an IP address"),
        ("=a", "'=a': '' is neither a host name nor an IP address"),
        ("a=", "'a=': '' is neither a host name nor an IP address"),
        ("%h", "'%h': '%h' is neither a host name nor an IP address"),
        ("a:1,a:1", "a:1 is in the list twice"),
        ("a:1,A:1", "A:1 is in the list twice"),
        ("x=[fd00::1]:1,y=[fd00:0::1]:1", "[fd00:0::1]:1 is in the list twice"),
        ("a:1,a:2", "'a' is a name of two nodes, a:1 and a:2"),
        ("x=a:1,x=b:2", "'x' is a name of two nodes, a:1 and b:2"),
        ("x=y=a:1,y=b:2", "'y' is a name of two nodes, a:1 and b:2"),
        ("x=b:1,b:2", "'b' is a name of two nodes, b:1 and b:2"),
        ("b:2,x=b:1", "'b' is a name of two nodes, b:2 and b:1"),
    ],
)
def test_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        parse_nodes(text)
    assert str(caught.value) == message


def test_two_servers_of_one_host_have_names() -> None:
    one, two = parse_nodes("one=127.0.0.1:5444,two=127.0.0.1:5445")
    assert one.is_called("one")
    assert not one.is_called("two")
    assert (two.name, two.port) == ("two", 5445)


hosts = st.one_of(
    st.text(string.ascii_lowercase + string.digits + "_-", min_size=1, max_size=20).map(lambda text: f"h{text}h"),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
)


@given(st.lists(st.tuples(hosts, st.integers(1, 65535)), min_size=1, unique_by=lambda pair: pair[0]))
def test_what_is_written_is_read(pairs: list[tuple[str, int]]) -> None:
    nodes = parse_nodes(",".join(f"{host}:{port}" for host, port in pairs))
    assert [(node.host, node.port) for node in nodes] == [(host.strip("[]"), port) for host, port in pairs]
    assert [node.address for node in nodes] == [f"{host}:{port}" for host, port in pairs]


@given(st.text())
def test_anything_else_is_a_value_error(text: str) -> None:
    try:
        nodes = parse_nodes(text)
    except ValueError:
        return
    assert all(node.name and node.host for node in nodes)
    plain = set(string.ascii_letters + string.digits + "_-.:%")
    assert all(plain.issuperset(name) for node in nodes for name in (node.name, node.host, *node.aliases))
