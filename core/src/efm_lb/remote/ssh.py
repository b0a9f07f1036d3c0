"""One command on another host, through OpenSSH's client: a document in, a document out, a deadline for everything.

Nothing is quoted for a shell: the command is always the same words, and what is asked goes through standard input.
"""

from __future__ import annotations

import os
import select
import time

from efm_lb.outcomes import PermanentError, TemporaryError
from efm_lb.remote.client import Client, Destination
from efm_lb.remote.schemas import LIMIT

__all__ = ["NotReady", "Run", "start"]

_OWN_FAILURE = 255
"""ssh's exit code for its own failures."""
_USAGE = "usage: ssh"
"""What ssh says of a destination that it cannot read: 9.2 takes no IPv6 address in a URI."""
_NO_SUCH_COMMAND = 2
"""The exit code of an efm-lb that does not know ``apply``."""
_NOT_EXECUTABLE = 126
_NOT_FOUND = 127
_NO_ANSWER = (None, _OWN_FAILURE, _NO_SUCH_COMMAND, _NOT_EXECUTABLE, _NOT_FOUND)
_MOST_SAID = 10_000

# What ssh says, in any version, when a retry cannot help.
_PERMANENT = (
    "Permission denied",
    "Host key verification failed",
    "REMOTE HOST IDENTIFICATION HAS CHANGED",
    "host key is known",
    "Bad configuration option",
    "Bad owner or permissions",
    "no such identity",
    "Too many authentication failures",
    "invalid characters",
)


_ended: set[int] = set()
"""Processes that were told to end, and were not waited for."""


class NotReady(TemporaryError):
    """The command there has not begun in time; ssh is still at work."""


