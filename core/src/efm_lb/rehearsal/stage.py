"""The stage of a rehearsal: one temporary directory and the servers started in it, gone when it closes."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from efm_lb.rehearsal.processes import end_hooks, end_tree
from efm_lb.rehearsal.programs import Account, server_account

__all__ = ["ServerError", "Stage", "free_port"]

# A Unix socket's path holds 107 bytes; pgpool's is <directory>/<pool>/.s.PGSQL.<port>.
_LONGEST_DIRECTORY = 70


class ServerError(Exception):
    """A server did not start or stop as it should; the message ends with the last lines of its log."""


class Stage:
    """One temporary directory and the processes started in it.

    Everything is ended and removed when it closes, also when this process is killed.

    :ivar directory: may be entered by `account`
    :ivar account: whom the servers run as, None for this process' own account
    """

    def __init__(self) -> None:
        self.account: Account | None = server_account()
        self.directory = self._make_directory()
        self.give(self.directory)
        self.kept = False
        self._running: list[subprocess.Popen[bytes]] = []
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-m", "efm_lb.rehearsal.keeper", str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def make_directory(self, name: str) -> Path:
        """A directory on the stage that belongs to the servers' account and nobody else."""
        directory = self.directory / name
        directory.mkdir(mode=0o700)
        self.give(directory)
        return directory

    def make_numbered_directory(self, kind: str) -> Path:
        """A directory as `make_directory` makes it, called after its kind and the first number that is free."""
        number = 1
        while (self.directory / f"{kind}{number}").exists():
            number += 1
        return self.make_directory(f"{kind}{number}")

    def write(self, path: Path, text: str) -> None:
        """Write a file that only its owner, the servers' account, may read."""
        path.write_text(text)
        path.chmod(0o600)
        self.give(path)

    def give(self, path: Path) -> None:
        """Make the servers' account the owner of ``path``."""
        if self.account:
            os.chown(path, self.account.uid, self.account.gid)

    def start(self, argv: Sequence[str | Path], log: Path) -> subprocess.Popen[bytes]:
        """Start a server in a session of its own, its output appended to ``log``, and remember it."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.directory,
                env=_environment(),
                start_new_session=True,
                user=self.account.uid if self.account else None,
                group=self.account.gid if self.account else None,
                extra_groups=self.account.groups if self.account else None,
            )
        self._running.append(process)
        self._tell_keeper(f"+{process.pid}")
        return process

    def run(self, argv: Sequence[str | Path], standard_input: str = "", timeout: float = 60.0) -> str:
        """Run a program to its end as the servers' account.

        :return: its output and error output
        :raises ServerError: it failed; the message holds its output
        :raises subprocess.TimeoutExpired: it took longer than ``timeout`` seconds, and was killed
        """
        done = subprocess.run(
            argv,
            input=standard_input,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            cwd=self.directory,
            env=_environment(),
            check=False,
            user=self.account.uid if self.account else None,
            group=self.account.gid if self.account else None,
            extra_groups=self.account.groups if self.account else None,
        )
        if done.returncode:
            raise ServerError(f"{argv[0]} failed with status {done.returncode}:\n{done.stdout.strip()}")
        return done.stdout

    def forget(self, process: subprocess.Popen[bytes]) -> None:
        """A process has ended: do not end it again."""
        if process in self._running:
            self._running.remove(process)
            self._tell_keeper(f"-{process.pid}")

    def keep(self) -> Path:
        """Leave the servers running and the directory in place.

        :return: a shell script that stops the servers and removes the directory
        """
        script = self.directory / "stop"
        pids = " ".join(str(process.pid) for process in self._running)
        # SIGINT ends all of them at once; PgBouncer waits for its servers, which end too. A pid may be somebody else's.
        script.write_text(
            "#!/bin/sh\n"
            f"for pid in {pids}; do\n"
            f"    grep -qs '{self.directory}' /proc/$pid/cmdline && kill -INT $pid\n"
            "done\n"
            "sleep 2\n"
            f"rm -rf '{self.directory}'\n"
        )
        script.chmod(0o755)
        self._tell_keeper("keep")
        self.kept = True
        return script

    def close(self) -> None:
        """End all processes and remove the directory, unless they are kept."""
        if not self.kept:
            for process in self._running:
                if process.poll() is None:
                    end_tree(process.pid)
                    process.wait()
            self._running.clear()
            end_hooks(str(self.directory))
            self._tell_keeper("keep")
            shutil.rmtree(self.directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            if self._keeper.stdin:
                self._keeper.stdin.close()
        self._keeper.wait()

    def _tell_keeper(self, word: str) -> None:
        with contextlib.suppress(BrokenPipeError, ValueError):
            if self._keeper.stdin:
                self._keeper.stdin.write(f"{word}\n".encode())
                self._keeper.stdin.flush()

    def _make_directory(self) -> Path:
        for parent in (Path(tempfile.gettempdir()), Path("/tmp")):
            if len(os.fsencode(parent)) <= _LONGEST_DIRECTORY and self._may_enter(parent):
                directory = Path(tempfile.mkdtemp(prefix="efm-lb-", dir=parent))
                # Others may pass, nobody but the owner may look.
                directory.chmod(0o711)
                return directory
        raise ServerError("no temporary directory that the servers' account may enter: set TMPDIR")

    def _may_enter(self, directory: Path) -> bool:
        if not self.account:
            return os.access(directory, os.W_OK | os.X_OK)
        return all(path.stat().st_mode & 0o001 for path in (directory, *directory.parents))


def free_port(*hosts: str) -> int:
    """A TCP port that nobody uses on any of ``hosts``.

    :raises ServerError: none was found
    """
    for _ in range(50):
        with contextlib.ExitStack() as sockets:
            port = 0
            try:
                for host in hosts:
                    listener = sockets.enter_context(socket.socket())
                    listener.bind((host, port))
                    port = listener.getsockname()[1]
            except OSError:
                continue
            return port
    raise ServerError(f"no TCP port is free on all of {', '.join(hosts)}")


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
