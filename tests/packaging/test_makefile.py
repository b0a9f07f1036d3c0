"""``make`` finds out what is missing on the machine; the installation itself is only printed here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("programs", "missing"),
    [
        ([], True),
        (["psql", "pg_dump"], True),
        (["psql", "initdb"], True),
        (["psql", "initdb", "postgres"], False),
    ],
)
def test_postgresqls_client_is_not_taken_for_its_server(tmp_path: Path, programs: list[str], missing: bool) -> None:
    bindir = tmp_path / "15" / "bin"
    bindir.mkdir(parents=True)
    for program in programs:
        (bindir / program).touch()
    argv = ["make", "-C", str(ROOT), "packages", "SUDO=echo", f"PGBINS={tmp_path}/*/bin"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert ("postgresql" in done.stdout.split()) is missing
