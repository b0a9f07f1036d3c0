"""What the databases say: pure data, no I/O (see `efm_lb.probe` for the asking)."""

from _socket import AF_INET6, inet_pton
from enum import Enum
from typing import NamedTuple

__all__ = ["Node", "NodeState", "Reach", "Role", "Truth", "same_host"]


class Role(Enum):
    """A database's role as it says itself: ``pg_is_in_recovery()``."""

    PRIMARY = "primary"
    STANDBY = "standby"


class Reach(Enum):
    """How a database server answered a connection attempt, in the words of pg_isready."""

    ACCEPTING = "accepting"
    """It answered the role query."""
    REJECTING = "rejecting"
    """It runs but takes no connections yet or any more: SQLSTATE 57P03 (starting up, shutting down)."""
    DENIED = "denied"
    """It runs, but refused this login or query, so its role is not known (password, pg_hba.conf)."""
    FULL = "full"
    """It runs and serves others, but has no connection slot left for the question (SQLSTATE 53300)."""
    REFUSED = "refused"
    """Its host answered that nobody listens there: the server is down."""
    NO_RESPONSE = "no response"
    """Nothing came back within the connect time-out: host down, partitioned or frozen."""

    @property
    def is_heard(self) -> bool:
        """Whether the server itself has said something. That nobody listens there, a firewall can say as well."""
        return self not in (Reach.REFUSED, Reach.NO_RESPONSE)

    @property
    def serves(self) -> bool:
        """Whether the server takes connections, be it not this one."""
        return self is Reach.ACCEPTING or self.is_untold

    @property
    def is_untold(self) -> bool:
        """Whether the server takes connections, and its role is not known all the same."""
        return self in (Reach.DENIED, Reach.FULL)


class Node(NamedTuple):
    """A database server of the cluster.

    :param name: the address EFM passes as ``%h``
    :param host: where PostgreSQL listens; equals ``name`` unless an alias form was configured
    :param port: PostgreSQL's port
    :param aliases: further names that a balancer's own configuration may use for it
    """

    name: str
    host: str
    port: int
    aliases: tuple[str, ...] = ()

    def is_called(self, host: str) -> bool:
        """Whether ``host`` is one of this node's names. Exact, never by substring; IPv6 spellings are equal."""
        return any(same_host(own, host) for own in (self.name, self.host, *self.aliases))

    def is_at(self, host: str, port: int) -> bool:
        """Whether a balancer's ``host`` and ``port`` mean this node."""
        return port == self.port and self.is_called(host)

    @property
    def address(self) -> str:
        """``host:port``, with brackets around an IPv6 host."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class NodeState(NamedTuple):
    """One node's answer.

    :param role: None unless ``reach`` is ACCEPTING
    :param timeline: the WAL timeline, None when unknown
    :param detail: the server's or libpq's own words when it did not answer the query
    :param seconds: how long the answer took
    """

    node: Node
    reach: Reach
    role: Role | None = None
    timeline: int | None = None
    detail: str = ""
    seconds: float = 0.0


class Truth(NamedTuple):
    """The answers of all nodes, in the order of ``EFM_LB_NODES``, asked at one moment.

    :param newest: the newest timeline that this host has seen a primary on, 0 when it remembers none
    """

    states: tuple[NodeState, ...]
    newest: int = 0

    def state(self, node: Node) -> NodeState:
        """The answer of ``node``. Raises KeyError when it is not a node of this cluster."""
        for state in self.states:
            if state.node == node:
                return state
        raise KeyError(node)

    def role(self, node: Node) -> Role | None:
        """The role that ``node`` itself reports, None when it did not answer."""
        return self.state(node).role

    @property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(state.node for state in self.states)

    @property
    def primaries(self) -> tuple[Node, ...]:
        """All nodes that are proven out of recovery. More than one is a split brain."""
        return tuple(state.node for state in self.states if state.role is Role.PRIMARY)

    @property
    def primary(self) -> Node | None:
        """The node that writes belong to: the only proven primary, if it is not `outdated`."""
        primaries = self.primaries
        return primaries[0] if len(primaries) == 1 and not self.outdated(primaries[0]) else None

    def outdated(self, node: Node) -> str:
        """Who has seen a newer timeline, so that ``node`` must have missed a promotion; empty when nobody has."""
        timeline = self.state(node).timeline
        if timeline is None:
            return ""
        for other in self.states:
            if other.timeline is not None and other.timeline > timeline:
                return f"{other.node.name} is on timeline {other.timeline}"
        return f"this host has seen timeline {self.newest}" if self.newest > timeline else ""

    @property
    def standbys(self) -> tuple[Node, ...]:
        """All nodes that are proven up and in recovery."""
        return tuple(state.node for state in self.states if state.role is Role.STANDBY)


def same_host(one: str, other: str) -> bool:
    """Whether two host texts are the same name or address. No DNS."""
    if one == other or one.lower() == other.lower():
        return True
    if ":" not in one or ":" not in other:
        return False
    try:
        return inet_pton(AF_INET6, one) == inet_pton(AF_INET6, other)
    except OSError:
        return False
