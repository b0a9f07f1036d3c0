"""Sources to a `Configuration`: everything is looked at before anything is complained about, all at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from efm_lb.balancers import Balancer
from efm_lb.config.adapters import ask, in_common, in_two, logins, read
from efm_lb.config.coerce import text_of
from efm_lb.config.model import DELIMITER, GROUPS, Settings, nested
from efm_lb.config.names import (
    ADAPTER,
    BALANCERS,
    HOST_SSH,
    HOST_SSH_SCHEMA,
    balancer_variable,
    did_you_mean,
    own,
    place_of,
)
from efm_lb.config.nodes import parse_nodes
from efm_lb.config.variables import Variable, collect
from efm_lb.configuration import AdapterSource, Configuration, DetachLivePrimary, Reconcile
from efm_lb.errors import SettingsError
from efm_lb.outcomes import PermanentError
from efm_lb.plugins import PATIENCE, Installed, discover
from efm_lb.sources import PREFIX, Sources

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = ["DEFAULT", "Loaded", "Unvalidated", "Value", "compose"]

DEFAULT = "default"

PART = 0.3
"""The part of the deadline that adapters have to tell their settings' schemas; the rest is for driving balancers."""


class Value(NamedTuple):
    """One setting in force.

    :param name: the variable
    :param text: its value as it would be written into an env file
    :param origin: ``the environment``, ``file:line`` or ``default``
    """

    name: str
    text: str
    origin: str


class Loaded(NamedTuple):
    """What the slow way makes of the sources.

    :param values: every setting in force, defaults included, efm-lb's own first
    :param failures: adapters in use that cannot be used, each with the reason; the settings of
        their balancers are `Unvalidated`
    :param files: files of the adapters, with the `efm_lb.sources.mtime` they had before the adapters were asked
    """

    configuration: Configuration
    values: tuple[Value, ...]
    failures: Mapping[str, str]
    files: Mapping[str, int]


class Unvalidated(dict[str, Any]):
    """Settings that nobody could validate, for the adapter has no usable schema.

    The adapter that looks a setting up all the same fails for its balancer, and for no other.
    """

    def __init__(self, raw: Mapping[str, str], reason: str) -> None:
        super().__init__(raw)
        self.reason = reason

    def __getitem__(self, key: str) -> Any:
        raise PermanentError(f"the settings could not be validated: {self.reason}")

    def get(self, key: str, default: object = None) -> Any:
        return self[key]


class _Adapter(NamedTuple):
    """An adapter in use: its schema, or why there is none."""

    source: AdapterSource
    schema: Mapping[str, Any] | None
    failure: str
    files: Mapping[str, int]


def compose(sources: Sources) -> Loaded:
    """Read, validate and complete the settings of a cluster.

    :raises SettingsError: with one message per problem
    """
    variables, problems = collect(sources)
    refused = {problem.partition(" ")[0] for problem in problems}
    settings, values = _own_settings(variables, problems)
    balancers = _by_balancer(variables)
    patience = min(PATIENCE, PART * settings.deadline) if settings else PATIENCE
    adapters = _adapters(balancers, discover(), patience, problems)
    _report_unknown(variables, balancers, adapters, problems)
    ready = []
    connect_timeout = settings.connect_timeout if settings else 0.0
    # What is told apart by its name on a host of its own may have the same settings as another one here, or none.
    elsewhere = {name for name, raw in balancers.items() if HOST_SSH in raw}
    for name, raw in sorted(balancers.items()):
        if sources.here and raw.keys() == {ADAPTER, HOST_SSH}:
            continue  # it is on a third host
        if sources.here:
            raw.pop(HOST_SSH, None)
        if ADAPTER in raw and raw[ADAPTER].value in adapters:
            ready.append(_balancer(name, raw, adapters[raw[ADAPTER].value], connect_timeout, values, problems))
    problems += _same_twice([each for each in ready if each.name not in elsewhere], balancers, adapters)
    if problems or settings is None:
        # What was given and refused is not missing.
        raise SettingsError(*[each for each in problems if each.partition(": missing")[0] not in refused])
    used = sorted(adapters.items())
    configuration = Configuration(
        sources.cluster,
        parse_nodes(settings.nodes),
        settings.probe.model_dump(exclude_none=True),
        settings.deadline,
        settings.connect_timeout,
        settings.state_dir,
        DetachLivePrimary(settings.detach_live_primary),
        tuple(ready),
        tuple(adapter.source for _, adapter in used),
        Reconcile(**{**settings.reconcile.model_dump(), "majority": settings.reconcile.majority == "on"}),
        tuple(_logins(ready, adapters)),
    )
    failures = {name: adapter.failure for name, adapter in used if adapter.failure}
    files = {path: changed for _, adapter in used for path, changed in adapter.files.items()}
    return Loaded(configuration, tuple(values), failures, files)


