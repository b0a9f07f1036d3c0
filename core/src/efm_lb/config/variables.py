"""The variables as they were set: process environment first, then the env file, each with its origin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from efm_lb.config.envfile import parse
from efm_lb.config.secrets import REMEDY, holds_secret, is_secret
from efm_lb.sources import ENV_FILE, PREFIX, Sources

__all__ = ["ENVIRONMENT", "Variable", "collect"]

ENVIRONMENT = "the environment"


class Variable(NamedTuple):
    """A variable that was set.

    :param name: in upper case
    :param origin: ``the environment``, or ``file:line``
    """

    name: str
    value: str
    origin: str

    def __str__(self) -> str:
        return f"{self.name} ({self.origin})"


def collect(sources: Sources) -> tuple[dict[str, Variable], list[str]]:
    """All variables by upper-case name, and what is wrong with how they were set.

    The part of a name after ``EFM_LB_`` may be written in any case. An empty value is no value.

    :return: the variables that nothing is wrong with, the environment's before the env file's of
        the same name; and one message per problem
    """
    problems: list[str] = []
    variables = _unique(_environment(sources), problems)
    for name, variable in _unique(_env_file(sources, problems), problems).items():
        variables.setdefault(name, variable)
    for variable in list(variables.values()):
        if is_secret(variable.name) or holds_secret(variable.value):
            problems.append(f"{variable}: {REMEDY}")
            del variables[variable.name]
    return variables, problems


def _environment(sources: Sources) -> Iterator[Variable]:
    for name, value in sources.variables:
        yield Variable(name.upper(), value, ENVIRONMENT)


def _env_file(sources: Sources, problems: list[str]) -> Iterator[Variable]:
    for assignment in parse(sources.content or b""):
        origin = f"{sources.env_file}:{assignment.line}"
        if assignment.problem:
            ours = assignment.name.startswith(PREFIX)  # what else stands there may be a secret
            problems.append(f"{f'{assignment.name} ({origin})' if ours else origin}: {assignment.problem}")
        elif assignment.name == ENV_FILE:
            problems.append(f"{ENV_FILE} ({origin}): names the env file itself; it counts in the environment only")
        else:
            name = assignment.name
            yield Variable(name.upper() if name.startswith(PREFIX) else name, assignment.value, origin)


def _unique(found: Iterator[Variable], problems: list[str]) -> dict[str, Variable]:
    variables: dict[str, Variable] = {}
    for variable in found:
        first = variables.setdefault(variable.name, variable)
        if first is not variable:
            problems.append(f"{variable}: set twice, first at {first.origin}")
    return {name: variable for name, variable in variables.items() if variable.value}