class Run:
    """The conversation with a client, from when it is started until the host has answered."""

    def __init__(self, client: Client) -> None:
        _reap()
        self.destination = client.destination
        self.started = client.started
        self.was_shared = client.was_shared
        self._pid = client.pid
        self._input, self._output, self._words = client.input, client.output, client.words
        self._answer = b""
        self._said = b""
        self._is_ready = False

    def ready(self, mark: bytes, limit: float) -> bytes:
        """Wait until the command there says that it is ready.

        What a start-up file of the account says before that is passed over.

        :param mark: how it says so: with a line that begins like this
        :param limit: until when to wait, by ``time.monotonic()``; what has come by then is looked at in any case
        :return: that line; or all that was said, when the command ended without one
        :raises NotReady: neither
        :raises TemporaryError, PermanentError: as `ask` raises them; ssh has ended
        """
        if not self._talk(b"", limit, mark):
            raise NotReady(str(self._failure(None, True)))
        line = _line(self._answer, mark)
        if not line:
            return self._result(False, limit)
        self._is_ready = True
        self._answer = self._answer[self._answer.index(line) + len(line) :]
        return line

    def ask(self, document: bytes, limit: float) -> bytes:
        """Send a document and wait for the answer.

        :param limit: when to give up, by ``time.monotonic()``; ssh is ended then
        :return: what the command there wrote, of any kind, but something
        :raises TemporaryError: no answer
        :raises PermanentError: no answer, and no retry can help; ssh's own words say why
        """
        return self._result(not self._talk(document, limit), limit)

    def give_up(self) -> None:
        """End ssh; nothing has been asked, and nothing is any more."""
        self._end(0.0)
        self._close()

    def _result(self, is_over: bool, limit: float) -> bytes:
        is_flood = len(self._answer) > LIMIT
        try:
            status = self._end(0.0 if is_over or is_flood else limit)
        finally:
            self._close()
        # Before the command was ready, what it is said to have answered may be an account's welcome.
        has_answered = self._is_ready or status not in _NO_ANSWER
        if is_flood or (has_answered and self._answer.endswith(b"\n")):
            return self._answer
        raise self._failure(status, is_over)

    def _close(self) -> None:
        for descriptor in (self._input, self._output, self._words):
            if descriptor >= 0:
                os.close(descriptor)
        self._input = self._output = self._words = -1

    def _talk(self, document: bytes, limit: float, mark: bytes = b"") -> bool:
        """Send all of ``document``, if there is any, and listen to the end.

        :param mark: listen only until there is a line that begins like this
        :return: False when time was over before
        """
        poll = select.poll()
        if document:
            poll.register(self._input, select.POLLOUT)
        poll.register(self._output, select.POLLIN)
        poll.register(self._words, select.POLLIN)
        left = memoryview(document)
        while True:
            seconds = max(0.0, limit - time.monotonic())
            ready = dict(poll.poll(seconds * 1000))
            if self._input in ready:
                try:
                    left = left[os.write(self._input, left) :]
                except BrokenPipeError:
                    left = left[:0]
                if not left:
                    poll.unregister(self._input)
                    os.close(self._input)
                    self._input = -1
            if self._words in ready:
                said = os.read(self._words, 4096)
                self._said += said[: _MOST_SAID - len(self._said)]
                if not said:
                    poll.unregister(self._words)
            if self._output in ready:
                came = os.read(self._output, 65536)
                self._answer += came
                if not came or len(self._answer) > LIMIT:
                    self._listen()
                    return True
                if mark and _line(self._answer, mark):
                    return True
            if not seconds or not ready:
                return False

    def _listen(self) -> None:
        """What was said up to now; a shared connection's process may keep this end open for long."""
        try:
            self._said += os.read(self._words, 4096)
        except BlockingIOError:
            return

    def _end(self, limit: float) -> int | None:
        """Wait for ssh's end until ``limit``, then end it; its exit code, None when it was ended."""
        while True:
            try:
                pid, status = os.waitpid(self._pid, os.WNOHANG)
            except ChildProcessError:  # whoever started the hook ignores SIGCHLD: nobody is told an exit code
                return _OWN_FAILURE
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() >= limit:
                os.kill(self._pid, 15)
                _ended.add(self._pid)
                return None
            time.sleep(0.002)

    def _failure(self, status: int | None, is_over: bool) -> Exception:
        words = self._said.decode("utf-8", "replace")
        said = _last_line(words)
        why = f" ({said})" if said else ""
        where = f"ssh to {self.destination}"
        if is_over and not self._is_ready:
            limit = f"EFM_LB_CONNECT_TIMEOUT ({self.destination.connect_timeout:g} s)"
            return TemporaryError(f"{where}: efm-lb apply was not ready within {limit}{why}")
        if is_over or status is None:
            return TemporaryError(f"{where}: no answer in time{why}")
        if status < 0:
            return TemporaryError(f"{where}: ssh was killed by signal {-status}{why}")
        if status == _OWN_FAILURE and words.startswith(_USAGE):
            return PermanentError(f"{where}: ssh does not take this HOST_SSH: use a name from ssh's own configuration")
        if status == _OWN_FAILURE:
            wrong = f"{where}: {said or 'the connection was cut'}"
            return PermanentError(wrong) if any(reason in words for reason in _PERMANENT) else TemporaryError(wrong)
        if self._answer and self._is_ready:
            return TemporaryError(f"{where}: the answer was cut off{why}")
        if status in (_NOT_FOUND, _NOT_EXECUTABLE):
            return PermanentError(
                f"{where}: efm-lb is not there{why}: install it, or name it with its whole path in authorized_keys:"
                ' command="/.../efm-lb apply"'
            )
        if status == _NO_SUCH_COMMAND:
            return PermanentError(
                f"{where}: efm-lb there does not know apply{why}: it is older than this one; upgrade it"
            )
        return PermanentError(f"{where}: no answer, exit code {status}{why}")


def start(destination: Destination, alone: bool = False) -> Run:
    """Start ssh.

    :param alone: with a connection of its own
    :raises PermanentError: there is no ssh on this host
    """
    try:
        return Run(Client(destination, alone))
    except OSError as error:
        raise PermanentError(f"ssh cannot be run on this host: {error.strerror}") from None


def _reap() -> None:
    """Forget those that have ended meanwhile: a service would have thousands of them within a day."""
    for pid in tuple(_ended):
        try:
            is_over = os.waitpid(pid, os.WNOHANG)[0] == pid
        except ChildProcessError:
            is_over = True
        if is_over:
            _ended.discard(pid)


def _line(said: bytes, mark: bytes) -> bytes:
    """The first whole line of what was said that begins with ``mark``; an unfinished line may stand before it."""
    start = said.find(mark)
    end = said.find(b"\n", start) + 1
    return said[start:end] if start >= 0 else b""


def _last_line(words: str) -> str:
    """What ssh or the shell there said last; a banner comes before it."""
    lines = [" ".join(line.split()) for line in words.splitlines() if any(char.isalnum() for char in line)]
    return lines[-1][:300] if lines else ""
