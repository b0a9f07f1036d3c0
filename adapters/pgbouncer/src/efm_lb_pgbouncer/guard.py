"""The dead man's hand: a process of its own that lets held clients go when nobody else has.

PgBouncer keeps a database paused when the process that paused it dies. So this process is there, and logged in, before
the first PAUSE. It ends as soon as it has seen each database paused and then none paused any more; after HOLD seconds,
or when it is told to end, it RESUMEs what is still paused. It runs on PgBouncer's own host, in a session of its own:
it outlives the hook and EFM's agent, and a host that dies takes PgBouncer with it.

SIGKILL ends it like any process. What it leaves then is its mark (`efm_lb_pgbouncer.mark`), without a lock: the next
event lets go.

Run as ``python -I -m efm_lb_pgbouncer.guard HOLD CONNECT_TIMEOUT PASSFILE DATABASES MARK ADMIN...``; writes one line to
its standard output when it is ready.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic, sleep

from efm_lb import PermanentError, TemporaryError
from efm_lb_pgbouncer.console import LOGIN_RETRY, Console, Interrupted, Refused, Session, quoted

__all__ = ["NotGuarded", "has_ended", "main", "start"]

_POLL = 0.1
"""Seconds between two looks."""
_FIRST_POLL = 0.02
"""Seconds between two looks until they were seen paused: less than any promotion takes."""
_NO_WAIT = 0.001
"""Seconds; a server_login_retry up to that holds nobody up."""
_LAST_TRIES = 60.0
"""Seconds that it goes on trying after HOLD, while PgBouncer does not answer."""


class NotGuarded(TemporaryError):
    """The process is not there: nothing may be paused."""


def start(consoles: Sequence[Console], names: Sequence[str], hold: float, mark: str, limit: float) -> int:
    """Start the process and wait until it is logged in everywhere.

    :param names: the databases that it lets go
    :param hold: seconds after which it does so
    :param mark: the path of the mark that it makes
    :param limit: when it must be ready, by ``time.monotonic()``
    :return: its process id
    :raises NotGuarded: it is not ready in time, or cannot be started
    """
    console = consoles[0]
    argv = [
        *(sys.executable, "-I", "-m", "efm_lb_pgbouncer.guard"),
        *(f"{hold:g}", f"{console.connect_timeout:g}", console.passfile, ",".join(names), mark),
        *(each.conninfo for each in consoles),
    ]
    reading, writing = os.pipe()
    null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 2)]
    try:
        try:
            actions = [*null, (os.POSIX_SPAWN_DUP2, writing, 1)]
            pid = os.posix_spawn(sys.executable, argv, os.environ, file_actions=actions, setsid=True)
        except OSError as error:
            raise NotGuarded(f"no process could be started to let clients go: {error.strerror}") from None
        finally:
            os.close(writing)
        ready = select.poll()
        ready.register(reading, select.POLLIN)
        left = limit - monotonic()
        said = os.read(reading, 500) if left > 0 and ready.poll(left * 1000) else b""
    finally:
        os.close(reading)
    if said != b"ready\n":
        why = said.decode("utf-8", "replace").strip() or "it did not begin in time"
        raise NotGuarded(f"the process that lets clients go is not there: {why}")
    return pid


def has_ended(pid: int) -> bool:
    """Whether the process that `start` has started in this process is there no more."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


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
    free = not _is_awaited() or _are_over(watched, until, told) or _let_go(watched)
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


def _are_over(watched: Sequence[_Watched], until: float, told: Sequence[int]) -> bool:
    """Wait until somebody has let go of all.

    :param told: no longer empty when nothing is to be waited for any more
    :return: False when nobody has
    """
    while not told and monotonic() < until:
        sleep(_POLL if all(each.seen for each in watched) else _FIRST_POLL)
        over = [each.is_over(until) for each in watched]
        if all(over):
            return True
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
        self._awaited = set(names)

    @property
    def seen(self) -> bool:
        """Whether each was seen paused: they are paused one after the other, and each PAUSE may take its time."""
        return not self._awaited

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

    def is_over(self, limit: float) -> bool:
        """Whether each was paused and none is any more."""
        try:
            paused = self.look(limit)
        except Exception:  # this process is the last that lets anybody go: nothing but success may end it
            return False
        self._awaited.difference_update(paused)
        return self.seen and not paused

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
