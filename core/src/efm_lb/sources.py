"""Everything that the settings of a cluster are made from, read once: the env file, the environment, the import path.

Both ways to the settings start here, so what the compiled plan is compared with is
what the slow way would read.
"""

from __future__ import annotations

import os
import stat
import sys

from efm_lb.errors import CallError, NotNowError, NotReadableError, SettingsError, lack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PREFIX", "Sources", "gather", "mtime"]

PREFIX = "EFM_LB_"
ENV_FILE = "EFM_LB_ENV_FILE"
STATE_DIR = "EFM_LB_STATE_DIR"
DEFAULT_STATE_DIR = "/var/lib/efm-lb"
_LIMIT = 1024 * 1024
_SAFE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.")


class Sources:
    """What was read.

    :ivar cluster: the cluster's name, a safe file name
    :ivar env_file: absolute path of the env file
    :ivar content: the env file's bytes, None when there is none and none is needed
    :ivar stamp: the env file's modification time in ns, size and inode; empty when there is none
    :ivar variables: the ``EFM_LB_*`` variables of the environment, sorted
    :ivar paths: every entry of ``sys.path`` with its `mtime`: an installation or a removal changes one
    :ivar here: they are wanted on the balancers' own host, where HOST_SSH does not count
    :ivar plan: where the compiled plan is; a guess as far as the env file is not parsed yet
    """

    __slots__ = ("cluster", "content", "env_file", "here", "paths", "plan", "stamp", "variables")

    def __init__(
        self,
        cluster: str,
        env_file: str,
        content: bytes | None,
        stamp: tuple[int, ...],
        variables: tuple[tuple[str, str], ...],
        here: bool = False,
    ) -> None:
        self.cluster = cluster
        self.here = here
        self.env_file = env_file
        self.content = content
        self.stamp = stamp
        self.variables = variables
        self.paths = tuple([(path, mtime(path or ".")) for path in sys.path])
        self.plan = f"{_state_dir(content, variables)}/{cluster}{'.apply' if here else ''}.plan"


def gather(cluster: str, env_file: str | None, environ: Mapping[str, str], here: bool = False) -> Sources:
    """Read the sources of a cluster's settings.

    :param env_file: ``--env-file``, else ``EFM_LB_ENV_FILE`` counts, else ``/etc/efm-lb/<cluster>.env``
    :param here: for ``efm-lb apply``, on the balancers' own host
    :raises CallError: the cluster's name is no safe file name
    :raises NotReadableError: the env file may not be read
    :raises NotNowError: no file can be read now
    :raises SettingsError: there is no env file where one is needed, or somebody else could have written it
    """
    if not cluster or cluster[0] in ".-" or not _SAFE.issuperset(cluster):
        raise CallError(f"--cluster {cluster!r}: a cluster's name has letters, digits, _, - and . (not in front)")
    # Where the file is does not change what is in it: the same file by option or variable is the same settings.
    variables = tuple(sorted([(k, v) for k, v in environ.items() if k.startswith(PREFIX) and k != ENV_FILE]))
    named, by = (env_file, "--env-file") if env_file else (environ.get(ENV_FILE), ENV_FILE)
    path = os.path.abspath(named or f"/etc/efm-lb/{cluster}.env")
    try:
        content, stamp = _read(path)
    except FileNotFoundError:
        if named:
            raise SettingsError(f"{path}: no such file ({by})") from None
        if not variables:
            others = f"in a file named by --env-file or {ENV_FILE}, or into the environment"
            if here:
                others = "or in a file named by --env-file in the forced command; variables do not count here"
            raise SettingsError(
                f"{path}: no such file: the settings of cluster {cluster} belong there, {others}"
            ) from None
        return Sources(cluster, path, None, (), variables, here)
    except PermissionError as error:
        raise NotReadableError(f"{path}: {error.strerror} (uid {os.geteuid()})") from None
    except OSError as error:
        words = f"{path}: cannot be read: {error.strerror}"
        raise (NotNowError(words) if lack(error) else SettingsError(words)) from None
    return Sources(cluster, path, content, stamp, variables, here)


def mtime(path: str) -> int:
    """The modification time in ns, 0 when there is no such file."""
    try:
        return os.stat(path).st_mtime_ns
    except (OSError, ValueError):
        return 0


def _read(path: str) -> tuple[bytes, tuple[int, ...]]:
    # O_NONBLOCK: a pipe in the file's place must not hang the hook.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        objection = _objection(path, status)
        if objection:
            raise SettingsError(f"{path}: {objection}")
        content = b""
        while chunk := os.read(descriptor, _LIMIT):
            content += chunk
            if len(content) > _LIMIT:
                raise SettingsError(f"{path}: larger than {_LIMIT} bytes: this is no env file")
    finally:
        os.close(descriptor)
    return content, (status.st_mtime_ns, status.st_size, status.st_ino)


def _objection(path: str, status: os.stat_result) -> str:
    """Why a file of settings may be somebody else's doing, empty when it cannot."""
    uid = os.geteuid()
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if status.st_uid not in (0, uid) and not (uid == 0 and _is_of_root(os.path.dirname(path))):
        return f"owned by uid {status.st_uid}, neither root nor the user who runs this (uid {uid})"
    if status.st_mode & stat.S_IWOTH:
        return "writable by everybody: chmod o-w"
    # Many systems give each user a group of the same number and a umask of 002: that group is no stranger.
    if status.st_mode & stat.S_IWGRP and status.st_gid != 0 and not status.st_gid == os.getegid() == uid:
        return f"writable by group {status.st_gid}: chmod g-w"
    return ""


def _is_of_root(directory: str) -> bool:
    """Only root puts files there, so root may use one that belongs to EFM's user, as in /etc/efm-lb."""
    status = os.stat(directory)
    return status.st_uid == 0 and not status.st_mode & (stat.S_IWOTH | stat.S_IWGRP)


def _state_dir(content: bytes | None, variables: tuple[tuple[str, str], ...]) -> str:
    """Where the plan should be. A wrong guess costs time only: the plan proves itself."""
    for name, value in variables:
        if name == STATE_DIR and value:
            return value
    needle = STATE_DIR.encode() + b"="
    if content and needle in content:
        for line in content.splitlines():
            if line.strip().removeprefix(b"export ").lstrip().startswith(needle):
                text = line.partition(b"=")[2].partition(b" #")[0].strip().strip(b"'\"")
                return os.fsdecode(text) or DEFAULT_STATE_DIR
    return DEFAULT_STATE_DIR
