"""The accept loop of every server that is a fake."""

from __future__ import annotations

import contextlib
import socket
import threading

__all__ = ["Accepting"]


class Accepting:
    """Accepts connections, and lets ``serve`` talk, in a thread for each.

    :param listener: a socket that listens; `stop` closes it, and the connections
    :param serve: called with each accepted socket, which is closed when that returns
    :ivar connections: how many there were
    """

    def __init__(self, listener, serve):
        self._listener = listener
        self._serve = serve
        self._sockets = [listener]
        self._threads = []

    @property
    def connections(self):
        return len(self._sockets) - 1

    def start(self):
        self._start(self._run)

    def stop(self):
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)

    def _start(self, target, *arguments):
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._sockets.append(connection)
                self._start(self._talk, connection)

    def _talk(self, connection):
        with connection, contextlib.suppress(OSError):
            self._serve(connection)
