"""PCP messages as bytes: pure encoding and decoding, no I/O.

A message is one type byte, a big-endian uint32 length that counts itself and the body,
and the body (pgpool's src/pcp_con/pcp_worker.c). Fields of a body are texts ended by NUL.
Everything that comes from the peer is bounded before it is believed.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "HEADER_SIZE",
    "MAX_BODY",
    "FrameError",
    "Notice",
    "body_length",
    "encode",
    "fields",
    "notice",
]

HEADER_SIZE = 5
"""Bytes before the body."""

MAX_BODY = 1 << 20
"""The longest body that is accepted, in bytes. The longest real ones are watchdog JSON and settings: a few KiB."""

_MAX_NOTICE = 256
"""pgpool cuts each part of a notice here, in bytes."""

_MAX_REQUEST = 259
"""MAX_PCP_PACKET_LENGTH - 1 in pgpool's pcp.h: the server ends the connection when the length field is larger."""


class FrameError(Exception):
    """The bytes are no PCP message."""


class Notice(NamedTuple):
    """The body of an error ('E') or a notice ('N'), in PostgreSQL's form.

    :param severity: such as ``ERROR`` (the connection stays usable), ``FATAL`` (the server closes it), ``LOG``
    """

    severity: str
    message: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.message}: {self.detail}" if self.detail else self.message


def encode(kind: bytes, body: bytes = b"") -> bytes:
    """One request.

    :param kind: the type, one byte
    :raises ValueError: pgpool would not accept it: longer than 259 bytes with its length field
    """
    length = len(body) + 4
    if length > _MAX_REQUEST:
        raise ValueError(f"a PCP request of {length} bytes is longer than the {_MAX_REQUEST} that pgpool accepts")
    return kind + length.to_bytes(4, "big") + body


def body_length(header: bytes, expected: bytes) -> tuple[bytes, int]:
    """Read a header.

    :param header: `HEADER_SIZE` bytes
    :param expected: the types that may come now; any other means a stream that is out of step, or no PCP at all
    :return: the type, and how many bytes follow
    :raises FrameError: a type that is not expected, or a length out of bounds
    """
    kind, length = header[:1], int.from_bytes(header[1:], "big")
    if kind not in expected:
        raise FrameError(f"unexpected message type {kind!r}")
    if not 4 <= length <= MAX_BODY + 4:
        raise FrameError(f"impossible message length {length}")
    return kind, length - 4


def fields(body: bytes) -> list[str]:
    """The NUL-terminated texts of a body; a last one without NUL counts as well.

    Bytes that are no UTF-8 are replaced.
    """
    parts = body.split(b"\0")
    if not parts[-1]:
        parts.pop()
    return [part.decode("utf-8", "replace") for part in parts]


def notice(body: bytes) -> Notice:
    """Read the body of an error or a notice; parts that are missing are empty, other letters are ignored."""
    parts = {text[:1]: _printable(text[1:]) for text in fields(body)}
    return Notice(parts.get("S", ""), parts.get("M") or "no message", parts.get("D", ""))


def _printable(text: str) -> str:
    """In one line, and without what a terminal would obey: it ends in a mail to a person."""
    return "".join(c if c.isprintable() else " " for c in text[:_MAX_NOTICE]).strip()
