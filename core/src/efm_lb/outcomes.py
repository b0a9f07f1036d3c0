"""What an event did to a balancer, as data, and the errors an adapter raises instead."""

from enum import Enum
from typing import NamedTuple

from efm_lb.errors import EX_OK, EX_SOFTWARE, EX_TEMPFAIL, EX_UNAVAILABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["Outcome", "PermanentError", "Result", "TemporaryError", "exit_code_of"]


class Result(Enum):
    """The kinds of outcome."""

    CHANGED = "changed"
    """The balancer was brought to the wanted state, and its view, read back, proves it."""
    UNCHANGED = "unchanged"
    """The balancer was right already; nothing was sent."""
    DEFERRED = "deferred"
    """Rightly not done now: acting would have cut clients for nothing."""
    TEMPORARY = "failed temporarily"
    """A later try may succeed."""
    PERMANENT = "failed"
    """No retry can help: somebody has to change something."""
    BUG = "failed by a bug"
    """The adapter broke its contract; the detail names it and where."""


class Outcome(NamedTuple):
    """What one event did to one balancer.

    :param result: the kind
    :param detail: one short line for a person; never a secret
    :param again_after: for DEFERRED, the seconds after which the call must be judged
        again (by a follow-up process), or None when nothing is owed
    :param balancer: filled in by the dispatcher
    :param seconds: the time it took, filled in by the dispatcher
    :param by: whose failure it is, filled in by the dispatcher: the adapter with its distribution and version, or
        ``efm-lb apply`` on another host
    """

    result: Result
    detail: str
    again_after: float | None = None
    balancer: str = ""
    seconds: float = 0.0
    by: str = ""

    @classmethod
    def changed(cls, detail: str) -> "Outcome":
        return cls(Result.CHANGED, detail)

    @classmethod
    def unchanged(cls, detail: str) -> "Outcome":
        return cls(Result.UNCHANGED, detail)

    @classmethod
    def deferred(cls, detail: str, again_after: float | None = None) -> "Outcome":
        return cls(Result.DEFERRED, detail, again_after)

    @property
    def failed(self) -> bool:
        return self.result in (Result.TEMPORARY, Result.PERMANENT, Result.BUG)


def exit_code_of(outcomes: "Collection[Outcome]") -> int:
    """The exit code that tells what came of an event at several balancers: what a later try may help counts first."""
    results = {outcome.result for outcome in outcomes}
    if Result.TEMPORARY in results:
        return EX_TEMPFAIL
    if Result.PERMANENT in results:
        return EX_UNAVAILABLE
    return EX_SOFTWARE if Result.BUG in results else EX_OK


class TemporaryError(Exception):
    """The balancer could not be brought to the wanted state now; a later try may succeed.

    Raised by an adapter for: no answer, refused connection, out of time, busy. Becomes exit code 75.
    """


class PermanentError(Exception):
    """Retrying cannot help until somebody changes something.

    Raised by an adapter for: node unknown to the balancer, login refused, command
    forbidden by the balancer's configuration. Becomes exit code 69.
    """