def _own_settings(variables: Mapping[str, Variable], problems: list[str]) -> tuple[Settings | None, list[Value]]:
    """efm-lb's own settings, None when there are problems; and all values in force."""
    given = {name: variable.value for name, variable in variables.items() if name in own() or place_of(name)}
    try:
        settings = Settings(**nested(given))
    except ValidationError as error:
        problems += [problem for detail in error.errors() for problem in _own_problems(detail, variables)]
        return None, []
    flat = settings.model_dump()
    for group in GROUPS:
        flat |= {f"{group}{DELIMITER}{key}": value for key, value in flat.pop(group).items()}
    values = []
    for name in own():
        value = flat[name.removeprefix(PREFIX).lower()]
        if name in variables:
            values.append(Value(*variables[name]))
        elif value is not None:
            values.append(Value(name, text_of(value), DEFAULT))
    return settings, values


def _own_problems(detail: ErrorDetails, variables: Mapping[str, Variable]) -> list[str]:
    name = PREFIX + DELIMITER.join(str(part).upper() for part in detail["loc"])
    kind, context, text = detail["type"], detail.get("ctx", {}), detail["input"]
    if name == BALANCERS.removesuffix(DELIMITER):
        return [f"{BALANCERS}<NAME>{DELIMITER}ADAPTER: missing: no balancer is set"]
    if kind == "missing":
        return [f"{name}: missing: {own()[name].description}"]
    messages = {
        "float_parsing": f"{text!r} is not a number",
        "finite_number": f"{text!r} is not a number",
        "greater_than_equal": f"{text!r} is less than {context.get('ge', 0):g}",
        "greater_than": f"{text!r} is not greater than {context.get('gt', 0):g}",
        "less_than_equal": f"{text!r} is more than {context.get('le', 0):g}",
        "literal_error": f"{text!r} is none of {context.get('expected')}",
        "string_pattern_mismatch": f"{text!r} is not an absolute path",
        "value_error": str(context.get("error")),
    }
    subject = variables.get(name, name)
    return [f"{subject}: {line}" for line in messages.get(kind, detail["msg"]).splitlines()]


def _by_balancer(variables: Mapping[str, Variable]) -> dict[str, dict[str, Variable]]:
    balancers: dict[str, dict[str, Variable]] = {}
    for name, variable in variables.items():
        place = place_of(name)
        if place:
            balancers.setdefault(place.balancer, {})[place.key] = variable
    return balancers


def _adapters(
    balancers: Mapping[str, Mapping[str, Variable]], installed: Installed, patience: float, problems: list[str]
) -> dict[str, _Adapter]:
    """The adapters that the balancers name, by name."""
    used: dict[str, AdapterSource] = {}
    for name, raw in sorted(balancers.items()):
        if ADAPTER not in raw:
            first = next(iter(raw.values()))
            problems.append(f"{balancer_variable(name, ADAPTER)}: missing, though {first} is set; {installed}")
            continue
        variable = raw[ADAPTER]
        if variable.value in installed.conflicts:
            problems.append(f"{variable}: {installed.conflicts[variable.value]}")
        elif variable.value not in installed.sources:
            problems.append(f"{variable}: no adapter {variable.value!r}; {installed}")
        else:
            used[variable.value] = installed.sources[variable.value]
    return {
        name: _Adapter(used[name], schema, failure, {**installed.files[name], **files})
        for name, (schema, failure, files) in ask(used.values(), patience).items()
    }


def _report_unknown(
    variables: Mapping[str, Variable],
    balancers: Mapping[str, Mapping[str, Variable]],
    adapters: Mapping[str, _Adapter],
    problems: list[str],
) -> None:
    known = dict.fromkeys(own())
    open_balancers = set()
    for balancer, raw in balancers.items():
        known |= dict.fromkeys((balancer_variable(balancer, ADAPTER), balancer_variable(balancer, HOST_SSH)))
        adapter = adapters.get(raw[ADAPTER].value) if ADAPTER in raw else None
        if adapter and adapter.schema is not None:
            known |= dict.fromkeys(balancer_variable(balancer, key) for key in adapter.schema["properties"])
        else:  # nobody knows what its settings are
            open_balancers.add(balancer)
    for name, variable in variables.items():
        place = place_of(name)
        if name not in known and not (place and place.balancer in open_balancers):
            problems.append(f"{variable}: no such variable{_advice(name, place is not None, list(known))}")


