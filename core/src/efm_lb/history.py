"""What the journal holds: its records read back, and put together to calls."""

from __future__ import annotations

import json
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import groupby
from typing import Any, NamedTuple

from efm_lb.errors import NotReadableError

__all__ = ["Attempt", "Damage", "PastCall", "Reading", "Record", "folded", "past_calls", "read"]

_BEGIN = b'{"at": "'
_SEAL = len(', "crc": "00000000"}')
_FOLLOWING = ("decision", "outcome")


class Record(NamedTuple):
    """One line of the journal.

    :param at: when it was made
    :param call: the name of the call that it belongs to
    :param pid: the process that wrote it
    :param what: ``call``, ``decision``, ``outcome`` or ``again``
    :param fields: everything in it, see `efm_lb.journal`
    """

    at: datetime
    call: str
    pid: int
    what: str
    fields: Mapping[str, Any]


class Damage(NamedTuple):
    """A line that is not as it was written.

    :param detail: in words
    """

    file: str
    line: int
    detail: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.detail}"


class Reading(NamedTuple):
    """All records that can be read, oldest first, and what cannot."""

    records: tuple[Record, ...]
    damages: tuple[Damage, ...]


class Attempt(NamedTuple):
    """One time that a call was judged and carried out, or one balancer that it was applied to for another host.

    :param pid: the process
    :param call: None when its beginning is missing, for the journal no longer has it
    :param decision: None when it was not reached, and on a balancer's own host
    :param outcome: None when it never ended, or has not yet
    :param again: when the same was done once more, by reconcile; what came of it is told when it was something else
    """

    at: datetime
    pid: int
    call: Mapping[str, Any] | None = None
    decision: Record | None = None
    outcome: Record | None = None
    again: tuple[datetime, ...] = ()

    @property
    def is_follow_up(self) -> bool:
        """Whether a follow-up process made it."""
        return bool(self.call and self.call.get("follow_up"))

    @property
    def sender(self) -> str:
        """The host that asked for it, empty when this one did."""
        return str(self.call.get("sender", "")) if self.call else ""

    @property
    def told(self) -> Mapping[str, Mapping[str, Any]]:
        """What each balancer answered, by its name."""
        outcomes = (self.outcome.fields.get("outcomes") or {}) if self.outcome else {}
        return {name: each for name, each in outcomes.items() if isinstance(each, Mapping)}

    @property
    def exit_code(self) -> int | None:
        """None when it has not ended, and on a balancer's own host."""
        return self.outcome.fields.get("exit_code") if self.outcome else None

    @property
    def again_after(self) -> float | None:
        """The seconds after which it was to be judged again, None when nothing was owed."""
        return self.outcome.fields.get("again_after") if self.outcome else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What else was said."""
        return tuple(self.outcome.fields.get("notes") or ()) if self.outcome else ()

    @property
    def last_at(self) -> datetime:
        """When it was done last."""
        return self.again[-1] if self.again else self.at

    @property
    def essence(self) -> tuple[Any, ...]:
        """What two attempts have in common that differ in their times only."""
        decision = self.decision.fields if self.decision else {}
        told = [(name, each.get("result"), each.get("detail")) for name, each in sorted(self.told.items())]
        said = (decision.get("verdict"), decision.get("reason"), decision.get("shortfall"))
        return (self.is_follow_up, self.outcome is None, self.exit_code, said, told, self.notes)


class PastCall(NamedTuple):
    """A call with all that was done about it.

    :param attempts: the first one and those of its follow-up; on a balancer's own host, one for each balancer and event
    """

    name: str
    attempts: tuple[Attempt, ...]

    @property
    def said(self) -> Mapping[str, Any]:
        """What the call said; empty when its beginning is missing."""
        return next((attempt.call for attempt in self.attempts if attempt.call), {})


def read(path: str) -> Reading:
    """Read a journal and the file that was set aside before it.

    A damaged line is told, and costs no other record. A journal that does not exist holds nothing.

    :param path: see `efm_lb.journal.Journal`
    :raises NotReadableError: this user may not read it, or it is no regular file
    """
    while True:
        # Both are open before either is read: one that is set aside meanwhile is neither missed nor read twice.
        now, before = _open(path), _open(f"{path}.1")
        try:
            if now is None or before is None or not os.path.sameopenfile(now, before):
                records: list[Record] = []
                damages: list[Damage] = []
                for descriptor, file in ((before, f"{path}.1"), (now, path)):
                    if descriptor is not None:
                        with open(descriptor, "rb", closefd=False) as stream:
                            for found in _found(stream.read(), file):
                                (damages if isinstance(found, Damage) else records).append(found)  # type: ignore[arg-type]
                return Reading(tuple(records), tuple(damages))
        finally:
            for descriptor in (now, before):
                if descriptor is not None:
                    os.close(descriptor)


def _open(path: str) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise NotReadableError(f"{path}: {error.strerror} (uid {os.geteuid()})") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotReadableError(f"{path}: not a regular file")
    return descriptor


def _found(data: bytes, file: str) -> Iterator[Record | Damage]:
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        record = _record(line)
        if record is None:
            what = "cut off: it is being written, or the host lost power" if number == len(lines) else "damaged"
            yield Damage(file, number, what)
            # What a record was torn off by, and another one written behind. No text in a record looks like a beginning:
            # JSON has a backslash before each quote.
            record = _record(line[line.rfind(_BEGIN) :]) if line.rfind(_BEGIN) > 0 else None
        if record:
            yield record


def _record(line: bytes) -> Record | None:
    """None when it is not whole."""
    body, seal = line[:-_SEAL], line[-_SEAL:]
    if not line.startswith(_BEGIN) or seal != b', "crc": "%08x"}' % zlib.crc32(body):
        return None
    try:
        fields = json.loads(line)
        at = datetime.fromisoformat(fields["at"])
        return Record(at, str(fields["call"]), int(fields["pid"]), str(fields["record"]), fields)
    except (KeyError, TypeError, ValueError):
        return None


def past_calls(records: Iterable[Record]) -> tuple[PastCall, ...]:
    """The calls, in the order in which they came."""
    calls: dict[str, list[Attempt]] = {}
    under_way: dict[tuple[str, int], int] = {}
    for record in records:
        if record.what == "again":
            if attempts := calls.get(record.call, []):
                attempts[-1] = attempts[-1]._replace(again=(*attempts[-1].again, record.at))
            continue
        attempts = calls.setdefault(record.call, [])
        key = (record.call, record.pid)
        number = under_way.get(key)
        is_next = number is None or record.what not in _FOLLOWING or getattr(attempts[number], record.what) is not None
        if number is None or is_next:
            number = under_way[key] = len(attempts)
            attempts.append(Attempt(record.at, record.pid))
        if record.what == "call":
            attempts[number] = attempts[number]._replace(call=record.fields)
        elif record.what == "decision":
            attempts[number] = attempts[number]._replace(decision=record)
        elif record.what == "outcome":
            attempts[number] = attempts[number]._replace(outcome=record)
    return tuple(PastCall(name, tuple(attempts)) for name, attempts in calls.items())


def folded(attempts: Iterable[Attempt]) -> Iterator[tuple[Attempt, ...]]:
    """The attempts, with those of one follow-up together that came to the same, one after the other."""
    for (is_follow_up, *_), group in groupby(attempts, key=lambda attempt: attempt.essence):
        if is_follow_up:
            yield tuple(group)
        else:
            yield from ((attempt,) for attempt in group)
