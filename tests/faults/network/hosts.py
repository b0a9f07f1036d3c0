"""Real hosts in network namespaces, on one switch, and what can go wrong between two of them.

The switch is in a namespace of its own: nothing of it touches this machine's network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from enum import Enum
from types import TracebackType

from efm_lb.rehearsal.host import Host
from faults.network.cut import Cut
from faults.network.namespaces import Namespace, remove_leftovers
from faults.network.wire import SlowWire

__all__ = ["Fault", "Hosts"]

_NETWORK = "10.77.0.0/24"
_ADDRESS = "10.77.0.{number}"
_LOST = 25
"""Packets of a hundred, in each direction."""
_DELAY = 0.1
"""Seconds in each direction."""


class Fault(Enum):
    """What is wrong between two hosts."""

    BLACK_HOLE = "black hole"
    """Nothing arrives, and nobody is told."""
    REJECT = "reject"
    """A firewall answers with a TCP reset, also on connections that exist."""
    PROHIBITED = "prohibited"
    """A firewall answers with an ICMP message, which ends new connections only."""
    HALF_OPEN = "half-open"
    """What the second sends does not arrive at the first."""
    LOSS = "loss"
    """A quarter of all packets is lost."""
    DELAY = "delay"
    """A packet is 0.1 s under way, so an answer takes 0.2 s."""


class Hosts:
    """Hosts by their names, in their order: 10.77.0.1, 10.77.0.2, and so on. Removed with `close`.

    :param names: letters and digits
    :raises NoNamespaces: this machine or this account cannot make them
    """

    def __init__(self, names: Sequence[str]) -> None:
        remove_leftovers()
        self.names = tuple(names)
        self._namespaces: dict[str, Namespace] = {}
        self._hosts: dict[str, Host] = {}
        self._rules: dict[str, list[str]] = {name: [] for name in names}
        self._wires = 0
        try:
            self._switch = self._make("switch")
            self._switch.ip("link add switch type bridge forward_delay 0 stp_state 0", "link set switch up")
            for number, name in enumerate(names, start=1):
                self._add(name, _ADDRESS.format(number=number))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Hosts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def sysctl(self, host: str, **variables: int) -> None:
        """Set variables of the kernel's, such as ``tcp_keepalive_time=5``, on one of them."""
        for name, value in variables.items():
            self._namespaces[host].sysctl(f"ipv4/{name}", value)

    def named(self, address: str) -> str:
        """The name of the host with this address."""
        return next(name for name, host in self._hosts.items() if host.address == address)

    def close(self) -> None:
        """Remove them, and end what runs on them."""
        for namespace in self._namespaces.values():
            namespace.remove()
        self._namespaces.clear()

    @contextmanager
    def fault(self, fault: Fault, one: str, *others: str) -> Iterator[None]:
        """Something is wrong between ``one`` and each of ``others`` while the block runs."""
        with ExitStack() as undo:
            for other in others:
                if fault is Fault.DELAY:
                    undo.enter_context(self._delayed(one, other))
                    continue
                undo.enter_context(self._filtered(one, self._rules_of(fault, other)))
                if fault is not Fault.HALF_OPEN:
                    undo.enter_context(self._filtered(other, self._rules_of(fault, one)))
            yield

    @contextmanager
    def cut(self, fault: Fault, one: str, *others: str, after: int) -> Iterator[Cut]:
        """The same from the moment on when so many bytes were sent between them, the block's first being number 0.

        :param fault: no `Fault.LOSS` and no `Fault.DELAY`
        """
        verdict = {Fault.REJECT: "reject with tcp reset", Fault.PROHIBITED: "reject with icmp admin-prohibited"}.get(
            fault, "drop"
        )
        leaving = "" if fault is Fault.HALF_OPEN else verdict
        cut = Cut(self._namespaces[one], [self._hosts[name].address for name in others], after, verdict, leaving)
        try:
            yield cut
        finally:
            cut.mend()

    @contextmanager
    def partition(self, *groups: Iterable[str], fault: Fault = Fault.BLACK_HOLE) -> Iterator[None]:
        """Hosts of different groups do not reach each other while the block runs; one in no group reaches all."""
        sides = [tuple(group) for group in groups]
        with ExitStack() as undo:
            for number, side in enumerate(sides):
                others = [name for other in sides[number + 1 :] for name in other]
                for name in side:
                    undo.enter_context(self.fault(fault, name, *others))
            yield

    def _make(self, label: str) -> Namespace:
        self._namespaces[label] = namespace = Namespace(label)
        return namespace

    def _add(self, name: str, address: str) -> None:
        namespace = self._make(name)
        self._switch.ip(
            f"link add name {name} type veth peer name eth0 netns {namespace.name}",
            f"link set dev {name} master switch up",
        )
        namespace.ip(f"address add {address}/24 dev eth0", "link set lo up", "link set eth0 up")
        namespace.nft("add table ip faults; add chain ip faults arriving { type filter hook input priority 0; }")
        self._hosts[name] = Host(address, _NETWORK, namespace.inside)

    def _rules_of(self, fault: Fault, sender: str) -> list[str]:
        from_sender = f"ip saddr {self._hosts[sender].address}"
        if fault is Fault.LOSS:
            return [f"{from_sender} numgen random mod 100 < {_LOST} drop"]
        if fault is Fault.REJECT:
            # The other side's firewall rejects as well: its resets must arrive.
            return [
                f"{from_sender} tcp flags & rst == rst accept",
                f"{from_sender} meta l4proto tcp reject with tcp reset",
            ]
        if fault is Fault.PROHIBITED:
            return [f"{from_sender} ip protocol icmp accept", f"{from_sender} reject with icmp admin-prohibited"]
        return [f"{from_sender} drop"]

    @contextmanager
    def _filtered(self, receiver: str, rules: list[str]) -> Iterator[None]:
        active = self._rules[receiver]
        active += rules
        self._apply(receiver)
        try:
            yield
        finally:
            for rule in rules:
                active.remove(rule)
            self._apply(receiver)

    def _apply(self, receiver: str) -> None:
        lines = [f"add rule ip faults arriving {rule}\n" for rule in self._rules[receiver]]
        self._namespaces[receiver].nft("flush chain ip faults arriving\n" + "".join(lines))

    @contextmanager
    def _delayed(self, one: str, other: str) -> Iterator[None]:
        """Both ways between the two lead over a slow wire of their own."""
        self._wires += 1
        name = f"slow{self._wires}"
        wire = SlowWire(self._namespaces[one], self._namespaces[other], name, _DELAY)
        try:
            for near, far in ((one, other), (other, one)):
                way = f"{self._hosts[far].address}/32 dev {name} src {self._hosts[near].address}"
                self._namespaces[near].ip(f"link set dev {name} up", f"route add {way}")
            yield
        finally:
            wire.cut()
