"""The systemd units that are shipped."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from efm_lb.follow_up import ATTEMPT
from efm_lb.reconcile.service import Arguments, parse

UNITS = Path(__file__).parents[2] / "systemd"
COMMAND = "/opt/efm-lb/bin/efm-lb"


def command_lines() -> list[list[str]]:
    lines = [line for unit in sorted(UNITS.glob("*.service")) for line in unit.read_text().splitlines()]
    return [line.removeprefix("ExecStart=").split() for line in lines if line.startswith("ExecStart=")]


def test_their_commands_are_those_of_efm_lb() -> None:
    once, watch = ([word.replace("%i", "acctg") for word in words] for words in command_lines())
    assert once[:2] == watch[:2] == [COMMAND, "reconcile"]
    assert parse(once[2:]) == Arguments(cluster="acctg")
    assert parse(watch[2:]) == Arguments(cluster="acctg", watch=True)


def test_the_service_is_watched_and_given_enough_time() -> None:
    """A sign of life comes before each look, which takes two connects and the sending."""
    lines = (UNITS / "efm-lb-reconcile@.service").read_text().splitlines()
    assert "Type=notify" in lines
    (seconds,) = [int(line.removeprefix("WatchdogSec=")) for line in lines if line.startswith("WatchdogSec=")]
    assert seconds >= 2 * (50 + 1) + ATTEMPT + 10


def settings(unit: str) -> set[str]:
    return {line for line in (UNITS / unit).read_text().splitlines() if line and line[0] not in "[#"}


def test_a_single_look_that_hangs_does_not_keep_the_timer_from_the_next() -> None:
    """A oneshot service has no time-out unless it says so."""
    (seconds,) = [
        int(line.removeprefix("TimeoutStartSec="))
        for line in settings("efm-lb-reconcile-once@.service")
        if line.startswith("TimeoutStartSec=")
    ]
    assert seconds >= 30 + 2 * (20 + 1) + ATTEMPT + 10, "EFM_LB_DEADLINE, two connects, the sending"


def test_a_single_look_is_locked_up_as_the_service_is() -> None:
    of_one_alone = (
        "Description",
        "ExecStart",
        "Type",
        "Restart=",
        "RestartSec",
        "WatchdogSec",
        "TimeoutStart",
        "WantedBy",
    )
    service, once = (
        {line for line in settings(f"efm-lb-reconcile{kind}@.service") if not line.startswith(of_one_alone)}
        for kind in ("", "-once")
    )
    assert service == once
    assert len(service) > 20


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_understands_them(tmp_path: Path) -> None:
    for unit in UNITS.iterdir():
        (tmp_path / unit.name).write_text(unit.read_text().replace(COMMAND, sys.executable))
    units = [str(unit) for unit in sorted(tmp_path.iterdir())]
    done = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=60, check=False
    )
    assert "efm-lb" not in done.stderr, done.stderr
    assert len(units) == 3
