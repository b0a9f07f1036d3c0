"""A PCP server that can be told to misbehave, and the bytes that a real one sends."""

import hashlib
import socket

from unit.accepting import Accepting

SALT = b"\0ab\xff"
NODES_4_3 = (
    b"127.0.0.1\x0021432\x002\x000\0unknown\x00715827882.333333\x002\0unknown\x000\0\0\x001795470276\0",
    b"127.0.0.1\x0021433\x001\x000\0unknown\x00715827882.333333\x003\0unknown\x000\0streaming\0async\x001795470276\0",
    b"127.0.0.1\x0021434\x003\x000\0unknown\x00715827882.333333\x003\0unknown\x000\0streaming\0async\x001795470276\0",
)
NODES_4_2 = tuple(
    b"127.0.0.1\0%d\0%d\x00715827882.333333\0%d\x000\0streaming\0async\x001795470276\0" % (port, status, role)
    for port, status, role in ((21432, 2, 2), (21433, 1, 3), (21434, 3, 3))
)


def frame(kind, body):
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def error(severity, message, detail=""):
    parts = [b"S" + severity.encode(), b"CXX000", b"M" + message.encode()]
    if detail:
        parts.append(b"D" + detail.encode())
    return frame(b"E", b"".join(part + b"\0" for part in parts) + b"\0")


LOGIN = frame(b"m", SALT) + frame(b"r", b"AuthenticationOK\0")
COUNT = frame(b"l", b"CommandComplete\x003\0")


def nodes_4_3(*rows):
    body = b"".join(frame(b"i", b"NodeInfo\0" + row) for row in rows)
    return frame(b"i", b"ArraySize\0%d\0" % len(rows)) + body + frame(b"i", b"CommandComplete\0")


ALL_4_3 = COUNT + nodes_4_3(NODES_4_3[0]) + nodes_4_3(*NODES_4_3)
ALL_4_2 = COUNT + b"".join(frame(b"i", b"CommandComplete\0" + row) for row in NODES_4_2)


class FakePgpool:
    """Accepts connections, and lets ``serve`` talk.

    :param serve: called with each accepted socket; it is closed when that returns
    """

    def __init__(self, serve):
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self._accepting = Accepting(listener, serve)

    def __enter__(self):
        self._accepting.start()
        return self

    def __exit__(self, *_):
        self._accepting.stop()


class Conversation:
    """The server's side of a PCP session: reads requests, and answers by their type.

    :param answers: what to send for a request, by its type; the login is answered unless it is among them
    :ivar requests: everything that was asked, as type and body
    """

    def __init__(self, answers, user=b"pcp", password=b"secret"):
        self.answers = dict(answers)
        self.requests = []
        self._user = user
        self._password = password

    def __call__(self, connection):
        with connection.makefile("rb") as stream:
            while header := stream.read(5):
                length = int.from_bytes(header[1:], "big")
                if length > 259:
                    return  # as pgpool does: no PCP packet is that long
                body = stream.read(length - 4)
                kind = header[:1]
                if kind == b"X":
                    return
                if kind in self.answers:
                    self.requests.append((kind, body))
                    connection.sendall(self.answers[kind](body) if callable(self.answers[kind]) else self.answers[kind])
                elif kind == b"M":
                    connection.sendall(frame(b"m", SALT))
                elif kind == b"R":
                    connection.sendall(self._judge(body))
                else:
                    return

    def _judge(self, body):
        user, answer, _ = body.split(b"\0")
        stored = hashlib.md5(self._password).hexdigest().encode()
        inner = hashlib.md5(stored + user).hexdigest().encode()
        if user == self._user and answer == hashlib.md5(inner + SALT).hexdigest().encode():
            return frame(b"r", b"AuthenticationOK\0")
        return error("FATAL", 'authentication failed for user "x"', "username and/or password does not match")
