"""The databases, asked again and again on connections that stay open, so that a change is known when it happens."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from threading import Condition, Thread

from efm_lb.connection import Connection, ConnectionFailed, StatementFailed, library
from efm_lb.probe import failed, question, unasked
from efm_lb.reconcile.restraint import Sight
from efm_lb.truth import Node, NodeState, Reach, Truth

__all__ = ["Vigil"]

POLL = 0.5
"""Seconds between two questions to a node."""
RETRY_DENIED = 5.0
"""Seconds between two logins at a node that refuses them."""


class Vigil:
    """Asks each node in a thread of its own, which ends with the process.

    :param keywords: libpq connection keywords
    :param timeout: seconds that a login or an answer may take
    :raises libpq.LibpqNotFoundError: this host has no libpq
    """

    def __init__(self, nodes: Iterable[Node], keywords: Mapping[str, str], timeout: float) -> None:
        library()  # before there are threads: it changes the environment
        self._nodes = tuple(nodes)
        self._keywords = keywords
        self._timeout = timeout
        self._started = time.monotonic()
        self._states: dict[Node, tuple[NodeState, float]] = {}
        self._asked: dict[Node, float] = {}
        self._changes = self._seen = 0
        self._wanted = 0.0
        self._news = Condition()
        self._wake = Condition()
        for node in self._nodes:
            Thread(target=self._watch, args=(node,), name=node.name, daemon=True).start()

    def sight(self, newest: int) -> Sight:
        """What the nodes said last; waits, within the time-out, until each has said something for the first time.

        What a node said long ago counts no more: this process was stopped meanwhile, or a name look-up hangs.

        :param newest: the newest timeline that this host has seen before
        """
        limit = self._started + self._timeout + 1
        longest = 2 * self._timeout + RETRY_DENIED + 1  # between two answers, whatever they are
        with self._news:
            while len(self._states) < len(self._nodes) and (left := limit - time.monotonic()) > 0:
                self._news.wait(left)
            self._seen = self._changes
            now = time.monotonic()
            said = {
                node: self._states[node]
                if node in self._states and now - self._asked[node] <= longest
                else (NodeState(node, Reach.NO_RESPONSE, detail="could not be asked"), now)
                for node in self._nodes
            }
        truth = Truth(tuple([state for state, _ in said.values()]), newest)
        return Sight(truth, {node: since for node, (_, since) in said.items()})

    def refresh(self, seconds: float, needed: Collection[Node]) -> Collection[Node]:
        """Have every node asked anew now; one that says nothing within ``seconds`` keeps its last word.

        :param needed: nodes that are waited for longer, for as long as an answer may take
        :return: those that have said something
        """
        began = time.monotonic()
        with self._wake:
            self._wanted = began
            self._wake.notify_all()
        with self._news:
            while True:
                heard = [node for node in self._nodes if self._asked.get(node, 0.0) >= began]
                longest = seconds if set(needed).issubset(heard) else max(seconds, self._timeout)
                left = began + longest - time.monotonic()
                if len(heard) == len(self._nodes) or left <= 0:
                    return heard
                self._news.wait(left)

    def wait(self, until: float) -> bool:
        """Wait until a node says something that the last `sight` did not have, or until the time is over.

        :param until: by ``time.monotonic()``
        :return: a node has said something
        """
        with self._news:
            return self._news.wait_for(lambda: self._changes != self._seen, max(0.0, until - time.monotonic()))

    def _watch(self, node: Node) -> None:
        keywords = {**self._keywords, "host": node.host, "port": str(node.port)}
        while True:
            began = time.monotonic()
            try:
                with Connection(keywords, began + self._timeout) as connection:
                    while True:
                        began = time.monotonic()
                        role, timeline = question(connection, began + self._timeout)
                        self._take(NodeState(node, Reach.ACCEPTING, role, timeline), began)
                        self._rest(began, POLL)
            except (ConnectionFailed, StatementFailed) as failure:
                state = failed(node, failure, keywords)
            except Exception as error:  # a bug here must not make a node look dead
                state = unasked(node, error)
            self._take(state, began)
            self._rest(began, RETRY_DENIED if state.reach is Reach.DENIED else POLL)

    def _rest(self, asked: float, seconds: float) -> None:
        """Until it is time to ask again, or somebody wants an answer that is younger than the last one."""
        with self._wake:
            self._wake.wait_for(lambda: self._wanted > asked, seconds)

    def _take(self, state: NodeState, asked: float) -> None:
        with self._news:
            self._asked[state.node] = asked
            last = self._states.get(state.node)
            is_new = last is None or last[0][1:4] != state[1:4]
            self._states[state.node] = state, time.monotonic() if is_new or last is None else last[1]
            self._changes += is_new
            self._news.notify_all()
