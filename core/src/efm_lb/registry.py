"""Import the adapters that the settings name, and register each in pluggy; what is broken disables only itself."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

from pluggy import PluginManager

from efm_lb import hookspecs
from efm_lb.configuration import AdapterSource
from efm_lb.errors import lack

__all__ = ["register"]


def register(sources: Iterable[AdapterSource]) -> tuple[PluginManager, dict[str, str]]:
    """Import and register adapters.

    :param sources: where they come from; no other module is imported
    :return: pluggy's manager, with each usable adapter under its name, and for each other one the reason
    """
    manager = PluginManager("efm_lb")
    manager.add_hookspecs(hookspecs)
    failures = {}
    for source in sources:
        reason = _register(manager, source)
        if reason:
            failures[source.name] = reason
            if manager.has_plugin(source.name):
                manager.unregister(name=source.name)
    return manager, failures


def _register(manager: PluginManager, source: AdapterSource) -> str:
    try:
        plugin = _plugin(source)
        if plugin is None:
            return f"{source.module}:{source.attribute} is None"
        manager.register(plugin, name=source.name)
        return _misspelt(manager, plugin)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: it is some module's idea of saying that it cannot start
        said = f"{type(error).__name__}: {error}"
        lacking = lack(error)
        return " ".join((said if lacking in said else f"{said} ({lacking})").split())


def _plugin(source: AdapterSource) -> Any:
    plugin: Any = import_module(source.module)
    for name in filter(None, source.attribute.split(".")):
        plugin = getattr(plugin, name)
    return plugin


def _misspelt(manager: PluginManager, plugin: object) -> str:
    """What pluggy's check_pending looks for, said of this plugin alone."""
    hooks = manager.get_hookcallers(plugin) or []
    for hook in hooks:
        if not hook.has_spec() and any(not own.optionalhook for own in hook.get_hookimpls() if own.plugin is plugin):
            from difflib import get_close_matches

            near = get_close_matches(hook.name, [name for name in dir(hookspecs) if name.startswith("efm_lb_")], 1)
            return f"{hook.name} is no hook of efm-lb" + (f"; did you mean {near[0]}?" if near else "")
    return "" if hooks else "it implements no hook of efm-lb"
