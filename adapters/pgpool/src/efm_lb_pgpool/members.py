"""The pgpools behind one balancer: where they listen, how to log in, and which one answers.

Usually there is one. Several are the members of one watchdog cluster, where a command to any member is
carried out by the leader and copied to all.
"""

from __future__ import annotations

import os
from _queue import Empty, SimpleQueue
from collections.abc import Callable, Iterator, Mapping
from threading import Thread
from time import monotonic, sleep
from typing import Any, TypeVar

from efm_lb import Balancer, PermanentError, TemporaryError
from efm_lb_pgpool import passfile
from efm_lb_pgpool.pcp import Interrupted, Nodes, Server, Session, connect

__all__ = ["Member", "Members", "answers", "members_of", "server_of"]

T = TypeVar("T")

_RETRY_PAUSE = 0.05
"""Seconds before asking again after a broken connection."""


class Member:
    """One pgpool, and the login to it. Holds no connection.

    ``since_4_3`` is known after the first look: it speaks the dialect of pgpool 4.3 and later.
    """

    def __init__(self, server: Server, user: str, password: str, connect_timeout: float) -> None:
        self.server = server
        self._user = user
        self._password = password
        self._connect_timeout = connect_timeout
        self.since_4_3 = False

    def session(self, deadline: float) -> Session:
        """A new connection, logged in. Raises as `efm_lb_pgpool.pcp.connect`."""
        return connect(self.server, self._user, self._password, deadline, self._connect_timeout)

    def nodes(self, deadline: float) -> Nodes:
        """All backends. Raises as `look`."""
        nodes, session = self.look(deadline)
        session.close()
        return nodes

    def look(self, deadline: float) -> tuple[Nodes, Session]:
        """All backends, and the session that told them: to send at once what follows from it, or to close.

        A connection that breaks is tried anew for as long as a connect may take: pgpool restarts its PCP listener
        after every state change. No answer may take more than half of what is left, because pgpool can announce
        more bytes than it sends (a race over the replication state, in every release up to 4.7.2).

        :raises TemporaryError: no answer
        :raises PermanentError: the login was refused
        """
        give_up = min(deadline, monotonic() + self._connect_timeout)
        while True:
            now = monotonic()
            try:
                session = self.session(min(deadline, now + max((deadline - now) / 2, self._connect_timeout)))
                try:
                    nodes = session.nodes(self.since_4_3)
                except BaseException:
                    session.close()
                    raise
            except Interrupted:
                if monotonic() + _RETRY_PAUSE >= give_up:
                    raise
                sleep(_RETRY_PAUSE)
            else:
                self.since_4_3 = nodes.since_4_3
                session.deadline = deadline
                return nodes, session

    def __str__(self) -> str:
        return str(self.server)


class Members:
    """The pgpools of one balancer, of which the current one is talked to as long as it answers.

    :param members: at least one, in the order of the setting
    """

    def __init__(self, members: tuple[Member, ...]) -> None:
        self.all = members
        self.current = members[0]
        self._chosen = False

    @property
    def others(self) -> tuple[Member, ...]:
        return tuple(member for member in self.all if member is not self.current)

    def nodes(self, deadline: float) -> Nodes:
        """All backends. Raises as `look`."""
        nodes, session = self.look(deadline)
        session.close()
        return nodes

    def look(self, deadline: float) -> tuple[Nodes, Session]:
        """All backends as the current member sees them, or else as the first of the others to answer.

        :return: as `Member.look`
        :raises TemporaryError: none answers
        :raises PermanentError: every login was refused
        """
        problems: list[TemporaryError | PermanentError] = []
        candidates = self.all
        if self._chosen or len(self.all) == 1:
            try:
                return self.current.look(deadline)
            except (TemporaryError, PermanentError) as error:
                problems.append(error)
            candidates = self.others
        if self._choose(candidates, problems, deadline):
            return self.current.look(deadline)
        refused = all(isinstance(problem, PermanentError) for problem in problems)
        raise (PermanentError if refused else TemporaryError)("; ".join(map(str, problems)))

    def _choose(
        self, candidates: tuple[Member, ...], problems: list[TemporaryError | PermanentError], deadline: float
    ) -> bool:
        """Make the first member that answers the current one.

        All are asked at once: the host of the failed database often is that of a pgpool too, and is not waited for.
        """
        for member, nodes in answers(candidates, lambda member: member.nodes(deadline), deadline):
            if isinstance(nodes, Nodes):
                self.current = member
                self._chosen = True
                return True
            problems.append(nodes)
        return False


def answers(
    members: tuple[Member, ...], ask: Callable[[Member], T], deadline: float
) -> Iterator[tuple[Member, T | TemporaryError | PermanentError]]:
    """Ask members at the same time.

    :param ask: what to do with each; it has until ``deadline``, by ``time.monotonic()``
    :return: what each returned or raised, as it comes in; a TemporaryError for one that is not back in time
    """
    news: SimpleQueue[tuple[Member, T | Exception]] = SimpleQueue()

    def run(member: Member) -> None:
        try:
            news.put((member, ask(member)))
        except Exception as error:  # whatever it is, it belongs to the thread that waits
            news.put((member, error))

    for member in members:
        Thread(target=run, args=(member,), name=str(member), daemon=True).start()
    missing = list(members)
    while missing:
        try:
            member, answer = news.get(timeout=max(0.0, deadline - monotonic()))
        except Empty:
            break
        missing.remove(member)
        if isinstance(answer, Exception) and not isinstance(answer, TemporaryError | PermanentError):
            raise answer
        yield member, answer
    for member in missing:
        yield member, TemporaryError(f"{member} did not answer in time")


def members_of(balancer: Balancer, environment: Mapping[str, str] = os.environ) -> Members:
    """The members that a balancer's settings name.

    :raises PermanentError: a HOST that is none, or no password for one
    """
    settings = balancer.settings
    path = passfile.locate(settings.get("passfile"), environment)
    user = str(settings["user"])
    return Members(tuple(_member(text, user, path, settings, balancer.connect_timeout) for text in settings["host"]))


def _member(text: str, user: str, path: str, settings: Mapping[str, Any], connect_timeout: float) -> Member:
    server = server_of(text, int(settings.get("port", 9898)))
    return Member(server, user, passfile.password(path, server.host, server.port, user), connect_timeout)


def server_of(text: str, port: int) -> Server:
    """Read one entry of HOST: ``host``, ``host:port``, ``[::1]:port``, ``::1`` or a directory ``/run/pgpool``.

    :param port: where the entry has none
    :raises PermanentError: it is none of these
    """
    text = text.strip()
    host, colon, number = text, "", ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise PermanentError(f"HOST {text!r} is no host or host:port")
        colon, number = rest[:1], rest[1:]
    elif not text.startswith("/") and text.count(":") == 1:
        host, colon, number = text.partition(":")
    is_number = number.isascii() and number.isdigit() and len(number) < 10
    if not host or (colon and not (is_number and 0 < int(number) < 65536)):
        raise PermanentError(f"HOST {text!r} is no host or host:port")
    return Server(host, int(number) if colon else port)
