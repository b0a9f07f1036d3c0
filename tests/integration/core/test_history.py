"""The journal and ``efm-lb history`` around real servers: a failover with its follow-up, and a hook that is killed."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from efm_lb.rehearsal import sql
from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.hooks import BARE_ENVIRONMENT, EFM_LB, Hook, efm_lb_hook, hook_environment
from efm_lb.rehearsal.pgpool import Pgpool
from efm_lb.rehearsal.waiting import wait_until


class Calls:
    """A hook, and what its host remembers."""

    def __init__(self, env_file: Path) -> None:
        self.env_file = env_file
        self.hook: Hook = efm_lb_hook(env_file)

    def history(self, *words: str) -> str:
        run = self.hook("history", *words)
        assert run.exit_code == 0, run.output
        return run.stdout

    def begin(self, *words: str) -> subprocess.Popen[bytes]:
        argv = [*EFM_LB, *words, f"--env-file={self.env_file}"]
        return subprocess.Popen(argv, env=dict(BARE_ENVIRONMENT), cwd="/", stdout=subprocess.DEVNULL)


@pytest.fixture
def calls(cluster: Cluster, pgpool: Pgpool, tmp_path: Path) -> Calls:
    return Calls(hook_environment(cluster, [pgpool], tmp_path.name))


def test_a_failover_that_efm_calls_about_once(calls: Calls, cluster: Cluster) -> None:
    old, new, other = cluster.nodes
    old.kill()
    assert calls.hook("detach", old.name, "p").exit_code == 0
    assert "Nothing yet: the follow-up will judge the call again" in calls.history("show", "last")
    new.promote()
    other.follow(new)

    def promoted() -> bool:
        return f"Every load balancer was told: promote {new.name}" in calls.history("show", "last")

    assert wait_until(promoted, timeout=20), calls.history("show", "last")
    text = calls.history("show", "last")
    assert f"{old.name}  is down: nobody listens there (0." in text
    assert f"{new.name}  is a standby, timeline 1 (0." in text
    assert f"{new.name}  is a primary, timeline 2 (0." in text
    assert "(rule R20 of" in text
    assert "(rule R13 of" in text
    assert "pool1  deferred in 0." in text
    assert "pool1  changed in " in text
    listed = calls.history().splitlines()
    assert f"detach {old.name} primary: exit 0 in 0." in listed[0]
    assert any(line.startswith("    follow-up at ") for line in listed)
    ((call,), document) = (json.loads(calls.history("--json"))[name] for name in ("calls", "schema"))
    assert document == "efm-lb/history/v1"
    assert [attempt["follow_up"] for attempt in call["attempts"]][:2] == [False, True]


def test_a_hook_that_is_killed_in_the_middle(calls: Calls, cluster: Cluster) -> None:
    """It waits for a node that does not come."""
    old = cluster.nodes[0]
    old.kill()
    with calls.begin("attach", old.name, "p") as process:
        try:
            began = f"It is still at work, as process {process.pid}."
            assert wait_until(lambda: began in calls.hook("history", "show", "last").output, timeout=10)
        finally:
            process.send_signal(signal.SIGKILL)
    assert calls.history().splitlines()[0].endswith(f"attach {old.name} primary: no end was written down")
    text = calls.history("show", "last")
    assert "The process was killed, the host lost power, or the disk, full or hung, took no record of its end" in text
    assert f"efm-lb attach {old.name} p --env-file {calls.env_file}" in text


def test_on_a_terminal(calls: Calls, cluster: Cluster) -> None:
    calls.hook("attach", cluster.nodes[2].name, "s")
    calls.hook("attach", "10.9.9.9", "s")
    mine, its = pty.openpty()
    try:
        argv = [*EFM_LB, "history", f"--env-file={calls.env_file}"]
        environment = {**BARE_ENVIRONMENT, "TERM": "xterm"}
        subprocess.run(argv, env=environment, cwd="/", stdin=its, stdout=its, stderr=its, timeout=60, check=True)
        os.close(its)
        output = b""
        with contextlib.suppress(OSError):  # its end, as Linux tells it
            while chunk := os.read(mine, 65536):
                output += chunk
    finally:
        os.close(mine)
    lines = output.decode().splitlines()
    assert len(lines) == 4
    assert "\x1b[1m" in lines[0]
    assert "\x1b[31m" in lines[2], "what failed is red"


def test_reading_while_hooks_write(calls: Calls, cluster: Cluster) -> None:
    standby = cluster.nodes[2].name
    calls.hook("attach", standby, "s")
    hooks = [calls.begin("attach", standby, "s") for _ in range(4)]
    try:
        until = time.monotonic() + 30
        while any(process.poll() is None for process in hooks) and time.monotonic() < until:
            assert "damaged" not in calls.history("--limit", "0")
    finally:
        for process in hooks:
            process.kill()
            process.wait()
    assert calls.history("--limit", "0").count(f"attach {standby} standby: exit 0 in") == 5


@pytest.fixture
def freezable(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which ``fsfreeze`` can make hang: who writes to it does not even end when killed."""
    image, directory = tmp_path / "image", tmp_path / "mounted"
    directory.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    made = all(
        shutil.which(argv[0]) and not subprocess.run(argv, check=False, capture_output=True).returncode
        for argv in (["mkfs.ext4", "-q", str(image)], ["mount", "-o", "loop", str(image), str(directory)])
    )
    if not made:
        pytest.skip("this machine lets nobody mount")
    yield directory
    subprocess.run(["fsfreeze", "-u", str(directory)], check=False, capture_output=True)
    subprocess.run(["umount", str(directory)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount and freeze a file system")
def test_a_state_directory_that_hangs_keeps_no_balancer_waiting(
    cluster: Cluster, pgpool: Pgpool, tmp_path: Path, freezable: Path
) -> None:
    calls = Calls(hook_environment(cluster, [pgpool], tmp_path.name, {"EFM_LB_STATE_DIR": freezable}))
    old, new, standby = cluster.nodes
    assert calls.hook("attach", standby.name, "s").exit_code == 0
    old.stop()
    new.promote()

    def moved() -> bool:
        try:
            return pgpool.primary() == new.host
        except sql.SqlError:
            return False

    subprocess.run(["fsfreeze", "-f", str(freezable)], check=True)
    with calls.begin("attach", new.name, "p") as process:
        try:
            assert wait_until(moved, timeout=10)
            assert process.poll() is None, "it cannot end before the disk goes on"
        finally:
            subprocess.run(["fsfreeze", "-u", str(freezable)], check=True)
        assert process.wait(timeout=20) == 0
    assert "Every load balancer was told: promote" in calls.history("show", "last"), "and it is recorded after all"
