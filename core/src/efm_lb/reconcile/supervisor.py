"""Tell systemd that the service is ready, and that it is alive: sd_notify(3), without its library.

A service that hangs is then ended and started anew (``WatchdogSec=``). Where nobody waits for it, nothing is sent.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, MSG_DONTWAIT, MSG_NOSIGNAL, SOCK_DGRAM, socket
from collections.abc import Mapping
from contextlib import suppress

__all__ = ["ALIVE", "READY", "Supervisor"]

READY = "READY=1"
ALIVE = "WATCHDOG=1"


class Supervisor:
    """Whoever started this process.

    :param environ: with ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID``, as systemd sets them
    :ivar period: seconds within which a sign of life is waited for; infinite when none is
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        microseconds = environ.get("WATCHDOG_USEC", "")
        is_for_us = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        is_number = microseconds.isascii() and microseconds.isdigit() and len(microseconds) < 20
        waits = is_for_us and is_number and bool(self._address) and int(microseconds) > 0
        self.period = int(microseconds) / 1e6 if waits else float("inf")

    def tell(self, state: str) -> None:
        """Send `READY` or `ALIVE`; when it cannot be sent at once, it is not."""
        if not self._address:
            return
        with suppress(OSError):
            datagram = socket(AF_UNIX, SOCK_DGRAM)
            try:
                datagram.sendto(state.encode(), MSG_DONTWAIT | MSG_NOSIGNAL, self._address)
            finally:
                datagram.close()
