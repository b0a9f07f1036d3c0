"""The entries of a PgBouncer ini, and a comment of ours above them: found and edited by PgBouncer's own grammar.

Every other byte is left as it is.

Pure, over bytes. The grammar is that of PgBouncer's loader (lib/usual/cfparser.c and src/loader.c, the same from
1.9 on): one ``key = value`` per line, comments only at the start of a line, and a value that is a list of
``name=value`` with single quotes in which ``''`` is a quote. Only the space separates; a tab belongs to a value.
An ``%include`` keeps the section that it stands in, so a file may begin in the middle of ``[databases]``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

from efm_lb import TimelineMark, timeline_mark, timeline_marks

__all__ = ["PORT", "Entry", "EntryError", "Location", "Pair", "edited", "entry_of", "location_of", "marked", "parse"]

PORT = 5432
"""Where an entry names none."""

_COMMENT = b";"
_NONE: Mapping[str, int] = {}
_SPACE = b" \t\n\r\v\f"
_KEY = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-*")


class EntryError(Exception):
    """The file cannot be understood, or must not be changed.

    :ivar line: counted from 1; 0 when it is about the whole file
    """

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line = line


class Location(NamedTuple):
    """Where an entry leads to.

    :param hosts: names, addresses or socket directories; empty for PgBouncer's default socket
    """

    hosts: tuple[str, ...]
    port: int

    def __str__(self) -> str:
        host = ",".join(self.hosts)
        return f"{f'[{host}]' if ':' in host else host}:{self.port}"


class Pair(NamedTuple):
    """One ``name=value`` of an entry.

    :param start: where the value begins in the file, its quote included
    :param end: where it ends
    :param value: without quotes
    """

    name: bytes
    start: int
    end: int
    value: bytes


class Entry(NamedTuple):
    """One line of ``[databases]``.

    :param start: where the connection string begins in the file
    :param end: where it ends, without the space after it
    :param problem: why PgBouncer would not take it, empty when it does
    """

    name: str
    line: int
    start: int
    end: int
    pairs: tuple[Pair, ...]
    problem: str = ""

    def value(self, name: bytes) -> Pair | None:
        return next((pair for pair in self.pairs if pair.name == name), None)


class Parsed(NamedTuple):
    """A file.

    :param entries: of ``[databases]``, in their order; more than one may have the same name
    :param includes: the files that it includes, as it writes them
    """

    entries: tuple[Entry, ...]
    includes: tuple[str, ...]


@lru_cache(maxsize=2)
def parse(content: bytes) -> Parsed:
    """Find the entries. The file as it is and as it shall be are asked for several times in a run.

    :raises EntryError: PgBouncer would stop reading at that line
    """
    if (nul := content.find(b"\0")) >= 0:
        raise EntryError(_line(content, nul), "a byte that is no text")
    entries: list[Entry] = []
    includes: list[str] = []
    databases = True
    at = 0
    while (at := _after(content, at, _SPACE)) < len(content):
        if content[at] in b"#;":
            at = _end_of_line(content, at)
        elif content.startswith((b"%include ", b"%include\t"), at):
            end = _end_of_line(content, at)
            includes.append(content[at + 8 : end].strip(_SPACE).decode("utf-8", "surrogateescape"))
            at = end
        elif content[at] == ord("["):
            end = content.find(b"]", at, _end_of_line(content, at))
            if end < 0:
                raise EntryError(_line(content, at), "a section without its closing bracket")
            databases = content[at + 1 : end] == b"databases"
            at = end + 1
        elif content[at] in b"'\"":
            # A quoted name, which only newer releases know. It is not one of ours.
            at = _end_of_line(content, at)
        else:
            entry = _entry(content, at)
            if databases:
                entries.append(entry)
            at = _end_of_line(content, at)
    return Parsed(tuple(entries), tuple(includes))


def entry_of(name: str, parsed: Parsed) -> Entry:
    """The one entry of that name.

    :raises EntryError: there is none, or more than one, or one that PgBouncer would not take
    """
    found = [entry for entry in parsed.entries if entry.name == name]
    if not found:
        aside = f"; it includes {', '.join(parsed.includes)}" if parsed.includes else ""
        raise EntryError(0, f"there is no entry {name}{aside}")
    if len(found) > 1:
        raise EntryError(found[1].line, f"a second entry {name}, after line {found[0].line}: remove one")
    (entry,) = found
    if entry.problem:
        raise EntryError(entry.line, f"entry {name}: {entry.problem}")
    for wanted in (b"host", b"port"):
        if sum(pair.name == wanted for pair in entry.pairs) > 1:
            raise EntryError(entry.line, f"entry {name} has {wanted.decode()}= twice: remove one")
    return entry


def location_of(entry: Entry) -> Location:
    """Where an entry leads to."""
    host, port = entry.value(b"host"), entry.value(b"port")
    hosts = tuple(host.value.decode("utf-8", "surrogateescape").split(",")) if host else ()
    return Location(hosts, _number(port.value) if port else PORT)


def marked(content: bytes, names: Collection[str]) -> list[tuple[int, int]]:
    """The marks of timelines above some entries: the line's number, and the timeline.

    :raises EntryError: as `parse`
    """
    if not timeline_marks(_COMMENT, content):
        return []
    return [
        (_line(content, mark.start), mark.timeline)
        for entry in parse(content).entries
        if entry.name in names
        for mark in _marks_above(content, _line_start(content, entry.start))
    ]


def edited(content: bytes, wanted: Mapping[str, Location], timelines: Mapping[str, int] = _NONE) -> bytes:
    """The file with other hosts and ports, and with marks.

    :param wanted: where the named entries must lead to
    :param timelines: the timeline of the only mark above the named entries
    :return: ``content`` with nothing changed but the values of ``host=`` and ``port=`` of these entries, and the marks;
        what an entry lacks is added at its end. A mark has the line above its entry. What somebody has written there,
        or into the same line, stays
    :raises EntryError: as `parse` and `entry_of`; or a host that PgBouncer could not read back
    """
    parsed = parse(content)
    changes: list[tuple[int, int, bytes]] = []
    for name, location in wanted.items():
        changes += _changes(entry_of(name, parsed), location, content)
    for name, timeline in timelines.items():
        changes += _marking(content, _line_start(content, entry_of(name, parsed).start), timeline)
    for start, end, text in sorted(changes, reverse=True):
        content = content[:start] + text + content[end:]
    return content


def _marking(content: bytes, entry: int, timeline: int) -> Iterator[tuple[int, int, bytes]]:
    """What to put in which place of the lines above an entry.

    :param entry: where its line begins
    """
    found = _marks_above(content, entry)
    if not found:
        ending = b"\r\n" if b"\r\n" in content else b"\n"
        yield entry, entry, timeline_mark(_COMMENT, timeline) + ending
        return
    kept = found.pop()
    yield kept.start, kept.end, timeline_mark(_COMMENT, timeline)
    for mark in found:
        start, end = _line_start(content, mark.start), _end_of_line(content, mark.start)
        if content[start : mark.start].strip(_SPACE) or content[mark.end : end].strip(_SPACE):
            yield mark.start, mark.end, _COMMENT  # somebody has written something else there
        else:
            yield start, end + 1, b""


def _marks_above(content: bytes, entry: int) -> list[TimelineMark]:
    """The marks in the comments right above an entry, among which there may be empty lines.

    :param entry: where its line begins
    """
    start = entry
    while start:
        above = _line_start(content, start - 1)
        if content[above:start].strip(_SPACE)[:1] not in (b"", b";", b"#"):
            break
        start = above
    return timeline_marks(_COMMENT, content, start, entry)


def _changes(entry: Entry, location: Location, content: bytes) -> Iterator[tuple[int, int, bytes]]:
    now = location_of(entry)
    missing = []
    if location.hosts != now.hosts:
        text = _host(entry, location.hosts)
        if host := entry.value(b"host"):
            yield host.start, host.end, text
        else:
            missing.append(b"host=" + text)
    if location.port != now.port:
        number = b"%d" % location.port
        if port := entry.value(b"port"):
            yield port.start, port.end, number
        else:
            missing.append(b"port=" + number)
    if missing:
        glue = b" " if entry.end > entry.start else b""
        yield entry.end, entry.end, glue + b" ".join(missing)


def _host(entry: Entry, hosts: tuple[str, ...]) -> bytes:
    for host in hosts:
        if not host or "," in host or not host.isprintable():
            raise EntryError(entry.line, f"{host!r} cannot be written as a host of entry {entry.name}")
    text = ",".join(hosts).encode("utf-8", "surrogateescape")
    if b" " in text or b"'" in text:
        return b"'" + text.replace(b"'", b"''") + b"'"
    return text


def _entry(content: bytes, at: int) -> Entry:
    """Read ``key = value`` from its first byte on."""
    start = at
    while at < len(content) and content[at] in _KEY:
        at += 1
    name = content[start:at].decode()
    line = _line(content, start)
    at = _after(content, at, b" \t")
    if not name or content[at : at + 1] != b"=":
        raise EntryError(line, "neither a comment nor key = value")
    at = _after(content, at + 1, b" \t")
    end = _end_of_line(content, at)
    end = at + len(content[at:end].rstrip(_SPACE))
    pairs: list[Pair] = []
    problem = ""
    place = at
    while (place := _after(content, place, b" ", end)) < end:
        pair = _pair(content, place, end)
        if isinstance(pair, str):
            problem = pair
            break
        pairs.append(pair)
        place = pair.end
    return Entry(name, line, at, end, tuple(pairs), problem)


def _pair(content: bytes, at: int, end: int) -> Pair | str:
    """Read ``name=value``, or say why it is none."""
    start = at
    while at < end and content[at] not in b"= ":
        at += 1
    name = content[start:at]
    at = _after(content, at, b" ", end)
    if not name or at == end or content[at] != ord("="):
        return f"{_shown(content[start:end])} is no name=value; a comment must have a line of its own"
    at = start = _after(content, at + 1, b" ", end)
    if content[at:end][:1] == b"'":
        at += 1
        value = b""
        while True:
            quote = content.find(b"'", at, end)
            if quote < 0:
                return f"the quote after {_shown(name)}= is not closed"
            value += content[at:quote]
            at = quote + 1
            if content[at:end][:1] != b"'":
                break
            value += b"'"
            at += 1
        if at < end and content[at] != ord(" "):
            return f"there is no space after the quoted value of {_shown(name)}"
    else:
        at = content.find(b" ", at, end)
        at = end if at < 0 else at
        value = content[start:at]
    if not value:
        return f"{_shown(name)}= has no value"
    if name == b"port" and not _number(value):
        return "its port is no number"
    return Pair(name, start, at, value)


def _after(content: bytes, at: int, skipped: bytes, end: int | None = None) -> int:
    """The first place from ``at`` on that holds none of ``skipped``."""
    end = len(content) if end is None else end
    while at < end and content[at] in skipped:
        at += 1
    return at


def _end_of_line(content: bytes, at: int) -> int:
    end = content.find(b"\n", at)
    return len(content) if end < 0 else end


def _line_start(content: bytes, at: int) -> int:
    return content.rfind(b"\n", 0, at) + 1


def _line(content: bytes, at: int) -> int:
    return content.count(b"\n", 0, at) + 1


def _number(value: bytes) -> int:
    """As C's atoi reads a port, 0 when it is none."""
    return int(value) if value.isdigit() and len(value) < 6 else 0


def _shown(text: bytes) -> str:
    """The beginning of a piece of the file that may be printed: never what may be a password."""
    return text.split(b"=")[0].decode("utf-8", "replace")[:20].strip() or "text"
