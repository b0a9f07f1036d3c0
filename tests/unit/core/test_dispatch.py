"""Every balancer alone: what one adapter does wrong never reaches another one."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from efm_lb import (
    Attach,
    Balancer,
    Detach,
    Event,
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
    dispatch,
    hookimpl,
)
from efm_lb.background import Background
from efm_lb.configuration import AdapterSource, Configuration, DetachLivePrimary
from efm_lb.dispatch import Dispatcher
from unit.threads import none_left

DB1 = Node("db1", "10.0.0.1", 5444)
TRUTH = Truth((NodeState(DB1, Reach.ACCEPTING, Role.PRIMARY, 1),))
EVENT = Attach(DB1, TRUTH)

Configure = Callable[..., Configuration]


@pytest.fixture
def configure() -> Iterator[Configure]:
    """A configuration whose balancers each have an adapter of their own, given as a function for attach."""
    made: list[str] = []

    def build(**adapters: Callable[..., object]) -> Configuration:
        sources, balancers = [], []
        for name, attach in adapters.items():
            module = ModuleType(f"fake_adapter_{name}")
            module.efm_lb_attach = hookimpl(specname="efm_lb_attach")(attach)  # type: ignore[attr-defined]
            sys.modules[module.__name__] = module
            made.append(module.__name__)
            sources.append(AdapterSource(name, module.__name__, "", f"dist-{name}", "1.2"))
            balancers.append(Balancer(name, name, {}))
        return Configuration(
            "efm", (DB1,), {}, 1.0, 0.5, "/nowhere", DetachLivePrimary.DEFER, tuple(balancers), tuple(sources)
        )

    yield build
    for name in made:
        del sys.modules[name]


def soon(seconds: float = 0.5) -> float:
    return time.monotonic() + seconds


def test_outcomes_are_sorted_named_and_timed(configure: Configure) -> None:
    def slow(event: Event) -> Outcome:
        time.sleep(0.05)
        return Outcome.changed("slow")

    outcomes = Dispatcher(configure(b=slow, a=lambda event: Outcome.unchanged("quick"))).send(EVENT, soon())
    assert [(o.balancer, o.result, o.detail) for o in outcomes] == [
        ("a", Result.UNCHANGED, "quick"),
        ("b", Result.CHANGED, "slow"),
    ]
    assert outcomes[1].seconds >= 0.05


def raising(error: BaseException) -> Callable[..., Outcome]:
    def attach(event: Event) -> Outcome:
        raise error

    return attach


@pytest.mark.parametrize(
    ("error", "result", "detail"),
    [
        (TemporaryError("no answer"), Result.TEMPORARY, "no answer"),
        (PermanentError("unknown"), Result.PERMANENT, "unknown"),
        (ValueError("oops"), Result.BUG, "adapter bad (dist-bad 1.2): ValueError: oops at "),
        (SystemExit(0), Result.BUG, "adapter bad (dist-bad 1.2): SystemExit: 0 at "),
        (KeyboardInterrupt(), Result.BUG, "adapter bad (dist-bad 1.2): KeyboardInterrupt"),
    ],
)
def test_whatever_an_adapter_raises_is_an_outcome_and_the_others_run(
    configure: Configure, error: BaseException, result: Result, detail: str
) -> None:
    configuration = configure(bad=raising(error), good=lambda event: Outcome.changed("done"))
    bad, good = Dispatcher(configuration).send(EVENT, soon())
    assert bad.result is result
    assert bad.detail.startswith(detail)
    assert bad.by == "adapter bad (dist-bad 1.2)"
    assert (good.result, good.by) == (Result.CHANGED, "")


def test_where_there_is_no_balancer_nothing_is_called(configure: Configure) -> None:
    """All of them may be in maintenance."""
    none = Dispatcher(configure(good=lambda event: Outcome.changed("done"))).among(())
    assert none.send(EVENT, soon()) == ()
    assert none.views((DB1,), soon()) == {}


def test_all_balancers_run_at_once_and_one_that_hangs_is_left_behind(configure: Configure) -> None:
    release = threading.Event()

    def hang(event: Event) -> Outcome:
        release.wait(5)
        return Outcome.changed("too late")

    started = time.monotonic()
    outcomes = Dispatcher(configure(h1=hang, h2=hang, ok=lambda event: Outcome.changed("done"))).send(EVENT, soon(0.3))
    took = time.monotonic() - started
    release.set()
    assert 0.3 <= took < 1
    assert [o.result for o in outcomes] == [Result.TEMPORARY, Result.TEMPORARY, Result.CHANGED]
    assert "adapter h1 (dist-h1 1.2) did not return" in outcomes[0].detail
    assert outcomes[2].seconds < 0.3


@pytest.mark.parametrize("imported", [False, True])
def test_a_balancer_for_which_there_is_no_thread_left_costs_the_others_nothing(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, imported: bool
) -> None:
    def limited(function: Callable[..., object], *arguments: object) -> Background:
        if any(isinstance(each, Balancer) and each.name == "none" for each in arguments):
            raise RuntimeError("can't start new thread")
        return Background(function, *arguments)

    configuration = configure(none=lambda event: Outcome.changed("done"), ok=lambda event: Outcome.changed("done"))
    dispatcher = Dispatcher(configuration) if imported else None
    monkeypatch.setattr(dispatch, "Background", limited)
    none, ok = (dispatcher or Dispatcher(configuration)).send(EVENT, soon(5))
    assert none.result is Result.TEMPORARY
    assert none.detail == "adapter none (dist-none 1.2) was not called: can't start new thread"
    assert ok.result is Result.CHANGED


def test_an_adapter_for_whose_import_there_is_no_thread_left(configure: Configure) -> None:
    with none_left():
        dispatcher = Dispatcher(configure(one=lambda event: Outcome.changed("done")))
    (outcome,) = dispatcher.send(EVENT, soon(5))
    assert outcome.result is Result.TEMPORARY
    assert outcome.detail == "adapter one (dist-one 1.2) was not imported: can't start new thread"


def test_what_there_was_no_thread_for_is_imported_when_there_is(configure: Configure) -> None:
    with none_left():
        dispatcher = Dispatcher(configure(one=lambda event: Outcome.changed("done")))
        dispatcher.reimport()
    dispatcher.reimport()
    (outcome,) = dispatcher.only("one").send(EVENT, soon(5))
    assert outcome.result is Result.CHANGED, outcome.detail


COUNTED = """
import sys
sys.tried.append(__name__)
if len(sys.tried) < 3:
    try:
        raise {error}
    except OSError:
        import of_what_is_not_there
