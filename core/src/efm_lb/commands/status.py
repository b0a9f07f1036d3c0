"""``efm-lb status``: what each database says and what each balancer believes, side by side."""

from __future__ import annotations

import json

from efm_lb.commands.observe import Observation, observe
from efm_lb.commands.tables import print_table
from efm_lb.configuration import Configuration
from efm_lb.errors import EX_OK, EX_TEMPFAIL, printable
from efm_lb.maintenance import Maintenance, in_force
from efm_lb.reconcile.differences import disagreement, no_primary, untold
from efm_lb.truth import NodeState
from efm_lb.views import View

__all__ = ["status"]

SCHEMA = "efm-lb/status/v1"


def status(configuration: Configuration, as_json: bool) -> int:
    """Print the table and what is wrong in it.

    :return: 0 when all balancers agree with the databases, 75 when not, or when one did not answer
    """
    seen = observe(configuration)
    problems = _problems(seen)
    alone = in_force(configuration.state_dir, configuration.cluster)
    if as_json:
        print(json.dumps(_document(configuration, seen, problems, alone), indent=2))
    else:
        _print(seen, problems)
        for each in alone:
            print(printable(f"{each}"))
    return EX_TEMPFAIL if problems else EX_OK


def _problems(seen: Observation) -> list[str]:
    problems = [f"{node} {what}" for node, what in untold(seen.truth).items()]
    if not seen.truth.primary:
        problems.append(no_primary(seen.truth))
    for name, answer in seen.views.items():
        if answer.failure:
            problems.append(f"{name}: {answer.failure.detail}")
        elif isinstance(answer.value, View):
            wrong = disagreement(seen.truth, answer.value)
            problems += [f"{name}: {node} {what}" for node, what in wrong.items()]
            problems += [f"{name}: {address} is no node of EFM_LB_NODES" for address in answer.value.strangers]
    return problems


def _database(state: NodeState) -> str:
    if state.role is None:
        return state.reach.value
    return f"{state.role.value}, timeline {state.timeline}"


def _print(seen: Observation, problems: list[str]) -> None:
    rows, styles = [], []
    wrong = {
        name: disagreement(seen.truth, answer.value)
        for name, answer in seen.views.items()
        if isinstance(answer.value, View)
    }
    for state in seen.truth.states:
        row = [state.node.name, state.node.address, _database(state)]
        marked = False
        for name, answer in seen.views.items():
            view = answer.value.of(state.node) if isinstance(answer.value, View) else None
            mark = " !" if state.node.name in wrong.get(name, {}) else ""
            marked = marked or bool(mark)
            row.append((f"{view.detail}{', writes' if view.writes else ''}" if view else "?") + mark)
        rows.append(row)
        styles.append("red" if marked else "")
    print_table(["node", "address", "database", *seen.views], rows, styles)
    for problem in problems:
        print(f"! {printable(problem)}")


def _document(
    configuration: Configuration, seen: Observation, problems: list[str], alone: tuple[Maintenance, ...]
) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "cluster": configuration.cluster,
        "nodes": [
            {
                "name": state.node.name,
                "address": state.node.address,
                "reach": state.reach.value,
                "role": state.role and state.role.value,
                "timeline": state.timeline,
                "detail": state.detail,
            }
            for state in seen.truth.states
        ],
        "balancers": {
            name: {
                "failure": answer.failure and answer.failure.detail,
                "nodes": [
                    {
                        "name": view.node.name,
                        "attached": True if view.beside else view.attached,
                        "writes": view.writes,
                        "detail": view.detail,
                    }
                    for view in (answer.value.nodes if isinstance(answer.value, View) else ())
                ],
            }
            for name, answer in seen.views.items()
        },
        "maintenance": [each._asdict() for each in alone],
        "problems": problems,
    }
