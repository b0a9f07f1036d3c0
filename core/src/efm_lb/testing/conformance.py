"""The definition of an adapter, as tests."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from types import ModuleType

import jsonschema
import pluggy
import pytest

from efm_lb import (
    Attach,
    Balancer,
    Detach,
    Node,
    NodeState,
    Outcome,
    PermanentError,
    Promote,
    Reach,
    Result,
    Role,
    TemporaryError,
    Truth,
    View,
    hookspecs,
)

__all__ = ["BANNED_IMPORTS", "AdapterConformance"]

BANNED_IMPORTS = (
    "asyncio",
    "click",
    "concurrent.futures",
    "importlib.metadata",
    "jsonschema",
    "logging",
    "psycopg",
    "pydantic",
    "pydantic_settings",
    "rich",
    "subprocess",
    "typer",
)
"""Modules that a hook run cannot afford: each costs as much as half the hook."""

STRANGER = Node("192.0.2.77", "192.0.2.77", 5499)
"""A node that no balancer knows (RFC 5737: never a real host)."""


class AdapterConformance:
    """Inherit it in a test module, and provide these fixtures:

    * ``adapter``: the module (or object) that the entry point names
    * ``balancer``: a `Balancer` that is running and right: ``truth.primary`` gets the
      writes, every other node of ``truth`` is an attached standby
    * ``truth``: one primary and at least one standby, as the databases say
    * ``unreachable``: a `Balancer` whose address nobody listens on
    * ``silent``: a `Balancer` whose address accepts and never answers

    A load balancer that is told addresses instead of having them configured knows every node: its class says
    ``takes_any_node = True``.

    Example::

        class TestAcme(AdapterConformance):
            @pytest.fixture
            def adapter(self):
                return acme_efm_lb

    .. versionadded:: 0.1
    """

    takes_any_node = False

    @pytest.fixture
    def hooks(self, adapter: ModuleType) -> pluggy.HookRelay:
        plugins = pluggy.PluginManager("efm_lb")
        plugins.add_hookspecs(hookspecs)
        plugins.register(adapter)
        plugins.check_pending()
        return plugins.hook

    def soon(self, seconds: float = 10.0) -> float:
        """A deadline."""
        return time.monotonic() + seconds

    def test_the_hooks_are_spelt_as_specified(self, hooks: pluggy.HookRelay) -> None:
        for name in ("settings_schema", "attach", "detach", "promote", "plan", "view", "check"):
            assert getattr(hooks, f"efm_lb_{name}").get_hookimpls(), f"efm_lb_{name} is missing"

    def test_the_schema_is_one_and_documents_every_setting(self, hooks: pluggy.HookRelay) -> None:
        schema = hooks.efm_lb_settings_schema()
        jsonschema.Draft202012Validator.check_schema(schema)
        for name, setting in schema["properties"].items():
            assert name == name.lower()
            assert setting.get("description"), f"{name} has no description"

    def test_it_imports_nothing_heavy(self, adapter: ModuleType) -> None:
        script = f"import sys, {adapter.__name__}; print(*sys.modules, sep='\\n')"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
        assert not set(BANNED_IMPORTS) & set(done.stdout.split())

    def test_what_is_right_is_left_alone(self, hooks: pluggy.HookRelay, balancer: Balancer, truth: Truth) -> None:
        before = hooks.efm_lb_view(nodes=truth.nodes, balancer=balancer, deadline=self.soon())
        assert truth.primary
        for event, hook in [
            *((Attach(node, truth), hooks.efm_lb_attach) for node in truth.standbys),
            (Promote(truth.primary, truth), hooks.efm_lb_promote),
        ]:
            outcome = hook(event=event, balancer=balancer, deadline=self.soon())
            assert isinstance(outcome, Outcome)
            assert outcome.result is Result.UNCHANGED, outcome.detail
            assert not list(hooks.efm_lb_plan(event=event, balancer=balancer, deadline=self.soon()))
        assert hooks.efm_lb_view(nodes=truth.nodes, balancer=balancer, deadline=self.soon()) == before

    def test_a_standby_goes_out_and_comes_back_once(
        self, hooks: pluggy.HookRelay, balancer: Balancer, truth: Truth
    ) -> None:
        standby = truth.standbys[0]
        for hook, event, attached in [
            (hooks.efm_lb_detach, Detach(standby, truth), False),
            (hooks.efm_lb_attach, Attach(standby, truth), True),
        ]:
            steps = list(hooks.efm_lb_plan(event=event, balancer=balancer, deadline=self.soon()))
            assert steps, "a plan names its steps"
            first = hook(event=event, balancer=balancer, deadline=self.soon())
            assert first.result is Result.CHANGED, first.detail
            view = hooks.efm_lb_view(nodes=truth.nodes, balancer=balancer, deadline=self.soon())
            assert view.of(standby).attached is attached
            again = hook(event=event, balancer=balancer, deadline=self.soon())
            assert again.result is Result.UNCHANGED, again.detail
            writers = [seen.node for seen in view.nodes if seen.writes]
            assert writers == [truth.primary], "writes stay where they are"

    def test_holding_moves_nothing_and_a_promote_ends_it(
        self, hooks: pluggy.HookRelay, balancer: Balancer, truth: Truth
    ) -> None:
        if not hooks.efm_lb_hold.get_hookimpls():
            pytest.skip("it holds nothing back")
        assert truth.primary
        before = hooks.efm_lb_view(nodes=truth.nodes, balancer=balancer, deadline=self.soon())
        event = Detach(truth.primary, truth)
        outcome = hooks.efm_lb_hold(event=event, balancer=balancer, deadline=self.soon())
        if outcome and outcome.result is Result.CHANGED:
            again = hooks.efm_lb_hold(event=event, balancer=balancer, deadline=self.soon())
            assert again.result is Result.UNCHANGED, again.detail
            released = hooks.efm_lb_promote(
                event=Promote(truth.primary, truth), balancer=balancer, deadline=self.soon()
            )
            assert released.result is Result.CHANGED, released.detail
        settled = hooks.efm_lb_promote(event=Promote(truth.primary, truth), balancer=balancer, deadline=self.soon())
        assert settled.result is Result.UNCHANGED, settled.detail
        assert hooks.efm_lb_view(nodes=truth.nodes, balancer=balancer, deadline=self.soon()) == before

    def test_the_view_agrees_with_the_truth(self, hooks: pluggy.HookRelay, balancer: Balancer, truth: Truth) -> None:
        view = hooks.efm_lb_view(nodes=truth.nodes, balancer=balancer, deadline=self.soon())
        assert isinstance(view, View)
        assert {seen.node for seen in view.nodes} == set(truth.nodes)
        assert [seen.node for seen in view.nodes if seen.writes] == [truth.primary]
        assert all(seen.attached for seen in view.nodes)

    def test_a_node_that_it_does_not_know_is_a_permanent_error(
        self, hooks: pluggy.HookRelay, balancer: Balancer, truth: Truth
    ) -> None:
        if self.takes_any_node:
            pytest.skip("it is told addresses, so it knows every node")
        wider = Truth((*truth.states, NodeState(STRANGER, Reach.ACCEPTING, Role.STANDBY, 1)))
        with pytest.raises(PermanentError, match=STRANGER.host):
            hooks.efm_lb_attach(event=Attach(STRANGER, wider), balancer=balancer, deadline=self.soon())

    @pytest.mark.parametrize("which", ["unreachable", "silent"])
    def test_a_dead_balancer_is_a_temporary_error_in_time(
        self, hooks: pluggy.HookRelay, request: pytest.FixtureRequest, truth: Truth, which: str
    ) -> None:
        balancer: Balancer = request.getfixturevalue(which)
        node = truth.standbys[0]
        calls: list[Callable[[], object]] = [
            lambda: hooks.efm_lb_attach(event=Attach(node, truth), balancer=balancer, deadline=self.soon(5)),
            lambda: hooks.efm_lb_detach(event=Detach(node, truth), balancer=balancer, deadline=self.soon(5)),
            lambda: hooks.efm_lb_view(nodes=truth.nodes, balancer=balancer, deadline=self.soon(5)),
            lambda: list(
                hooks.efm_lb_check(truth=truth, balancer=balancer, log_in=lambda *_: truth, deadline=self.soon(5))
            ),
        ]
        for call in calls:
            started = time.monotonic()
            with pytest.raises(TemporaryError):
                call()
            assert time.monotonic() - started < balancer.connect_timeout + 1

    def test_a_deadline_that_is_over_is_kept(self, hooks: pluggy.HookRelay, balancer: Balancer, truth: Truth) -> None:
        started = time.monotonic()
        event = Attach(truth.standbys[0], truth)
        with contextlib.suppress(TemporaryError):
            hooks.efm_lb_attach(event=event, balancer=balancer, deadline=started - 1)
        assert time.monotonic() - started < balancer.connect_timeout
