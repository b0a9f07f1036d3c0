"""The disk of efm-lb's state and of the balancers' files hangs: who writes to it waits, and cannot be killed."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.hooks import BARE_ENVIRONMENT, EFM_LB
from efm_lb.rehearsal.pgpool import Pgpool
from efm_lb.rehearsal.waiting import wait_until
from faults.servers.disks import real_disk
from faults.servers.on_disk import SETTINGS, OnDisk
from integration.real import told

pytestmark = pytest.mark.fault("a slow disk")


@pytest.fixture
def stand(cluster: Cluster, pgpool: Pgpool, tmp_path: Path) -> Iterator[OnDisk]:
    directory = cluster.stage.make_numbered_directory("disk")
    directory.chmod(0o711)
    with real_disk(directory, tmp_path / "image") as disk, ExitStack() as undo:
        yield OnDisk(cluster, pgpool, disk, undo, tmp_path.name)


def test_a_promotion_while_the_disk_hangs(stand: OnDisk) -> None:
    """What needs no file is driven. The rest is told, once the process may end, and put right."""
    old, new, _ = stand.cluster.nodes
    assert stand("attach", old.name, "p").exit_code == 0
    stand.switch()
    argv = [*EFM_LB, "attach", new.name, "p", f"--env-file={stand.env_file}"]
    with ExitStack() as undo:
        with stand.disk.frozen():
            with stand.disk.inside():
                process = undo.enter_context(
                    subprocess.Popen(argv, stdout=subprocess.PIPE, env=dict(BARE_ENVIRONMENT), cwd="/", text=True)
                )
            assert wait_until(lambda: stand.haproxy.ready() == [new.host], timeout=15)
            assert wait_until(lambda: stand.balancers[0].beliefs()[new.number].writes, timeout=15)
            time.sleep(float(str(SETTINGS["EFM_LB_DEADLINE"])) + 2)  # none of it is left
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert told(output, "pool1").startswith(("changed", "unchanged")), output
    assert "did not return within EFM_LB_DEADLINE" in told(output, "pgb1"), output
    assert "the disk has not taken it in time" in output, output
    assert stand("reconcile").exit_code == 0
    assert stand.is_right()
    assert stand("history").exit_code == 0
