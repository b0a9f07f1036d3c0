"""A PgBouncer console that answers from memory, on loopback, and can be told to answer what no real one does."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from pathlib import Path

from efm_lb import Balancer, Node, NodeState, Reach, Role, Truth
from unit.accepting import Accepting

NODES = tuple(Node(f"db{n}", f"10.0.0.{n}", 5444) for n in (1, 2, 3))
STATES = {
    "P": (Reach.ACCEPTING, Role.PRIMARY),
    "s": (Reach.ACCEPTING, Role.STANDBY),
    "x": (Reach.REFUSED, None),
}
ENTRIES = """\
; by hand
[databases]
app = host=10.0.0.1 port=5444 dbname=edb
app_ro = host=10.0.0.2,10.0.0.3 port=5444
"""
RETRY = "15"
"""server_login_retry in the file."""
_SSL_REQUEST = 80877103


def truth(letters):
    """One letter per node: ``P`` primary, ``s`` standby, ``x`` refuses."""
    return Truth(tuple(NodeState(node, *STATES[letter], 1) for node, letter in zip(NODES, letters, strict=True)))


def message(kind, body=b""):
    return kind + struct.pack("!i", len(body) + 4) + body


def texts(*values):
    return b"".join(value.encode() + b"\0" for value in values)


READY = message(b"Z", b"I")
LOGIN = message(b"R", struct.pack("!i", 0)) + message(b"S", texts("server_version", "1.18.0/bouncer")) + READY


def failure(text, severity="ERROR", sqlstate="08P01"):
    return message(b"E", b"".join(k + texts(v) for k, v in ((b"S", severity), (b"C", sqlstate), (b"M", text))) + b"\0")


class Answer:
    """What a command is answered.

    :param rows: dicts by column name, all with the same columns
    """

    def __init__(self, tag, rows=None, columns=()):
        self.tag = tag
        self.rows = rows
        self.columns = tuple(columns)

    def encoded(self):
        if self.rows is None:
            return message(b"C", texts(self.tag)) + READY
        described = b"".join(texts(name) + struct.pack("!ihihih", 0, 0, 25, -1, -1, 0) for name in self.columns)
        sent = message(b"T", struct.pack("!h", len(self.columns)) + described)
        for row in self.rows:
            values = (row[name] for name in self.columns)
            fields = (b"\xff" * 4 if v is None else struct.pack("!i", len(v.encode())) + v.encode() for v in values)
            sent += message(b"D", struct.pack("!h", len(self.columns)) + b"".join(fields))
        return sent + message(b"C", texts(self.tag)) + READY


class Closed(Exception):
    """The fake closes the connection."""


# What may be done instead of answering: called with the fake, the connection and the true answer.


def close(fake, connection, answer):
    """Carry the command out, and close without a word."""
    raise Closed


def hang(fake, connection, answer):
    """Carry the command out, and never answer."""
    fake.over.wait(20)
    raise Closed


def cut(size):
    """Send that many bytes of the answer, and close."""

    def act(fake, connection, answer):
        connection.sendall(answer.encoded()[:size])
        raise Closed

    return act


def raw(data):
    def act(fake, connection, answer):
        connection.sendall(data)

    return act


def refuse(text, **fields):
    return raw(failure(text, **fields) + READY)


def without(column):
    def act(fake, connection, answer):
        answer.columns = tuple(name for name in answer.columns if name != column)
        connection.sendall(answer.encoded())

    return act


def with_value(column, value):
    def act(fake, connection, answer):
        answer.rows = [{**row, column: value} for row in answer.rows]
        connection.sendall(answer.encoded())

    return act


def reordered(fake, connection, answer):
    """The columns backwards, with two more that nobody knows."""
    answer.rows = [{**row, "newer": "x", "newest": None} for row in answer.rows]
    answer.columns = ("newer", *reversed(answer.columns), "newest")
    connection.sendall(answer.encoded())


class FakeConsole:
    """Answers as PgBouncer 1.18 does, and reads its entries from the file at each RELOAD.

    :param config: the file with the entries
    :ivar instead: by command, a list of what is done instead of answering it, one after the other; then it is answered
    :ivar login: the same for logins
    :ivar sent: every command that is no SHOW, in order, as all sessions sent them
    :ivar servers: ``(database, host, port)`` of server connections, which lead to where their entry led before
    :ivar pools: the databases that clients have used
    """

    def __init__(self, config):
        self.config = Path(config)
        self.instead = {}
        self.login = []
        self.sent = []
        self.servers = []
        self.pools = []
        self.paused = set()
        self.retry = RETRY
        self.over = threading.Event()
        self._lock = threading.Lock()
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.places = {}
        self.load()
        self._accepting = Accepting(listener, self._answer)

    @property
    def admin(self):
        return f"host=127.0.0.1 port={self.port} user=efm_lb"

    def __enter__(self):
        self._accepting.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self._accepting.stop()

    def _answer(self, connection):
        with connection.makefile("rb") as stream, contextlib.suppress(Closed, struct.error):
            while True:
                (size,) = struct.unpack("!i", stream.read(4))
                body = stream.read(size - 4)
                if body[:4] != struct.pack("!i", _SSL_REQUEST):
                    break
                connection.sendall(b"N")
            instead = self._next(self.login)
            if instead:
                instead(self, connection, None)
            else:
                connection.sendall(LOGIN)
            while (kind := stream.read(1)) and kind != b"X":
                (size,) = struct.unpack("!i", stream.read(4))
                statement = stream.read(size - 4).rstrip(b"\0").decode()
                answer = self._carry_out(statement)
                instead = self._next(self.instead.get(statement, []))
                if instead:
                    instead(self, connection, answer)
                elif isinstance(answer, Answer):
                    connection.sendall(answer.encoded())
                else:
                    connection.sendall(answer + READY)

    def _next(self, actions):
        with self._lock:
            return actions.pop(0) if actions else None

    def _carry_out(self, statement):
        if not statement.startswith("SHOW"):
            self.sent.append(statement)
        words = statement.replace('"', "").split()
        if words[0] == "SHOW":
            return self._show(words[1])
        if words[0] == "RELOAD":
            self.load()
        elif words[0] == "SET":
            self.retry = f"{float(words[-1].strip(chr(39))):g}"
        elif words[1] not in self.places:
            return failure(f"no such database: {words[1]}")
        elif words[0] == "PAUSE":
            self.paused.add(words[1])
        elif words[0] == "KILL":
            self.paused.add(words[1])
            self.servers = [server for server in self.servers if server[0] != words[1]]
        elif words[0] == "RESUME":
            if words[1] not in self.paused:
                return failure(f"database {words[1]} is not paused")
            self.paused.discard(words[1])
        return Answer(words[0])

    def _show(self, what):
        if what == "DATABASES":
            columns = ("name", "host", "port", "database", "pool_mode", "paused", "disabled")
            rows = [
                {
                    "name": name,
                    "host": host,
                    "port": port,
                    "database": name,
                    "pool_mode": "transaction",
                    "paused": str(int(name in self.paused)),
                    "disabled": "0",
                }
                for name, (host, port) in {**self.places, "pgbouncer": (None, str(self.port))}.items()
            ]
        elif what == "SERVERS":
            columns = ("type", "user", "database", "state", "addr", "port", "close_needed")
            told = {"type": "S", "user": "app", "state": "idle", "close_needed": "1"}
            rows = [{**told, "database": name, "addr": host, "port": str(port)} for name, host, port in self.servers]
        elif what == "POOLS":
            columns = ("database", "user", "cl_active", "cl_waiting")
            rows = [{**dict.fromkeys(columns, "0"), "database": name, "user": "app"} for name in self.pools]
        elif what == "CONFIG":
            columns = ("key", "value", "default", "changeable")
            values = {"pool_mode": "transaction", "server_login_retry": self.retry, "query_wait_timeout": "120"}
            rows = [{"key": k, "value": v, "default": v, "changeable": "yes"} for k, v in values.items()]
        else:
            columns, rows = ("version",), [{"version": "PgBouncer 1.18.0"}]
        return Answer("SHOW", rows, columns)

    def load(self):
        found = re.findall(r"^(\w+) = host=(\S+) port=(\d+)", self.config.read_text(), re.MULTILINE)
        self.places = {name: (host, port) for name, host, port in found}
        self.retry = RETRY


def balancer(*fakes, **settings):
    given = {"admin": [fake.admin for fake in fakes], "config": str(fakes[0].config), "write": ["app"]}
    return Balancer("pgb1", "pgbouncer", {**given, "read": ["app_ro"], "kill_after": 0.1, **settings}, 0.5)
