"""ssh's command line."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from efm_lb.head_start import HeadStart
from efm_lb.outcomes import PermanentError
from efm_lb.rehearsal.waiting import wait_until
from efm_lb.remote.client import Destination
from efm_lb.remote.ssh import Run, start


def options(destination: Destination, alone: bool = False) -> dict[str, str]:
    words = destination.argv(alone)
    return dict(words[n + 1].split("=", 1) for n, word in enumerate(words) if word == "-o")


@pytest.mark.parametrize("seconds", [0.2, 1, 2, 2.5, 4, 6, 10, 60])
def test_a_host_that_vanishes_is_noticed_in_the_time_that_a_silent_one_costs(seconds: float) -> None:
    """ssh asks after each interval, and gives up when it should ask once more than the most."""
    given = options(Destination("pgb1", seconds, "/nowhere", "efm.pgb1"))
    noticed = int(given["ServerAliveInterval"]) * (int(given["ServerAliveCountMax"]) + 1)
    assert noticed <= max(3, int(given["ConnectTimeout"]))
    assert seconds <= int(given["ConnectTimeout"]) < seconds + 1


def test_each_destination_has_a_socket_of_its_own() -> None:
    with TemporaryDirectory() as directory:  # short: a socket's path is
        one, other = (Destination(name, 2, directory, "efm.pgb1") for name in ("pgb1", "root@pgb1"))
        assert one.shared != other.shared
        assert options(one)["ControlPath"] == one.shared
        assert options(one, alone=True)["ControlPath"] == "none"


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_no_socket_where_others_could_put_theirs(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    assert not Destination("pgb1", 2, str(tmp_path), "efm.pgb1").shared


def test_ssh_is_started_before_the_hook_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "ssh"
    fake.write_text("#!/bin/sh\nexec cat\n")
    fake.chmod(0o755)
    elsewhere = ("pgb1", "pgbouncer", {}, 2.0, "efm-lb@pgb1")
    here = ("pool1", "pgpool", {}, 2.0, "")
    settings = {
        "connect_timeout": 2.0,
        "probe": {},
        "logins": (),
        "nodes": (),
        "cluster": "efm",
        "state_dir": str(tmp_path),
    }
    monkeypatch.setenv("PATH", str(tmp_path))
    assert HeadStart({**settings, "balancers": (here,)}).clients == {}
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    with pytest.raises(PermanentError, match="ssh cannot be run"):
        start(Destination("pgb1", 2, str(tmp_path), "efm.pgb1"))
    assert HeadStart({**settings, "balancers": (here, elsewhere)}).clients == {}, "whoever needs it says so"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    clients = HeadStart({**settings, "balancers": (here, elsewhere)}).clients
    assert list(clients) == ["pgb1"]
    client = clients["pgb1"]
    assert client.destination.argv() == Destination("efm-lb@pgb1", 2, str(tmp_path), "efm.pgb1").argv()
    assert Run(client).ask(b"said\n", client.started + 10) == b"said\n"


def test_what_was_ended_leaves_no_zombie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service asks a silent host every few seconds, for days."""
    fake = tmp_path / "ssh"
    fake.write_text("#!/bin/sh\nexec sleep 60\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    destination = Destination("host", 1.0, str(tmp_path / "none"), "efm.pool1")

    def give_up() -> int:
        run = start(destination, alone=True)
        run.give_up()
        return run._pid

    def is_left(pid: int) -> bool:
        return Path(f"/proc/{pid}").exists()

    pids = [give_up() for _ in range(5)]
    assert wait_until(lambda: give_up() and not any(map(is_left, pids)), timeout=10)
    os.waitpid(give_up(), 0)
