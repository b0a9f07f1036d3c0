"""``efm-lb plan``: what would bring every balancer in line with the databases, done to nobody."""

from __future__ import annotations

import json
import time

from efm_lb.commands.observe import observe
from efm_lb.configuration import Configuration
from efm_lb.dispatch import Dispatcher
from efm_lb.errors import EX_OK, EX_TEMPFAIL, printable
from efm_lb.reconcile.differences import differences, no_primary, untold
from efm_lb.views import View

__all__ = ["plan"]

SCHEMA = "efm-lb/plan/v1"


def plan(configuration: Configuration, as_json: bool) -> int:
    """Print one line per step and balancer.

    :return: 0 when it could be told for every balancer, also when there is something to do; 75 when not
    """
    seen = observe(configuration)
    steps: dict[str, list[str]] = {}
    failures: dict[str, str] = {}
    if not seen.truth.primary:
        failures["cluster"] = no_primary(seen.truth)
    failures |= untold(seen.truth)
    dispatcher = Dispatcher(configuration)
    for name, answer in seen.views.items():
        if not isinstance(answer.value, View):
            failures[name] = answer.failure.detail if answer.failure else "its adapter has no view"
            continue
        steps[name] = []
        for event in differences(seen.truth, answer.value):
            told = dispatcher.only(name).plan(event, time.monotonic() + configuration.deadline)[name]
            what = str(event)
            if told.failure:
                failures[name] = f"{what}: {told.failure.detail}"
            else:
                steps[name] += [f"{what}: {step}" for step in told.value or ["its adapter cannot tell the steps"]]
    if as_json:
        document = {"schema": SCHEMA, "cluster": configuration.cluster, "steps": steps, "failures": failures}
        print(json.dumps(document, indent=2))
    else:
        for name, lines in steps.items():
            for line in lines or ["nothing to do"]:
                print(f"{name}: {printable(line)}")
        for name, failure in failures.items():
            print(f"! {name}: {printable(failure)}")
    return EX_TEMPFAIL if failures else EX_OK
