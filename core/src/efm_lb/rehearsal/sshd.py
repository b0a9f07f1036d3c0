"""A real sshd that lets this process' own account in: another host, as far as ssh goes."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from efm_lb.rehearsal import programs
from efm_lb.rehearsal.hooks import BARE_ENVIRONMENT
from efm_lb.rehearsal.host import LOOPBACK, Host
from efm_lb.rehearsal.stage import ServerError, free_port

__all__ = ["Sshd"]


class Sshd:
    """sshd, one key that may log in, and an ``ssh`` that knows both, first in `path`.

    :param directory: for everything; nobody else may enter it from then on
    :param command: what the key may run, as the forced command; empty for anything
    :param host: where it runs
    :raises MissingProgramError: sshd is not installed
    :raises ServerError: it did not start
    :ivar destination: for HOST_SSH
    """

    def __init__(self, directory: Path, command: str, host: Host = LOOPBACK) -> None:
        self.directory = directory
        self._host = host
        directory.chmod(0o700)
        self._program = programs.sshd()
        with host.inside():
            self.port = free_port(host.address)
        self.destination = f"ssh://{getpass.getuser()}@{self._host.address}:{self.port}"
        for name in ("host_key", "id"):
            self.make_key(name)
        self.force(command)
        self.know()
        self._ssh()
        self._server: subprocess.Popen[bytes] | None = None
        self.start()

    def __enter__(self) -> Sshd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def path(self) -> str:
        """A PATH by which a hook finds the ssh that uses the key."""
        return f"{self.directory / 'bin'}:{BARE_ENVIRONMENT['PATH']}"

    def force(self, command: str) -> None:
        """Let the key run this and nothing else; anything when it is empty."""
        key = (self.directory / "id.pub").read_text()
        quoted = command.replace('"', '\\"')
        (self.directory / "authorized_keys").write_text(f'restrict,command="{quoted}" {key}' if command else key)

    def make_key(self, name: str) -> None:
        """Make a key pair in `directory`."""
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.directory / name)]
        subprocess.run(argv, check=True, capture_output=True, timeout=20)

    def refuse(self) -> None:
        """The key may log in no more."""
        (self.directory / "authorized_keys").write_text("")

    def know(self, key: str = "host_key", port: int = 0) -> None:
        """Make the client expect this host key.

        :param port: another one by which the client gets there
        """
        kind, public = (self.directory / f"{key}.pub").read_text().split()[:2]
        (self.directory / "known_hosts").write_text(f"[{self._host.address}]:{port or self.port} {kind} {public}\n")

    def send_environment(self, variables: Mapping[str, object]) -> None:
        """Make the ``ssh`` of this one send these variables along."""
        with open(self.directory / "ssh_config", "a", encoding="utf-8") as config:
            config.write(f"SetEnv {' '.join(f'{name}={value}' for name, value in variables.items())}\n")

    def trust(self, other: Sshd) -> None:
        """Make the ``ssh`` of this one reach another one as well."""
        with open(self.directory / "known_hosts", "a", encoding="utf-8") as known:
            known.write((other.directory / "known_hosts").read_text())
        with open(self.directory / "ssh_config", "a", encoding="utf-8") as config:
            config.write(f"IdentityFile {other.directory / 'id'}\n")

    def start(self, further: Mapping[str, object] | None = None) -> None:
        """Start it and wait until it listens; raises as the constructor.

        :param further: keywords of sshd_config(5)
        """
        settings = {
            "Port": self.port,
            "ListenAddress": self._host.address,
            "HostKey": self.directory / "host_key",
            "PidFile": "none",
            "AuthorizedKeysFile": self.directory / "authorized_keys",
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            **(further or {}),
        }
        config = self.directory / "sshd_config"
        config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        argv: list[str | Path] = [self._program, "-D", "-f", config, "-E", self.directory / "sshd.log"]
        with self._host.inside():
            self._server = subprocess.Popen(argv, start_new_session=True)
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection((self._host.address, self.port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > deadline or self._server.poll() is not None:
                    self.stop()
                    raise ServerError(f"sshd did not start; its log ends with:\n{self.log_tail()}") from None
                time.sleep(0.02)

    def stop(self) -> None:
        """End it. What logged in before goes on, as with any sshd."""
        if self._server:
            self._server.terminate()
            self._server.wait(10)
            self._server = None

    @contextmanager
    def silent(self) -> Iterator[str]:
        """A destination that takes connections and says nothing."""
        with socket.create_server((self._host.address, 0)) as listener:
            yield f"ssh://{getpass.getuser()}@{self._host.address}:{listener.getsockname()[1]}"

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of its log."""
        try:
            return "\n".join((self.directory / "sshd.log").read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

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
        if not real:
            raise programs.MissingProgramError("ssh was not found: install the package openssh-client")
        (self.directory / "bin").mkdir()
        wrapper = self.directory / "bin" / "ssh"
        wrapper.write_text(f'#!/bin/sh\nexec {real} -F {config} "$@"\n')
        wrapper.chmod(0o755)
