"""The validated settings of one cluster, as plain data that the hook can load without importing a validator."""

from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

from efm_lb.balancers import Balancer
from efm_lb.truth import Node, same_host

__all__ = ["AdapterSource", "Configuration", "DetachLivePrimary", "Reconcile"]


class DetachLivePrimary(Enum):
    """What a detach does that would take the service down: the values of ``EFM_LB_DETACH_LIVE_PRIMARY``."""

    DEFER = "defer"
    OBEY = "obey"
    REFUSE = "refuse"


class AdapterSource(NamedTuple):
    """Where an adapter comes from.

    :param name: the entry point's name, as in ``EFM_LB_BALANCERS__<NAME>__ADAPTER``
    :param module: the module to import
    :param attribute: dotted path inside the module to the plugin object, empty for the module itself
    :param distribution: the installed distribution that brings it
    :param version: that distribution's version
    """

    name: str
    module: str
    attribute: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})"


class Reconcile(NamedTuple):
    """How ``efm-lb reconcile`` behaves: the values of ``EFM_LB_RECONCILE__*``.

    :param period: seconds between two looks at the balancers
    :param settle: seconds that belong to EFM's own calls after a node has changed
    :param hold: seconds that a standby which was taken out while it is up stays out
    :param majority: whether a host that gets answers from half of three or more nodes, or fewer, changes nothing
    :param detach_after: seconds that a standby must have been down before it is taken out
    """

    period: float = 5.0
    settle: float = 2.0
    hold: float = 60.0
    majority: bool = True
    detach_after: float = 15.0


class Configuration(NamedTuple):
    """Everything that the hook needs to know about one cluster.

    :param probe: libpq connection keywords for asking the databases (user, dbname, passfile, sslmode, ...)
    :param deadline: seconds that one hook run may take after it has got the lock
    :param connect_timeout: seconds that a node or a balancer has to answer a connect and a login
    :param state_dir: directory of the journal, the lock and the compiled plan
    :param balancers: sorted by name
    :param adapters: the sources of the adapters that the balancers use, sorted by name
    :param logins: what every event logs in to by libpq: balancer, connection string, and keywords that win over it
    """

    cluster: str
    nodes: tuple[Node, ...]
    probe: Mapping[str, str]
    deadline: float
    connect_timeout: float
    state_dir: str
    detach_live_primary: DetachLivePrimary
    balancers: tuple[Balancer, ...]
    adapters: tuple[AdapterSource, ...]
    reconcile: Reconcile = Reconcile()
    logins: tuple[tuple[str, str, Mapping[str, str]], ...] = ()

    def node(self, name: str) -> Node | None:
        """The node that EFM calls ``name``, or None.

        Exact match: by the name in EFM_LB_NODES, else by a host or alias that one node alone has.
        """
        called = [node for node in self.nodes if same_host(node.name, name)]
        called = called or [node for node in self.nodes if node.is_called(name)]
        return called[0] if len(called) == 1 else None

    def plain(self) -> dict[str, Any]:
        """All of it in the few types that marshal knows."""
        return {
            **self._asdict(),
            "nodes": tuple(tuple(node) for node in self.nodes),
            "probe": dict(self.probe),
            "detach_live_primary": self.detach_live_primary.value,
            "balancers": tuple((b.name, b.adapter, dict(b.settings), *b[3:5]) for b in self.balancers),
            "adapters": tuple(tuple(source) for source in self.adapters),
            "reconcile": tuple(self.reconcile),
        }

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Configuration":
        """What `plain` was made of."""
        return cls(**plain)._replace(
            nodes=tuple([Node(*node) for node in plain["nodes"]]),
            detach_live_primary=DetachLivePrimary(plain["detach_live_primary"]),
            balancers=tuple([Balancer(*balancer) for balancer in plain["balancers"]]),
            adapters=tuple([AdapterSource(*adapter) for adapter in plain["adapters"]]),
            reconcile=Reconcile(*plain["reconcile"]),
        )
