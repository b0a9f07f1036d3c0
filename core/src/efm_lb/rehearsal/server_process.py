"""One server program with its children and its log: started, stopped, killed and frozen as a whole."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from efm_lb.rehearsal.host import Host
from efm_lb.rehearsal.processes import end_tree, signal_tree
from efm_lb.rehearsal.stage import ServerError, Stage
from efm_lb.rehearsal.waiting import wait_until

__all__ = ["ServerProcess"]


class ServerProcess:
    """A server on a stage. It may be started again once it has ended.

    :param name: for messages
    :param host: where it runs
    :param log: gets its output, of all starts
    :param stop_by: the signal that ends it at once, whatever its clients do
    :param afterwards: told the pid of each process that was started, once it has ended
    """

    def __init__(
        self,
        stage: Stage,
        host: Host,
        name: str,
        log: Path,
        stop_by: signal.Signals,
        afterwards: Callable[[int], None] = lambda pid: None,
    ) -> None:
        self.name = name
        self.log = log
        self._stage = stage
        self._host = host
        self._stop_by = stop_by
        self._afterwards = afterwards
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of its first process; None when it was stopped or never started."""
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        """Its first process exists; it may be frozen."""
        return self._process is not None and self._process.poll() is None

    def start(self, argv: Sequence[str | Path]) -> None:
        """Start it, and return at once."""
        with self._host.inside():
            self._process = self._stage.start(argv, self.log)

    def wait_ready(self, ready: Callable[[], bool], timeout: float, interval: float = 0.01) -> None:
        """Wait until ``ready``, which is asked every ``interval`` seconds.

        :raises ServerError: it ended, or was not ready within ``timeout`` seconds
        """
        if not wait_until(lambda: not self.running or ready(), timeout, interval) or not self.running:
            raise ServerError(f"{self.name} did not start; its log ends with:\n{self.log_tail()}")

    def send(self, number: signal.Signals) -> None:
        """Send a signal to its first process."""
        if self._process and self.running:
            self._process.send_signal(number)

    def end(self, number: signal.Signals, timeout: float) -> bool:
        """Send a signal to its first process and wait for its end, thawed if need be.

        :return: it has ended within ``timeout`` seconds, or had before
        """
        self.thaw()
        self.send(number)
        if self._process:
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                return False
        self._gone()
        return True

    def stop(self) -> None:
        """Stop it and wait for its end; killed when it takes longer than 5 s."""
        if not self.end(self._stop_by, timeout=5):
            self.kill()

    def kill(self) -> None:
        """End all its processes at once, as a crash does; its ports refuse from then on."""
        if self._process and self.running:
            end_tree(self._process.pid)
            self._process.wait()
        self._gone()

    def freeze(self) -> None:
        """Stop all its processes: the kernel takes connections for it, and nothing ever answers."""
        if self._process and self.running:
            # What was started while the first signal was under way gets the second.
            signal_tree(self._process.pid, signal.SIGSTOP)
            signal_tree(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server run again."""
        if self._process and self.running:
            signal_tree(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        """Stop it, whatever it is doing; not when the stage is kept."""
        if not self._stage.kept:
            self.stop()

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of its log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def _gone(self) -> None:
        if self._process:
            self._stage.forget(self._process)
            self._afterwards(self._process.pid)
            self._process = None
