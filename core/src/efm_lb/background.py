"""Threads that nobody waits for to begin."""

from __future__ import annotations

import time
from _thread import TIMEOUT_MAX, allocate_lock, start_new_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Background"]


class Background:
    """A function that runs in a thread of its own; nothing keeps the process alive for its sake.

    ``threading.Thread.start`` returns when the new thread runs. While adapters are imported, in other threads, that is
    two waits for the interpreter's lock, of half a millisecond each.

    :param function: raises nothing; what it raises all the same is printed by the interpreter
    :raises RuntimeError: this user may have no more threads; the message says so
    """

    __slots__ = ("_has_ended", "_running")

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._has_ended = False
        self._running = allocate_lock()
        self._running.acquire()
        start_new_thread(self._run, (function, arguments))

    def _run(self, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
        try:
            function(*arguments)
        finally:
            self._has_ended = True
            self._let_on()

    @property
    def is_running(self) -> bool:
        """It has not ended; perhaps it has not begun."""
        return not self._has_ended

    def wait(self, until: float = float("inf")) -> None:
        """Wait for its end.

        :param until: for no longer, by ``time.monotonic()``
        """
        try:
            if self._running.acquire(timeout=min(max(0.0, until - time.monotonic()), TIMEOUT_MAX)):
                self._let_on()
        except BaseException:
            # A signal's handler may raise where the lock has just been taken: the next one would wait for ever.
            if self._has_ended:
                self._let_on()
            raise

    def _let_on(self) -> None:
        """Let the next one on who waits; harmless when somebody else has just done that."""
        try:
            self._running.release()
        except RuntimeError:
            return
