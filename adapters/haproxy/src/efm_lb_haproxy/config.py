"""haproxy.cfg as bytes: find the ``server`` lines, and change the word ``disabled`` and a mark on them. Pure.

Nothing else is changed. The mark is a comment of ours, which says what timeline the writes follow.

The words of a line are found as haproxy finds them (2.6, `parse_line`): blanks of any kind separate words, an unquoted
``#`` ends the line, also within a word, ``\\`` escapes some bytes outside of strong quotes, and a carriage return
ends the line. Where a line belongs is told by the section keyword before it. Conditional blocks (``.if``) are looked
into, whatever their condition: all lines of a server are kept alike.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cache
from typing import NamedTuple

from efm_lb import timeline_mark, timeline_marks

__all__ = ["Line", "ServerLine", "Word", "edited", "lines", "marked", "server_lines", "words"]

_SECTIONS = frozenset(
    b"global defaults listen frontend backend userlist peers resolvers mailers namespace_list cache program"
    b" http-errors ring log-forward log-profile fcgi-app crt-store crt-list traces acme".split()
)
_COMMENT = b"#"
_NONE: Mapping[int, int | None] = {}
_BLANKS = b" \t\v\f"
_ENDS = b"\r\n\0"
_SPECIAL = frozenset(b"\\#\"'$\r\0")
"""Without any of these, a line is what stands between its blanks."""
_ESCAPED = b" \\#\"'$"
"""What a backslash takes its meaning from. Before anything else it stays, or makes a byte that is in no name."""

_TAKING_ONE = frozenset(
    b"addr agent-addr agent-inter agent-port agent-send alpn ca-file check-alpn check-proto check-reuse-pool check-sni"
    b" ciphers ciphersuites client-sigalgs cookie crl-file crt curves downinter error-limit fall fastinter guid"
    b" hash-key id idle-ping init-addr init-state inter interface log-bufsize log-proto max-reuse maxconn maxqueue"
    b" minconn namespace npn observe on-error on-marked-down on-marked-up pool-conn-name pool-low-conn pool-max-conn"
    b" pool-purge-delay port proto proxy-v2-options redir resolve-net resolve-opts resolve-prefer resolvers rise shard"
    b" sigalgs slowstart sni socks4 source ssl-max-ver ssl-min-ver tcp-md5sig tcp-ut track usesrc verify verifyhost"
    b" weight ws".split()
)
"""The keywords of a server line that take a value: in ``cookie disabled`` the second word is no keyword."""


class Word(NamedTuple):
    """One word of a line.

    :param start: where it begins in the file, quotes included
    :param end: the first byte after it
    :param value: without quotes and escapes
    :param literal: it means what it says: no environment variable is put in when haproxy reads it
    """

    start: int
    end: int
    value: bytes
    literal: bool


class Line(NamedTuple):
    """One line that holds words, and where it belongs.

    :param number: counted from 1
    :param section: the section keyword, such as ``backend``; empty before the first
    :param name: the section's name, empty when it has none
    """

    number: int
    section: str
    name: str
    words: tuple[Word, ...]

    @property
    def keyword(self) -> bytes:
        return self.words[0].value

    @property
    def values(self) -> tuple[bytes, ...]:
        return tuple(word.value for word in self.words)


class ServerLine(NamedTuple):
    """One ``server`` or ``server-template`` line of a proxy.

    :param host: as written; empty when an environment variable decides, or it is a path
    :param port: None when it is not a plain number
    :param disabled: the server comes up in maintenance
    :param inherits: it says so because of a ``default-server`` line, so no word on this line is to blame
    :param template: it stands for several servers
    """

    number: int
    proxy: str
    name: str
    host: str
    port: int | None
    disabled: bool
    inherits: bool
    template: bool


def words(content: bytes, start: int, end: int) -> tuple[Word, ...]:
    """The words of ``content`` between two positions, which are on one line.

    There are none where a quote is left open: haproxy refuses the line, and what is put behind it would be quoted.
    """
    found: list[Word] = []
    at = start
    text = content[start:end]
    if _SPECIAL.isdisjoint(text):
        for value in text.split():
            at = content.index(value, at)
            found.append(Word(at, at + len(value), value, True))
            at += len(value)
        return tuple(found)
    while True:
        while at < end and content[at] in _BLANKS:
            at += 1
        if at == end or content[at] in _ENDS or content[at : at + 1] == b"#":
            return tuple(found)
        word, at = _word(content, at, end)
        if word is None:
            return ()
        found.append(word)


def _word(content: bytes, start: int, end: int) -> tuple[Word | None, int]:
    """The word that begins at ``start``, None when its quote is left open; and where it ends."""
    value = bytearray()
    quote = b""
    literal = True
    at = start
    while at < end and content[at] not in _ENDS:
        byte = content[at : at + 1]
        if byte == b"\\" and quote != b"'" and at + 1 < end and content[at + 1] in _ESCAPED:
            value += content[at + 1 : at + 2]
            at += 2
            continue
        if not quote and (byte == b"#" or content[at] in _BLANKS):
            break
        if byte in (b'"', b"'") and quote in (b"", byte):
            quote = b"" if quote else byte
        else:
            if byte == b"$" and quote != b"'":
                literal = False
            value += byte
        at += 1
    return None if quote else Word(start, at, bytes(value), literal), at


@cache
def lines(content: bytes) -> tuple[Line, ...]:
    """Every line that holds words, in order."""
    found_lines = []
    section = name = ""
    start, number = 0, 0
    while start < len(content):
        number += 1
        newline = content.find(b"\n", start)
        end = len(content) if newline < 0 else newline
        found = words(content, start, end)
        if found:
            if found[0].value in _SECTIONS:
                section = found[0].value.decode()
                name = _text(found[1].value) if len(found) > 1 else ""
            found_lines.append(Line(number, section, name, found))
        start = end + 1
    return tuple(found_lines)


def server_lines(content: bytes) -> list[ServerLine]:
    """The server lines of all ``listen`` and ``backend`` sections, in order.

    A ``default-server ... disabled`` of any ``defaults`` section counts for every proxy after it: which section a
    proxy takes its defaults from is not followed up.
    """
    found = []
    by_default = here = False
    for line in lines(content):
        if line.keyword in _SECTIONS:
            here = by_default
        elif line.keyword == b"default-server":
            said = _last_word(line, 1)
            if said is not None:
                here = said
                by_default = by_default or (said and line.section == "defaults")
        elif line.section in ("listen", "backend") and len(line.words) > 2:
            if line.keyword == b"server":
                found.append(_server_line(line, here))
            elif line.keyword == b"server-template" and len(line.words) > 3:
                found.append(_server_line(line, here, template=True))
    return found


def _server_line(line: Line, by_default: bool, template: bool = False) -> ServerLine:
    address = line.words[3 if template else 2]
    host, port = _host_and_port(_text(address.value)) if address.literal else ("", None)
    said = _last_word(line, 4 if template else 3)
    disabled = by_default if said is None else said
    inherits = disabled and said is None
    return ServerLine(line.number, line.name, _text(line.words[1].value), host, port, disabled, inherits, template)


def _last_word(line: Line, first: int) -> bool | None:
    """What the last of the words ``disabled`` (True) and ``enabled`` (False) says, None when there is none."""
    said = None
    for word in _keywords(line.words[first:]):
        if word.value in (b"disabled", b"enabled"):
            said = word.value == b"disabled"
    return said


def _keywords(options: tuple[Word, ...]) -> Iterator[Word]:
    """The options without those words that are the value of the one before."""
    is_value = False
    for word in options:
        if not is_value:
            yield word
        is_value = not is_value and word.value in _TAKING_ONE


def _wants_value(options: tuple[Word, ...]) -> bool:
    """Whether the last word is a keyword without its value: haproxy would take the next word for that."""
    return bool(options) and [*_keywords(options)][-1] is options[-1] and options[-1].value in _TAKING_ONE


def _host_and_port(address: str) -> tuple[str, int | None]:
    """``10.0.0.11:5444``, ``[::1]:5444``, ``::1:5444``, ``ipv4@10.0.0.11:5444``; empty for anything without a port."""
    kind, at, rest = address.rpartition("@")
    if at and kind not in ("ipv4", "ipv6", "tcp", "tcp4", "tcp6"):
        return "", None
    host, _, port = rest.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if host.startswith("/") or not (port.isascii() and port.isdigit() and len(port) < 10):
        return "", None
    return host, int(port)


def marked(content: bytes, proxies: Collection[str]) -> list[tuple[int, int]]:
    """The marks of timelines on server lines of some proxies: the line's number, and the timeline."""
    if not timeline_marks(_COMMENT, content):
        return []
    return [
        (line.number, mark.timeline)
        for line in lines(content)
        if line.keyword == b"server" and line.section in ("listen", "backend") and line.name in proxies
        for mark in timeline_marks(_COMMENT, content, *_tail(content, line))
    ]


