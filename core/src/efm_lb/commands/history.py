"""``efm-lb history``: the calls of this host, what was decided about them and what came of it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from efm_lb.commands.words import called, clock, printable, state_of, times
from efm_lb.configuration import Configuration
from efm_lb.errors import EX_OK, CallError, NotReadableError
from efm_lb.history import Attempt, Damage, PastCall, Reading, Record, folded, past_calls, read

__all__ = ["LIMIT", "document", "history", "moment", "node_of", "reading_of", "selected", "warn"]

SCHEMA = "efm-lb/history/v1"
LIMIT = 8
"""How many calls fit on a screen."""
_SHORTEST_NAME = 8
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def history(
    configuration: Configuration, since: str, node: str, balancer: str, limit: int | None, as_json: bool
) -> int:
    """Print the newest calls, the newest last.

    :param since: how long ago, such as ``2h``, or an ISO time; empty for all
    :param node: only calls about this node; empty for all
    :param balancer: only calls that this balancer was told something about; empty for all
    :param limit: how many; 0 for all; None for what fits on a screen, or all when ``since`` is given
    :return: 0
    :raises CallError: one of them makes no sense, or names what is neither in the settings nor in the journal
    :raises NotReadableError: this user may not read the journal
    """
    began = moment(since, datetime.now().astimezone()) if since else None
    reading = reading_of(configuration)
    calls = past_calls(reading.records)
    found = selected(calls, configuration, began, node, balancer)
    if limit is None:
        limit = 0 if since else LIMIT
    shown = found[-limit:] if limit else found
    left_out = len(found) - len(shown)
    if as_json:
        print(json.dumps(document(configuration, reading, shown, left_out), indent=2))
        return EX_OK
    if left_out:
        print(f"({left_out} older: --limit {len(found)}, or --since 2d)")
    if not shown:
        print("no call is in the journal" + (" that fits" if calls else f" {_path(configuration)}"))
    _print(shown, _abbreviated([call.name for call in calls]), configuration.deadline)
    warn(reading.damages)
    return EX_OK


def reading_of(configuration: Configuration) -> Reading:
    """The cluster's journal.

    :raises NotReadableError: this user may not read it; the message names one who may
    """
    path = _path(configuration)
    try:
        return read(path)
    except NotReadableError as error:
        owner = ""
        with suppress(OSError, KeyError):
            owner = f": run it as {Path(configuration.state_dir).owner()}, whose directory that is"
        raise NotReadableError(f"{error}{owner}") from None


def _path(configuration: Configuration) -> str:
    return f"{configuration.state_dir}/{configuration.cluster}.journal"


def moment(text: str, now: datetime) -> datetime:
    """When ``--since`` begins.

    :raises CallError: it is neither a time ago nor a time
    """
    ago = re.fullmatch(r"(\d{1,6})([smhd])", text)
    try:
        if ago:
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise CallError(
            f"--since {text}: expected how long ago, such as 30m, 2h or 2d, or a time such as 2026-11-03T02:30"
        ) from None


def selected(
    calls: Sequence[PastCall], configuration: Configuration, since: datetime | None, node: str, balancer: str
) -> Sequence[PastCall]:
    """The calls that the options ask for.

    :raises CallError: there is no such node, or no such balancer, in the settings and in the journal
    """
    if node:
        wanted = configuration.node(node)
        hosts = {str(call.said.get("host", "")) for call in calls}
        if not wanted and node not in hosts:
            _refuse("node", node, [*(each.name for each in configuration.nodes), *hosts], configuration)
        name = wanted.name if wanted else node
        calls = [call for call in calls if node_of(call, configuration) == name]
    if balancer:
        names = {name for call in calls for name in _balancers(call)}
        known = [each.name for each in configuration.balancers]
        balancer = balancer.lower()
        if balancer not in names and balancer not in known:
            _refuse("load balancer", balancer, [*known, *names], configuration)
        calls = [call for call in calls if balancer in _balancers(call)]
    if since:
        calls = [call for call in calls if call.attempts[-1].last_at >= since]
    return calls


def node_of(call: PastCall, configuration: Configuration) -> str:
    """The node that a call is about, by the settings' name for it; as it was called where they do not know it.

    Empty when the call's beginning is missing.
    """
    host = str(call.said.get("host", ""))
    node = configuration.node(host)
    return node.name if node else host


def _balancers(call: PastCall) -> set[str]:
    names = {name for attempt in call.attempts for name in attempt.told}
    said = [attempt.call or {} for attempt in call.attempts]
    return names | {str(each["balancer"]) for each in said if "balancer" in each}


def _refuse(what: str, name: str, known: Iterable[str], configuration: Configuration) -> None:
    names = ", ".join(sorted({each for each in known if each})) or "none"
    raise CallError(
        f"no {what} {name} in the settings of cluster {configuration.cluster}, nor in its journal; there are {names}"
    )


def _abbreviated(names: Sequence[str]) -> dict[str, str]:
    """The shortest beginning of each name that no other one has."""
    ordered = sorted(set(names))
    neighbours = zip(["", *ordered], ordered, [*ordered[1:], ""], strict=False)
    return {
        name: name[: max(_SHORTEST_NAME, 1 + _in_common(before, name), 1 + _in_common(name, after))]
        for before, name, after in neighbours
    }


def _in_common(one: str, other: str) -> int:
    """With how many characters both begin."""
    return next((number for number, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(min(one, other)))


def _print(calls: Sequence[PastCall], short: Mapping[str, str], deadline: float) -> None:
    width = max((len(short[call.name]) for call in calls), default=0)
    lines = [line for call in calls for line in _lines(call, short[call.name].ljust(width), deadline)]
    if not sys.stdout.isatty():
        for text, _ in lines:
            print(text)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for text, style in lines:
        console.print(Text(text), style=style or None, soft_wrap=True)


def _lines(call: PastCall, name: str, deadline: float) -> Iterator[tuple[str, str]]:
    """Each line with its rich style."""
    for number, group in enumerate(folded(call.attempts)):
        first, last = group[0], group[-1]
        style = "red" if _is_wrong(last) else ""
        if number == 0 and not first.is_follow_up:
            yield printable(f"{clock(first.at)}  {name}  {called(first)}: {_ending(last, deadline)}"), style or "bold"
            indentation = "    "
        else:
            if number == 0:  # the beginning is not in the journal any more
                yield printable(f"{clock(first.at)}  {name}  {called(first)}"), ""
            what = "follow-up" if first.is_follow_up else called(first)
            until = f", {len(group)} times until {clock(last.at, first.at)}" if len(group) > 1 else ""
            yield (
                printable(f"    {what} at {clock(first.at, call.attempts[0].at)}{until}: {_ending(last, deadline)}"),
                style,
            )
            indentation = "        "
        if text := "; ".join(_came_of_it(last)):
            yield printable(f"{indentation}{text}"), style


def _ending(attempt: Attempt, deadline: float) -> str:
    if attempt.outcome is None:
        return state_of(attempt, deadline)
    seconds = attempt.outcome.fields.get("seconds")
    took = "" if seconds is None else f" in {seconds:.2f} s"
    again = f", {times(len(attempt.again))} more until {clock(attempt.last_at, attempt.at)}" if attempt.again else ""
    if attempt.exit_code is None:
        return f"ended{took}{again}"
    return f"exit {attempt.exit_code}{took}{again}"


def _came_of_it(attempt: Attempt) -> Iterator[str]:
    if attempt.decision:
        decision = attempt.decision.fields
        verdict = decision.get("verdict")
        yield f"{decision.get('reason')}" + ("" if verdict == "act" else f" [{verdict}]")
        if decision.get("shortfall"):
            yield f"not done: {decision['shortfall']}"
    if attempt.told:
        yield ", ".join(f"{name} {each.get('result')}" for name, each in attempt.told.items())
    yield from attempt.notes


def _is_wrong(attempt: Attempt) -> bool:
    failed = any(str(each.get("result", "")).startswith("failed") for each in attempt.told.values())
    return attempt.outcome is None or bool(attempt.exit_code) or failed


def warn(damages: Iterable[Damage]) -> None:
    """Say what could not be read."""
    for damage in damages:
        print(f"! left out: {damage}")


def document(
    configuration: Configuration, reading: Reading, calls: Iterable[PastCall], left_out: int = 0
) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "schema": SCHEMA,
        "cluster": configuration.cluster,
        "journal": _path(configuration),
        "calls": [
            {"id": call.name, "attempts": [_attempt(attempt, configuration.deadline) for attempt in call.attempts]}
            for call in calls
        ],
        "left_out": left_out,
        "damages": [damage._asdict() for damage in reading.damages],
    }


def _attempt(attempt: Attempt, deadline: float) -> dict[str, Any]:
    said = attempt.call or {}
    return {
        "at": attempt.at.isoformat(),
        "state": "ended" if attempt.outcome else state_of(attempt, deadline),
        "kind": said.get("kind"),
        "host": said.get("host"),
        "type": said.get("type"),
        "follow_up": attempt.is_follow_up,
        "balancer": said.get("balancer"),
        "sender": said.get("sender"),
        "databases": _databases(attempt),
        "decision": _fields(attempt.decision, ("verdict", "rule", "reason", "shortfall", "told", "held")),
        "again": {"times": len(attempt.again), "last": attempt.last_at.isoformat()} if attempt.again else None,
        "outcome": _fields(attempt.outcome, ("exit_code", "seconds", "outcomes", "again_after", "notes")),
    }


def _databases(attempt: Attempt) -> Any:
    decided = attempt.decision.fields if attempt.decision else {}
    return decided.get("truth") or (attempt.call or {}).get("truth")


def _fields(record: Record | None, names: Sequence[str]) -> dict[str, Any] | None:
    return record and {"at": record.at.isoformat(), **{name: record.fields.get(name) for name in names}}
