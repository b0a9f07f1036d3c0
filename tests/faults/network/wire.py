"""A slow wire: frames go from one namespace to another through this process, a while after they were sent."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import threading
import time
from collections import deque

from faults.network.namespaces import Namespace

__all__ = ["SlowWire"]

_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_LONGEST_FRAME = 65536


class SlowWire:
    """Two network devices, and a thread that carries what goes in at one to the other.

    :param near: gets a device called ``name``
    :param far: gets a device called ``name``, too
    :param delay: seconds that each frame is under way
    """

    def __init__(self, near: Namespace, far: Namespace, name: str, delay: float) -> None:
        self._delay = delay
        self._ends = [_tap(near, name), _tap(far, name)]
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._carry, name=name, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """End the thread; the devices go with it."""
        os.close(self._stopped)
        self._thread.join()
        for descriptor in (*self._ends, self._stop):
            os.close(descriptor)

    def _carry(self) -> None:
        other = dict(zip(self._ends, reversed(self._ends), strict=True))
        under_way: deque[tuple[float, int, bytes]] = deque()
        while True:
            wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
            ready, _, _ = select.select([*self._ends, self._stop], [], [], wait)
            if self._stop in ready:
                return
            for end in ready:
                with contextlib.suppress(OSError):  # it is not up yet
                    under_way.append((time.monotonic() + self._delay, other[end], os.read(end, _LONGEST_FRAME)))
            while under_way and under_way[0][0] <= time.monotonic():
                _, end, frame = under_way.popleft()
                with contextlib.suppress(OSError):  # as a wire does with what nobody takes
                    os.write(end, frame)


def _tap(namespace: Namespace, name: str) -> int:
    """A device in a namespace, as a file of this process."""
    with namespace.inside():
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return descriptor
