"""A fake installation: distributions and env files in a temporary directory."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from efm_lb.config import Loaded, compose
from efm_lb.errors import EfmLbError
from efm_lb.sources import gather
from unit.config.fakes import ADAPTER, MINIMAL, Complain, Compose, Install


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on sys.path, in front. What is imported from it is forgotten afterwards."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield site
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(site)):
            del sys.modules[name]


@pytest.fixture
def install(site: Path) -> Install:
    """Install a distribution: its name, its adapters (name to entry point), its modules (name to source)."""

    def install(name: str, adapters: Mapping[str, str], version: str = "1.0", **modules: str) -> Path:
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        entry_points = "".join(f"{adapter} = {value}\n" for adapter, value in adapters.items())
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[efm_lb.adapters]\n{entry_points}")
        (info / "RECORD").write_text("".join(f"{info.name}/{file},,\n" for file in ("METADATA", "entry_points.txt")))
        for module, source in modules.items():
            (site / f"{module}.py").write_text(textwrap.dedent(source))
        return info

    return install


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    path = tmp_path / "efm.env"
    path.write_text(MINIMAL)
    path.chmod(0o640)
    return path


@pytest.fixture
def load(install: Install, env_file: Path) -> Compose:
    """Take the slow way with an adapter ``fake`` installed: env file's content, environment."""
    install("acme-fake", {"fake": "acme_fake"}, acme_fake=ADAPTER)

    def load(content: str | bytes = MINIMAL, **environ: str) -> Loaded:
        env_file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return compose(gather("efm", str(env_file), environ))

    return load


@pytest.fixture
def complain(load: Compose, env_file: Path) -> Complain:
    """The messages about wrong settings, with ``FILE`` for the env file's path."""

    def complain(content: str | bytes = MINIMAL, **environ: str) -> list[str]:
        with pytest.raises(EfmLbError) as caught:
            load(content, **environ)
        return [message.replace(str(env_file), "FILE") for message in caught.value.messages]

    return complain
