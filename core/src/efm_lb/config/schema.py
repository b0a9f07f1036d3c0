"""One JSON Schema of all settings: efm-lb's own from the pydantic model, the balancers' from the installed adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from efm_lb.config.adapters import ask
from efm_lb.config.coerce import text_of
from efm_lb.config.model import DELIMITER, GROUPS, Settings
from efm_lb.config.names import ADAPTER, BALANCERS, HOST_SSH, HOST_SSH_SCHEMA
from efm_lb.plugins import Installed
from efm_lb.sources import PREFIX

__all__ = ["VARIABLE", "Entry", "composed", "entries", "markdown"]

VARIABLE = "x-variable"
"""The keyword that names the environment variable of a property."""
_DRAFT = "https://json-schema.org/draft/2020-12/schema"


class Entry(NamedTuple):
    """One variable, as the reference documents it.

    :param default: as it is written into an env file, empty when there is none
    """

    variable: str
    type: str
    required: bool
    default: str
    description: str


def composed(installed: Installed) -> dict[str, Any]:
    """The schema by which settings are validated, as one document.

    It describes the settings as nested objects; `VARIABLE` names the environment
    variable of each. An adapter that cannot be used is left out.
    """
    schema = Settings.model_json_schema()
    definitions = schema.pop("$defs")
    own = schema["properties"]
    own |= {group: definitions[group.capitalize()] for group in GROUPS}
    _name(own, PREFIX)
    for group in GROUPS:
        _name(own[group]["properties"], f"{PREFIX}{group.upper()}{DELIMITER}")
    for group in (*GROUPS, "balancers"):
        del own[group][VARIABLE]
    adapters = dict(_adapters(installed))
    own["balancers"] |= {
        "minProperties": 1,
        "propertyNames": {"pattern": "^[a-z0-9]+([_-][a-z0-9]+)*$"},
        "additionalProperties": {"oneOf": [{"$ref": f"#/$defs/{name}"} for name in adapters]},
    }
    schema |= {"title": "The settings of efm-lb", "$defs": adapters}
    return {"$schema": _DRAFT, **schema}


def entries(schema: Mapping[str, Any]) -> Iterator[tuple[str, list[Entry]]]:
    """The variables of a composed schema, section by section.

    :return: pairs of a title (empty for efm-lb's own, else the adapter's name) and the variables
    """
    own = dict(schema["properties"])
    for group in GROUPS:
        own |= own[group]["properties"]
    yield "", list(_entries(own, schema["required"]))
    for name, adapter in schema["$defs"].items():
        yield name.removeprefix("adapter-"), list(_entries(adapter["properties"], adapter["required"]))


def markdown(schema: Mapping[str, Any]) -> str:
    """The reference of all variables: a table for efm-lb's own, and one per adapter."""
    lines: list[str] = []
    for title, section in entries(schema):
        lines += [f"### {f'Adapter `{title}`' if title else 'Cluster'}", ""]
        lines += ["| variable | type | default | meaning |", "|---|---|---|---|"]
        for entry in section:
            default = "**required**" if entry.required else f"`{entry.default}`" if entry.default else ""
            cells = (f"`{entry.variable}`", entry.type, default, entry.description)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _adapters(installed: Installed) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, description in ask(installed.sources.values()).items():
        schema = description.schema
        if schema is None:
            continue
        adapter = {"const": name, "description": f"`{name}`"}
        properties = {ADAPTER: adapter, **schema["properties"], HOST_SSH: dict(HOST_SSH_SCHEMA)}
        _name(properties, f"{BALANCERS}<NAME>{DELIMITER}")
        required = [ADAPTER, *schema.get("required", ())]
        # An identity of its own keeps the references inside an adapter's schema valid in here.
        identity = f"urn:efm-lb:adapter:{name}"
        yield f"adapter-{name}", {"$id": identity, **schema, "properties": properties, "required": required}


def _name(properties: dict[str, Any], prefix: str) -> None:
    for name, setting in properties.items():
        setting.pop("title", None)
        setting[VARIABLE] = prefix + name.upper()


def _entries(properties: Mapping[str, Any], required: list[str]) -> Iterator[Entry]:
    for name, setting in properties.items():
        if VARIABLE in setting:
            default = setting.get("default")
            yield Entry(
                setting[VARIABLE],
                _type(setting),
                name in required,
                "" if default is None else text_of(default),
                " ".join(setting.get("description", "").split()),
            )


def _type(setting: Mapping[str, Any]) -> str:
    """The type in words."""
    if "const" in setting:
        return "string"
    if "enum" in setting:
        return ", ".join(f"`{value}`" for value in setting["enum"])
    if "anyOf" in setting:  # optional: the type, or nothing
        setting = next(choice for choice in setting["anyOf"] if choice["type"] != "null")
    if setting.get("pattern") == "^/":
        return "absolute path"
    if setting["type"] == "array":
        return f"list of {setting.get('items', {}).get('type', 'string')}s"
    return str(setting["type"])
