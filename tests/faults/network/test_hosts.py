"""The hosts and their faults are what they are said to be."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from faults.network.hosts import Fault, Hosts
from faults.network.namespaces import remove_leftovers
from faults.network.stand import open_hosts

PORT = 4000


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with open_hosts(("a", "b", "c")) as hosts:
        yield hosts


@contextmanager
def listening(hosts: Hosts, name: str) -> Iterator[socket.socket]:
    with hosts[name].inside(), socket.create_server((hosts[name].address, PORT)) as listener:
        yield listener


def connected(hosts: Hosts, one: str, other: str, timeout: float = 0.7) -> float | str:
    """The seconds that it took, or what went wrong."""
    began = time.monotonic()
    with hosts[one].inside(), socket.socket() as client:
        client.settimeout(timeout)
        try:
            client.connect((hosts[other].address, PORT))
        except TimeoutError:
            return "silence"
        except OSError as error:
            return errno.errorcode[error.errno or 0]
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("fault", "there", "back"),
    [
        (Fault.BLACK_HOLE, "silence", "silence"),
        (Fault.HALF_OPEN, "silence", "silence"),
        (Fault.REJECT, "ECONNREFUSED", "ECONNREFUSED"),
        (Fault.PROHIBITED, "EHOSTUNREACH", "EHOSTUNREACH"),
    ],
)
def test_a_connect_meets_the_fault_and_only_there(hosts: Hosts, fault: Fault, there: str, back: str) -> None:
    with ExitStack() as stack:
        for name in ("a", "b", "c"):
            stack.enter_context(listening(hosts, name))
        with hosts.fault(fault, "a", "b"):
            assert connected(hosts, "a", "b") == there
            assert connected(hosts, "b", "a") == back
            assert isinstance(connected(hosts, "a", "c"), float)
            assert isinstance(connected(hosts, "c", "b"), float)
        assert isinstance(connected(hosts, "a", "b"), float)
        assert isinstance(connected(hosts, "b", "a"), float)


def test_half_open_is_one_way_only(hosts: Hosts) -> None:
    with hosts["b"].inside():
        there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        there.bind((hosts["b"].address, PORT))
    with hosts["a"].inside():
        here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        here.bind((hosts["a"].address, PORT))
    with there, here, hosts.fault(Fault.HALF_OPEN, "a", "b"):
        here.sendto(b"arrives", there.getsockname())
        there.settimeout(5)
        assert there.recv(100) == b"arrives"
        there.sendto(b"does not", here.getsockname())
        here.settimeout(0.3)
        with pytest.raises(TimeoutError):
            here.recv(100)


def test_a_reset_ends_what_is_open(hosts: Hosts) -> None:
    with listening(hosts, "b") as listener, hosts["a"].inside(), socket.socket() as client:
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        with server, hosts.fault(Fault.REJECT, "a", "b"):
            client.sendall(b"?")
            client.settimeout(5)
            with pytest.raises(ConnectionResetError):
                client.recv(1)


def test_a_slow_wire_takes_its_time(hosts: Hosts) -> None:
    with listening(hosts, "b"):
        with hosts.fault(Fault.DELAY, "a", "b"):
            connected(hosts, "a", "b")  # asks for the other's hardware address as well
            took = connected(hosts, "a", "b")
            assert isinstance(took, float)
            assert took >= 0.2
        assert isinstance(connected(hosts, "a", "b"), float)


def test_some_packets_are_lost(hosts: Hosts) -> None:
    with hosts["b"].inside():
        there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        there.bind((hosts["b"].address, PORT))
    with hosts["a"].inside():
        here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with there, here, hosts.fault(Fault.LOSS, "a", "b"):
        for _ in range(200):
            here.sendto(b".", there.getsockname())
        there.settimeout(0.3)
        arrived = 0
        with suppress(TimeoutError):
            while True:
                arrived += len(there.recv(10))
    assert 100 < arrived < 195


def test_a_partition(hosts: Hosts) -> None:
    with listening(hosts, "b"), listening(hosts, "c"), hosts.partition(("a",), ("b", "c")):
        assert connected(hosts, "a", "b", 0.3) == "silence"
        assert connected(hosts, "a", "c", 0.3) == "silence"
        assert isinstance(connected(hosts, "b", "c"), float)


def test_what_a_killed_run_leaves_behind_is_removed_by_the_next(hosts: Hosts) -> None:
    program = (
        "import sys, time; from faults.network.hosts import Hosts; hosts = Hosts(['a'])\n"
        "print('made', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
    assert run.stdout
    assert run.stdout.readline() == "made\n"
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    left = list(Path("/run/netns").glob(f"efm-lb-{run.pid}-*"))
    assert len(left) == 2
    assert {path.name for path in left} <= set(remove_leftovers())
    assert not any(path.exists() for path in left)
