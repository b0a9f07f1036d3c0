"""The distribution as others install it: from a wheel that was built from the sdist."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = ("efm-lb-reconcile@.service", "efm-lb-reconcile-once@.service", "efm-lb-reconcile-once@.timer")


def run(*argv: str | Path) -> str:
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", directory, ROOT)
    return directory


@pytest.fixture
def installed(built: Path, tmp_path: Path) -> Iterator[Path]:
    (wheel,) = built.glob("*.whl")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "site", wheel)
    return tmp_path / "site"


def test_the_wheel_holds_the_packages_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    data = [name for name in names if ".data/" in name]
    assert {name.partition(".data/data/share/efm-lb/")[2] for name in data} == {f"systemd/{unit}" for unit in UNITS}
    assert {name.split("/")[0] for name in names if ".dist-info" not in name and name not in data} == {
        "efm_lb",
        "efm_lb_haproxy",
        "efm_lb_main.py",
        "efm_lb_pgbouncer",
        "efm_lb_pgpool",
    }
    assert {"efm_lb/py.typed", "efm_lb_haproxy/py.typed", "efm_lb_pgpool/py.typed", "efm_lb/hookspecs.py"} <= set(names)


def test_the_sdist_holds_what_the_readme_promises(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "README.md",
        "Makefile",
        "pyproject.toml",
        "core/src/efm_lb/hook.py",
        "tests/unit/core/test_hook.py",
    } <= names
    assert not [name for name in names if name.startswith(".venv") or "__pycache__" in name]


def test_the_installed_command_finds_its_adapters(installed: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(installed)!r});"
        "import efm_lb; print(efm_lb.__file__); sys.argv = ['efm-lb', 'adapters'];"
        "from efm_lb.__main__ import main; main()"
    )
    where, *listing = run(sys.executable, "-I", "-c", script).splitlines()
    assert where.startswith(str(installed))
    assert any(line.split()[:2] == ["pgpool", "efm-lb"] and "usable" in line for line in listing)
    assert (installed / "bin" / "efm-lb").exists()
