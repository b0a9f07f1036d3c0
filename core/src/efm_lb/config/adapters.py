"""An adapter's JSON Schema, and a balancer's settings by it."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError

from efm_lb.config.coerce import SCALARS, coerce, text_of
from efm_lb.config.model import DELIMITER
from efm_lb.config.names import ADAPTER, HOST_SSH
from efm_lb.configuration import AdapterSource
from efm_lb.plugins import PATIENCE, Description, describe

__all__ = [
    "DISJOINT",
    "EXPECTED",
    "IDENTITY",
    "LOGIN",
    "BadSchemaError",
    "Problem",
    "ask",
    "closed",
    "in_common",
    "in_two",
    "logins",
    "read",
]

IDENTITY = "x-identity"
"""The keyword of an adapter's schema that says when two balancers are the same: a list of lists of settings. They are
when they have a value in common in each of the lists, whichever of its settings holds it."""

DISJOINT = "x-disjoint"
"""The keyword of an adapter's schema that says which settings of one balancer share no value: a list of lists of
settings."""

LOGIN = "x-login"
"""The keyword of a setting that holds a libpq connection string, or several: every event logs in there. A mapping of
libpq's keywords that win over the string; one that is null has the value of the balancer's setting of that name."""

EXPECTED = "x-expected"
"""The keyword beside a ``pattern`` that says in words what it demands: a regular expression is no message."""
_ABSOLUTE_PATH = "^/"


class BadSchemaError(Exception):
    """An adapter's schema cannot be used; the adapter must be changed."""


class Problem(NamedTuple):
    """What is wrong with a balancer's settings.

    :param key: the setting, None when it is about several
    """

    key: str | None
    message: str


def ask(sources: Collection[AdapterSource], patience: float = PATIENCE) -> dict[str, Description]:
    """Import adapters and ask each for its schema, as `closed` makes it. Never raises for an adapter's sake.

    :param patience: seconds for all of them
    :return: by the adapter's name, in the order of ``sources``
    """
    return {name: _closed(description) for name, description in describe(sources, patience).items()}


def _closed(description: Description) -> Description:
    if description.schema is None:
        return description
    try:
        return description._replace(schema=closed(description.schema))
    except BadSchemaError as error:
        return description._replace(schema=None, failure=str(error))


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema as efm-lb uses it: checked, and refusing every key that it does not list.

    :param schema: what the adapter's ``efm_lb_settings_schema`` returned
    :raises BadSchemaError: it is no JSON Schema, or asks for what a text cannot become
    """
    if not isinstance(schema, Mapping):
        raise BadSchemaError(f"the schema is of type {type(schema).__name__}, not a mapping")
    try:
        # A copy in JSON's own types: settings are compiled, and an adapter may keep its schema to itself.
        own: dict[str, Any] = json.loads(json.dumps(dict(schema), allow_nan=False))
        Draft202012Validator.check_schema(own)
    except SchemaError as error:
        raise BadSchemaError(f"the schema is not valid: {error.message}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise BadSchemaError(f"the schema is not JSON: {error}") from None
    if own.get("type", "object") != "object":
        raise BadSchemaError(f"the schema is of type {own['type']!r}, not 'object'")
    properties = own.setdefault("properties", {})
    for key, setting in properties.items():
        _check_setting(key, setting)
        _check_login(key, setting.get(LOGIN, {}), properties)
    unknown = sorted(set(own.get("required", ())) - set(properties))
    if unknown:
        raise BadSchemaError(f"the schema requires {unknown[0]!r}, which is not among its properties")
    for keyword in (IDENTITY, DISJOINT):
        _check_groups(keyword, own.get(keyword), properties)
    return {**own, "type": "object", "additionalProperties": False}


def _check_setting(key: str, setting: Any) -> None:
    if key in (ADAPTER, HOST_SSH) or key != key.lower() or DELIMITER in key or not key.isidentifier():
        raise BadSchemaError(f"the schema's property {key!r} cannot be the end of a variable's name")
    kind = setting.get("type") if isinstance(setting, dict) else None
    items = setting.get("items", {"type": "string"}).get("type") if kind == "array" else "string"
    if kind not in (*SCALARS, "array") or items not in SCALARS:
        raise BadSchemaError(f"the schema's property {key!r} needs a type: {', '.join(SCALARS)}, or array of these")
    if "default" in setting:
        error = next(Draft202012Validator(setting).iter_errors(setting["default"]), None)
        if error:
            raise BadSchemaError(f"the default of the schema's property {key!r} is not valid: {error.message}")


def _check_login(key: str, login: Any, properties: Mapping[str, Any]) -> None:
    if not isinstance(login, dict) or not all(isinstance(value, str | None) for value in login.values()):
        raise BadSchemaError(f"the {LOGIN} of the schema's property {key!r} is no mapping of keywords to texts or null")
    for name in [name for name, value in login.items() if value is None]:
        if properties.get(name, {}).get("type") != "string":
            raise BadSchemaError(f"the {LOGIN} of the schema's property {key!r} has {name!r}, which is no text of its")


def _check_groups(keyword: str, groups: Any, properties: Mapping[str, Any]) -> None:
    if groups is None:
        return
    if not (isinstance(groups, list) and groups and all(isinstance(each, list) and each for each in groups)):
        raise BadSchemaError(f"the schema's {keyword} is not a list of lists of settings")
    unknown = [key for each in groups for key in each if key not in properties]
    if unknown:
        raise BadSchemaError(f"the schema's {keyword} has {unknown[0]!r}, which is not among its properties")


def in_common(one: Mapping[str, Any], other: Mapping[str, Any], schema: Mapping[str, Any]) -> list[str] | None:
    """What makes two balancers' settings those of one and the same balancer, None when they are not.

    :param schema: as `closed` returned it
    :return: the values that both have, by `IDENTITY`; none when all settings are the same
    """
    if one == other:
        return []
    found = [sorted(_values(one, keys) & _values(other, keys)) for keys in schema.get(IDENTITY, ())]
    return [text for texts in found for text in texts] if found and all(found) else None


def in_two(settings: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What is in two settings of a balancer, and may be in one of them only.

    :param schema: as `closed` returned it
    :return: the value and both settings, by `DISJOINT`
    """
    for keys in schema.get(DISJOINT, ()):
        for one, other in combinations(keys, 2):
            both = _values(settings, [one]) & _values(settings, [other])
            yield from ((value, one, other) for value in sorted(both))


