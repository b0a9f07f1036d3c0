"""What systemd hears of the service, through a real socket."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from efm_lb.reconcile import service
from efm_lb.reconcile.rounds import Round
from efm_lb.reconcile.supervisor import ALIVE, READY, Supervisor
from efm_lb.rehearsal.waiting import wait_until

SETTINGS = """\
EFM_LB_NODES=127.0.0.1:9
EFM_LB_PROBE__USER=efm
EFM_LB_STATE_DIR={directory}
EFM_LB_RECONCILE__PERIOD=600
EFM_LB_BALANCERS__EDGE__ADAPTER=haproxy
EFM_LB_BALANCERS__EDGE__SOCKET={directory}/none.sock
EFM_LB_BALANCERS__EDGE__WRITE=w
"""


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket that listens as systemd's does, and its name in NOTIFY_SOCKET."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@efm-lb/{tmp_path.name}-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0"))
        listener.setblocking(False)
        yield listener, name


def heard(listener: socket.socket) -> list[str]:
    """What has come since."""
    found = []
    while select.select([listener], [], [], 0)[0]:
        found.append(listener.recv(4096).decode())
    return found


def test_a_service_that_rests_gives_signs_of_life(systemd: tuple[socket.socket, str], tmp_path: Path) -> None:
    listener, name = systemd
    env_file = tmp_path / "efm.env"
    env_file.write_text(SETTINGS.format(directory=tmp_path))
    env_file.chmod(0o600)
    with subprocess.Popen(
        [sys.executable, "-m", "efm_lb", "reconcile", "--watch", f"--env-file={env_file}"],
        stdout=subprocess.DEVNULL,
        env={"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "400000"},
        cwd="/",
    ) as watching:
        try:
            said: list[str] = []
            assert wait_until(lambda: said.extend(heard(listener)) or said.count(ALIVE) > 5, timeout=60), said
            assert (said[0], said.count(READY)) == (READY, 1)
        finally:
            watching.terminate()
    assert watching.returncode == 0


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "1000000"},
        {"NOTIFY_SOCKET": "/x"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "0"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "9" * 5000},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
    ],
)
def test_nobody_who_waits(environ: dict[str, str]) -> None:
    supervisor = Supervisor(environ)
    assert supervisor.period == float("inf")
    supervisor.tell(ALIVE)


def test_the_period_is_in_seconds() -> None:
    environ = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "120000000", "WATCHDOG_PID": str(os.getpid())}
    assert Supervisor(environ).period == 120


def test_a_systemd_that_does_not_read_is_not_waited_for(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        supervisor = Supervisor({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        for _ in range(5000):  # more than a socket takes
            supervisor.tell(ALIVE)
        assert 0 < len(heard(listener)) < 5000


class Hung(Exception):
    """The round does not end."""


def test_a_round_that_hangs_gives_none(systemd: tuple[socket.socket, str]) -> None:
    """The signs come from the one who does the work, and not from beside it."""
    listener, name = systemd
    before: list[str] = []

    class Rounds:
        def play(self, patience: float) -> Round:
            before.extend(heard(listener))
            if before.count(ALIVE) < 3:
                return Round((), {}, True, time.monotonic())
            time.sleep(0.3)
            before.append("hung")
            before.extend(heard(listener))
            raise Hung

    class Vigil:
        def wait(self, until: float) -> bool:
            return True

    class Configuration:
        class reconcile:
            period = 1.0

    supervisor = Supervisor({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "100000"})
    with pytest.raises(Hung):
        service._watch(Configuration(), False, lambda: False, Vigil(), Rounds(), supervisor)  # type: ignore[arg-type]
    assert before == [READY, ALIVE, ALIVE, ALIVE, "hung"]
