"""The dead man's hand: a process of its own that lets held clients go when nobody else has.

PgBouncer keeps a database paused when the process that paused it dies. So this process is there, and logged in, before
the first PAUSE. It runs on PgBouncer's own host, in a session of its own: it outlives the hook and EFM's agent, and a
host that dies takes PgBouncer with it.

Its standard input is a pipe, the lifeline, which nobody but the hook can write to. As long as that is open and silent
the hook may still pause something, so what is or is not paused tells nothing yet. The hook says when its last PAUSE is
answered; from then on this process ends as soon as none is paused any more. A lifeline that ends without that word is
that of a hook which has given up or was killed: what is paused is RESUMEd at once, as it is after HOLD seconds, or when
this process is told to end. It does not end before the hook has said its word or is gone.

SIGKILL ends it like any process. What it leaves then is its mark (`efm_lb_pgbouncer.mark`), without a lock: the next
event lets go.

Run as ``python -I -m efm_lb_pgbouncer.guard HOLD CONNECT_TIMEOUT PASSFILE DATABASES MARK ADMIN...``; writes one line to
its standard output when it is ready.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic, sleep

from efm_lb import PermanentError, TemporaryError
from efm_lb_pgbouncer.console import LOGIN_RETRY, Console, Interrupted, Refused, Session, quoted

__all__ = ["Guard", "NotGuarded", "main", "start"]

_POLL = 0.1
"""Seconds between two looks."""
_NO_WAIT = 0.001
"""Seconds; a server_login_retry up to that holds nobody up."""
_LAST_TRIES = 60.0
"""Seconds that it goes on trying to let go, while PgBouncer does not answer."""
_DONE = b"d"
"""The hook's word."""


class NotGuarded(TemporaryError):
    """The process is not there: nothing may be paused."""


class Guard:
    """The process, for whoever has started it.

    :ivar pid: its process id
    """

    def __init__(self, pid: int, lifeline: int) -> None:
        self.pid = pid
        self._lifeline = lifeline

    def tell_done(self) -> bool:
        """Tell it that nothing more is going to be paused; whether it is there to hear that."""
        try:
            os.write(self._lifeline, _DONE)
        except BrokenPipeError:
            return False
        return True

    def leave(self) -> None:
        """Leave it to itself. Unless it was told before that nothing more is going to be paused, it lets go at once."""
        os.close(self._lifeline)


def start(consoles: Sequence[Console], names: Sequence[str], hold: float, mark: str, limit: float) -> Guard:
    """Start the process and wait until it is logged in everywhere.

    :param names: the databases that it lets go
    :param hold: seconds after which it does so
    :param mark: the path of the mark that it makes
    :param limit: when it must be ready, by ``time.monotonic()``
    :return: the process, which must be left to itself in the end
    :raises NotGuarded: it is not ready in time, or cannot be started
    """
    console = consoles[0]
    argv = [
        *(sys.executable, "-I", "-m", "efm_lb_pgbouncer.guard"),
        *(f"{hold:g}", f"{console.connect_timeout:g}", console.passfile, ",".join(names), mark),
        *(each.conninfo for each in consoles),
    ]
    pipes: list[int] = []
    try:
        pipes += os.pipe()
        pipes += os.pipe()
        listening, lifeline, reading, writing = pipes
        actions = [
            (os.POSIX_SPAWN_DUP2, listening, 0),
            (os.POSIX_SPAWN_DUP2, writing, 1),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_RDWR, 0),
        ]
        pid = os.posix_spawn(sys.executable, argv, os.environ, file_actions=actions, setsid=True)
    except OSError as error:
        for each in pipes:
            os.close(each)
        raise NotGuarded(f"no process could be started to let clients go: {error.strerror}") from None
    os.close(listening)
    os.close(writing)
    ready = select.poll()
    ready.register(reading, select.POLLIN)
    left = limit - monotonic()
    said = os.read(reading, 500) if left > 0 and ready.poll(left * 1000) else b""
    os.close(reading)
    guard = Guard(pid, lifeline)
    if said != b"ready\n":
        guard.leave()
        why = said.decode("utf-8", "replace").strip() or "it did not begin in time"
        raise NotGuarded(f"the process that lets clients go is not there: {why}")
    return guard


