"""Change a balancer's own configuration file: all of it or nothing, and still the same file to everybody else.

A plain rename would turn a symbolic link into a file, and leave root:root 0600 behind where the balancer must be able
to read. A write in place would let a balancer that reloads meanwhile see half a file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from _thread import get_ident

from efm_lb.outcomes import PermanentError, TemporaryError
from efm_lb.state import TEMPORARY, in_time, put, remove_abandoned

__all__ = ["read_file", "replace_file"]

_LIMIT = 16 * 1024 * 1024
"""Bytes; a configuration file that is larger is none."""
_NO_ATTRIBUTES = (errno.ENOTSUP, errno.ENOSYS)


def read_file(path: str) -> bytes:
    """The content of a configuration file, symbolic links followed.

    :raises TemporaryError: it is not there, or may not be read
    :raises PermanentError: it is no regular file, or larger than 16 MiB
    """
    try:
        return _read(path)[0]
    except OSError as error:
        raise TemporaryError(f"cannot read {path}: {error.strerror}") from None


def replace_file(path: str, expected: bytes, content: bytes) -> None:
    """Replace a file's content at once, keeping its owner, group, mode and extended attributes.

    Where ``path`` is a symbolic link, the file that it leads to is replaced and the link stays. The new content is on
    the disk before it takes the old one's place; that the disk has its new name too is waited for no longer than half
    a second. Whatever is raised, the old file is there and whole, and no temporary file is left. Only a process that is
    killed leaves one: hidden, called ``.<name>.*.efm-lb``, and removed by the next replacement that comes a minute
    later or more.

    :param expected: the content that the change was made from
    :raises TemporaryError: somebody else changed the file meanwhile, or it cannot be written: no right to the file or
        its directory, a full disk, or a file that is mounted by itself, which cannot be renamed
    :raises PermanentError: it is no regular file, or its owner, mode or attributes cannot be kept by this user
    """
    target = os.path.realpath(path)
    try:
        content_now, before = _read(target)
        if content_now != expected:
            raise _changed(path)
        # Who may not write the file itself is not helped by a right to its directory.
        os.close(os.open(target, os.O_WRONLY | os.O_CLOEXEC))
        directory = os.open(os.path.dirname(target), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _replace(path, target, before, content)
        except BaseException:
            os.close(directory)
            raise
        _flush_and_close(directory)
    except OSError as error:
        raise TemporaryError(f"cannot replace {path}: {_reason(error, target)}") from None


def _replace(path: str, target: str, before: os.stat_result, content: bytes) -> None:
    directory, name = os.path.split(target)
    # Hidden, and without the ending of a configuration file: a balancer that reads a whole directory passes it over.
    beside = os.path.join(directory, f".{name}.")
    remove_abandoned(beside)

    def finish(descriptor: int) -> None:
        _make_alike(descriptor, path, target, before)
        os.fsync(descriptor)
        if _identity(os.stat(target)) != _identity(before):
            raise _changed(path)

    put(f"{beside}{os.getpid()}-{get_ident()}{TEMPORARY}", target, content, finish)


def _read(path: str) -> tuple[bytes, os.stat_result]:
    # Not blocking: a named pipe without a writer would be waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PermanentError(f"{path} is no regular file")
        if status.st_size > _LIMIT:
            raise PermanentError(f"{path} is larger than {_LIMIT} bytes")
        content = b""
        while piece := os.read(descriptor, status.st_size + 1):
            content += piece
            if len(content) > _LIMIT:
                raise PermanentError(f"{path} is larger than {_LIMIT} bytes")
        return content, status
    finally:
        os.close(descriptor)


def _flush_and_close(directory: int) -> None:
    """Make a name in ``directory`` last, `in_time` or later.

    When it fails or hangs, the new file is in its place all the same, and a balancer can be told to read it; only
    whether it survives a power cut is not known.
    """

    def flush() -> None:
        with contextlib.suppress(OSError):
            os.fsync(directory)
        os.close(directory)

    in_time(flush)


def _make_alike(descriptor: int, path: str, target: str, before: os.stat_result) -> None:
    """Give the new file what the old one has. The mode comes last: a chown clears bits of it, an ACL sets some."""
    own = os.fstat(descriptor)
    try:
        if (own.st_uid, own.st_gid) != (before.st_uid, before.st_gid):
            os.fchown(descriptor, before.st_uid, before.st_gid)
    except PermissionError:
        raise PermanentError(
            f"{path} belongs to uid {before.st_uid}, gid {before.st_gid}, which uid {os.geteuid()} cannot keep:"
            " give the file to the user who changes it"
        ) from None
    try:
        _copy_attributes(descriptor, target)
        os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
    except PermissionError:
        raise PermanentError(
            f"the mode and extended attributes of {path} cannot be kept by uid {os.geteuid()}"
        ) from None


def _copy_attributes(descriptor: int, source: str) -> None:
    wanted, given = _attributes(source), _attributes(descriptor)
    for name in given:
        if name not in wanted:  # from the directory's default ACL
            os.removexattr(descriptor, name)
    for name, value in wanted.items():
        if given.get(name) != value:
            os.setxattr(descriptor, name, value)


def _attributes(file: str | int) -> dict[str, bytes]:
    try:
        return {name: os.getxattr(file, name) for name in os.listxattr(file)}
    except OSError as error:
        if error.errno in _NO_ATTRIBUTES:
            return {}
        raise


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """What differs when a file was written to, or another one took its place."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _changed(path: str) -> TemporaryError:
    return TemporaryError(f"{path} was changed by somebody else meanwhile: nothing was written to it")


def _reason(error: OSError, target: str) -> str:
    if error.errno == errno.EBUSY:
        return f"{error.strerror}; a file that is mounted by itself cannot be renamed: mount its directory"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{error.strerror}; uid {os.geteuid()} must be able to write it and its directory"
    return error.strerror or str(error)