def edited(content: bytes, wanted: Mapping[int, bool], timelines: Mapping[int, int | None] = _NONE) -> bytes:
    """The content with the word ``disabled`` and marks put on, or taken from, server lines; every other byte stays.

    The word is put after the last one, before a comment, because the last of ``enabled`` and ``disabled`` counts.
    Taken away are all such words of the line, each with the blanks before it. A line that says already what is wanted
    is left alone.

    A mark is put behind all else that is on the line. What somebody has written around it stays.

    :param wanted: by line number, whether the server shall come up in maintenance
    :param timelines: by line number, the timeline of the line's only mark; None for no mark
    """
    changes: list[tuple[int, int, bytes]] = []
    for line in lines(content):
        if line.keyword != b"server":
            continue
        if line.number in wanted:
            changes += _disabling(content, line, wanted[line.number])
        if line.number in timelines:
            changes += _marking(content, line, timelines[line.number])
    pieces = []
    done = 0
    for start, end, text in changes:
        pieces += [content[done:start], text]
        done = end
    return b"".join([*pieces, content[done:]])


def _disabling(content: bytes, line: Line, disabled: bool) -> Iterator[tuple[int, int, bytes]]:
    """What to put in which place of the line, in order."""
    if disabled:
        if _last_word(line, 3) is not True and not _wants_value(line.words[3:]):
            end = line.words[-1].end
            yield end, end, _blank(content[end - 1 : end]) + b"disabled"
        return
    for word in _keywords(line.words[3:]):
        if word.value == b"disabled":
            # From the word before on, whose last byte may be an escaped blank.
            yield line.words[line.words.index(word) - 1].end, word.end, b""