from efm_lb import Outcome, hookimpl

@hookimpl
def efm_lb_attach(event):
    return Outcome.changed("done")
"""


@pytest.mark.parametrize(
    ("error", "results"),
    [
        ('ImportError("libz.so: failed to map segment")', [Result.TEMPORARY, Result.TEMPORARY, Result.CHANGED]),
        ('OSError(24, "Too many open files")', [Result.TEMPORARY, Result.TEMPORARY, Result.CHANGED]),
        ("MemoryError", [Result.TEMPORARY, Result.TEMPORARY, Result.CHANGED]),
        ('ImportError("no such symbol")', [Result.PERMANENT] * 3),
    ],
)
def test_what_a_lack_has_kept_from_being_imported_is_tried_again(
    error: str, results: list[Result], configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lack, too, that a module has taken for a package that is not installed; what is broken stays so."""
    (tmp_path / "counted_adapter_module.py").write_text(COUNTED.format(error=error))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "tried", [], raising=False)
    monkeypatch.delitem(sys.modules, "counted_adapter_module", raising=False)
    source = AdapterSource("counted", "counted_adapter_module", "", "dist-counted", "1")
    configuration = configure()._replace(balancers=(Balancer("a", "counted", {}),), adapters=(source,))
    dispatcher = Dispatcher(configuration)
    found = []
    for _ in results:
        found += [outcome.result for outcome in dispatcher.send(EVENT, soon(5))]
        dispatcher.reimport()
    assert found == results


def test_a_plugin_that_cannot_be_imported_disables_only_itself(configure: Configure) -> None:
    configuration = configure(ok=lambda event: Outcome.changed("done"))
    gone = AdapterSource("gone", "no_such_adapter_module", "", "dist-gone", "3")
    configuration = configuration._replace(
        balancers=(*configuration.balancers, Balancer("x", "gone", {})), adapters=(*configuration.adapters, gone)
    )
    ok, gone_outcome = Dispatcher(configuration).send(EVENT, soon())
    assert ok.result is Result.CHANGED
    assert gone_outcome.result is Result.PERMANENT
    assert "adapter gone (dist-gone 3) cannot be used" in gone_outcome.detail
    assert "no_such_adapter_module" in gone_outcome.detail


