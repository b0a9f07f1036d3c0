"""Network namespaces of the kernel: made, entered and removed, also what a killed run has left behind."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from efm_lb.rehearsal.processes import started_at

__all__ = ["Namespace", "NamespaceError", "NoNamespaces", "remove_leftovers"]

_DIRECTORY = Path("/run/netns")
_NAME = re.compile(r"efm-lb-(?P<pid>\d+)-(?P<started>\d+)-\w+")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class NamespaceError(Exception):
    """Something went wrong; the message names the command."""


class NoNamespaces(Exception):
    """This account or this machine may not make network namespaces; the message says why."""


class Namespace:
    """One network namespace, which belongs to this process.

    :param label: letters and digits, one for each namespace of a process
    :raises NoNamespaces: it cannot be made
    :raises NamespaceError: ``ip`` is not installed
    """

    def __init__(self, label: str) -> None:
        if os.geteuid() != 0:
            raise NoNamespaces("only root can make network namespaces: run the tests as root")
        self.name = f"efm-lb-{os.getpid()}-{started_at(os.getpid())}-{label}"
        made = _run("ip", "netns", "add", self.name)
        if made.returncode:
            raise NoNamespaces(f"ip netns add {self.name}: {made.stderr.strip()}")

    def ip(self, *commands: str) -> None:
        """Run lines of ``ip -batch`` in it.

        :raises NamespaceError: one failed
        """
        text = "".join(f"{command}\n" for command in commands)
        self._feed(text, "ip", "-netns", self.name, "-batch", "-")

    def nft(self, script: str) -> None:
        """Run a script of nftables in it, all of it or nothing.

        :raises NamespaceError: it is wrong
        """
        with self.inside():
            self._feed(script, "nft", "-f", "-")

    def sysctl(self, name: str, value: int) -> None:
        """Set a variable of the kernel's in it, such as ``ipv4/tcp_keepalive_time``."""
        with self.inside():
            Path("/proc/sys/net", name).write_text(f"{value}\n")

    def nft_object(self, kind: str, table: str, name: str) -> dict[str, Any]:
        """What nftables says about a counter or a quota.

        :raises NamespaceError: there is none
        """
        with self.inside():
            told = json.loads(self._feed("", "nft", "-j", "list", kind, "ip", table, name))
        (found,) = [each[kind] for each in told["nftables"] if kind in each]
        return dict(found)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """This thread is in it, and so is what it starts: sockets, processes and threads."""
        with open("/proc/thread-self/ns/net") as home, open(_DIRECTORY / self.name) as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def remove(self) -> None:
        """End what still runs in it, and remove it."""
        _remove(self.name)

    def _feed(self, text: str, *argv: str) -> str:
        done = _run(*argv, standard_input=text)
        if done.returncode:
            raise NamespaceError(f"{' '.join(argv)} in {self.name}: {done.stderr.strip()}")
        return done.stdout


def remove_leftovers() -> list[str]:
    """Remove the namespaces of runs that were killed; their names."""
    found = []
    for path in _DIRECTORY.glob("efm-lb-*"):
        parts = _NAME.fullmatch(path.name)
        if parts and started_at(int(parts["pid"])) != parts["started"]:
            _remove(path.name)
            found.append(path.name)
    return found


def _remove(name: str) -> None:
    inside = {int(pid) for pid in _run("ip", "netns", "pids", name).stdout.split()}
    for pid in inside - {os.getpid()}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _run("ip", "netns", "delete", name)


def _run(program: str, *arguments: str, standard_input: str = "") -> subprocess.CompletedProcess[str]:
    found = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if not found:
        package = {"ip": "iproute2", "nft": "nftables"}[program]
        raise NamespaceError(f"{program} was not found: install the package {package}")
    argv = [found, *arguments]
    return subprocess.run(argv, input=standard_input, capture_output=True, text=True, timeout=30, check=False)


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
