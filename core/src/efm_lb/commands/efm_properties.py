"""What EFM's own settings say about the hooks: nobody else looks at them before the day they are needed.

EFM passes a line on as it stands. What is wrong with it, such as a quote, is seen when the hook is called for the
first time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from efm_lb.calls import Kind, parse
from efm_lb.command_line import RECONCILE, is_monitor
from efm_lb.errors import CallError, NotReadableError
from efm_lb.reconcile.service import parse as parse_reconcile
from efm_lb.views import Finding, Severity

__all__ = ["judged", "properties", "read"]


class _Hook(NamedTuple):
    """A property with a command of ours.

    :param placeholders: what EFM puts in, with a value to try it with
    :param needed: those that must be there
    """

    kind: Kind
    placeholders: Mapping[str, str]
    needed: Sequence[str]


_NODE = "10.0.0.11"
_HOOKS = {
    "script.load.balancer.attach": _Hook(Kind.ATTACH, {"%h": _NODE, "%t": "p"}, ("%h", "%t")),
    "script.load.balancer.detach": _Hook(Kind.DETACH, {"%h": _NODE, "%t": "p"}, ("%h", "%t")),
    "script.post.promotion": _Hook(Kind.PROMOTE, {"%p": _NODE, "%f": _NODE}, ("%p",)),
}
_OPTIONAL = "script.post.promotion"
_MONITOR = "script.custom.monitor"
_SAFE_MODE = "custom.monitor.safe.mode"
_AGENT = "detach.on.agent.failure"
_POOL = "pgpool.enable"

_PAIR = re.compile(r"((?:\\.|[^\s\\=:])*)\s*[=:]?\s*(.*)", re.DOTALL)
_ESCAPE = re.compile(r"\\(u[0-9A-Fa-f]{4}|.)", re.DOTALL)
_CONTROLS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}


def read(path: str) -> dict[str, str]:
    """The properties in a file of EFM's.

    :raises NotReadableError: it cannot be read
    """
    try:
        with open(path, encoding="latin-1") as file:
            return properties(file.read())
    except OSError as error:
        raise NotReadableError(f"--efm-properties {path}: {error.strerror}") from None


def properties(text: str) -> dict[str, str]:
    """Read Java's format: ``name=value``, ``#`` and ``!`` comments, a backslash continues a line; the last one wins."""
    found = {}
    lines = iter(text.splitlines())
    for line in lines:
        line = line.lstrip()
        if not line or line[0] in "#!":
            continue
        while (len(line) - len(line.rstrip("\\"))) % 2:
            line = line[:-1] + next(lines, "").lstrip()
        pair = _PAIR.fullmatch(line)
        assert pair
        found[_unescaped(pair[1])] = _unescaped(pair[2])
    return found


def _unescaped(text: str) -> str:
    def meant(match: re.Match[str]) -> str:
        escaped = match[1]
        return chr(int(escaped[1:], 16)) if len(escaped) == 5 else _CONTROLS.get(escaped, escaped)

    return _ESCAPE.sub(meant, text)


def judged(given: Mapping[str, str], path: str, cluster: str) -> Iterator[Finding]:
    """What is right and wrong with EFM's properties.

    :param path: where they are: EFM's version is part of the name of its directory
    :param cluster: the cluster of this check
    """
    given = {name: value.strip() for name, value in given.items()}
    for name, hook in _HOOKS.items():
        yield from _hook(name, hook, given.get(name, ""), cluster)
    calls = [name for name in _HOOKS if name != _OPTIONAL and given.get(name)]
    if _is_on(given, _POOL) and calls:
        yield Finding(
            Severity.ERROR,
            _POOL,
            f"true, and {calls[0]} is set: EFM and the hook both send commands to the same pgpool",
            f"{_POOL}=false",
        )
    yield from _agent(given, _version(path))
    yield from _monitor(given, cluster)


def _hook(name: str, hook: _Hook, line: str, cluster: str) -> Iterator[Finding]:
    right = " ".join(["/opt/efm-lb/bin/efm-lb", hook.kind.value, *hook.needed])
    remedy = f"{name}={right}" + (f" --cluster {cluster}" if cluster != "efm" else "")
    if not line:
        if name != _OPTIONAL:
            yield Finding(Severity.ERROR, name, "not set: EFM calls nobody", remedy)
        return
    words = _own(line)
    if words is None:
        if name != _OPTIONAL:
            yield Finding(
                Severity.WARNING,
                name,
                f"runs {line}, which is not efm-lb",
                "see that it runs efm-lb, or write: " + remedy,
            )
        return
    problems = [*_command(line), *_call(hook, words, cluster)]
    for severity, problem in problems:
        yield Finding(severity, name, problem, remedy)
    if not problems:
        yield Finding(Severity.OK, name, line)


