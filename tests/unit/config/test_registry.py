"""Importing and registering adapters, each guarded from the others."""

from __future__ import annotations

import pytest

from efm_lb.configuration import AdapterSource
from efm_lb.registry import register
from unit.config.fakes import ADAPTER, Install


def source(name: str, module: str, attribute: str = "") -> AdapterSource:
    return AdapterSource(name, module, attribute, f"dist-{name}", "1.0")


def test_only_what_is_named_is_imported(install: Install) -> None:
    install("acme", {}, acme_one=ADAPTER, acme_two="raise SystemExit")
    plugins, failures = register([source("one", "acme_one")])
    assert [name for name, _ in plugins.list_name_plugin()] == ["one"]
    assert not failures


def test_an_object_of_a_module(install: Install) -> None:
    module = """
        from efm_lb import hookimpl
        class Plugin:
            @hookimpl
            def efm_lb_attach(self, event):
                return "attached"
        class holder:
            plugin = Plugin()
            nothing = None
    """
    install("acme", {}, acme_object=module)
    plugins, _ = register([source("one", "acme_object", "holder.plugin")])
    assert plugins.hook.efm_lb_attach(event=None, balancer=None, deadline=0.0) == "attached"
    assert register([source("one", "acme_object", "holder.nothing")])[1] == {
        "one": "acme_object:holder.nothing is None"
    }
    assert register([source("one", "acme_object", "gone")])[1] == {
        "one": "AttributeError: module 'acme_object' has no attribute 'gone'"
    }


@pytest.mark.parametrize("order", [1, -1])
def test_broken_ones_leave_nothing_behind(install: Install, order: int) -> None:
    head = "from efm_lb import hookimpl\n@hookimpl\n"
    modules = {
        "acme_good": ADAPTER,
        "acme_exit": "import sys; sys.exit('no licence')",
        "acme_base": "class Odd(BaseException): pass\nraise Odd('two\\nlines')",
        "acme_arguments": head + "def efm_lb_attach(node): ...",
        "acme_misspelt": head + "def efm_lb_settings(): ...\n@hookimpl\ndef efm_lb_attach(event): raise SystemExit",
        "acme_optional": "from efm_lb import hookimpl\n@hookimpl(optionalhook=True)\ndef efm_lb_future(): ...\n"
        + ADAPTER,
    }
    install("acme", {}, **modules)
    plugins, failures = register([source(name.removeprefix("acme_"), name) for name in list(modules)[::order]])
    assert sorted(name for name, _ in plugins.list_name_plugin()) == ["good", "optional"]
    assert failures["exit"] == "SystemExit: no licence"
    assert failures["base"] == "Odd: two lines"
    assert "Argument(s) {'node'}" in failures["arguments"]
    assert failures["misspelt"] == "efm_lb_settings is no hook of efm-lb; did you mean efm_lb_settings_schema?"
    assert plugins.hook.efm_lb_attach(event=None, balancer=None, deadline=0.0) is None


def test_ctrl_c_is_ours(install: Install) -> None:
    install("acme", {}, acme_interrupted="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        register([source("one", "acme_interrupted")])
