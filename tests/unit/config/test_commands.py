"""efm-lb config show, config schema, adapters."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from jsonschema import Draft202012Validator
from typer.testing import CliRunner, Result

from efm_lb.commands.app import app
from efm_lb.config import compose
from efm_lb.config.names import own
from efm_lb.config.schema import composed, entries, markdown
from efm_lb.plugins import discover
from efm_lb.sources import gather
from unit.config.fakes import MINIMAL, Compose, Install


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(app, arguments, env=environ)


def test_show(load: Compose, env_file: Path) -> None:
    load()
    done = run("config", "show", "--env-file", str(env_file), EFM_LB_DEADLINE="8")
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["EFM_LB_DEADLINE", "8", "the", "environment"] in rows
    assert ["EFM_LB_BALANCERS__POOL1__HOST", "10.0.0.9", f"{env_file}:3"] in rows
    assert ["EFM_LB_BALANCERS__POOL1__PORT", "9898", "default"] in rows


def test_show_json(load: Compose, env_file: Path) -> None:
    load()
    document = json.loads(run("config", "show", "--env-file", str(env_file), "--json").stdout)
    assert document["schema"] == "efm-lb/config/v1"
    assert document["cluster"] == "efm"
    assert {"name": "EFM_LB_CONNECT_TIMEOUT", "value": "2", "origin": "default"} in document["settings"]
    assert document["failures"] == {}


def test_show_of_wrong_settings(load: Compose, env_file: Path) -> None:
    load()
    env_file.write_text(MINIMAL + "EFM_LB_DEADLINE=x\nEFM_LB_TYPO=1\n")
    done = run("config", "show", "--env-file", str(env_file))
    assert done.exit_code == 78
    assert done.stdout == ""
    assert done.stderr == (
        f"efm-lb: EFM_LB_DEADLINE ({env_file}:4): 'x' is not a number\n"
        f"efm-lb: EFM_LB_TYPO ({env_file}:5): no such variable\n"
    )


def test_show_with_a_broken_adapter(install: Install, load: Compose, env_file: Path) -> None:
    load()
    install("acme-broken", {"broken": "acme_broken"}, acme_broken="import no_such_module")
    env_file.write_text(MINIMAL.replace("=fake", "=broken"))
    done = run("config", "show", "--env-file", str(env_file))
    assert done.exit_code == 69
    assert "EFM_LB_BALANCERS__POOL1__HOST" in done.stdout
    assert done.stderr == (
        "efm-lb: adapter broken cannot be used: ModuleNotFoundError: No module named 'no_such_module'\n"
    )


def test_adapters(load: Compose, install: Install) -> None:
    assert run("adapters").exit_code == 0
    assert ["fake", "acme-fake", "1.0", "usable"] in [line.split() for line in run("adapters").stdout.splitlines()]
    install("acme-broken", {"broken": "acme_broken"}, acme_broken="import no_such_module")
    install("acme-other", {"fake": "acme_fake"})
    done = run("adapters", "--json")
    assert done.exit_code == 69
    document = json.loads(done.stdout)
    assert document["conflicts"] == {
        "fake": "acme-fake 1.0 and acme-other 1.0 both bring an adapter fake; uninstall one of them"
    }
    assert {
        "name": "broken",
        "distribution": "acme-broken",
        "version": "1.0",
        "module": "acme_broken",
        "failure": "ModuleNotFoundError: No module named 'no_such_module'",
    } in document["adapters"]


def _instance(load: Compose, env_file: Path) -> dict[str, Any]:
    """The settings in force as an instance of the composed schema."""
    load(MINIMAL + "EFM_LB_BALANCERS__POOL1__WRITE=a,b\nEFM_LB_PROBE__PASSFILE=/x\n")
    loaded = compose(gather("efm", str(env_file), {})).configuration
    return {
        "nodes": "10.0.0.11:5444,10.0.0.12:5444",
        "probe": dict(loaded.probe),
        "deadline": loaded.deadline,
        "connect_timeout": loaded.connect_timeout,
        "state_dir": loaded.state_dir,
        "detach_live_primary": loaded.detach_live_primary.value,
        "balancers": {
            balancer.name: {"adapter": balancer.adapter, **balancer.settings} for balancer in loaded.balancers
        },
    }


def test_the_schema_describes_what_is_loaded(load: Compose, env_file: Path) -> None:
    instance = _instance(load, env_file)
    schema = json.loads(run("config", "schema").stdout)
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    assert not list(validator.iter_errors(instance))
    for wrong in (
        {**instance, "unknown": 1},
        {**instance, "balancers": {}},
        {**instance, "balancers": {"pool1": {"adapter": "fake"}}},
        {**instance, "balancers": {"pool1": {"adapter": "nginx", "host": "x"}}},
        {**instance, "balancers": {"pool1": {"adapter": "fake", "host": "x", "unknown": 1}}},
        {**instance, "deadline": 0},
    ):
        assert list(validator.iter_errors(wrong))


def test_the_schema_names_every_variable(load: Compose) -> None:
    sections = dict(entries(composed(discover())))
    assert {entry.variable for entry in sections[""]} == set(own())
    assert [entry.variable for entry in sections["fake"]][:2] == [
        "EFM_LB_BALANCERS__<NAME>__ADAPTER",
        "EFM_LB_BALANCERS__<NAME>__HOST",
    ]


def test_own_variables_are_all_documented() -> None:
    for name, field in own().items():
        assert field.description, name


def test_the_reference(load: Compose) -> None:
    done = run("config", "schema", "--markdown")
    assert done.stdout == markdown(composed(discover())) + "\n"
    assert "| `EFM_LB_BALANCERS__<NAME>__PORT` | integer | `9898` |" in done.stdout
    assert "| `EFM_LB_BALANCERS__<NAME>__WRITE` | list of strings |" in done.stdout


def with_json(command: Any, *words: str) -> Iterator[tuple[str, ...]]:
    """The commands that take ``--json``."""
    if any("--json" in parameter.opts for parameter in command.params):
        yield words
    for name, each in getattr(command, "commands", {}).items():
        yield from with_json(each, *words, name)


WITH_JSON = [words for words in with_json(typer.main.get_command(app)) if words not in (("adapters",), ("rehearse",))]
"""Those of them that need settings."""
OPERANDS = {"attach": ("10.0.0.11", "s"), "detach": ("10.0.0.11", "s"), "promote": ("10.0.0.11",)}


@pytest.mark.parametrize("words", WITH_JSON, ids=" ".join)
def test_wrong_settings_are_told_in_json_where_json_is_wanted(words: tuple[str, ...], env_file: Path) -> None:
    env_file.write_text(MINIMAL + "EFM_LB_DEADLINE=x\nEFM_LB_TYPO=1\n")
    argv = [sys.executable, "-m", "efm_lb", *words, *OPERANDS.get(words[0], ()), "--json", f"--env-file={env_file}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, env={})
    document = json.loads(done.stdout)
    assert (done.returncode, document["exit_code"]) == (78, 78)
    is_hook = words[0] in OPERANDS
    assert document["schema"] == ("efm-lb/hook/v1" if is_hook else "efm-lb/failure/v1")
    assert document["notes" if is_hook else "problems"][0] == f"EFM_LB_DEADLINE ({env_file}:4): 'x' is not a number"


def test_they_are_all_there() -> None:
    assert {words[0] for words in WITH_JSON} >= {"status", "plan", "check", "history", "reconcile", "config"}


def test_a_wrong_word_is_told_in_json_where_json_is_wanted() -> None:
    done = run("history", "--json", "show")
    assert (done.exit_code, json.loads(done.stdout)["exit_code"]) == (2, 2)
    assert json.loads(run("history", "show", "--cluster=../x", "--json").stdout)["exit_code"] == 2


@pytest.mark.parametrize("cluster", ["../x", ""])
def test_a_wrong_cluster(cluster: str) -> None:
    done = run("config", "show", "--cluster", cluster)
    assert done.exit_code == 2
    assert done.stderr.startswith("efm-lb: --cluster")
