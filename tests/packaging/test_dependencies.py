"""What the code imports is what the distribution says it needs."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
OWN = {"efm_lb", "efm_lb_main", "efm_lb_haproxy", "efm_lb_pgbouncer", "efm_lb_pgpool"}


def at_run_time(tree: ast.AST) -> Iterator[str]:
    """The top-level packages that a module imports, without those for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]
        else:
            yield from at_run_time(node)


def test_every_import_is_a_declared_dependency_and_every_dependency_is_imported() -> None:
    modules = [path for path in ROOT.glob("*/**/src/**/*.py") if ROOT / "examples" not in path.parents]
    # The conformance tests are pytest's, in an adapter's development only.
    modules = [path for path in modules if path.parent.name != "testing"]
    assert len(modules) > 50
    imported = {name for path in modules for name in at_run_time(ast.parse(path.read_text()))}
    foreign = imported - OWN - set(sys.stdlib_module_names)
    brought = packages_distributions()
    needed = {distribution.lower() for name in foreign for distribution in brought[name]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split("[<>=!~ ]", dependency)[0].lower() for dependency in project["dependencies"]}
    assert needed == declared
