"""``efm-lb maintenance``: take a node or a balancer into one's own hands, for a time."""

from __future__ import annotations

import errno
import getpass
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from efm_lb import lock, maintenance
from efm_lb.calls import shown
from efm_lb.commands.tables import print_table
from efm_lb.configuration import Configuration
from efm_lb.errors import EX_OK, CallError, NotNowError, NotReadableError, UnknownNodeError, lack, printable
from efm_lb.maintenance import Maintenance

__all__ = ["clear", "seconds_of", "set_", "show"]

SCHEMA = "efm-lb/maintenance/v1"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST = 30 * 86400
_PATIENCE = 5.0
"""Seconds; whoever is at it writes one small file."""


def set_(configuration: Configuration, name: str, span: str, reason: str) -> int:
    """Leave a node or a balancer alone from now on.

    :param span: how long, such as ``2h``
    :raises UnknownNodeError: there is neither a node nor a balancer of this name
    :raises CallError: ``span`` makes no sense
    :raises NotReadableError: the state directory may not be written
    :raises NotNowError: its disk is full, or somebody else does not end doing the same
    """
    now = time.time()
    until = now + seconds_of(span)
    entry = Maintenance(_known(configuration, name), until, now, _user(), reason)
    with _alone(configuration):
        _write(configuration, [*_others(configuration, entry.name), entry])
    print(f"{printable(str(entry))}. On this host: set it on each host where efm-lb reconcile runs.")
    return EX_OK


def clear(configuration: Configuration, name: str) -> int:
    """Stop leaving it alone.

    :raises UnknownNodeError: it is not in maintenance
    :raises NotReadableError, NotNowError: as `set_`
    """
    node = configuration.node(name)
    names = {name, name.lower(), node.name if node else name}  # as `set_` takes it; or of what is configured no more
    with _alone(configuration):
        before = _now(configuration)
        others = [each for each in before if each.name not in names]
        if len(others) == len(before):
            raise UnknownNodeError(f"{shown(name)} is not in maintenance on this host")
        _write(configuration, others)
    print(f"{printable(name)} is no longer in maintenance on this host")
    return EX_OK


def show(configuration: Configuration, as_json: bool) -> int:
    """Print what is in maintenance."""
    entries = _now(configuration)
    if as_json:
        document = {"schema": SCHEMA, "cluster": configuration.cluster, "entries": [each._asdict() for each in entries]}
        print(json.dumps(document, indent=2))
    elif not entries:
        print("nothing is in maintenance on this host")
    else:
        rows = [[each.name, _clock(each.since), _clock(each.until), each.by, each.reason] for each in entries]
        print_table(["name", "since", "until", "by", "reason"], rows)
    return EX_OK


def seconds_of(span: str) -> float:
    """``90s``, ``30m``, ``2h`` or ``1d`` in seconds.

    :raises CallError: it is none of these, or longer than 30 days
    """
    number, unit = span[:-1], span[-1:]
    is_number = number.isdecimal() and len(number) < 10
    if unit not in _UNITS or not is_number or not 0 < int(number) * _UNITS[unit] <= _LONGEST:
        raise CallError(f"--for {shown(span)}: expected a number and s, m, h or d, such as 2h; at most 30d")
    return float(int(number) * _UNITS[unit])


def _known(configuration: Configuration, name: str) -> str:
    node = configuration.node(name)
    if node:
        return node.name
    balancers = [balancer.name for balancer in configuration.balancers]
    if name.lower() in balancers:
        return name.lower()
    known = ", ".join([*(node.name for node in configuration.nodes), *balancers])
    cluster = configuration.cluster
    raise UnknownNodeError(f"{shown(name)} is neither a node nor a balancer of cluster {cluster} ({known})")


def _now(configuration: Configuration) -> tuple[Maintenance, ...]:
    return maintenance.in_force(configuration.state_dir, configuration.cluster)


def _others(configuration: Configuration, name: str) -> list[Maintenance]:
    return [each for each in _now(configuration) if each.name != name]


@contextmanager
def _alone(configuration: Configuration) -> Iterator[None]:
    """From reading to writing: what somebody else sets at the same moment must not be lost."""
    # Not the lock of the calls, which a hook may hold for as long as its deadline.
    path = f"{configuration.state_dir}/{configuration.cluster}.maintenance.lock"
    try:
        held = lock.acquire(path, _PATIENCE)
    except TimeoutError:
        raise NotNowError(f"another efm-lb maintenance holds {path} for more than {_PATIENCE:g} s: try again") from None
    except OSError as error:
        raise _unwritable(configuration, error) from None
    try:
        yield
    finally:
        os.close(held)


def _write(configuration: Configuration, entries: list[Maintenance]) -> None:
    try:
        maintenance.write(configuration.state_dir, configuration.cluster, entries)
    except OSError as error:
        raise _unwritable(configuration, error) from None


def _unwritable(configuration: Configuration, error: OSError) -> NotReadableError | NotNowError:
    words = f"{configuration.state_dir} cannot be written: {error.strerror}"
    if lack(error) or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NotNowError(words)
    return NotReadableError(f"{words}: do it as EFM's user")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def _clock(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))
