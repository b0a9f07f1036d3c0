"""A balancer on another host, in its adapter's place: a hook's arguments become a document, the answer its return."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from efm_lb.balancers import Balancer
from efm_lb.events import Event
from efm_lb.outcomes import PermanentError, Result, TemporaryError
from efm_lb.remote.client import Client, Destination
from efm_lb.remote.ssh import NotReady, Run, start
from efm_lb.truth import Node, Truth

if TYPE_CHECKING:
    from efm_lb.configuration import Configuration

__all__ = ["Remote"]

_MARGIN = 0.5
"""Seconds that a question and its answer may need for their way; an answer that is late brings no reason."""
_LAST = 0.1
"""Seconds before the deadline at which nothing is waited for any more."""
_OLD = 5.0
"""Seconds after which a connection that was begun may have been lost."""
_GRACE = 0.3
"""Seconds after the connect time-out in which ssh itself says what it was waiting for."""
_KNOCK = 0.3
"""Seconds in which an efm-lb that does not say that it is ready may tell that it is an older one."""
_ASKS = {
    "efm_lb_attach": "act",
    "efm_lb_detach": "act",
    "efm_lb_promote": "act",
    "efm_lb_hold": "hold",
    "efm_lb_plan": "plan",
    "efm_lb_view": "view",
    "efm_lb_check": "check",
}
_ANSWERS = {
    "act": ("outcome",),
    "hold": ("outcome", "nothing"),
    "plan": ("steps", "outcome", "nothing"),
    "view": ("view", "outcome", "nothing"),
    "check": ("findings", "outcome", "nothing"),
}


class Remote:
    """Reaches one balancer through ``efm-lb apply`` on its host.

    :param call: the name of the call, for the journal there
    """

    def __init__(self, balancer: Balancer, configuration: Configuration, call: str) -> None:
        self._balancer = balancer
        self._cluster = configuration.cluster
        self._nodes = configuration.nodes
        self._call = call
        self._run: Run | None = None
        self._destination = Destination(
            balancer.host_ssh,
            balancer.connect_timeout,
            configuration.state_dir,
            f"{configuration.cluster}.{balancer.name}",
        )

    def connect(self, client: Client | None = None) -> None:
        """Begin to connect, so that the question finds efm-lb there waiting for it.

        :param client: under way already
        """
        try:
            self._run = Run(client) if client else start(self._destination)
        except PermanentError:
            self._run = None  # whoever asks is told

    def __str__(self) -> str:
        return f"efm-lb apply at {self._destination}"

    def hook(self, name: str, deadline: float) -> Callable[..., Any]:
        """The caller of one hook."""

        def ask(event: Event | None = None, truth: Truth | None = None, **_: object) -> Any:
            return self._ask(_ASKS[name], event, truth, deadline)

        return ask

    def _ask(self, ask: str, event: Event | None, truth: Truth | None, deadline: float) -> Any:
        """:raises TemporaryError, PermanentError: as the adapter there, and when there is no answer"""
        from efm_lb.remote import documents

        given: dict[str, Any] = {}
        if event:
            given = {"event": documents.event_document(event), "truth": documents.truth_document(event.truth)}
        elif truth:
            given = {"truth": documents.truth_document(truth)}
        names = tuple(node.name for node in self._nodes)

        def request() -> bytes:
            seconds = round(max(0.0, deadline - _MARGIN - time.monotonic()), 3)
            return documents.encoded(
                documents.Request(self._call, self._cluster, self._balancer.name, seconds, names, ask, given).document()
            )

        data = self._sent(request, deadline - _LAST)
        kind, answer = self._read(documents.read_answer, data)
        if kind not in _ANSWERS[ask]:
            raise PermanentError(f"{self} answered {ask} with {kind}")
        return _value(ask, kind, answer, self._nodes)

    def _sent(self, request: Callable[[], bytes], limit: float) -> bytes:
        """Send the request by the connection that was begun; the answer.

        A host that cannot be reached costs the connect time-out and a little, from when the connection was begun. One
        that is shared has half of it, and one of its own the other half.
        """
        run, self._run = self._run or start(self._destination), None
        timeout = self._balancer.connect_timeout
        asked = time.monotonic()
        try:
            return self._sent_by(run, request, run.started + (timeout / 2 if run.was_shared else timeout), limit)
        except TemporaryError as error:
            is_old = run.was_shared or asked - run.started > _OLD
            is_late = time.monotonic() - asked > timeout / 2 and not isinstance(error, NotReady)
            if not is_old or is_late:
                raise
            # The connection is from before: its host may be silent, or have been started anew since.
            alone = start(self._destination, alone=True)
            return self._sent_by(alone, request, max(run.started + timeout, alone.started + timeout / 2), limit)

    def _sent_by(self, run: Run, request: Callable[[], bytes], ready_by: float, limit: float) -> bytes:
        """:raises NotReady: a shared connection is silent"""
        from efm_lb.remote import documents

        try:
            said = run.ready(documents.READY_MARK, min(limit, ready_by + (0.0 if run.was_shared else _GRACE)))
        except NotReady:
            if run.was_shared:
                run.give_up()
                raise
            said = run.ask(documents.KNOCK, min(limit, time.monotonic() + _KNOCK))
            if documents.READY_MARK not in said:  # else it is slow, and no more than that
                self._read(documents.read_ready, said)
            raise
        self._read(documents.read_ready, said)
        return run.ask(request(), limit)

    def _read(self, reader: Callable[[bytes], Any], data: bytes) -> Any:
        """:raises PermanentError: it is not what ``reader`` reads"""
        from efm_lb.remote import documents

        try:
            return reader(data)
        except documents.OtherVersion as error:
            raise PermanentError(f"{self}: {error}") from None
        except documents.Malformed as error:
            raise PermanentError(f"{self} answered {_beginning(data)}: {error}") from None


def _value(ask: str, kind: str, answer: Any, nodes: tuple[Node, ...]) -> Any:
    """What the adapter's hook would have returned."""
    from efm_lb.remote import documents

    if kind == "nothing":
        return None
    if kind == "outcome":
        outcome = documents.outcome_of(answer)
        if ask in ("act", "hold"):
            return outcome
        raise (TemporaryError if outcome.result is Result.TEMPORARY else PermanentError)(outcome.detail)
    if kind == "view":
        return documents.view_of(answer, nodes)
    if kind == "findings":
        return documents.findings_of(answer)
    return tuple(answer)


def _beginning(data: bytes) -> str:
    words = " ".join(data[:300].decode("utf-8", "backslashreplace").split())
    return repr(words if len(words) < 100 else words[:100] + "...")
