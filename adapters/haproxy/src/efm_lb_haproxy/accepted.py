"""Which configuration ``haproxy -c`` has accepted already: a failover does not wait for it to say so again.

It takes 6 to 90 ms, mostly to load its libraries. haproxy reads each ``server`` line by itself. So when it has accepted
every one of them with our words (``disabled``, the mark of a timeline) and without, it accepts any mixture of them.
The file beside the configuration that remembers it may be lost, torn or written by two at once: then it is asked again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from zlib import crc32

from efm_lb_haproxy.config import edited, server_lines

__all__ = ["is_accepted", "remember", "toggled"]

_MOST_READ = 200
"""Bytes; what is remembered is shorter."""
_LONGEST_MARK = 2**32 - 1
"""The timeline whose mark takes most room: haproxy cuts off long lines."""


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


def remember(program: str, files: Mapping[str, bytes]) -> None:
    """Remember that it has accepted them, and the same `toggled`. Where that cannot be written, it is asked again."""
    path = _beside(files)
    try:
        verdict = _verdict(program, files)
        with contextlib.suppress(FileNotFoundError):  # somebody else's, perhaps, which could not be written
            os.unlink(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, verdict)
        finally:
            os.close(descriptor)
    except OSError:
        return


def toggled(content: bytes) -> bytes:
    """The content with all ``server`` lines in the other form: those without our words with them, and the reverse.

    Those that come up have the longest of all marks. Where a word cannot be put in, none will be.
    """
    lines = server_lines(content)
    return edited(
        content,
        {line.number: not line.disabled for line in lines},
        {line.number: _LONGEST_MARK for line in lines},
    )


def _beside(files: Mapping[str, bytes]) -> str:
    # Hidden, and without the ending of a configuration file: haproxy passes it over where it reads a whole directory.
    directory, name = os.path.split(os.path.realpath(next(iter(files))))
    return os.path.join(directory, f".{name}.accepted")


def _verdict(program: str, files: Mapping[str, bytes]) -> bytes:
    """What is remembered: the program, and the files without our words.

    :raises OSError: there is no such program
    """
    status = os.stat(program)
    sum_ = length = 0
    for path, content in files.items():
        bare = _without_our_words(content)
        sum_ = crc32(b"%s\0%d\0%s" % (os.fsencode(path), len(bare), bare), sum_)
        length += len(bare)
    return b"haproxy %d %d %d, configuration %08x %d\n" % (
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        sum_,
        length,
    )


def _without_our_words(content: bytes) -> bytes:
    numbers = [line.number for line in server_lines(content)]
    return edited(content, dict.fromkeys(numbers, False), dict.fromkeys(numbers))
