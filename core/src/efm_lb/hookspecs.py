"""The contract between efm-lb and an adapter.

An adapter is a module (or object) registered in the entry-point group
``efm_lb.adapters``; the entry point's name is the adapter's name, the value of
``EFM_LB_BALANCERS__<NAME>__ADAPTER``. It implements the hooks below, decorated with
`efm_lb.hookimpl`, and may leave out arguments that it does not use.

Every hook is called for one balancer at a time, in a thread of its own, in parallel
with the other balancers; an adapter that serves several balancers must keep no
state between calls. Whatever it raises concerns that balancer alone.

Deadlines are values of ``time.monotonic()``, in seconds. A hook that has not
returned by then is given up; the process may end at any moment after.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pluggy import HookimplMarker, HookspecMarker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from efm_lb.balancers import Balancer
    from efm_lb.events import Attach, Detach, Event, Promote
    from efm_lb.outcomes import Outcome
    from efm_lb.truth import Node, Truth
    from efm_lb.views import Finding, View

_spec = HookspecMarker("efm_lb")

hookimpl = HookimplMarker("efm_lb")
"""Marks an adapter's implementation of a hook; import it from `efm_lb`."""


@_spec(firstresult=True)
def efm_lb_settings_schema() -> Mapping[str, Any]:  # type: ignore[empty-body]
    """Describe the adapter's settings as a JSON Schema (draft 2020-12) of an object.

    Called when settings are compiled, checked or documented, never on the hot path.
    Values from the environment are texts: they are coerced by each property's
    ``type`` (``integer``, ``number``, ``boolean``, ``string``, ``array`` of these,
    split at commas). Unknown properties are always an error. A property's
    ``description`` becomes the reference documentation. The keyword ``x-expected`` beside
    a ``pattern`` says in words what it demands, for messages. The keyword ``x-identity``,
    a list of lists of settings, says when two balancers are one and are refused: when
    they have a value in common in each of the lists. Without it, when all is the same.
    The keyword ``x-disjoint``, such a list, too, says which settings share no value.
    The keyword ``x-login`` of a setting that holds a libpq connection string, or several,
    is a mapping of keywords that win over the string, null for the value of the setting of
    that name: an event's adapter finds a login that was begun before it was imported
    (`efm_lb.Balancer.login`).

    :return: the schema; ``properties`` in lower case, ``PORT`` is ``port``
    :raises: nothing; an exception disables the adapter and is reported as its bug

    Example::

        @hookimpl
        def efm_lb_settings_schema():
            return {
                "type": "object",
                "properties": {"host": {"type": "string", "description": "Address of the admin port."}},
                "required": ["host"],
            }

    .. versionadded:: 0.1
    """


@_spec(firstresult=True)
def efm_lb_attach(event: Attach, balancer: Balancer, deadline: float) -> Outcome:  # type: ignore[empty-body]
    """Put ``event.node`` into rotation for reads; never move writes.

    Called once per balancer and event. Must be idempotent: a node that is in
    rotation already is ``Outcome.unchanged``, and nothing is sent.

    :param event: the node, and the truth that the event was decided on
    :param balancer: the balancer to bring right
    :param deadline: when to be done, by ``time.monotonic()``
    :return: changed only when the balancer's own view, read back, shows it
    :raises TemporaryError: the balancer did not answer or is busy; a later try may succeed (exit 75)
    :raises PermanentError: no retry can help, such as a node it does not know (exit 69)

    Any other exception is a bug of the adapter (exit 70 when nothing else failed).

    Example::

        @hookimpl
        def efm_lb_attach(event, balancer):
            client = Client(balancer.settings["host"], timeout=balancer.connect_timeout)
            if client.is_enabled(event.node.address):
                return Outcome.unchanged("enabled already")
            client.enable(event.node.address)
            if not client.is_enabled(event.node.address):
                raise TemporaryError("still disabled after 'enable'")
            return Outcome.changed("enabled")

    .. versionadded:: 0.1
    """


@_spec(firstresult=True)
def efm_lb_detach(event: Detach, balancer: Balancer, deadline: float) -> Outcome:  # type: ignore[empty-body]
    """Take ``event.node`` out of rotation.

    Called once per balancer and event, and again with ``event.origin`` FOLLOW_UP
    when it returned deferred with ``again_after``, for a minute at most.
    ``event.truth.primary`` is the node that writes may go to instead; where it is
    None and taking the node out would block the balancer, an adapter may defer.

    :param event: the node, and the truth that the event was decided on
    :param balancer: the balancer to bring right
    :param deadline: when to be done, by ``time.monotonic()``
    :return: changed, unchanged (out already), or deferred
    :raises TemporaryError: the balancer did not answer or is busy (exit 75)
    :raises PermanentError: no retry can help (exit 69)

    Example::

        @hookimpl
        def efm_lb_detach(event, balancer):
            client = Client(balancer.settings["host"], timeout=balancer.connect_timeout)
            if not client.is_enabled(event.node.address):
                return Outcome.unchanged("disabled already")
            client.disable(event.node.address)
            return Outcome.changed("disabled")

    .. versionadded:: 0.1
    """


