"""The compiled plan: validated settings in a file that the hook trusts only while nothing they were made from changed.

A plan holds the sources it was compiled from (see `efm_lb.sources`) beside the
settings; loading compares them with the sources of now. It holds names of password
files and never a secret, for the settings hold none.
"""

from __future__ import annotations

import marshal
import os
import stat
import sys
import zlib

from efm_lb import __version__
from efm_lb.sources import Sources, mtime
from efm_lb.state import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from efm_lb.configuration import Configuration

    Identity = tuple[Any, ...]
    """The settings' sources, as they were."""

__all__ = ["Identity", "Stale", "identity", "load", "read", "store"]

_LIMIT = 16 * 1024 * 1024
# Everything that decides how the payload reads; compared as a whole, before the payload is touched.
_HEADER = f"efm-lb plan 2\n{__version__} {sys.hexversion:x} {marshal.version}\n".encode()


class Stale:
    """No plan that can be trusted.

    :ivar reason: why, for the report of a run that took the slow way
    """

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __repr__(self) -> str:
        return f"Stale({self.reason!r})"


def load(sources: Sources) -> Configuration | Stale:
    """The settings as compiled from exactly these sources, or why there are none.

    :param sources: as they are now
    """
    plain = read(sources)
    if isinstance(plain, Stale):
        return plain
    from efm_lb.configuration import Configuration

    return Configuration.of(plain)


def read(sources: Sources) -> dict[str, Any] | Stale:
    """The same as plain data, of which `Configuration.of` makes the settings; imports nothing that is not needed."""
    try:
        content = _content(sources.plan)
        if isinstance(content, Stale):
            return content
        if not content.startswith(_HEADER):
            return Stale(f"{sources.plan}: of another version of efm-lb or Python")
        start = len(_HEADER) + 12
        checks, payload = content[len(_HEADER) : start], content[start:]
        if checks != _checks(payload):
            return Stale(f"{sources.plan}: damaged")
        made_from, files, plain = marshal.loads(payload)
        changed = _changed(made_from, sources) or _touched(files)
        return Stale(changed) if changed else dict(plain)
    except OSError as error:
        return Stale(f"{sources.plan}: {error.strerror}")
    except Exception as error:
        return Stale(f"{sources.plan}: {type(error).__name__}: {error}")


def store(configuration: Configuration, sources: Sources, files: Mapping[str, int]) -> None:
    """Write the plan, all of it or nothing.

    :param configuration: what `sources` were validated to
    :param sources: as they were when the validation began
    :param files: files of the adapters with the `mtime` they had before the adapters were asked
    :raises OSError: it could not be written; an older plan is left as it is
    """
    payload = marshal.dumps((identity(sources), tuple(files.items()), configuration.plain()))
    replace(f"{configuration.state_dir}/{os.path.basename(sources.plan)}", _HEADER + _checks(payload) + payload, 0o600)


def _content(path: str) -> bytes | Stale:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return Stale(f"{path}: there is none yet")
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return Stale(f"{path}: not a regular file")
        if status.st_uid not in (0, os.geteuid()):
            return Stale(f"{path}: owned by uid {status.st_uid}")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return Stale(f"{path}: writable by others")
        if status.st_size > _LIMIT:
            return Stale(f"{path}: damaged")
        # One byte more than there should be, so that a file that grew is not taken for whole.
        return os.read(descriptor, status.st_size + 1)
    finally:
        os.close(descriptor)


def _checks(payload: bytes) -> bytes:
    return len(payload).to_bytes(8, "big") + zlib.crc32(payload).to_bytes(4, "big")


def identity(sources: Sources) -> Identity:
    """What settings are made from, to be compared: other settings come of it when it differs."""
    return (
        (sources.cluster, sources.here),
        sources.env_file,
        sources.stamp,
        sources.content,
        sources.variables,
        sources.paths,
    )


def _changed(made_from: Identity, sources: Sources) -> str:
    """Which source is not what it was, empty when all are."""
    cluster, env_file, stamp, content, variables, paths = made_from
    if cluster != (sources.cluster, sources.here):
        return f"{sources.plan}: of cluster {cluster[0]}"
    if env_file != sources.env_file:
        return f"{sources.plan}: of env file {env_file}"
    if (stamp, content) != (sources.stamp, sources.content):
        return f"{env_file} has changed"
    if variables != sources.variables:
        return "the environment is another one"
    if paths != sources.paths:
        before = dict(paths)
        paths_now = [path for path, changed in sources.paths if before.get(path) != changed]
        return f"installed software has changed: {paths_now[0] if paths_now else 'sys.path'}"
    return ""


def _touched(files: Iterable[tuple[str, int]]) -> str:
    for path, before in files:
        if mtime(path) != before:
            return f"installed software has changed: {path}"
    return ""
