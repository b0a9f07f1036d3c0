"""A balancer on another host, in its adapter's place: a hook's arguments become a document, the answer its return."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from efm_lb.balancers import Balancer
from efm_lb.events import Event
from efm_lb.outcomes import PermanentError, Result, TemporaryError
from efm_lb.remote.ssh import Destination, Run
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

    def connect(self) -> None:
        """Begin to connect, so that the question finds efm-lb there waiting for it."""
        try:
            self._run = Run(self._destination)
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

        limit = deadline - _LAST
        run = self._run or Run(self._destination)
        self._run = None
        asked = time.monotonic()
        try:
            data = run.ask(request(), limit)
        except TemporaryError:
            is_old = run.was_shared or asked - run.started > _OLD
            if not is_old or time.monotonic() - asked > self._balancer.connect_timeout / 2:
                raise
            # The connection is from before: its host may have been started anew since.
            data = Run(self._destination, alone=True).ask(request(), limit)
        try:
            kind, answer = documents.read_answer(data)
        except documents.OtherVersion as error:
            raise PermanentError(f"{self}: {error}") from None
        except documents.Malformed as error:
            raise PermanentError(f"{self} answered {_beginning(data)}: {error}") from None
        if kind not in _ANSWERS[ask]:
            raise PermanentError(f"{self} answered {ask} with {kind}")
        return _value(ask, kind, answer, self._nodes)


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