@_spec(firstresult=True)
def efm_lb_hold(event: Detach, balancer: Balancer, deadline: float) -> Outcome | None:
    """Hold new work back, if you can: a live primary may be about to be stopped.

    Called instead of `efm_lb_detach` when the detach of the only primary is deferred:
    either a switchover is about to stop ``event.node``, or only its agent died, and the
    call cannot tell. Optional; an adapter without it does nothing.

    What is held must be let go without further calls: by the adapter's own means, within a
    time that it names, also when this process is killed at any moment. Nobody may be cut.
    `efm_lb_promote` lets go of it earlier. The same call again while holding extends nothing.

    A failure to hold is reported and changes no exit code: the deferred detach is right without it.

    :param event: the node, with a truth in which it is the primary
    :param balancer: the balancer that may hold
    :param deadline: when to be done, by ``time.monotonic()``
    :return: changed when it holds now, unchanged when it held already, deferred when it does not and why;
        None when there is nothing to say
    :raises TemporaryError: the balancer did not answer, or could not hold in time, and holds nothing
    :raises PermanentError: no retry can help

    Example::

        @hookimpl
        def efm_lb_hold(event, balancer):
            client = Client(balancer.settings["host"], timeout=balancer.connect_timeout)
            client.queue_new_requests(seconds=10)
            return Outcome.changed("new requests wait for at most 10 s")

    .. versionadded:: 0.1
    """


@_spec(firstresult=True)
def efm_lb_promote(event: Promote, balancer: Balancer, deadline: float) -> Outcome:  # type: ignore[empty-body]
    """Send writes to ``event.node``, and to no other node.

    Called only when the node is proven to be the only primary. Must be idempotent.
    Standbys that the change itself throws out are put back when they are in
    ``event.truth.standbys``.

    :param event: the new primary, and the truth that the event was decided on
    :param balancer: the balancer to bring right
    :param deadline: when to be done, by ``time.monotonic()``
    :return: changed only when the balancer's own view, read back, shows it
    :raises TemporaryError: the balancer did not answer or is busy (exit 75)
    :raises PermanentError: no retry can help (exit 69)

    Example::

        @hookimpl
        def efm_lb_promote(event, balancer):
            client = Client(balancer.settings["host"], timeout=balancer.connect_timeout)
            if client.writer() == event.node.address:
                return Outcome.unchanged("writes go there already")
            client.set_writer(event.node.address)
            return Outcome.changed(f"writes go to {event.node.name}")

    .. versionadded:: 0.1
    """


@_spec(firstresult=True)
def efm_lb_plan(event: Event, balancer: Balancer, deadline: float) -> Iterable[str]:  # type: ignore[empty-body]
    """Say what an event would do, and do nothing: ``--dry-run``, ``efm-lb plan``.

    A hook of its own, so that an adapter without it can never act on a dry run.

    :return: one short line per step, none when the balancer is right already
    :raises TemporaryError: the balancer did not answer
    :raises PermanentError: the event would fail for good

    Example::

        @hookimpl
        def efm_lb_plan(event, balancer):
            return [f"disable {event.node.address}"] if isinstance(event, Detach) else []

    .. versionadded:: 0.1
    """


@_spec(firstresult=True)
def efm_lb_view(nodes: tuple[Node, ...], balancer: Balancer, deadline: float) -> View:  # type: ignore[empty-body]
    """Read what the balancer believes about ``nodes``, and change nothing: ``efm-lb status``, ``plan``.

    :param nodes: the nodes of the cluster; match them with `Node.is_at`
    :return: the view; nodes that the balancer does not know are left out. ``kept=False`` where its files would undo it
    :raises TemporaryError: the balancer did not answer
    :raises PermanentError: it will not tell, such as a refused login

    Example::

        @hookimpl
        def efm_lb_view(nodes, balancer):
            backends = Client(balancer.settings["host"]).backends()
            return View(tuple(
                NodeView(node, attached=backend.enabled, writes=backend.writer, detail=backend.state)
                for node in nodes
                for backend in backends
                if node.is_at(backend.host, backend.port)
            ))

    .. versionadded:: 0.1
    """


@_spec(firstresult=True)
def efm_lb_check(  # type: ignore[empty-body]
    truth: Truth, balancer: Balancer, log_in: Callable[[str, str], Truth], deadline: float
) -> Iterable[Finding]:
    """Look for what will go wrong on the day, and change nothing: ``efm-lb check``.

    Reports settings of the balancer that fight an external manager, missing rights,
    nodes that it does not know. A balancer that does not answer is a finding too.

    :param truth: what the databases say now
    :param log_in: what they say to another role: ``log_in(user, dbname)`` asks all nodes from this host, with the
        password file and the TLS settings of EFM_LB_PROBE; it takes up to ``balancer.connect_timeout``
    :return: findings, the good ones as well
    :raises TemporaryError: the balancer did not answer
    :raises PermanentError: it will not tell

    Example::

        @hookimpl
        def efm_lb_check(balancer):
            client = Client(balancer.settings["host"])
            if client.auto_eject:
                yield Finding(Severity.WARNING, "auto_eject", "ejects nodes by itself", "set it to off")

    .. versionadded:: 0.1
    """