def _call(hook: _Hook, words: Sequence[str], cluster: str) -> Iterator[tuple[Severity, str]]:
    """What is wrong with the words after ``efm-lb``."""
    if words[:1] != [hook.kind.value]:
        yield Severity.ERROR, f"runs efm-lb {' '.join(words[:1])}, expected {hook.kind.value}"
        return
    for word in words:
        if "%" in word and word not in hook.placeholders:
            yield Severity.ERROR, f"EFM puts nothing in for {word}: it knows {' and '.join(hook.placeholders)} here"
            return
    missing = [word for word in hook.needed if word not in words]
    if missing:
        what = {"%t": "without %t it does not say whether the node is a primary: each call waits for the databases"}
        severity = Severity.WARNING if missing == ["%t"] else Severity.ERROR
        yield severity, what.get(missing[0], f"without {missing[0]} it does not say which node is meant")
        if severity is Severity.ERROR:
            return
    try:
        arguments = parse([hook.placeholders.get(word, word) for word in words])
    except CallError as error:
        yield Severity.ERROR, str(error)
        return
    if arguments.cluster != cluster:
        yield Severity.ERROR, f"is of cluster {arguments.cluster}; this check is of cluster {cluster}"
    if arguments.dry_run:
        yield Severity.ERROR, "--dry-run does nothing"


def _command(line: str) -> Iterator[tuple[Severity, str]]:
    """What is wrong with a command of ours, whatever it does."""
    program = line.split()[0]
    if "'" in line or '"' in line:
        yield Severity.ERROR, "has quotes, which EFM does not take"
    elif not program.startswith("/"):
        yield Severity.ERROR, f"{program} is no full path"
    elif not os.access(program, os.X_OK):
        yield Severity.ERROR, f"{program} is not there, or this user may not run it"


def _agent(given: Mapping[str, str], version: tuple[int, int] | None) -> Iterator[Finding]:
    """Whether EFM detaches a primary whose agent died: until 5.0 it does unless told otherwise, and from 4.2 on it can
    be told."""
    told = given.get(_AGENT, "").lower()
    why = "a healthy primary is called down because its agent died, and nobody is promoted"
    if told == "true":
        yield Finding(Severity.WARNING, _AGENT, f"true: {why}", f"{_AGENT}=false")
    elif not told and version is None:
        yield Finding(Severity.WARNING, _AGENT, f"not set: before EFM 5.0 that is true: {why}", f"{_AGENT}=false")
    elif not told and version and (4, 2) <= version < (5, 0):
        release = ".".join(map(str, version))
        yield Finding(Severity.WARNING, _AGENT, f"not set, which is true in EFM {release}: {why}", f"{_AGENT}=false")


def _monitor(given: Mapping[str, str], cluster: str) -> Iterator[Finding]:
    """The custom monitor: EFM takes its failure for that of the database."""
    line = given.get(_MONITOR, "")
    words = _own(line)
    if words is None or (words[:1] != [RECONCILE] and not is_monitor(words)):
        return
    remedy = f"{_MONITOR}=/opt/efm-lb/bin/efm-lb reconcile --custom-monitor"
    problems = list(_command(line))
    try:
        if words[0] != RECONCILE:
            raise CallError(f"the word {RECONCILE} comes before all options")
        arguments = parse_reconcile(words[1:])
    except CallError as error:
        problems.append((Severity.ERROR, str(error)))
    else:
        if arguments.watch:
            problems.append((Severity.ERROR, "--watch never ends"))
        elif not arguments.custom_monitor:
            problems.append(
                (Severity.ERROR, "without --custom-monitor a balancer that fails is a failed database to EFM")
            )
        if arguments.cluster != cluster:
            problems.append((Severity.ERROR, f"is of cluster {arguments.cluster}; this check is of cluster {cluster}"))
    for severity, problem in problems:
        yield Finding(severity, _MONITOR, problem, remedy)
    if not _is_on(given, _SAFE_MODE):
        yield Finding(
            Severity.ERROR,
            _SAFE_MODE,
            "not true: a run that cannot start, or takes too long, is a failed database to EFM, which promotes another",
            f"{_SAFE_MODE}=true",
        )
    elif not problems:
        yield Finding(Severity.OK, _MONITOR, line)


def _own(line: str) -> list[str] | None:
    """The words after ``efm-lb``, None when it does not run that."""
    words = [word.strip("'\"") for word in line.split()]
    for number, word in enumerate(words):
        if os.path.basename(word) == "efm-lb":
            return words[number + 1 :]
    return None


def _is_on(given: Mapping[str, str], name: str) -> bool:
    return given.get(name, "").lower() == "true"


def _version(path: str) -> tuple[int, int] | None:
    """EFM's version, from a path such as ``/etc/edb/efm-4.10/efm.properties``."""
    found = re.search(r"/efm-(\d+)\.(\d+)/", os.path.realpath(path))
    return (int(found[1]), int(found[2])) if found else None
