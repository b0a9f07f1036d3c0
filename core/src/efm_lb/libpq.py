"""PostgreSQL's own client library through ctypes: only what connecting and asking a server needs.

libpq brings every authentication method, TLS mode and password-file rule that
PostgreSQL users expect, and loading it costs a tenth of what a Python driver's
import does. The functions and constants are those of the manual's chapter "libpq";
those that may wait release the interpreter lock while they run.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import c_char_p, c_int, c_void_p

from efm_lb.errors import lack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "CONNECTION_BAD",
    "CONNECTION_STARTED",
    "PGRES_COMMAND_OK",
    "PGRES_COPIES",
    "PGRES_TUPLES_OK",
    "POLLING_FAILED",
    "POLLING_OK",
    "POLLING_READING",
    "VERBOSE",
    "LibpqNotFoundError",
    "conninfo_keywords",
    "load",
]

CONNECTION_BAD = 1
CONNECTION_STARTED = 2
"""Waiting for the TCP connect; any later status means that the server has been reached."""
POLLING_FAILED = 0
POLLING_READING = 1
POLLING_OK = 3
PGRES_COMMAND_OK = 1
PGRES_TUPLES_OK = 2
PGRES_COPIES = (3, 4, 8)
"""COPY_OUT, COPY_IN and COPY_BOTH: PQgetResult gives them again and again until the data is taken."""
VERBOSE = 2
"""PQERRORS_VERBOSE: the only way to see the SQLSTATE of a refused connection."""

# Where PostgreSQL's and EDB's packages put it when the dynamic linker does not know it.
_PACKAGE_ROOTS = ("/usr/edb", "/usr/lib/postgresql", "/usr")

_Signatures = tuple[tuple[str, "Any", tuple["Any", ...]], ...]

_SIGNATURES: _Signatures = (
    ("PQconnectStartParams", c_void_p, (c_void_p, c_void_p, c_int)),
    ("PQconnectPoll", c_int, (c_void_p,)),
    ("PQconninfoParse", c_void_p, (c_char_p, c_void_p)),
    ("PQconninfoFree", None, (c_void_p,)),
    ("PQsetnonblocking", c_int, (c_void_p, c_int)),
    ("PQsendQuery", c_int, (c_void_p, c_char_p)),
    ("PQflush", c_int, (c_void_p,)),
    ("PQconsumeInput", c_int, (c_void_p,)),
    ("PQgetResult", c_void_p, (c_void_p,)),
    ("PQfinish", None, (c_void_p,)),
)
_IN_MEMORY: _Signatures = (
    ("PQsetErrorVerbosity", c_int, (c_void_p, c_int)),
    ("PQsetNoticeReceiver", c_void_p, (c_void_p, c_void_p, c_void_p)),
    ("PQstatus", c_int, (c_void_p,)),
    ("PQsocket", c_int, (c_void_p,)),
    ("PQerrorMessage", c_char_p, (c_void_p,)),
    ("PQconnectionNeedsPassword", c_int, (c_void_p,)),
    ("PQisBusy", c_int, (c_void_p,)),
    ("PQresultStatus", c_int, (c_void_p,)),
    ("PQcmdStatus", c_char_p, (c_void_p,)),
    ("PQntuples", c_int, (c_void_p,)),
    ("PQnfields", c_int, (c_void_p,)),
    ("PQfname", c_char_p, (c_void_p, c_int)),
    ("PQgetisnull", c_int, (c_void_p, c_int, c_int)),
    ("PQgetvalue", c_char_p, (c_void_p, c_int, c_int)),
    ("PQclear", None, (c_void_p,)),
)
"""None of them waits for anybody. Hundreds of them read one answer, and to get the interpreter lock back each time
takes half a millisecond while other threads compute: these keep it."""


class LibpqNotFoundError(Exception):
    """No libpq on this host: neither PostgreSQL nor its client library is installed."""


def load() -> Any:
    """Load libpq and declare its functions.

    :return: the library; call its functions by their C names
    :raises LibpqNotFoundError: no libpq.so.5 was found; a witness node needs the package
        ``libpq5`` (Debian), ``postgresql-libs`` or ``libpq`` (Red Hat), or EDB's client libraries
    :raises OSError: there is one, and this process lacks what it takes to load it
    """
    library = _open()
    _declare(library, _SIGNATURES)
    keeping = ctypes.PyDLL(library._name, handle=library._handle)
    _declare(keeping, _IN_MEMORY)
    for name, _, _ in _IN_MEMORY:
        setattr(library, name, getattr(keeping, name))
    return library


def _declare(library: ctypes.CDLL, signatures: _Signatures) -> None:
    for name, restype, argtypes in signatures:
        function = getattr(library, name)
        function.restype = restype
        function.argtypes = argtypes


def conninfo_keywords(library: Any, conninfo: str) -> dict[str, str]:
    """What a connection string sets, by libpq's keywords; nothing when it is none."""
    options = library.PQconninfoParse(conninfo.encode(), None)
    if not options:
        return {}
    keywords = {}
    # PQconninfoOption is seven words: keyword, envvar, compiled, val, label, dispchar, dispsize.
    words = ctypes.cast(options, ctypes.POINTER(c_char_p))
    number = 0
    while keyword := words[number]:
        value = words[number + 3]
        if value is not None:
            keywords[keyword.decode()] = value.decode()
        number += 7
    library.PQconninfoFree(options)
    return keywords


def _open() -> ctypes.CDLL:
    library = _opened("libpq.so.5")
    if library:
        return library
    for path in _packaged():
        library = _opened(path)
        if library:
            return library
    raise LibpqNotFoundError(
        "no libpq.so.5 found to ask the databases with: install libpq5 (Debian), libpq or postgresql-libs (Red Hat)"
    )


def _opened(path: str) -> ctypes.CDLL | None:
    """A library, None where there is none. Raises OSError for a `lack`.

    The dynamic linker is called as any other C function is, without the interpreter lock. ctypes would hold it for as
    long as a quarter of the hook's imports take, which go on meanwhile.
    """
    linker = ctypes.CDLL(None)
    dlopen, dlerror = linker.dlopen, linker.dlerror  # looking the second one up later would lose what it has to say
    dlopen.restype, dlopen.argtypes, dlerror.restype = c_void_p, (c_char_p, c_int), c_char_p
    handle = dlopen(path.encode(), os.RTLD_NOW)
    if handle:
        return ctypes.CDLL(path, handle=handle)
    why = (dlerror() or b"").decode("utf-8", "replace")
    if lack(why):
        raise OSError(why)
    return None


def _packaged() -> list[str]:
    """Paths like /usr/pgsql-16/lib/libpq.so.5 and /usr/edb/as16/lib/libpq.so.5, newest version first."""
    found = []
    for root in _PACKAGE_ROOTS:
        try:
            names = os.listdir(root)
        except OSError:
            continue
        found += [
            path
            for name in names
            for path in (f"{root}/{name}/lib/libpq.so.5", f"{root}/{name}/lib64/libpq.so.5")
            if os.path.exists(path)
        ]
    return sorted(found, key=_digits, reverse=True)


def _digits(path: str) -> int:
    return int("".join(character for character in path if character.isdigit()) or 0)
