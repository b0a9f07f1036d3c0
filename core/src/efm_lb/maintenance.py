"""What an operator has taken into his own hands for a time: nodes and balancers that are left alone.

One small file in the state directory, a line for each, read by every hook run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import NamedTuple

from efm_lb.state import replace

__all__ = ["Maintenance", "in_force", "write"]

_LIMIT = 1024 * 1024
_END_OF_TIME = 253402300800.0
"""The year 10000, in seconds since 1970: what comes later no clock can show."""


class Maintenance(NamedTuple):
    """One node or balancer that is left alone.

    :param name: of the node, as in ``EFM_LB_NODES``, or of the balancer
    :param until: when it ends by itself, in seconds since 1970
    :param since: when it was set
    :param by: who has set it
    :param reason: in words; may be empty
    """

    name: str
    until: float
    since: float
    by: str = ""
    reason: str = ""

    def __str__(self) -> str:
        until = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.until))
        return f"{self.name} is in maintenance until {until}" + (f" ({self.reason})" if self.reason else "")


def in_force(state_dir: str, cluster: str, now: float | None = None) -> tuple[Maintenance, ...]:
    """What is in maintenance now, sorted by name.

    A file that cannot be read, and a line that makes no sense, mean nothing: the balancers come first.

    :param now: in seconds since 1970
    """
    now = time.time() if now is None else now
    found = [each for line in _lines(_path(state_dir, cluster)) if (each := _parsed(line)) and _is_now(each, now)]
    return tuple(sorted(found))


def write(state_dir: str, cluster: str, entries: Iterable[Maintenance]) -> None:
    """Put ``entries`` in place of all that was set before.

    :raises OSError: the state directory cannot be written; all is as it was
    """
    lines = ["\t".join(map(_plain, each)) for each in entries]
    replace(_path(state_dir, cluster), "".join(f"{line}\n" for line in lines).encode(), 0o644)


def _is_now(entry: Maintenance, now: float) -> bool:
    # One that was set far in the future was set by a clock that was wrong, and would be there for as long as that.
    return now < entry.until <= now + 2 * (entry.until - entry.since)


def _path(state_dir: str, cluster: str) -> str:
    return f"{state_dir}/{cluster}.maintenance"


def _plain(value: object) -> str:
    return f"{value:.0f}" if isinstance(value, float) else " ".join(str(value).split())


def _lines(path: str) -> list[str]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return []
    try:
        return os.read(descriptor, _LIMIT).decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    finally:
        os.close(descriptor)


def _parsed(line: str) -> Maintenance | None:
    name, *rest = line.split("\t")
    try:
        until, since, by, reason = rest
        entry = Maintenance(name, float(until), float(since), by, reason)
    except ValueError:
        return None
    return entry if all(0 <= moment < _END_OF_TIME for moment in (entry.until, entry.since)) else None
