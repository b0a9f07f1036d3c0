"""Where a server of a rehearsal runs: on this machine's loopback, unless somebody has made hosts for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

__all__ = ["LOOPBACK", "Host"]


class Host(NamedTuple):
    """Where a server runs.

    :param address: it listens there
    :param network: from there one may log in
    :param inside: what is started in its block runs on this host
    """

    address: str
    network: str = "127.0.0.0/8"
    inside: Callable[[], AbstractContextManager[object]] = nullcontext


LOOPBACK = Host("127.0.0.1")
