"""Find the installed adapters and ask each for the schema of its settings: the slow half of the plugin system.

The fast half is `efm_lb.registry`, which imports what the compiled plan names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import Distribution, EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import Any, NamedTuple

from efm_lb.configuration import AdapterSource
from efm_lb.registry import register
from efm_lb.sources import mtime

__all__ = ["GROUP", "Description", "Installed", "describe", "discover"]

GROUP = "efm_lb.adapters"

PATIENCE = 5.0
"""Seconds that adapters have, all at the same time, to be imported and to tell their settings' schemas."""


class Installed(NamedTuple):
    """The adapters of this Python installation.

    :param sources: by name, sorted
    :param conflicts: names that cannot be used, each with a sentence why
    :param files: by name, what belongs to an adapter beside its module, with `efm_lb.sources.mtime`
    """

    sources: Mapping[str, AdapterSource]
    conflicts: Mapping[str, str]
    files: Mapping[str, Mapping[str, int]]

    def __str__(self) -> str:
        return "installed: " + (", ".join(map(str, self.sources.values())) or "none")


class Description(NamedTuple):
    """What an adapter says about itself.

    :param schema: the JSON Schema of its settings as it gives it, None when it cannot be used
    :param failure: why not
    :param files: its module's file with the `efm_lb.sources.mtime` from before the import
    """

    schema: Mapping[str, Any] | None
    failure: str
    files: Mapping[str, int]


def discover() -> Installed:
    """All entry points of the group ``efm_lb.adapters``; nothing is imported."""
    found: dict[str, list[tuple[AdapterSource, Distribution | None]]] = {}
    conflicts: dict[str, str] = {}
    for entry_point in entry_points(group=GROUP):
        source = _source(entry_point)
        found.setdefault(entry_point.name, []).append((source, entry_point.dist))
        if not source.module:
            conflicts[source.name] = f"the entry point of {source} is malformed: {entry_point.value!r}"
    for name, candidates in found.items():
        if len(candidates) > 1:
            distributions = " and ".join(sorted(f"{s.distribution} {s.version}" for s, _ in candidates))
            conflicts[name] = f"{distributions} both bring an adapter {name}; uninstall one of them"
    usable = {name: candidates[0] for name, candidates in sorted(found.items()) if name not in conflicts}
    return Installed(
        {name: source for name, (source, _) in usable.items()},
        conflicts,
        {name: _stamps(_entry_point_files(distribution)) for name, (_, distribution) in usable.items()},
    )


def describe(sources: Collection[AdapterSource], patience: float = PATIENCE) -> dict[str, Description]:
    """Import adapters and ask each for its schema, all at once. Never raises for an adapter's sake.

    :param patience: seconds for all of them; an adapter that hangs is left behind in its thread
    :return: by the adapter's name, in the order of ``sources``
    """
    late = Description(None, f"it did not tell its settings within {patience:g} s", {})
    descriptions = {source.name: late for source in sources}
    described: SimpleQueue[tuple[str, Description]] = SimpleQueue()

    def ask(source: AdapterSource) -> None:
        described.put((source.name, _describe(source)))

    give_up = monotonic() + patience
    for source in sources:
        Thread(target=ask, args=(source,), name=source.name, daemon=True).start()
    for _ in descriptions:
        try:
            name, description = described.get(timeout=max(0.0, give_up - monotonic()))
        except Empty:
            break
        descriptions[name] = description
    return descriptions


def _describe(source: AdapterSource) -> Description:
    files = _stamps(_module_file(source.module))
    manager, failures = register([source])
    if failures:
        return Description(None, failures[source.name], files)
    try:
        schema = manager.hook.efm_lb_settings_schema()
    except BaseException as error:
        reason = " ".join(f"efm_lb_settings_schema raised {type(error).__name__}: {error}".split())
        return Description(None, reason, files)
    if schema is None:
        return Description(None, "it has no efm_lb_settings_schema", files)
    return Description(schema, "", files)


def _source(entry_point: EntryPoint) -> AdapterSource:
    distribution = entry_point.dist
    try:
        module, attribute = entry_point.module, entry_point.attr or ""
    except AttributeError:  # importlib.metadata's way to say that the value is not module:attribute
        module, attribute = "", ""
    name, version = (distribution.name, distribution.version) if distribution else (None, None)
    return AdapterSource(entry_point.name, module, attribute, name or "an unnamed distribution", version or "?")


def _entry_point_files(distribution: Distribution | None) -> Iterable[str]:
    for file in (distribution and distribution.files) or ():
        if file.name == "entry_points.txt":
            path = Path(str(file.locate()))
            yield from (str(path), str(path.parent))


def _module_file(module: str) -> Iterable[str]:
    try:
        spec = find_spec(module)
    except KeyboardInterrupt:
        raise
    except BaseException:  # the parent package cannot be imported: registering says so
        return
    if spec and spec.has_location and spec.origin:
        yield spec.origin


def _stamps(paths: Iterable[str]) -> dict[str, int]:
    return {path: mtime(path) for path in paths}