def _advice(name: str, of_balancer: bool, known: list[str]) -> str:
    if not name.upper().startswith(PREFIX) and PREFIX + name.upper() in known:
        return f"; did you mean {PREFIX}{name.upper()}?"
    head, _, tail = name.partition(DELIMITER)
    if of_balancer:  # compare with the settings of the same balancer
        same = BALANCERS + tail.partition(DELIMITER)[0] + DELIMITER
        known = [variable for variable in known if variable.startswith(same)]
        key = did_you_mean(name.removeprefix(same), [variable.removeprefix(same) for variable in known])
        return key.replace("mean ", f"mean {same}") or "; it has " + ", ".join(known)
    if did_you_mean(head, [BALANCERS.removesuffix(DELIMITER)]) and place_of(BALANCERS + tail):
        return f"; did you mean {BALANCERS}{tail}?"
    return did_you_mean(name, known)


def _balancer(
    name: str,
    raw: Mapping[str, Variable],
    adapter: _Adapter,
    connect_timeout: float,
    values: list[Value],
    problems: list[str],
) -> Balancer:
    own_keys = (ADAPTER, HOST_SSH)
    values += [Value(*raw[key]) for key in own_keys if key in raw]
    texts = {key: variable.value for key, variable in raw.items() if key not in own_keys}
    host_ssh = raw[HOST_SSH].value if HOST_SSH in raw else ""
    if host_ssh:
        _, wrong = read({HOST_SSH: host_ssh}, {"type": "object", "properties": {HOST_SSH: HOST_SSH_SCHEMA}})
        problems += [f"{raw[HOST_SSH]}: {host_ssh!r} is no [user@]host or ssh://[user@]host[:port]" for _ in wrong]
    if adapter.schema is None:
        values += [Value(*variable) for key, variable in raw.items() if key not in own_keys]
        return Balancer(name, adapter.source.name, Unvalidated(texts, adapter.failure), connect_timeout, host_ssh)
    known = {key: text for key, text in texts.items() if key in adapter.schema["properties"]}
    settings, wrong = read(known, adapter.schema)
    if host_ssh:
        # They count on that host, which need not have told them to this one; what is told must be right all the same.
        settings = {key: value for key, value in settings.items() if key in known}
        wrong = [problem for problem in wrong if problem.key in known]
    for problem in wrong:
        key = ADAPTER if problem.key is None else problem.key
        problems.append(f"{raw.get(key, balancer_variable(name, key))}: {problem.message}")
    for value, one, other in in_two(settings, adapter.schema):
        this, that = (raw.get(key, balancer_variable(name, key)) for key in (other, one))
        problems.append(f"{this}: {value!r} is in {that} as well, and can be in one of them only")
    values += _values(name, raw, settings)
    return Balancer(name, adapter.source.name, settings, connect_timeout, host_ssh)


def _same_twice(
    ready: Sequence[Balancer],
    variables: Mapping[str, Mapping[str, Variable]],
    adapters: Mapping[str, _Adapter],
) -> Iterator[str]:
    """Balancers that are one and the same: two threads would drive it at once, and send every command twice."""
    for number, balancer in enumerate(ready):
        schema = adapters[balancer.adapter].schema or {}
        for first in ready[:number]:
            same = in_common(first.settings, balancer.settings, schema) if first.adapter == balancer.adapter else None
            if same is not None:
                this, that = (variables[each.name][ADAPTER] for each in (balancer, first))
                both = f"{' and '.join(same)} in both" if same else "the same settings"
                yield f"{this}: the same load balancer as {that}, with {both}: make one block of the two"


def _logins(ready: Sequence[Balancer], adapters: Mapping[str, _Adapter]) -> Iterator[tuple[str, str, dict[str, str]]]:
    """`Configuration.logins`."""
    for balancer in ready:
        schema = adapters[balancer.adapter].schema
        if schema is not None and not balancer.host_ssh:
            yield from ((balancer.name, *login) for login in logins(balancer.settings, schema))


def _values(name: str, raw: Mapping[str, Variable], settings: Mapping[str, Any]) -> Iterator[Value]:
    for key, value in settings.items():
        if key in raw:
            yield Value(*raw[key])
        else:
            yield Value(balancer_variable(name, key), text_of(value), DEFAULT)
