"""The example adapter is built, installed and seen, as a reader of the tutorial would do it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unit.docs.documents import ROOT, blocks, read

EXAMPLE = ROOT / "examples/efm-lb-textfile"


def run(*argv: object, path: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        list(map(str, argv)), capture_output=True, text=True, timeout=120, env=environment, check=False, cwd=path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("site")
    quiet = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "install", *quiet, "--target", site, EXAMPLE, path=site)
    return site


def test_it_is_found_as_the_tutorial_says(site: Path) -> None:
    listing = run(sys.executable, "-m", "efm_lb", "adapters", path=site)
    assert listing in blocks(read("docs/writing-an-adapter.md"), "text")


def test_it_passes_the_conformance_tests(site: Path) -> None:
    tests = EXAMPLE / "tests"
    told = run(
        sys.executable, "-m", "pytest", "-q", "-c", os.devnull, f"--rootdir={site}", "-p", "no:cacheprovider", tests,
        path=site,
    )  # fmt: skip
    assert " passed" in told


def test_the_tutorial_shows_its_project_file(site: Path) -> None:
    (shown,) = blocks(read("docs/writing-an-adapter.md"), "toml")
    given = (EXAMPLE / "pyproject.toml").read_text().splitlines()
    assert not [line for line in shown.splitlines() if line not in given]


def test_its_settings_are_accepted(site: Path, tmp_path: Path) -> None:
    (settings,) = (block for block in blocks(read("examples/efm-lb-textfile/README.md"), "sh") if "__ADAPTER=" in block)
    env_file = tmp_path / "efm.env"
    env_file.write_text(f"EFM_LB_NODES=10.0.0.11\nEFM_LB_STATE_DIR={tmp_path}\n{settings}")
    env_file.chmod(0o600)
    shown = run(sys.executable, "-m", "efm_lb", "config", "show", "--env-file", env_file, path=site)
    assert "/var/lib/efm-lb/nodes.json" in shown
