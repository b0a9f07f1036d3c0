"""What docs/haproxy.md shows is run as it stands there: its haproxy.cfg, and TLS for a HAProxy on another host."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from efm_lb import PermanentError, Promote, Result, Severity, TemporaryError
from efm_lb.rehearsal import programs
from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.haproxy import Haproxy
from efm_lb.rehearsal.stage import Stage, free_port
from efm_lb.rehearsal.waiting import wait_until
from efm_lb_haproxy import adapter
from integration.haproxy.conftest import Manager
from unit.docs.documents import blocks, read

HEAD, *REST = blocks(read("docs/haproxy.md"), "text")
(TLS,) = (block for block in REST if "ssl crt" in block)
(RECIPE,) = (block for block in blocks(read("docs/haproxy.md"), "sh") if "openssl" in block)


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    """The text with what this host does not have in the words of this host."""
    for found, here in pairs:
        assert found in text
        text = text.replace(found, here)
    return text


def page(cluster: Cluster) -> str:
    """The page's haproxy.cfg, for the cluster's nodes and on ports that are free."""
    nodes = [(f"10.0.0.{number}:5444", node.address) for number, node in enumerate(cluster.nodes, start=11)]
    ports = [(f"bind :{port}", f"bind 127.0.0.1:{free_port('127.0.0.1')}") for port in ("5000", "5001")]
    return replaced(HEAD, *nodes, *ports)


def test_the_configuration_is_one_that_check_has_nothing_against(
    start_haproxy: Callable[..., Haproxy], cluster: Cluster, manage: Callable[..., Manager]
) -> None:
    haproxy = start_haproxy()
    worker = haproxy.worker()
    haproxy.write_config(
        replaced(page(cluster), ("/run/haproxy/admin.sock user efm", f"{haproxy.socket} expose-fd listeners"))
    )
    haproxy.reload()
    assert worker
    haproxy.wait_reloaded(worker)
    manager = manage(haproxy)
    findings = list(adapter.efm_lb_check(manager.truth(), manager.balancer, time.monotonic() + 10))
    assert [str(finding) for finding in findings if finding.severity is not Severity.OK] == []
    assert manager.belief() == "W r r"
    assert manager.send(Promote, 1, truth=manager.as_if("xPs")).result is Result.CHANGED
    assert manager.belief() == "- W r"


def make_certificates(directory: Path) -> Path:
    """By the page's commands, but for the address that stands for ``edge1`` here."""
    script = replaced(RECIPE, ("DNS:$name", "IP:127.0.0.1"))
    directory.mkdir()
    subprocess.run(["sh", "-eu"], input=script.encode(), cwd=directory, check=True, capture_output=True, timeout=120)
    return directory


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("openssl"):
        pytest.skip("needs openssl")
    return make_certificates(tmp_path_factory.mktemp("page") / "ours")


@pytest.fixture(scope="module")
def others(certificates: Path) -> Path:
    """Certificates of another authority."""
    return make_certificates(certificates.with_name("others"))


@pytest.mark.parametrize("name", ["edge1", "client"])
def test_the_certificates_are_good_enough_for_a_strict_reader(certificates: Path, name: str) -> None:
    """Python is one from 3.13 on."""
    for path in ("ca.key", f"{name}.pem"):
        assert (certificates / path).stat().st_mode & 0o077 == 0
    done = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-CAfile", "ca.pem", f"{name}.crt"],
        cwd=certificates, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A stage whose servers run as root until they give that up themselves."""
    if os.geteuid():
        pytest.skip("a chroot needs root; without one, see test_traps.py")
    try:
        pwd.getpwnam("haproxy")
    except KeyError:
        pytest.skip("this host has no user haproxy")
    with Stage() as stage:
        stage.account = None
        yield stage


def test_tls_in_front_of_a_socket_inside_a_chroot(
    stage: Stage, certificates: Path, others: Path, cluster: Cluster, manage: Callable[..., Manager]
) -> None:
    jail = stage.directory / "jail"
    jail.mkdir(mode=0o755)
    port = free_port("127.0.0.1")
    text = replaced(
        TLS,
        ("/var/lib/haproxy", str(jail)),
        ("/etc/haproxy/cli.pem", str(certificates / "edge1.pem")),
        ("/etc/haproxy/ca.pem", str(certificates / "ca.pem")),
        ("bind :9999", f"bind 127.0.0.1:{port}"),
    )
    proxies = page(cluster)
    path = stage.directory / "haproxy.cfg"
    path.write_text(text + "\n" + proxies[proxies.index("defaults\n") :])
    master = stage.start([programs.haproxy(), "-W", "-db", "-f", path], stage.directory / "log")
    assert wait_until(lambda: (jail / "cli.sock").exists(), 10), (stage.directory / "log").read_text()

    address = f"127.0.0.1:{port}"
    authority, client = str(certificates / "ca.pem"), str(certificates / "client.pem")

    def managed(**settings: str) -> Manager:
        return manage(Anybody(), socket=address, config=None, **settings)

    def nobody_else_gets_in() -> None:
        for settings in ({}, {"certfile": str(others / "client.pem")}):
            with pytest.raises(TemporaryError, match=r"broke the connection|handshake failed"):
                managed(cafile=authority, **settings).view()
        with pytest.raises(TemporaryError, match="closed the connection without an answer"):
            managed().view()
        with pytest.raises(PermanentError, match="its certificate is not accepted"):
            managed(cafile=str(others / "ca.pem"), certfile=client).view()

    manager = managed(cafile=authority, certfile=client)
    assert wait_until(lambda: writers(manager) == [True, False, False], 10)
    assert manager.send(Promote, 1, truth=manager.as_if("xPs")).result is Result.CHANGED
    assert writers(manager) == [False, True, False]
    worker = worker_of(jail)
    assert f"Uid:\t{pwd.getpwnam('haproxy').pw_uid}\t" in Path(f"/proc/{worker}/status").read_text()
    assert os.readlink(f"/proc/{worker}/root") == str(jail)
    nobody_else_gets_in()
    master.send_signal(signal.SIGUSR2)
    assert wait_until(lambda: worker_of(jail) not in (0, worker), 10)
    assert wait_until(lambda: writers(manager) == [True, False, False], 5), "nothing is kept, as the page says"
    nobody_else_gets_in()


def writers(manager: Manager) -> list[bool]:
    """Which nodes get the writes, none while there is no answer."""
    try:
        return [node.writes for node in manager.view().nodes]
    except TemporaryError:
        return []


class Anybody:
    """What a `Manager` asks of a HAProxy, for one that is not on this host."""

    socket = config = Path("/absent")


def worker_of(jail: Path) -> int:
    """The pid of the worker that listens in the chroot, 0 while none does."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(2)
        try:
            connection.connect(str(jail / "cli.sock"))
            connection.sendall(b"show info\n")
            text = b""
            while piece := connection.recv(65536):
                text += piece
        except OSError:
            return 0
    facts = dict(line.split(": ", 1) for line in text.decode().splitlines() if ": " in line)
    return int(facts["Pid"]) if facts.get("Stopping") == "0" else 0
