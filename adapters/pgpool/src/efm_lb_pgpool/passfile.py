"""The PCP password file (``.pcppass``), read by libpcp's rules but not silent about what is wrong with it.

Each line is ``hostname:port:username:password``. The first three are compared as text, or are
``*``; ``\\:`` and ``\\\\`` stand for ``:`` and ``\\``; the first line that fits wins; the password ends
at the next unescaped ``:`` (pgpool's src/libs/pcp/pcp.c, PasswordFromFile). libpcp ignores a file
with group or world access without a word, and the login then fails as if the password were wrong.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from stat import S_IMODE, S_IRWXG, S_IRWXO, S_ISREG

from efm_lb import PermanentError

__all__ = ["find", "locate", "password"]

_DEFAULT_SOCKET_DIRECTORY = "/tmp"
"""UNIX_DOMAIN_PATH in pgpool: the only socket directory that counts as ``localhost``."""

_MAX_SIZE = 1 << 20


def locate(setting: str | None, environment: Mapping[str, str]) -> str:
    """The path of the password file: the setting, else ``PCPPASSFILE``, else ``$HOME/.pcppass``.

    :raises PermanentError: none of the three is set
    """
    if setting:
        return setting
    if "PCPPASSFILE" in environment:
        return environment["PCPPASSFILE"]
    if environment.get("HOME"):
        return environment["HOME"] + "/.pcppass"
    raise PermanentError("no PCP password file: set PASSFILE of this balancer (PCPPASSFILE and HOME are not set)")


def password(path: str, host: str, port: int, user: str) -> str:
    """Look up a password.

    :param host: as configured: names and addresses are compared as text, a socket directory as its path
    :raises PermanentError: the file is missing, no regular file, open to others, not readable, or has no fitting
        line; the message never holds any of its content
    """
    text = _read(path)
    wanted = "localhost" if host == _DEFAULT_SOCKET_DIRECTORY else host
    found = find(text, wanted, str(port), user)
    if found is None:
        raise PermanentError(f"PCP password file {path} has no line for {wanted}:{port}:{user}")
    if found.endswith("\r"):
        raise PermanentError(f"PCP password file {path} has Windows line ends: remove the carriage returns")
    return found


def find(text: str, host: str, port: str, user: str) -> str | None:
    """The password of the first line of ``text`` that fits, or None. Pure."""
    for line in text.split("\n"):
        rest: str | None = line
        for token in (host, port, user):
            rest = _after(rest, token)
            if rest is None:
                break
        else:
            return _unescaped(rest or "")
    return None


def _after(line: str | None, token: str) -> str | None:
    """What follows a first field that equals ``token`` or is ``*``; None when it does not fit (pwdfMatchesString)."""
    if line is None:
        return None
    if line.startswith("*:"):
        return line[2:]
    at = 0
    for character in token:
        if line[at : at + 1] == "\\":
            at += 1
        if line[at : at + 1] != character:
            return None
        at += 1
    return line[at + 1 :] if line[at : at + 1] == ":" else None


def _unescaped(rest: str) -> str:
    value = []
    characters = iter(rest)
    for character in characters:
        if character == ":":
            break
        if character == "\\":
            value.append(next(characters, "\\"))
        else:
            value.append(character)
    return "".join(value)


def _read(path: str) -> str:
    try:
        # not blocking, so that a FIFO of that name cannot hang the hook before it is looked at
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PermanentError(f"PCP password file {path} cannot be read: {reason}") from None
    try:
        status = os.fstat(descriptor)
        if not S_ISREG(status.st_mode):
            raise PermanentError(f"PCP password file {path} is not a regular file")
        if status.st_mode & (S_IRWXG | S_IRWXO):
            raise PermanentError(
                f"PCP password file {path} has mode {S_IMODE(status.st_mode):04o}: others may read it; chmod 0600 it"
            )
        # surrogateescape keeps a password that is no UTF-8 as the bytes it is
        return os.read(descriptor, _MAX_SIZE).decode("utf-8", "surrogateescape")
    except OSError as error:
        raise PermanentError(f"PCP password file {path} cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
