"""Route one event to every balancer: in parallel, each alone, each within the deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from efm_lb.background import Background
from efm_lb.balancers import Balancer
from efm_lb.configuration import AdapterSource, Configuration
from efm_lb.errors import lack
from efm_lb.events import Attach, Detach, Event
from efm_lb.outcomes import Outcome, PermanentError, Result, TemporaryError
from efm_lb.truth import Node, Truth

if TYPE_CHECKING:
    from efm_lb.handover import Login
    from efm_lb.remote.balancer import Remote
    from efm_lb.remote.client import Client
    from efm_lb.views import Finding

__all__ = ["Answer", "Dispatcher"]


class Answer(NamedTuple):
    """What a balancer's adapter returned, or why it did not.

    :param value: the hook's return value, None on failure
    :param failure: None, or the failed outcome
    """

    value: Any
    failure: Outcome | None = None


class _Adapter:
    """One adapter, imported and registered in a thread and in a pluggy manager of its own.

    So each hook call reaches this adapter alone, and one whose import hangs holds up
    its own balancers only.
    """

    def __init__(self, source: AdapterSource) -> None:
        self.source = source
        self._hooks: Any = None
        self.load()

    def load(self) -> None:
        """Begin to import it."""
        self._failure: TemporaryError | PermanentError | None = None
        try:
            self._loading = Background(self._load)
        except RuntimeError as error:  # no more threads for this user
            self._failure = TemporaryError(f"{self} was not imported: {error}")

    @property
    def is_lacking(self) -> bool:
        """Whether its import has failed for want of something that this process may have later."""
        return isinstance(self._failure, TemporaryError)

    def _load(self) -> None:
        try:
            # pluggy, too, is imported in here: what waits for no adapter must not wait for it.
            from efm_lb.registry import register

            manager, failures = register([self.source])
        except Exception as error:  # no file descriptor left to read them, say
            self._failure = TemporaryError(f"{self} was not imported: {_where(error)}")
            return
        reason = failures.get(self.source.name, "")
        if reason:
            failed = TemporaryError if lack(reason) else PermanentError
            self._failure = failed(f"{self} cannot be used: {reason}")
        else:
            self._hooks = manager.hook

    def hook(self, name: str, deadline: float) -> Any:
        """The caller of one hook.

        :raises PermanentError: the adapter cannot be used
        :raises TemporaryError: it is not imported by the deadline
        """
        if not self._failure:
            self._loading.wait(deadline)
        if self._failure:
            raise self._failure
        if self._hooks is None:
            raise TemporaryError(f"{self} was not imported within EFM_LB_DEADLINE")
        return getattr(self._hooks, name)

    def __str__(self) -> str:
        return f"adapter {self.source}"


class Dispatcher:
    """Calls the adapters of a cluster's balancers, one typed method per hook.

    Balancers are isolated: each hook call is made for one balancer, reaches its
    adapter alone, in a thread of its own, guarded at BaseException. No adapter can
    delay, fail or end another one, and none that hangs is waited for past the deadline.

    :param configuration: the cluster's settings; the adapters begin to be imported at once
    :param call: the name of the call that it serves, for the journals of balancers on other hosts
    """

    def __init__(self, configuration: Configuration, call: str = "") -> None:
        self._balancers = configuration.balancers
        self._running: dict[str, Background] = {}
        here = {balancer.adapter for balancer in self._balancers if not balancer.host_ssh}
        adapters = {source.name: _Adapter(source) for source in configuration.adapters if source.name in here}
        self._ways: dict[str, _Adapter | Remote] = {
            balancer.name: adapters[balancer.adapter] for balancer in self._balancers if not balancer.host_ssh
        }
        elsewhere = [balancer for balancer in self._balancers if balancer.host_ssh]
        if elsewhere:
            from efm_lb.remote.balancer import Remote

            self._ways |= {balancer.name: Remote(balancer, configuration, call) for balancer in elsewhere}

    @property
    def names(self) -> tuple[str, ...]:
        """The balancers, sorted."""
        return tuple(sorted(balancer.name for balancer in self._balancers))

    def connect(self, clients: dict[str, Client], logins: Mapping[str, dict[str, Login]]) -> None:
        """Begin to connect to the balancers on other hosts, and hand the logins at those here to their adapters.

        Something is about to be asked of them.

        :param clients: by balancer: ssh, under way to its host already; those that serve are removed
        :param logins: by balancer: what its adapter finds by `Balancer.login`
        """
        self._balancers = tuple(
            [each._replace(begun=logins[each.name]) if each.name in logins else each for each in self._balancers]
        )
        for name, way in self._ways.items():
            if not isinstance(way, _Adapter):
                way.connect(clients.pop(name, None))

    def reimport(self) -> None:
        """Begin to import anew the adapters whose import has failed for want of threads, descriptors or memory."""
        for way in dict.fromkeys(self._ways.values()):
            if isinstance(way, _Adapter) and way.is_lacking:
                way.load()

    def only(self, name: str) -> Dispatcher:
        """The same for one balancer alone; nothing is imported anew."""
        return self.among((name,))

    def among(self, names: Collection[str]) -> Dispatcher:
        """The same for some of the balancers; nothing is imported anew."""
        some: Dispatcher = object.__new__(Dispatcher)
        some._balancers = tuple(balancer for balancer in self._balancers if balancer.name in names)
        some._ways = self._ways
        some._running = self._running
        return some

    def send(self, event: Event, deadline: float) -> tuple[Outcome, ...]:
        """Bring every balancer in line with ``event``.

        :param deadline: when all must be done, by ``time.monotonic()``
        :return: one outcome per balancer, sorted by balancer; never raises for an adapter's sake
        """
        if isinstance(event, Attach):
            hook = "efm_lb_attach"
        elif isinstance(event, Detach):
            hook = "efm_lb_detach"
        else:
            hook = "efm_lb_promote"
        return tuple(
            self._outcome(answer, name, seconds) for name, (answer, seconds) in self._call(hook, deadline, event=event)
        )

    def hold(self, event: Detach, deadline: float) -> tuple[Outcome, ...]:
        """Ask every balancer that can to hold new work back; one outcome per balancer that has something to say."""
        return tuple(
            self._outcome(answer, name, seconds)
            for name, (answer, seconds) in self._call("efm_lb_hold", deadline, event=event)
            if answer.failure or answer.value is not None
        )

    def holders(self, deadline: float) -> tuple[str, ...]:
        """The balancers whose adapter can hold new work back; nothing is asked of them."""
        able = []
        for balancer in sorted(self._balancers):
            try:
                hook: Any = self._ways[balancer.name].hook("efm_lb_hold", deadline)
                if balancer.host_ssh or hook.get_hookimpls():
                    able.append(balancer.name)
            except (TemporaryError, PermanentError):
                continue
        return tuple(able)

    def plan(self, event: Event, deadline: float) -> dict[str, Answer]:
        """What ``event`` would do, as a tuple of steps per balancer; nothing is changed."""
        answers = self._call("efm_lb_plan", deadline, collect=tuple, event=event)
        return {name: answer for name, (answer, _) in answers}

    def views(self, nodes: tuple[Node, ...], deadline: float) -> dict[str, Answer]:
        """What every balancer believes about ``nodes``, as an `efm_lb.View` per balancer, sorted by balancer."""
        return {
            name: view for views in self.arriving_views(nodes, deadline, float("inf")) for name, view in views.items()
        }

    def arriving_views(self, nodes: tuple[Node, ...], deadline: float, every: float) -> Iterator[Mapping[str, Answer]]:
        """The same as they come: a balancer that is silent keeps nobody waiting who can do something for another.

        :param every: seconds after which those are handed out that have come, if any; all at once when none is late
        """
        from efm_lb.views import View

        for answers in self._arriving("efm_lb_view", deadline, every, None, {"nodes": nodes}):
            yield {name: self._typed(answer, View, name) for name, (answer, _) in sorted(answers.items())}

    def findings(self, truth: Truth, log_in: Callable[[str, str], Truth], deadline: float) -> dict[str, Answer]:
        """What ``efm-lb check`` finds at every balancer, as a tuple of `Finding` per balancer."""
        answers = self._call("efm_lb_check", deadline, collect=_findings, truth=truth, log_in=log_in)
        return {name: answer for name, (answer, _) in answers}

    def _call(
        self, hook: str, deadline: float, collect: Callable[[Any], Any] | None = None, **arguments: object
    ) -> list[tuple[str, tuple[Answer, float]]]:
        """Call ``hook`` for all balancers at once; ``collect`` turns the return value into data, in the same guard."""
        arriving = self._arriving(hook, deadline, float("inf"), collect, arguments)
        return sorted(answer for answers in arriving for answer in answers.items())

    def _arriving(
        self,
        hook: str,
        deadline: float,
        every: float,
        collect: Callable[[Any], Any] | None,
        arguments: Mapping[str, object],
    ) -> Iterator[dict[str, tuple[Answer, float]]]:
        """What has come after ``every`` so many seconds, until all have answered or are late."""
        started = time.monotonic()
        answers: dict[str, tuple[Answer, float]] = {}
        begun = []

        def run(balancer: Balancer) -> None:
            given = {**arguments, "deadline": deadline, "balancer": balancer}
            answer = self._guarded(hook, balancer, deadline, collect, given)
            answers[balancer.name] = answer, time.monotonic() - started

        for balancer in self._balancers:
            if (last := self._running.get(balancer.name)) and last.is_running:
                continue  # its adapter hangs: one thread for it is enough
            try:
                running = Background(run, balancer)
            except RuntimeError as error:  # no more threads for this user
                answers[balancer.name] = self._not_called(balancer, error), time.monotonic() - started
                continue
            self._running[balancer.name] = running
            begun.append(running)
        missing = {balancer.name: balancer for balancer in self._balancers}
        while missing:
            until = min(deadline, time.monotonic() + every)
            for running in begun:
                running.wait(until)
            is_over = until == deadline or not any(running.is_running for running in begun)
            come = {name: answers[name] for name in missing if name in answers}
            if is_over:
                seconds = time.monotonic() - started
                come |= {name: (self._late(missing[name]), seconds) for name in missing.keys() - come.keys()}
            missing = {name: balancer for name, balancer in missing.items() if name not in come}
            yield come

    def _guarded(
        self,
        hook: str,
        balancer: Balancer,
        deadline: float,
        collect: Callable[[Any], Any] | None,
        arguments: Mapping[str, object],
    ) -> Answer:
        way = self._ways[balancer.name]
        try:
            value = way.hook(hook, deadline)(**arguments)
            return Answer(collect(value) if collect and value is not None else value)
        except TemporaryError as error:
            return Answer(None, Outcome(Result.TEMPORARY, str(error)))
        except PermanentError as error:
            return Answer(None, Outcome(Result.PERMANENT, str(error)))
        except BaseException as error:  # a client library's SystemExit must not pass for success
            if lack(error):
                return Answer(None, Outcome(Result.TEMPORARY, f"{way}: {error}"))
            return Answer(None, Outcome(Result.BUG, f"{way}: {_where(error)}"))

    def _not_called(self, balancer: Balancer, error: RuntimeError) -> Answer:
        return Answer(None, Outcome(Result.TEMPORARY, f"{self._ways[balancer.name]} was not called: {error}"))

    def _late(self, balancer: Balancer) -> Answer:
        way = self._ways[balancer.name]
        return Answer(None, Outcome(Result.TEMPORARY, f"{way} did not return within EFM_LB_DEADLINE"))

    def _outcome(self, answer: Answer, name: str, seconds: float) -> Outcome:
        outcome = answer.failure or answer.value
        if not isinstance(outcome, Outcome):
            outcome = Outcome(Result.BUG, f"the adapter returned {type(outcome).__name__} instead of an Outcome")
        by = str(self._ways[name]) if outcome.failed else ""
        return outcome._replace(balancer=name, seconds=seconds, by=by)

    def _typed(self, answer: Answer, expected: type, name: str) -> Answer:
        if answer.failure or isinstance(answer.value, expected):
            return answer
        kind = type(answer.value).__name__
        return Answer(
            None, Outcome(Result.BUG, f"the adapter returned {kind} instead of a {expected.__name__}", balancer=name)
        )


def _findings(value: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(value)


def _where(error: BaseException) -> str:
    """The error in one line, with the place it was raised at."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    place = f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""
    return f"{type(error).__name__}: {error}{place}"
