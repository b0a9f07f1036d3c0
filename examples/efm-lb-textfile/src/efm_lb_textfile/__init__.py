"""Keeps a JSON file of the writer and the readers up to date, for programs that read one.

The file is the load balancer: what it says is the view. It is replaced in one step, so a
reader sees the old content or the new one, never half of it::

    {"writer": "10.0.0.11:5444", "readers": ["10.0.0.12:5444", "10.0.0.13:5444"]}

It must exist: a path that is wrong by one letter has to be an error, not a new file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from efm_lb import (
    Attach,
    Balancer,
    Detach,
    Event,
    Finding,
    Node,
    NodeView,
    Outcome,
    PermanentError,
    Promote,
    Severity,
    TemporaryError,
    Truth,
    View,
    hookimpl,
)


class Content(NamedTuple):
    """What the file says.

    :param writer: ``host:port``, None when nobody gets writes
    :param readers: all that serve reads, without the writer
    """

    writer: str | None
    readers: tuple[str, ...]

    @property
    def attached(self) -> tuple[str, ...]:
        return (*((self.writer,) if self.writer else ()), *self.readers)


@hookimpl
def efm_lb_settings_schema() -> Mapping[str, Any]:
    return {
        "type": "object",
        "properties": {
            "path": {
                "type": "string",
                "pattern": "^/",
                "description": 'The file. It must exist; begin with `{"writer": null, "readers": []}`.',
            },
            "nodes": {
                "type": "array",
                "items": {"type": "string"},
                "description": "The nodes that may be in the file, as host:port; all when left out.",
            },
        },
        "required": ["path"],
        "x-identity": [["path"]],
    }


@hookimpl
def efm_lb_attach(event: Attach, balancer: Balancer) -> Outcome:
    return _bring_about(event, balancer)


@hookimpl
def efm_lb_detach(event: Detach, balancer: Balancer) -> Outcome:
    return _bring_about(event, balancer)


@hookimpl
def efm_lb_promote(event: Promote, balancer: Balancer) -> Outcome:
    return _bring_about(event, balancer)


@hookimpl
def efm_lb_plan(event: Event, balancer: Balancer) -> Iterable[str]:
    before = _read(balancer)
    after = wanted(event, before, balancer)
    return [f"write {_text(after)} to {balancer.settings['path']}"] if after != before else []


@hookimpl
def efm_lb_view(nodes: tuple[Node, ...], balancer: Balancer) -> View:
    content = _read(balancer)
    known = {node.address for node in nodes}
    return View(
        tuple(
            NodeView(node, node.address in content.attached, node.address == content.writer, _word(node, content))
            for node in nodes
            if _may_hold(node, balancer)
        ),
        tuple(address for address in content.attached if address not in known),
    )


@hookimpl
def efm_lb_check(truth: Truth, balancer: Balancer) -> Iterator[Finding]:
    path = str(balancer.settings["path"])
    content = _read(balancer)
    yield Finding(Severity.OK, path, f"writer {content.writer or 'none'}, {len(content.readers)} readers")
    directory = os.path.dirname(path)
    if not os.access(directory, os.W_OK | os.X_OK):
        # The file is replaced, so it is the directory that has to be writable.
        yield Finding(Severity.ERROR, directory, "not writable for this user", f"chown efm {directory}")


def wanted(event: Event, content: Content, balancer: Balancer) -> Content:
    """The content that ``event`` asks for. Pure.

    :raises PermanentError: the node may not be in this file
    """
    node = event.node
    if not _may_hold(node, balancer):
        raise PermanentError(f"{node.address} is not in NODES of {balancer.name}")
    others = tuple(reader for reader in content.readers if reader != node.address)
    if isinstance(event, Promote):
        # The old writer stays as a reader when it is proven to be a standby now; else it comes back by an attach.
        standbys = {standby.address for standby in event.truth.standbys}
        demoted = {content.writer} & standbys if content.writer else set()
        return Content(node.address, tuple(sorted({*others, *demoted})))
    if isinstance(event, Detach):
        return Content(None if content.writer == node.address else content.writer, others)
    if node.address in content.attached:
        return content
    return Content(content.writer, tuple(sorted((*content.readers, node.address))))


def _bring_about(event: Event, balancer: Balancer) -> Outcome:
    before = _read(balancer)
    after = wanted(event, before, balancer)
    if after == before:
        return Outcome.unchanged(f"is {_text(before)} already")
    _write(after, balancer)
    if _read(balancer) != after:  # somebody else writes the file too
        raise TemporaryError(f"{balancer.settings['path']} was written, but says {_text(_read(balancer))}")
    return Outcome.changed(f"is {_text(after)}")


def _may_hold(node: Node, balancer: Balancer) -> bool:
    nodes = balancer.settings.get("nodes")
    return not nodes or node.address in nodes


def _word(node: Node, content: Content) -> str:
    if node.address == content.writer:
        return "writer"
    return "reader" if node.address in content.readers else "out"


def _text(content: Content) -> str:
    return json.dumps({"writer": content.writer, "readers": list(content.readers)})


def _read(balancer: Balancer) -> Content:
    path = str(balancer.settings["path"])
    try:
        # Not blocking, so that a FIFO of that name cannot hang the hook.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, encoding="utf-8") as file:
            document = json.load(file)
        return Content(document["writer"], tuple(document["readers"]))
    except OSError as error:
        raise TemporaryError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise PermanentError(f"{path} does not hold a writer and readers: {type(error).__name__}: {error}") from None


def _write(content: Content, balancer: Balancer) -> None:
    """Replace the file, so that no reader ever sees half of it."""
    path = str(balancer.settings["path"])
    temporary = f"{path}.{os.getpid()}"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(_text(content) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, os.stat(path).st_mode & 0o777)
        os.rename(temporary, path)
    except OSError as error:
        raise TemporaryError(f"{path} cannot be written: {error.strerror}") from None
