"""Which configuration ``haproxy -c`` has accepted already: a failover does not wait for it to say so again.

It takes 6 to 90 ms, mostly to load its libraries. haproxy reads each ``server`` line by itself. So when it has accepted
every one of them with our words (``disabled``, the mark of a timeline) and without, it accepts any mixture of them.
Except in a conditional block (``.if``), whose lines it passes over while the condition is not met: with one of these,
it is asked each time.

The file beside the configuration that remembers it may be lost, torn or written by two at once: then it is asked again.
So it is where balancers share a first file, and not all of CONFIG and PROGRAM.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from zlib import crc32

from efm_lb_haproxy.config import edited, server_lines

__all__ = ["forms", "is_accepted", "remember"]

_CONDITION = b".if"
_MOST_READ = 200
"""Bytes; what is remembered is shorter."""
_LONGEST_MARK = 2**32 - 1
"""The timeline whose mark takes most room."""


def is_accepted(program: str, files: Mapping[str, bytes]) -> bool:
    """Whether this program has accepted these files, whatever there is of our words in them.

    What they name (certificates, maps, scripts) is not looked at: when that is wrong, our words neither make nor mend
    it, and ``efm-lb check`` tells.

    :param files: content by path, in the order in which haproxy reads them
    """
    try:
        descriptor = os.open(_beside(files), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            return os.read(descriptor, _MOST_READ) == _verdict(program, files)
        finally:
            os.close(descriptor)
    except OSError:
        return False


def forms(files: Mapping[str, bytes]) -> tuple[dict[str, bytes], ...]:
    """The files without the word ``disabled`` on any ``server`` line, and with it on all; each line with a mark.

    Where that word cannot be put in, an edit does not put it in either.

    :return: nothing where they would not tell all
    """
    if not files or any(_CONDITION in content for content in files.values()):
        return ()
    bare = {path: _without_our_words(content) for path, content in files.items()}
    return tuple({path: _form(content, out) for path, content in bare.items()} for out in (False, True))


def remember(program: str, files: Mapping[str, bytes]) -> None:
    """Remember that it has accepted all `forms` of them. Where that cannot be written, it is asked again.

    Readable for those who may read the configuration: it holds a checksum of the secrets that may be in there.
    """
    path = _beside(files)
    try:
        verdict = _verdict(program, files)
        alike = os.stat(next(iter(files)))
        with contextlib.suppress(FileNotFoundError):  # somebody else's, perhaps, which could not be written
            os.unlink(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with contextlib.suppress(PermissionError):
                os.fchown(descriptor, alike.st_uid, alike.st_gid)
                os.fchmod(descriptor, alike.st_mode & 0o666)
            os.write(descriptor, verdict)
        finally:
            os.close(descriptor)
    except OSError:
        return


def _beside(files: Mapping[str, bytes]) -> str:
    # Hidden, and without the ending of a configuration file: haproxy passes it over where it reads a whole directory.
    directory, name = os.path.split(os.path.realpath(next(iter(files))))
    return os.path.join(directory, f".{name}.accepted")


def _verdict(program: str, files: Mapping[str, bytes]) -> bytes:
    """What is remembered: the program, and the files without our words.

    :raises OSError: there is no such program
    """
    status = os.stat(program)
    checksum = length = 0
    for path, content in files.items():
        bare = _without_our_words(content)
        checksum = crc32(b"%s\0%d\0%s" % (os.fsencode(path), len(bare), bare), checksum)
        length += len(bare)
    return b"haproxy %d %d %d, configuration %08x %d\n" % (
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        checksum,
        length,
    )


def _without_our_words(content: bytes) -> bytes:
    numbers = [line.number for line in server_lines(content)]
    return edited(content, dict.fromkeys(numbers, False), dict.fromkeys(numbers))


def _form(bare: bytes, out: bool) -> bytes:
    numbers = [line.number for line in server_lines(bare)]
    return edited(bare, dict.fromkeys(numbers, out), dict.fromkeys(numbers, _LONGEST_MARK))
