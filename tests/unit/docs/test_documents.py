"""The documents say what the code does: tables, lists, links and examples are compared with it."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from efm_lb import __version__, hookspecs
from efm_lb.calls import parse
from efm_lb.command_line import HOOKS
from efm_lb.commands.app import app
from efm_lb.config.compose import PART
from efm_lb.config.envfile import parse as parse_env
from efm_lb.decide import GRACE, decide
from efm_lb.errors import EfmLbError
from efm_lb.plugins import PATIENCE
from efm_lb.settings import settings_of
from efm_lb_pgpool.check import SETTINGS
from efm_lb_pgpool.steps import HOLD
from unit.docs.documents import DOCS, DOCUMENTS, ROOT, blocks, outside_code, read, slug, table
from unit.docs.regenerate import BEGIN, PAGE, SCHEMAS, schema_text, tables

HOOK_FUNCTIONS = {name: value for name, value in vars(hookspecs).items() if name.startswith("efm_lb_")}


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


# Rules and numbers


def test_the_rules_are_those_of_the_code() -> None:
    body = inspect.getdoc(decide) or ""
    (ruler, *_) = re.findall(r"^[= ]+$", body, re.MULTILINE)
    starts = [match.start() for match in re.finditer(r"(?<!=)=", ruler)]
    ends = [*starts[1:], None]
    rows = [
        tuple(line[start:end].strip() for start, end in zip(starts, ends, strict=True))
        for line in body.splitlines()
        if re.match(r"R\d", line)
    ]
    assert len(rows) > 10
    page = read("docs/how-it-decides.md")
    documented = [row for row in table(page, "rule") if len(row) == 4]
    assert documented == rows
    whys = [row[0] for row in table(page, "rule") if len(row) == 2]
    assert whys == [row[0] for row in rows], "each rule has its reason"


def test_the_waits_are_those_of_the_code() -> None:
    words = {2: "two", 5: "five"}
    patience = f"Adapters have {PART * 100:g} % of that, and {PATIENCE:g} seconds at most"
    assert patience in read("docs/start-up.md")
    assert f"No promotion within {HOLD:g} seconds" in read("docs/pgpool.md")
    assert f"After {words[int(HOLD)]} seconds the follow-up process" in " ".join(read("docs/runbook.md").split())
    assert f"`--follow-up {GRACE:g}`" in read("docs/how-it-decides.md")
    assert f"again after {words[int(GRACE)]} seconds" in " ".join(read("README.md").split())


@pytest.mark.parametrize("page", ["README.md", "docs/exit-codes.md"])
def test_every_exit_code_is_there(page: str) -> None:
    source = ast.parse((ROOT / "core/src/efm_lb/errors.py").read_text())
    codes = {
        node.value.value
        for node in source.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id.startswith("EX_")
        and isinstance(node.value, ast.Constant)
    }
    assert len(codes) > 5
    assert {int(row[0]) for row in table(read(page), "code")} == codes


# Settings


def test_the_settings_are_generated() -> None:
    head, begin, body = PAGE.read_text().partition(BEGIN)
    assert begin + body == tables(), "run .venv/bin/python tests/unit/docs/regenerate.py"
    assert "regenerate.py" in head


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_schemas_for_other_hosts_are_published(name: str) -> None:
    assert (PAGE.parent / name).read_text() == schema_text(name), "run .venv/bin/python tests/unit/docs/regenerate.py"


def test_every_setting_that_check_judges_is_explained() -> None:
    text = read("docs/pgpool.md")
    (example,) = (block for block in blocks(text, "ini") if "backend_clustering_mode" in block)
    given = dict(re.findall(r"^(\w+) = '?([^'#\n]*?)'?\s*(?:#.*)?$", example, re.MULTILINE))
    explained = {row[0].strip("`") for row in table(text, "setting")}
    for rule in SETTINGS:
        name = rule.names[0]
        assert name in explained
        assert rule.is_good(given[name]), f"the example sets {name} to what check complains about"


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_every_variable_that_is_named_exists(path: Path) -> None:
    known = set(re.findall(r"`(EFM_LB_[A-Z0-9_<>]+)`", tables())) | {"EFM_LB_ENV_FILE", "EFM_LB_BENCH_REST"}
    # The example's own settings, and the name that the documents misspell on purpose.
    known |= {f"EFM_LB_BALANCERS__<NAME>__{name}" for name in ("PATH", "NODES", "FILE")}
    for name in re.findall(r"\bEFM_LB_[A-Z0-9_<>]*[A-Z0-9>]\b", path.read_text()):
        general = re.sub(r"BALANCERS__[A-Z0-9]+__", "BALANCERS__<NAME>__", name)
        assert general in known, f"{name} is no variable"


# The README's examples


def env_example() -> str:
    (example,) = (block for block in blocks(read("README.md"), "sh") if "EFM_LB_NODES=" in block)
    return example


def test_the_env_file_of_the_readme_is_accepted(tmp_path: Path) -> None:
    example = env_example()
    assert not [line for line in parse_env(example.encode()) if line.problem]
    path = tmp_path / "efm.env"
    path.write_text(f"{example}EFM_LB_STATE_DIR={tmp_path}\n")
    path.chmod(0o640)
    configuration, _ = settings_of("efm", str(path), {})
    assert configuration.nodes[0].address == "10.0.0.11:5444"
    (balancer,) = configuration.balancers
    assert (balancer.name, balancer.adapter, balancer.settings["port"]) == ("pool1", "pgpool", 9898)
    again, stale = settings_of("efm", str(path), {})
    assert (again, stale) == (configuration, "")


def test_the_pgpool_block_is_the_readmes() -> None:
    (example,) = (block for block in blocks(read("docs/pgpool.md"), "sh") if "__ADAPTER=" in block)
    assert example.strip() in env_example()


@pytest.mark.parametrize("name", ["haproxy", "pgbouncer"])
def test_the_blocks_of_the_other_pages_are_accepted(name: str, tmp_path: Path) -> None:
    (example,) = (block for block in blocks(read(f"docs/{name}.md"), "sh") if "__ADAPTER=" in block)
    path = tmp_path / "efm.env"
    path.write_text(f"{example}EFM_LB_NODES=10.0.0.11:5444,10.0.0.12:5444\nEFM_LB_STATE_DIR={tmp_path}\n")
    path.chmod(0o640)
    configuration, _ = settings_of("efm", str(path), {})
    (balancer,) = configuration.balancers
    assert balancer.adapter == name
    assert set(balancer.settings) > {"write", "read", "config"}


def test_the_lines_for_efm_are_calls() -> None:
    (example,) = blocks(read("README.md"), "properties")
    properties = dict(line.split("=", 1) for line in example.splitlines())
    assert not [value for value in properties.values() if "'" in value or '"' in value], "EFM allows no quotes"
    calls = {}
    for name, value in properties.items():
        if name.startswith("script."):
            program, *words = value.split()
            assert program.startswith("/")
            arguments = [{"%h": "10.0.0.11", "%p": "10.0.0.11", "%t": "p"}.get(word, word) for word in words]
            calls[name] = parse(arguments).kind.value
    assert calls == {
        "script.load.balancer.attach": "attach",
        "script.load.balancer.detach": "detach",
        "script.post.promotion": "promote",
    }
    assert properties["pgpool.enable"] == properties["detach.on.agent.failure"] == "false"


def test_every_command_is_mentioned() -> None:
    text = read("README.md")

    def names(command: object, prefix: str) -> Iterator[str]:
        for name, sub in getattr(command, "commands", {}).items():
            if hasattr(sub, "commands"):
                yield from names(sub, f"{prefix} {name}")
            if not hasattr(sub, "commands") or sub.invoke_without_command:
                yield f"{prefix} {name}"

    commands = set(names(get_command(app), "efm-lb"))
    assert len(commands) > 8
    for command in commands - {f"efm-lb {hook}" for hook in HOOKS}:
        assert f"`{command}`" in text
    for hook in HOOKS:
        assert re.search(rf"`(efm-lb )?{hook}`", text)


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_no_command_is_invented(path: Path) -> None:
    root = get_command(app)
    known = set(root.commands)  # type: ignore[attr-defined]
    known |= {f"config {name}" for name in root.commands["config"].commands}  # type: ignore[attr-defined]
    for found in re.findall(r"(?:`|^\$ |/bin/)efm-lb ((?:config )?[a-z]+)", path.read_text(), re.MULTILINE):
        assert found in known, f"efm-lb {found}"


# The plugin API


def test_every_hook_is_documented_with_its_arguments() -> None:
    text = read("docs/writing-an-adapter.md")
    documented = re.findall(r"^### `(efm_lb_\w+)\((.*)\)`$", text, re.MULTILINE)
    assert documented == [
        (name, ", ".join(inspect.signature(function).parameters)) for name, function in HOOK_FUNCTIONS.items()
    ]
    for name in HOOK_FUNCTIONS:
        assert f"`{name}`" in read("CHANGELOG.md")


@pytest.mark.parametrize("name", HOOK_FUNCTIONS)
def test_the_examples_of_the_hooks_compile(name: str) -> None:
    _, _, example = (inspect.getdoc(HOOK_FUNCTIONS[name]) or "").partition("Example::")
    code, _, _ = example.partition(".. versionadded::")
    tree = ast.parse(textwrap.dedent(code.strip("\n")))
    (function,) = tree.body
    assert isinstance(function, ast.FunctionDef)
    assert function.name == name
    arguments = [argument.arg for argument in function.args.args]
    assert set(arguments) <= set(inspect.signature(HOOK_FUNCTIONS[name]).parameters)


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_python_in_the_documents_compiles(path: Path) -> None:
    for block in blocks(path.read_text(), "python"):
        compile(block, str(path), "exec")


def test_the_changelog_has_this_version_and_the_plugin_api() -> None:
    text = read("CHANGELOG.md")
    assert f"## [{__version__}]" in text
    assert "### Plugin API" in text


@pytest.mark.parametrize("adapter", sorted(ROOT.glob("adapters/*")), ids=lambda path: path.name)
def test_every_module_of_an_adapter_is_described(adapter: Path) -> None:
    rows = table((adapter / "README.md").read_text(), "module")
    described = [name for row in rows for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(described) == sorted(path.stem for path in adapter.glob("src/*/*.py") if path.stem != "__init__")


# Links and words


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_every_internal_link_resolves(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", outside_code(path.read_text())):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        where = (path.parent / file).resolve() if file else path
        assert where.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", outside_code(where.read_text()), re.MULTILINE)
            assert anchor in map(slug, headings), target


def test_every_page_can_be_found_from_the_readme() -> None:
    text = read("README.md")
    assert not [page.name for page in DOCS.glob("*.md") if f"docs/{page.name}" not in text]


CORE = sorted(ROOT.glob("core/src/**/*.py"))
ADAPTERS = sorted(ROOT.glob("adapters/*/src/**/*.py"))
FOREIGN = {
    "no pg_hba.conf entry", "password authentication failed", "Connection refused", "Permission denied (uid",
    "already suspended/paused",
}  # fmt: skip
"""What PostgreSQL, PgBouncer or the operating system says."""
ERRORS = ("TemporaryError", "PermanentError", "Interrupted", "NotGuarded", "EntryError")
"""What an adapter raises."""


def messages(sources: list[Path]) -> set[str]:
    """Every literal piece of text in the code, with the pieces between the values of an f-string on their own."""
    found = set()
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value.strip())
    return found


def lines_of_the_runbook(*headings: str) -> list[str]:
    """What the tables under these headings quote."""
    rows = [row for heading in headings for row in table(read("docs/runbook.md"), heading)]
    return [line for row in rows for line in re.findall(r"`([^`]+)`", row[0])]


def parts_of(lines: list[str]) -> set[str]:
    """What is between the values, if it is long enough to be told apart."""
    parts = {part.strip(" :,;()[]") for line in lines for part in line.split("...")} - FOREIGN
    return {part for part in parts if len(part) > 9}


def test_the_lines_of_the_runbook_are_printed_somewhere() -> None:
    pieces = {piece for piece in messages([*CORE, *ADAPTERS]) if len(piece) > 7}
    lines = lines_of_the_runbook("line", "note", "line of pgpool")
    assert len(lines) > 40
    unknown = {part for part in parts_of(lines) if not any(part in one or one in part for one in pieces)}
    assert not unknown, "nothing prints these"


@pytest.mark.parametrize("adapter", ["haproxy", "pgbouncer"])
def test_the_lines_of_an_adapter_are_printed_by_it(adapter: str) -> None:
    """Word for word: in these tables every value is three points."""
    own = [path for path in ADAPTERS if path.parent.name == f"efm_lb_{adapter}"]
    pieces = messages([*own, ROOT / "core/src/efm_lb/replace.py", ROOT / "core/src/efm_lb/fence.py"])
    lines = lines_of_the_runbook(f"line of {adapter}")
    assert len(lines) > 30
    assert not {part for part in parts_of(lines) if not any(part in one for one in pieces)}, "it prints none of these"


@pytest.mark.parametrize("adapter", ["haproxy", "pgbouncer"])
def test_whatever_an_adapter_raises_is_in_the_runbook(adapter: str) -> None:
    # A call of the core's is never about these, and the commands for people show what they ask.
    impossible = ("is not proven to be the only primary", "does not answer, so it is not attached")
    parts = parts_of(lines_of_the_runbook(f"line of {adapter}"))
    raised = [text for path in ADAPTERS if path.parent.name == f"efm_lb_{adapter}" for text in raises(path)]
    assert len(raised) > 15
    missing = [text for text in raised if not any(part in text for part in parts)]
    assert [text for text in missing if text not in impossible] == []


def raises(source: Path) -> list[str]:
    """The longest literal piece of each text that an error is made of, where it is long enough to be told apart."""
    found = []
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS:
            pieces = [
                piece.value.strip(" :,;()[]")
                for argument in node.args
                for piece in ast.walk(argument)
                if isinstance(piece, ast.Constant) and isinstance(piece.value, str)
            ]
            found += [piece for piece in [max(pieces, key=len, default="")] if len(piece) > 9]
    return found


def test_a_wrong_env_example_would_be_found(tmp_path: Path) -> None:
    path = tmp_path / "efm.env"
    path.write_text(env_example().replace("__PORT=", "__PROT="))
    path.chmod(0o640)
    with pytest.raises(EfmLbError, match="did you mean EFM_LB_BALANCERS__POOL1__PORT"):
        settings_of("efm", str(path), {})
