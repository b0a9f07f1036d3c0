"""OpenSSH's client, started: the account that it goes to, its command line, and the pipes to it.

`efm_lb.remote.ssh` talks to it. It is started in the first milliseconds of a hook run, so nothing is imported here that
takes its time.
"""

from __future__ import annotations

import os
import time
from zlib import crc32

__all__ = ["COMMAND", "Client", "Destination"]

COMMAND = ("efm-lb", "apply")
"""What runs there when ``authorized_keys`` forces nothing else."""
_LONGEST_SOCKET_NAME = 107 - 17
"""Bytes of a Unix socket's path, without what ssh puts behind it while it makes one."""
_UNQUOTED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-./")
"""Characters that mean themselves in a value of ssh's options."""


class Destination:
    """An account on another host.

    :ivar name: ``[user@]host`` or ``ssh://[user@]host[:port]``, as ssh takes it
    :ivar connect_timeout: seconds that the connection may take; ssh takes whole ones
    :ivar shared: the path of a Unix socket by which calls share a connection, empty for none
    """

    __slots__ = ("connect_timeout", "name", "shared")

    def __init__(self, name: str, connect_timeout: float, state_dir: str, socket: str) -> None:
        """:param socket: the beginning of the name of the shared connection's socket in ``state_dir``"""
        self.name = name
        self.connect_timeout = connect_timeout
        # ssh takes whatever connection it finds there, and does not ask where it leads to.
        path = f"{state_dir}/{socket}.{crc32(name.encode()):08x}.ssh"
        is_short = len(path) <= _LONGEST_SOCKET_NAME
        self.shared = path if is_short and _UNQUOTED.issuperset(path) and _is_private(state_dir) else ""

    def __str__(self) -> str:
        return self.name

    def argv(self, alone: bool = False) -> list[str]:
        """ssh's command line.

        :param alone: with a connection of its own
        """
        seconds = max(1, -int(-self.connect_timeout // 1))
        sharing = ("auto", self.shared, "60") if self.shared and not alone else ("no", "none", "no")
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "ConnectTimeout": seconds,
            "ConnectionAttempts": 1,
            # A connection whose host is gone is noticed after three of these: in the time that a new one would take.
            "ServerAliveInterval": max(1, seconds // 3),
            "ServerAliveCountMax": 2,
            "ControlMaster": sharing[0],
            "ControlPath": sharing[1],
            "ControlPersist": sharing[2],
            "ClearAllForwardings": "yes",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "PermitLocalCommand": "no",
            "RequestTTY": "no",
            # One more and sshd's banner would be among ssh's own words.
            "LogLevel": "ERROR",
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return ["ssh", *words, "--", self.name, *COMMAND]


class Client:
    """A process of ssh.

    :ivar input, output, words: its standard input, output and error: this process's ends, which do not block
    :ivar started: by ``time.monotonic()``
    :ivar was_shared: there was a connection that it could use
    :raises OSError: there is no ssh on this host
    """

    __slots__ = ("destination", "input", "output", "pid", "started", "was_shared", "words")

    def __init__(self, destination: Destination, alone: bool = False) -> None:
        """:param alone: with a connection of its own"""
        self.destination = destination
        self.started = time.monotonic()
        self.was_shared = bool(destination.shared) and not alone and os.path.exists(destination.shared)
        theirs_in, self.input = os.pipe()
        self.output, theirs_out = os.pipe()
        self.words, theirs_words = os.pipe()
        given = ((theirs_in, 0), (theirs_out, 1), (theirs_words, 2))
        actions = [(os.POSIX_SPAWN_DUP2, *each) for each in given]
        argv = destination.argv(alone)
        environment = {**os.environ, "LC_ALL": "C"}
        try:
            # A process group of its own: a signal for the hook must not cut a balancer's change in the middle.
            self.pid = os.posix_spawnp(argv[0], argv, environment, file_actions=actions, setpgroup=0)
        except OSError:
            for descriptor in (self.input, self.output, self.words):
                os.close(descriptor)
            raise
        finally:
            for descriptor, _ in given:
                os.close(descriptor)
        for descriptor in (self.input, self.output, self.words):
            os.set_blocking(descriptor, False)


def _is_private(directory: str) -> bool:
    """Whether nobody else can put a socket there: who listens on it would be taken for the other host."""
    try:
        status = os.stat(directory)
    except OSError:
        return False
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022 and os.access(directory, os.W_OK)