def _marking(content: bytes, line: Line, timeline: int | None) -> Iterator[tuple[int, int, bytes]]:
    """What to put in which place behind the line's last word, in order."""
    start, end = _tail(content, line)
    found = timeline_marks(_COMMENT, content, start, end)
    kept = found.pop() if found and timeline is not None else None
    for number, gone in enumerate(found):
        # What somebody has written behind it must stay a comment.
        until = found[number + 1].start if number + 1 < len(found) else kept.start if kept else end
        blank = gone.start > start and content[gone.start - 1] in _BLANKS
        is_last = not content[gone.end : until].strip(_BLANKS)
        yield gone.start - (is_last and blank), gone.end, b"" if is_last else _COMMENT
    if timeline is None:
        return
    mark = timeline_mark(_COMMENT, timeline)
    if kept:
        yield kept.start, kept.end, mark
    else:
        yield end, end, _blank(content[line.words[0].start : line.words[-1].end]) + mark


def _tail(content: bytes, line: Line) -> tuple[int, int]:
    """From the line's last word to its end: blanks, and a comment."""
    start = line.words[-1].end
    newline = content.find(b"\n", start)
    end = len(content) if newline < 0 else newline
    return start, end - content.endswith(b"\r", start, end)


def _blank(before: bytes) -> bytes:
    # Behind a backslash that means itself, a space would be a part of its word.
    return b"\t" if b"\\" in before else b" "


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")