def _values(settings: Mapping[str, Any], keys: Iterable[str]) -> set[str]:
    values = [settings[key] for key in keys if key in settings]
    return {text_of(each) for value in values for each in (value if isinstance(value, list) else [value])}


def logins(settings: Mapping[str, Any], schema: Mapping[str, Any]) -> list[tuple[str, dict[str, str]]]:
    """What every event logs in to: connection strings, and the keywords that win over each.

    :param schema: as `closed` returned it
    """
    found = []
    for key, setting in schema["properties"].items():
        if LOGIN in setting and key in settings:
            own = {name: settings.get(name) if value is None else value for name, value in setting[LOGIN].items()}
            keywords = {name: str(value) for name, value in own.items() if value}
            texts = settings[key] if isinstance(settings[key], list) else [settings[key]]
            found += [(str(text), keywords) for text in texts]
    return found


def read(raw: Mapping[str, str], schema: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """A balancer's settings: coerced, defaults filled in, validated.

    :param raw: texts by key; every key is one of the schema's properties
    :param schema: as `closed` returned it
    :return: the settings, complete only when there are no problems; and all problems
    """
    settings: dict[str, Any] = {}
    problems: list[Problem] = []
    for key, setting in schema["properties"].items():
        if key in raw:
            try:
                settings[key] = coerce(raw[key], setting)
            except ValueError as error:
                problems.append(Problem(key, str(error)))
        elif "default" in setting:
            settings[key] = copy.deepcopy(setting["default"])
        elif key in schema.get("required", ()):
            problems.append(Problem(key, _missing(setting)))
    found = dict.fromkeys(_violations(settings, schema))
    wrong = {problem.key for problem in problems}
    # What is wrong with several settings at once says nothing while one of them is wrong by itself.
    problems += [problem for problem in found if problem.key not in wrong and not (wrong and problem.key is None)]
    return settings, problems


def _missing(setting: Mapping[str, Any]) -> str:
    description = setting.get("description", "")
    return "missing" + (f": {description}" if description else "")


def _violations(settings: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[Problem]:
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    for error in validator.iter_errors(settings):
        if error.absolute_path:
            yield Problem(str(error.absolute_path[0]), _in_words(error))
        elif error.validator == "dependentRequired":
            for key, needed in error.validator_value.items():
                missing = [each for each in needed if key in settings and each not in settings]
                yield from (Problem(each, f"missing, but needed with {key.upper()}") for each in missing)
        elif error.validator == "required":
            # Not the schema's own list, which is done with, but a condition (if/then) on the other settings.
            always = schema.get("required", ())
            for key in error.validator_value:
                if key not in settings and key not in always:
                    yield Problem(key, "missing, but needed with this balancer's other settings")
        else:
            yield Problem(None, error.message)


def _in_words(error: ValidationError) -> str:
    given = error.instance
    if error.validator == "uniqueItems" and isinstance(given, list):
        twice = next(each for number, each in enumerate(given) if each in given[:number])
        return f"{twice!r} is there twice"
    if error.validator != "pattern":
        return str(error.message)
    setting = error.schema if isinstance(error.schema, Mapping) else {}
    expected = "an absolute path" if error.validator_value == _ABSOLUTE_PATH else setting.get(EXPECTED)
    return f"{error.instance!r} is not {expected}" if expected else str(error.message)
