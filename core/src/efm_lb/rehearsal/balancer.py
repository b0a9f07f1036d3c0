"""What a rehearsal needs of a balancer, whatever its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Protocol

__all__ = ["Balancer", "Belief", "Entrance", "State", "named"]


class Entrance(NamedTuple):
    """Where clients connect, and what they need to know about it.

    :param patience: seconds that a client waits for an answer: longer than the balancer holds anybody back
    :param login_patience: the same for a new session
    """

    host: str
    port: int
    dbname: str = "postgres"
    patience: float = 5.0
    login_patience: float = 2.0


class Belief(NamedTuple):
    """What a balancer believes about one node.

    :param writes: it sends writes there
    :param reads: it sends reads there
    :param words: both, in the balancer's own words
    """

    writes: bool
    reads: bool
    words: str


class State(NamedTuple):
    """What a balancer shows of itself, as a table for a person.

    :param title: how it was asked
    :param columns: the headings of all cells but the first of each row
    :param rows: as many, and in the same order, each time
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Balancer(Protocol):
    """A running balancer in front of the cluster; it ends with the block of its ``with`` statement."""

    @property
    def name(self) -> str:
        """For messages, such as ``pool1``."""

    @property
    def alias(self) -> str:
        """What its kind's balancers are called in the settings, with a number behind."""

    @property
    def place(self) -> str:
        """What it is and where, for a person."""

    @property
    def writing(self) -> Entrance:
        """Where clients that write connect."""

    @property
    def reading(self) -> Entrance:
        """Where clients that only read connect."""

    @property
    def primary_reads(self) -> bool:
        """Reads go to the primary too; when False, only while no standby is there for them."""

    @property
    def settings(self) -> Mapping[str, object]:
        """The settings of efm-lb for it, by their names without ``EFM_LB_BALANCERS__<NAME>__``."""

    @property
    def doors(self) -> Mapping[str, str]:
        """How a person gets in: a command by what it is good for."""

    def beliefs(self) -> Sequence[Belief]:
        """What it believes about each node of the cluster, in their order.

        :raises sql.SqlError: no answer
        :raises OSError: no answer
        """

    def state(self) -> State:
        """What it shows of itself; raises as `beliefs`."""

    def __enter__(self) -> Balancer: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def named(balancers: Sequence[Balancer]) -> dict[str, Balancer]:
    """Each balancer by the name that it gets in the settings: ``pool1``, ``pool2``, ``edge1``, in their order."""
    found: dict[str, Balancer] = {}
    for balancer in balancers:
        number = 1 + sum(other.alias == balancer.alias for other in found.values())
        found[f"{balancer.alias}{number}"] = balancer
    return found
