"""What the page about the history shows is what the command prints for the journal of a real run.

The journal beside this file is that of a rehearsal's servers; the path of haproxy.cfg was shortened, and the checksums
with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from efm_lb.history import read
from efm_lb.journal import LIMIT, LONGEST
from unit.docs import documents

JOURNAL = Path(__file__).with_name("history.journal")
PAGE = documents.read("docs/history.md")
SHOWN = [block for block in documents.blocks(PAGE, "text") if block.startswith("$ efm-lb history")]


def test_the_journal_is_whole() -> None:
    records, damages = read(str(JOURNAL))
    assert len(records) > 10
    assert not damages


@pytest.mark.parametrize("shown", SHOWN, ids=lambda shown: shown.splitlines()[0])
def test_the_page_shows_what_the_command_prints(shown: str, tmp_path: Path) -> None:
    (tmp_path / "efm.journal").write_bytes(JOURNAL.read_bytes())
    env_file = tmp_path / "efm.env"
    env_file.touch(mode=0o600)
    env_file.write_text(
        f"EFM_LB_NODES=127.0.0.11,127.0.0.12,127.0.0.13\nEFM_LB_STATE_DIR={tmp_path}\n"
        "EFM_LB_BALANCERS__POOL1__ADAPTER=pgpool\nEFM_LB_BALANCERS__POOL1__HOST=127.0.0.1\n"
        "EFM_LB_BALANCERS__POOL1__USER=x\n"
    )
    command, _, output = shown.partition("\n")
    argv = [sys.executable, "-m", "efm_lb", *command.split()[2:]]
    environment = {**os.environ, "EFM_LB_ENV_FILE": str(env_file), "TZ": "UTC"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == output, done.stderr


def test_there_is_something_to_show() -> None:
    assert len(SHOWN) == 4


def test_the_record_and_the_numbers_are_real() -> None:
    (record,) = documents.blocks(PAGE, "json")
    assert record.strip() in JOURNAL.read_text().splitlines()
    assert f"At {LIMIT >> 20} MiB the file is set aside" in PAGE
    assert f"at most {LONGEST} characters" in PAGE
