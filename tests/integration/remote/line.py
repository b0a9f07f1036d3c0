"""A network that can go dead: a way to a server on loopback, on which nothing arrives any more."""

from __future__ import annotations

import contextlib
import socket
from threading import Event, Thread
from types import TracebackType

__all__ = ["Line"]


class Line:
    """Takes connections for a server, and passes on what is said, until it is `cut`.

    :ivar port: where it listens, on 127.0.0.1
    """

    def __init__(self, port: int) -> None:
        self._server = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._whole = Event()
        self._whole.set()
        self._lost: list[Event] = []
        self._ends: list[socket.socket] = []
        self._threads: list[Thread] = []
        self._begin(self._accept)

    def __enter__(self) -> Line:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for whole in (self._whole, *self._lost):
            whole.set()
        for end in (self._listener, *self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for end in (self._listener, *self._ends):
            end.close()

    def cut(self) -> None:
        """Both ends go on believing in their connections, and nothing arrives."""
        self._whole.clear()

    def lose(self) -> None:
        """The same for the connections of now; new ones work, as when a firewall has forgotten the old."""
        self.cut()
        self._lost.append(self._whole)
        self._whole = Event()
        self._whole.set()

    def _begin(self, target: object, *arguments: object) -> None:
        self._threads.append(Thread(target=target, args=arguments, daemon=True))  # type: ignore[arg-type]
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                self._ends.append(near)
                far = socket.create_connection(self._server)
                self._ends.append(far)
            except OSError:
                return
            self._begin(self._pass_on, near, far, self._whole)
            self._begin(self._pass_on, far, near, self._whole)

    def _pass_on(self, source: socket.socket, target: socket.socket, whole: Event) -> None:
        with contextlib.suppress(OSError):
            while said := source.recv(65536):
                whole.wait()
                target.sendall(said)
        whole.wait()
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
