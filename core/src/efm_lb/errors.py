"""The errors that end a command, each with its exit code (sysexits.h where one fits)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "EX_CONFIG",
    "EX_NOPERM",
    "EX_OK",
    "EX_SOFTWARE",
    "EX_TEMPFAIL",
    "EX_UNAVAILABLE",
    "EX_USAGE",
    "CallError",
    "EfmLbError",
    "NotInstalledError",
    "NotNowError",
    "NotReadableError",
    "SettingsError",
    "UnknownNodeError",
    "lack",
    "printable",
    "unforeseen",
]

EX_OK = 0
"""Every balancer is proven right, or rightly deferred."""
EX_USAGE = 2
"""Wrong call."""
EX_UNAVAILABLE = 69
"""A permanent failure: an unknown node, or a balancer refused."""
EX_SOFTWARE = 70
"""A bug in efm-lb or in an adapter."""
EX_TEMPFAIL = 75
"""Something temporary failed; a later try may succeed."""
EX_NOPERM = 77
"""A file may not be read."""
EX_CONFIG = 78
"""Wrong settings."""


_NO_MEMORY = "no memory is left"
"""Python's own error says nothing."""
_LACKS = (
    _NO_MEMORY,
    "Too many open files",
    "Cannot allocate memory",
    "failed to map segment",  # the dynamic linker's words for it
    "can't start new thread",
)


def printable(text: str) -> str:
    """``text`` in one line, with escapes for all that a terminal, a mail or a log would obey."""
    if text.isprintable():
        return text
    return "".join([c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text])


def lack(error: BaseException | str) -> str:
    """What this process has no more of, in words: descriptors, memory, threads. That says nothing of anybody else.

    :param error: or its text; libpq and the dynamic linker have no other way to say so
    :return: empty when it is another error
    """
    text = str(error)
    if any(words in text for words in _LACKS):
        return text
    if isinstance(error, MemoryError):
        return text or _NO_MEMORY
    # A module that cannot be read is taken by another one for one that is not installed.
    return lack(error.__context__) if isinstance(error, ImportError) and error.__context__ else ""


def unforeseen(error: BaseException) -> tuple[int, str]:
    """The exit code, and what to say, for an error that nobody has expected: a lack, or else a bug."""
    lacking = lack(error)
    if lacking:
        return EX_TEMPFAIL, f"this process lacks what it needs: {lacking}"
    return EX_SOFTWARE, f"a bug in efm-lb: {type(error).__name__}: {error}"


class EfmLbError(Exception):
    """Ends a command with one clear message per problem and an exit code; nothing was changed."""

    exit_code = EX_SOFTWARE

    def __init__(self, *messages: str) -> None:
        super().__init__("; ".join(messages))
        self.messages: Sequence[str] = tuple([printable(message) for message in messages])


class CallError(EfmLbError):
    """The command line makes no sense, such as a literal ``%h``."""

    exit_code = EX_USAGE


class UnknownNodeError(EfmLbError):
    """EFM named a node that is not in ``EFM_LB_NODES``."""

    exit_code = EX_UNAVAILABLE


class NotInstalledError(EfmLbError):
    """Something that efm-lb needs is not on this host."""

    exit_code = EX_UNAVAILABLE


class NotReadableError(EfmLbError):
    """A file that the settings name exists but may not be read."""

    exit_code = EX_NOPERM


class NotNowError(EfmLbError):
    """Something is lacking that may be there later: space on a disk, file descriptors, memory, a lock."""

    exit_code = EX_TEMPFAIL


class SettingsError(EfmLbError):
    """The settings are wrong; each message names its variable or ``file:line``."""

    exit_code = EX_CONFIG
