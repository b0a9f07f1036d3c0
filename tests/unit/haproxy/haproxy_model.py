"""A HAProxy that answers from memory, and a socket in front of it that can be told to misbehave."""

from __future__ import annotations

import os
import re
import socket
import tempfile
from pathlib import Path

from efm_lb import Attach, Balancer, Detach, Node, NodeState, Promote, Reach, Role, Truth
from efm_lb_haproxy import adapter
from unit.accepting import Accepting

HOOKS = {Attach: adapter.efm_lb_attach, Detach: adapter.efm_lb_detach, Promote: adapter.efm_lb_promote}
NODES = tuple(Node(f"db{n}", f"10.0.0.{n}", 5444) for n in (1, 2, 3))
STATES = {
    "P": (Reach.ACCEPTING, Role.PRIMARY),
    "s": (Reach.ACCEPTING, Role.STANDBY),
    "x": (Reach.REFUSED, None),
    "-": (Reach.NO_RESPONSE, None),
    "?": (Reach.DENIED, None),
    "r": (Reach.REJECTING, None),
}
HEADER = (
    "# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight"
    " srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state"
    " bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr"
    " srv_agent_addr srv_agent_port"
)


def truth(letters):
    """One letter per node: ``P`` primary, ``s`` standby, ``x`` refuses, ``-`` silent, ``?`` denied, ``r`` rejecting."""
    return Truth(tuple(NodeState(node, *STATES[letter], 1) for node, letter in zip(NODES, letters, strict=True)))


class Model:
    """Proxies with servers, and the commands that the adapter may send.

    :ivar servers: ``[host, port, op_state, admin_state, sessions]`` by proxy and name
    :ivar sent: every command that is no query
    :ivar moments: the names of the ready servers of each proxy after each command
    """

    def __init__(self, **proxies):
        self.pid = 4711
        self.stopping = 0
        self.level = "admin"
        self.answers = {}
        self.sent = []
        self.moments = []
        self.servers = {proxy: self._proxy(letters) for proxy, letters in proxies.items()}

    @staticmethod
    def _proxy(letters):
        """``R`` ready, ``M`` in maintenance, ``D`` drained, ``C`` disabled in the configuration, ``d`` found down."""
        states = {"R": (2, 0), "M": (0, 1), "D": (2, 8), "C": (0, 5), "d": (0, 0)}
        return {
            f"n{i}": [f"10.0.0.{i}", 5444, *states[letter], 3 if letter in "RD" else 0]
            for i, letter in enumerate(letters, start=1)
        }

    def ready(self, proxy):
        return [name for name, (_, _, op, admin, _) in self.servers[proxy].items() if op in (1, 2) and not admin & ~4]

    def line(self, line):
        return "".join(self.command(command.strip()) + "\n" for command in line.split(";"))

    def command(self, command):
        if command in self.answers:
            return self.answers[command]
        words = command.split()
        if command == "show info":
            return f"Name: HAProxy\nVersion: 2.6.12\nPid: {self.pid}\nStopping: {self.stopping}\n"
        if command == "show env":
            return "PATH=/usr/sbin:/usr/bin:/bin\n"
        if command == "show cli level":
            return f"{self.level}\n"
        if words[:3] == ["show", "servers", "state"]:
            return self._state(words[3:] or list(self.servers))
        if words[:2] == ["show", "stat"]:
            rows = [f"{words[2]},{name},0,0,{s[4]},1," for name, s in self.servers.get(words[2], {}).items()]
            return "\n".join(["# pxname,svname,qcur,qmax,scur,smax,", *rows]) + "\n"
        self.sent.append(command)
        answer = self._change(words) if self.level == "admin" else "Permission denied\n"
        self.moments.append({proxy: self.ready(proxy) for proxy in self.servers})
        return answer

    def _state(self, proxies):
        rows = ["1", HEADER]
        for proxy in proxies:
            if proxy not in self.servers:
                return "Can't find backend.\n"
            rows += [
                f"2 {proxy} 1 {name} {host} {op} {admin} 1 1 9 1 0 0 0 0 0 0 - {port} - 0 0 - - 0"
                for name, (host, port, op, admin, _) in self.servers[proxy].items()
            ]
        return "\n".join(rows) + "\n"

    def _change(self, words):
        proxy, _, name = (words[2] if words[0] == "set" else words[3]).partition("/")
        server = self.servers.get(proxy, {}).get(name)
        if server is None:
            return "No such server.\n"
        if words[0] == "shutdown":
            server[4] = 0
        elif words[3:] == ["state", "ready"]:
            server[2], server[3] = 2, server[3] & 4
        elif words[3:] == ["state", "maint"]:
            server[2], server[3] = 0, (server[3] & 4) | 1
        elif words[3:] == ["state", "drain"]:
            server[3] = (server[3] & 4) | 8
        elif words[3:] == ["health", "up"]:
            server[2] = 2
        else:
            return "'set server <srv> state' expects 'ready', 'drain' and 'maint'.\n"
        return ""


class FakeHaproxy:
    """Serves a model on a Unix socket.

    :param serve: called with each accepted socket instead, when the model is not to answer
    """

    def __init__(self, model=None, serve=None):
        self.model = model
        self._directory = tempfile.TemporaryDirectory(prefix="efm-lb-")
        self.path = f"{self._directory.name}/admin.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen()
        self._accepting = Accepting(listener, serve or self._answer)

    @property
    def connections(self):
        return self._accepting.connections

    def __enter__(self):
        self._accepting.start()
        return self

    def __exit__(self, *_):
        self._accepting.stop()
        self._directory.cleanup()

    def _answer(self, connection):
        with connection.makefile("r") as stream:
            line = stream.readline().rstrip("\n")
        connection.sendall(self.model.line(line).encode())


def balancer(path, **settings):
    given = {"socket": path, "write": ["w"], "read": ["r"], "program": "none", **settings}
    return Balancer("edge", "haproxy", {key: value for key, value in given.items() if value is not None}, 1.0)


CONFIG = """\
# by hand
defaults
\tmode tcp
listen w
    server n1 10.0.0.1:5444 check     # the first
    server n2 10.0.0.2:5444 check disabled
    server n3 10.0.0.3:5444 check disabled
backend r
    server n1 10.0.0.1:5444 disabled
    server n2 10.0.0.2:5444
    server n3 10.0.0.3:5444
"""


def program_of(directory, script):
    """The path of a program that does what a shell script says, in place of haproxy."""
    path = directory / "haproxy"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def disabled(path: Path | str, proxy: str) -> str:
    """The names of a proxy's servers that a file disables, read without the adapter."""
    section = ""
    found = []
    for line in Path(os.fspath(path)).read_text().splitlines():
        words = re.sub("#.*", "", line).split()
        if words[:1] in (["listen"], ["backend"]):
            section = words[1]
        elif words[:1] == ["server"] and section == proxy and "disabled" in words:
            found.append(words[1])
    return " ".join(found)
