"""A real sshd on loopback, for accounts of this process' own user."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from efm_lb.rehearsal.hooks import BARE_ENVIRONMENT
from efm_lb.rehearsal.stage import free_port

__all__ = ["Sshd"]


class Sshd:
    """sshd, one key that may log in, and an ``ssh`` that knows both, first in `path`.

    :param directory: for everything
    :param command: what the key may run, as the forced command; empty for anything
    :ivar destination: for HOST_SSH
    :ivar path: a PATH by which a hook finds the ssh that uses the key
    """

    def __init__(self, directory: Path, command: str) -> None:
        self.directory = directory
        directory.chmod(0o700)
        self.port = free_port("127.0.0.1")
        self.destination = f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}"
        for name in ("host_key", "id"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name)
        self.force(command)
        self.know()
        self._ssh()
        self._server: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def path(self) -> str:
        return f"{self.directory / 'bin'}:{BARE_ENVIRONMENT['PATH']}"

    def force(self, command: str) -> None:
        """Let the key run this and nothing else; anything when it is empty."""
        key = (self.directory / "id.pub").read_text()
        quoted = command.replace('"', '\\"')
        (self.directory / "authorized_keys").write_text(f'restrict,command="{quoted}" {key}' if command else key)

    def refuse(self) -> None:
        """The key may log in no more."""
        (self.directory / "authorized_keys").write_text("")

    def know(self, key: str = "host_key") -> None:
        """Make the client expect this host key."""
        kind, public = (self.directory / f"{key}.pub").read_text().split()[:2]
        (self.directory / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {kind} {public}\n")

    def start(self) -> None:
        settings = {
            "Port": self.port,
            "ListenAddress": "127.0.0.1",
            "HostKey": self.directory / "host_key",
            "PidFile": "none",
            "AuthorizedKeysFile": self.directory / "authorized_keys",
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
        }
        config = self.directory / "sshd_config"
        config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        server = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:" + os.environ.get("PATH", ""))
        assert server, "sshd is missing: apt-get install openssh-server"
        self._server = subprocess.Popen(
            [server, "-D", "-f", config, "-E", self.directory / "sshd.log"], start_new_session=True
        )
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > deadline or self._server.poll() is not None:
                    raise AssertionError(self.log()) from None
                time.sleep(0.02)

    def stop(self) -> None:
        """End sshd and the shared connection that a hook has left."""
        if self._server:
            self._server.terminate()
            self._server.wait(10)
            self._server = None

    @contextmanager
    def silent(self) -> Iterator[str]:
        """A destination that takes connections and says nothing."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            yield f"ssh://{getpass.getuser()}@127.0.0.1:{listener.getsockname()[1]}"

    def log(self) -> str:
        return (self.directory / "sshd.log").read_text()

    def _ssh(self) -> None:
        config = self.directory / "ssh_config"
        settings = {
            "IdentityFile": self.directory / "id",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self.directory / "known_hosts",
            "GlobalKnownHostsFile": "none",
        }
        config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        real = shutil.which("ssh")
        assert real, "ssh is missing: apt-get install openssh-client"
        (self.directory / "bin").mkdir()
        wrapper = self.directory / "bin" / "ssh"
        wrapper.write_text(f'#!/bin/sh\nexec {real} -F {config} "$@"\n')
        wrapper.chmod(0o755)


def run(*argv: str | Path, timeout: float = 20) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=timeout).stdout


def words(argv: Sequence[str | Path]) -> str:
    """A command line for a forced command; nothing in it needs quotes."""
    return " ".join(map(str, argv))
