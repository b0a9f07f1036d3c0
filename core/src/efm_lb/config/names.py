"""Names of variables: those that exist, and the one that a misspelt name was meant to be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from efm_lb.config.model import DELIMITER, Settings
from efm_lb.sources import PREFIX

__all__ = [
    "ADAPTER",
    "BALANCERS",
    "BALANCER_NAME",
    "HOST_SSH",
    "HOST_SSH_SCHEMA",
    "Place",
    "balancer_variable",
    "did_you_mean",
    "own",
    "place_of",
]

BALANCERS = f"{PREFIX}BALANCERS{DELIMITER}"
ADAPTER = "adapter"
HOST_SSH = "host_ssh"
_NAME = "[A-Za-z0-9_][A-Za-z0-9_.-]*"
_IPV6 = "[0-9A-Fa-f.]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*"
_PORT = "0*([1-9][0-9]{0,3}|[1-5][0-9]{4}|6([0-4][0-9]{3}|5([0-4][0-9]{2}|5([0-2][0-9]|3[0-5]))))"
HOST_SSH_SCHEMA = {
    "type": "string",
    # What ssh takes for a destination, and nothing that it could take for an option or a shell for a command. To Python
    # a newline may follow the end.
    "pattern": rf"^(({_NAME}@)?({_NAME}|{_IPV6})|ssh://({_NAME}@)?({_NAME}|\[{_IPV6}\])(:{_PORT})?)$(?!\n)",
    "description": (
        "The load balancer is on another host: the account there that runs `efm-lb apply` as a forced command, as ssh"
        " takes it, such as `efm-lb@pgb1` or `ssh://efm-lb@pgb1:2222`. The settings of that host's own env file count."
    ),
}
BALANCER_NAME = re.compile(r"[A-Z0-9]+(?:[_-][A-Z0-9]+)*")


class Place(NamedTuple):
    """What a variable of a balancer is about.

    :param balancer: the balancer's name, in lower case
    :param key: the setting's name in the adapter's schema
    """

    balancer: str
    key: str


def own() -> dict[str, FieldInfo]:
    """efm-lb's own variables by name, without those of the balancers, in the order of their documentation."""
    return dict(_own(Settings, PREFIX))


def _own(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        variable = prefix + name.upper()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _own(field.annotation, variable + DELIMITER)
        elif not BALANCERS.startswith(variable):
            yield variable, field


def place_of(variable: str) -> Place | None:
    """Which balancer's setting a variable is, None when it is none or its name is malformed."""
    name, _, key = variable.removeprefix(BALANCERS).partition(DELIMITER)
    if not variable.startswith(BALANCERS) or not key or not BALANCER_NAME.fullmatch(name):
        return None
    return Place(name.lower(), key.lower())


def balancer_variable(balancer: str, key: str) -> str:
    """The variable of a balancer's setting: the inverse of `place_of`."""
    return f"{BALANCERS}{balancer.upper()}{DELIMITER}{key.upper()}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence that complains about ``name``: the nearest of the ``known`` names, or nothing."""
    # All names have the same beginning, and those of one section more of it, which must not make them look alike.
    name, names = name.upper(), list(known)
    head, delimiter, _ = name.rpartition(DELIMITER)
    section = head + delimiter
    same = [variable for variable in names if section and variable.startswith(section)]
    prefix = section if same else PREFIX
    tails = {variable.removeprefix(prefix): variable for variable in same or names}
    near = get_close_matches(name.removeprefix(prefix), tails, 1, 0.7)
    return f"; did you mean {tails[near[0]]}?" if near else ""
