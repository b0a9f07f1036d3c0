"""The table at the end of the fault suite counts what was tried, and hides nothing that was lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from faults.tally import COUNTED, KIND, TRIED, Account, accounts, counts, table


def report(
    outcome: Literal["passed", "failed", "skipped"],
    *properties: tuple[str, object],
    when: Literal["setup", "call", "teardown"] = "call",
) -> pytest.TestReport:
    return pytest.TestReport("t", ("t", 1, "t"), {}, outcome, None, when, user_properties=properties)


def test_each_kind_has_its_account() -> None:
    disk, clock = (KIND, "a full disk"), (KIND, "a clock")
    found = accounts(
        {
            "": [report("passed", disk, when="setup"), report("passed", disk, (TRIED, 5), when="teardown")],
            "passed": [report("passed", disk), report("passed", disk, (TRIED, 5), (TRIED, 6)), report("passed")],
            "failed": [report("failed", disk, (TRIED, 7)), report("failed", clock)],
            "error": [report("failed", clock, when="setup")],
            "skipped": [report("skipped", clock, when="setup")],
            "xfailed": [report("skipped", clock)],
            "warnings": ["no report"],
        }
    )
    assert found == {"a full disk": Account(19, 1, 0), "a clock": Account(2, 2, 1)}
    assert [line.split() for line in table(found)][-1] == ["together", "21", "3", "1"]


def test_what_else_happened_is_counted_once() -> None:
    cured, struck = (COUNTED, "cured"), (COUNTED, "struck")
    assert counts(
        {
            "": [report("passed", cured, struck, cured, when="teardown")],
            "passed": [report("passed", cured, struck, cured)],
            "failed": [report("failed", (KIND, "a clock"), cured)],
            "warnings": ["no report"],
        }
    ) == ["cured: 3", "struck: 1"]


NO_STAND = """
import pytest

pytestmark = pytest.mark.fault("a full disk")

@pytest.fixture(scope="module")
def stand():
    raise OSError("no server starts")

def test_it(stand):
    pass
"""


@pytest.mark.parametrize("processes", ["0", "1"])
def test_servers_that_do_not_start_are_a_loss(tmp_path: Path, processes: str) -> None:
    """They are started for a whole file, before anything that a single test brings along."""
    (tmp_path / "test_it.py").write_text(NO_STAND)
    options = ["-p", "faults.conftest", "-c", "/dev/null", f"--rootdir={tmp_path}", f"--numprocesses={processes}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-W", "ignore", str(tmp_path)],
        capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert ["a", "full", "disk", "0", "1", "0"] in [line.split() for line in done.stdout.splitlines()], done.stdout


def test_every_kind_of_this_suite_is_marked(request: pytest.FixtureRequest) -> None:
    """A fault without a mark would be missing in the table."""
    faults = [item for item in request.session.items if "/faults/" in f"/{item.nodeid}"]
    unmarked = {item.nodeid.partition("::")[0] for item in faults if not item.get_closest_marker("fault")}
    assert {name.rpartition("/")[2] for name in unmarked} <= {"test_tally.py", "test_hosts.py", "test_illness.py"}
