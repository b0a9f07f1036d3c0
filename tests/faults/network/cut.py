"""A line that fails in the middle of what is said over it: the kernel counts the bytes, and cuts it after so many."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from faults.network.namespaces import Namespace

__all__ = ["NEVER", "Cut"]

NEVER = 2**40
"""Bytes after which a line is cut that is only to be listened to."""
_RESETS_ARRIVE = "tcp flags & rst == rst accept"
"""Those with which either side's firewall rejects."""
_numbers = itertools.count(1)


class Cut:
    """All that a host and some others say to each other gets no further after so many bytes, in both directions.

    :param host: its firewall counts and cuts
    :param others: their addresses
    :param after: bytes, with the headers of IP and TCP
    :param arriving: nftables' verdict on what comes then
    :param leaving: the same on what goes; empty when it still gets through
    """

    def __init__(self, host: Namespace, others: Iterable[str], after: int, arriving: str, leaving: str) -> None:
        self._host = host
        self._table = f"cut{next(_numbers)}"
        addresses = ", ".join(others)
        host.nft(
            f"""
            table ip {self._table} {{
                quota said {{ over {after} bytes }}
                counter lost {{ }}
                chain arriving {{
                    type filter hook input priority 1;
                    ip saddr {{ {addresses} }} quota name said goto lose_arriving
                }}
                chain leaving {{
                    type filter hook output priority 1;
                    ip daddr {{ {addresses} }} quota name said goto lose_leaving
                }}
                chain lose_arriving {{
                    {_RESETS_ARRIVE}
                    counter name lost {arriving}
                }}
                chain lose_leaving {{
                    {_RESETS_ARRIVE}
                    {f"counter name lost {leaving}" if leaving else ""}
                }}
            }}
            """
        )

    @property
    def said(self) -> int:
        """Bytes until now, also those that were lost."""
        return int(self._host.nft_object("quota", self._table, "said")["used"])

    @property
    def has_come(self) -> bool:
        """Whether something was lost."""
        return bool(self._host.nft_object("counter", self._table, "lost")["packets"])

    def mend(self) -> None:
        """Everything gets through again."""
        self._host.nft(f"delete table ip {self._table}")