def test_a_plugin_whose_import_hangs_holds_up_only_itself(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hanging_adapter_module.py").write_text("import time; time.sleep(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    configuration = configure(ok=lambda event: Outcome.changed("done"))
    hanging = AdapterSource("hanging", "hanging_adapter_module", "", "dist-hanging", "1")
    configuration = configuration._replace(
        balancers=(*configuration.balancers, Balancer("a", "hanging", {})),
        adapters=(hanging, *configuration.adapters),
    )
    started = time.monotonic()
    stuck, ok = Dispatcher(configuration).send(EVENT, soon(0.5))
    assert time.monotonic() - started < 2
    assert ok.result is Result.CHANGED
    assert ok.seconds < 0.4
    assert stuck.result is Result.TEMPORARY
    assert "adapter hanging (dist-hanging 1)" in stuck.detail


@pytest.mark.parametrize("returned", [None, "done", 0])
def test_what_is_no_outcome_is_a_bug(configure: Configure, returned: Any) -> None:
    (outcome,) = Dispatcher(configure(odd=lambda event: returned)).send(EVENT, soon())
    assert outcome.result is Result.BUG


@pytest.mark.parametrize("event", [Detach(DB1, TRUTH), Promote(DB1, TRUTH)])
def test_an_adapter_without_the_hook_is_a_bug_not_a_success(configure: Configure, event: Event) -> None:
    (outcome,) = Dispatcher(configure(lame=lambda event: Outcome.changed("attached"))).send(event, soon())
    assert outcome.result is Result.BUG


def test_an_adapter_without_a_plan_or_a_view_acts_on_nothing(configure: Configure) -> None:
    acted = []
    dispatcher = Dispatcher(configure(only=lambda event: acted.append(event)))
    assert dispatcher.plan(EVENT, soon())["only"].value is None
    assert dispatcher.views((DB1,), soon())["only"].failure
    assert acted == []


def test_only_those_that_hold_have_something_to_say_about_it(configure: Configure) -> None:
    configuration = configure(holding=lambda: None, silent=lambda: None, without=lambda: None, broken=lambda: None)
    held = []

    def hold(event: Event) -> Outcome:
        held.append(event)
        return Outcome.changed("for 10 s")

    def fail(event: Event) -> Outcome:
        raise TemporaryError("no answer")

    for name, implementation in (("holding", hold), ("silent", lambda event: None), ("broken", fail)):
        module = sys.modules[f"fake_adapter_{name}"]
        module.efm_lb_hold = hookimpl(specname="efm_lb_hold")(implementation)  # type: ignore[attr-defined]
    dispatcher = Dispatcher(configuration)
    assert dispatcher.holders(soon()) == ("broken", "holding", "silent")
    assert held == [], "nobody is asked before it is time"
    event = Detach(DB1, TRUTH)
    outcomes = dispatcher.hold(event, soon())
    assert [(o.balancer, o.result, o.detail) for o in outcomes] == [
        ("broken", Result.TEMPORARY, "no answer"),
        ("holding", Result.CHANGED, "for 10 s"),
    ]
    assert held == [event]


def test_a_view_is_returned_as_it_is(configure: Configure) -> None:
    configuration = configure(seeing=lambda event: None)
    module = sys.modules["fake_adapter_seeing"]
    module.efm_lb_view = hookimpl(specname="efm_lb_view")(lambda nodes: View(()))  # type: ignore[attr-defined]
    assert Dispatcher(configuration).views((DB1,), soon())["seeing"].value == View(())


def test_a_hung_adapter_does_not_keep_the_process_alive() -> None:
    """Past the deadline the command ends, whatever its threads do."""
    script = """
import sys, time, types, threading
from efm_lb import hookimpl, __main__, hook
hook.main = lambda argv, begun: threading.Thread(target=time.sleep, args=(60,)).start() or 75
sys.argv = ["efm-lb", "attach", "db1"]
__main__.main()
"""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], timeout=30, check=False)
    assert done.returncode == 75
    assert time.monotonic() - started < 10