def main(argv: Sequence[str]) -> int:
    """Guard databases until they are let go, or let them go.

    :return: 0 when none is paused any more
    """
    from _signal import SIGHUP, SIGINT, SIGTERM, signal  # type: ignore[import-not-found]

    from efm_lb_pgbouncer.mark import make, remove

    hold, connect_timeout, passfile, names, mark, *admins = argv
    until = monotonic() + float(hold)
    told: list[int] = []
    for number in (SIGTERM, SIGINT, SIGHUP):
        # A service manager that ends EFM's agent ends this process too: clients go first.
        signal(number, lambda number, frame: told.append(number))
    watched = [_Watched(Console(text, passfile, float(connect_timeout)), names.split(",")) for text in admins]
    try:
        for each in watched:
            each.look(until)
    except (TemporaryError, PermanentError) as error:
        os.write(1, f"{error}\n".encode())
        return 1
    lock = make(mark)
    free = not _is_awaited() or _watch_over(watched, _hear, until, told)
    if free and lock is not None:
        os.close(lock)
        remove(mark)
    return 0 if free else 1


def _is_awaited() -> bool:
    """Say that this process is ready; whether there is still anybody who wants to pause."""
    try:
        os.write(1, b"ready\n")
    except BrokenPipeError:
        return False
    os.close(1)
    return True


def _hear(seconds: float | None) -> bytes | None:
    """What the lifeline brings within ``seconds``: the hook's word, or nothing at its end; None while it is silent."""
    lifeline = select.poll()
    lifeline.register(0, select.POLLIN)
    return os.read(0, 1) if lifeline.poll(None if seconds is None else seconds * 1000) else None


def _watch_over(
    watched: Sequence[_Watched],
    hear: Callable[[float | None], bytes | None],
    until: float,
    told: Sequence[int],
) -> bool:
    """Wait until somebody has let go of all, or let go.

    :param hear: `_hear`
    :param until: when to let go at the latest, by ``time.monotonic()``
    :param told: no longer empty when nothing is to be waited for any more
    :return: whether none is paused any more
    """
    heard = None
    while heard is None and not told and monotonic() < until:
        heard = hear(_POLL)
    if heard == _DONE and _are_over(watched, until, told):
        return True
    while True:
        free = _let_go(watched)
        if heard is not None:
            return free
        # A hook that stands still may go on, and pause.
        heard = hear(None)


def _are_over(watched: Sequence[_Watched], until: float, told: Sequence[int]) -> bool:
    """Wait until somebody has let go of all; False when nobody has."""
    while not told and monotonic() < until:
        free = [each.is_free(until) for each in watched]
        if all(free):
            return True
        sleep(_POLL)
    return False


def _let_go(watched: Sequence[_Watched]) -> bool:
    last = monotonic() + _LAST_TRIES
    while True:
        free = [each.let_go(last) for each in watched]
        if all(free) or monotonic() > last:
            break
        sleep(_POLL)
    for each in watched:
        each.settle(last)
    return all(free)


class _Watched:
    """The databases of one PgBouncer process."""

    def __init__(self, console: Console, names: Sequence[str]) -> None:
        self._console = console
        self._names = names
        self._session: Session | None = None
        self._login_retry = ""

    def look(self, limit: float) -> list[str]:
        """Which of the databases are paused."""
        try:
            if self._session is None:
                self._session = self._console.session(limit)
            databases = self._session.databases(limit)
        except Interrupted:
            if self._session:
                self._session.close()
                self._session = None
            raise
        return [name for name in self._names if name in databases and databases[name].paused]

    def is_free(self, limit: float) -> bool:
        """Whether none is paused."""
        try:
            return not self.look(limit)
        except Exception:  # this process is the last that lets anybody go: nothing but success may end it
            return False

    def let_go(self, limit: float) -> bool:
        """RESUME what is paused; whether nothing is any more."""
        with suppress(Exception):
            self._lift_login_retry(limit)
        try:
            for name in self.look(limit):
                assert self._session
                try:
                    self._session.command(f"RESUME {quoted(name)}", limit)
                except Refused:
                    continue
            return not self.look(limit)
        except Exception:
            return False

    def settle(self, limit: float) -> None:
        """Give server_login_retry its value again."""
        if self._session and self._login_retry:
            with suppress(Exception):
                self._session.wait_connected(self._names, (), limit)
                self._session.command(f"SET {LOGIN_RETRY} = '{self._login_retry}'", limit)

    def _lift_login_retry(self, limit: float) -> None:
        """A login that PAUSE broke off counts as failed: without this, nobody would be served for a while."""
        if self._login_retry:
            return
        self.look(limit)
        assert self._session
        found = self._session.settings(limit).get(LOGIN_RETRY, "0")
        if float(found) > _NO_WAIT:  # else it is as in the file, or whoever lifted it puts it back
            self._session.command(f"SET {LOGIN_RETRY} = 0", limit)
            self._login_retry = found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
