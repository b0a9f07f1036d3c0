"""The disk is full: that of the state directory, and that of HAProxy's and PgBouncer's own files.

What needs no file is done all the same. No file is ever a half one, what is missing is told, and everything is right
once there is space again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.haproxy import Haproxy
from efm_lb.rehearsal.hooks import efm_lb_hook, hook_environment
from efm_lb.rehearsal.pgpool import Pgpool
from efm_lb.rehearsal.verdict import wait_right
from efm_lb.rehearsal.waiting import wait_until
from faults.servers.disks import small_disk
from faults.servers.limits import limited_hook
from faults.servers.on_disk import SETTINGS, OnDisk
from faults.watch import Service
from integration.real import follow_ups, told

pytestmark = pytest.mark.fault("a full disk")
FULL = "No space left on device"


@pytest.fixture
def stand(cluster: Cluster, pgpool: Pgpool, tmp_path: Path) -> Iterator[OnDisk]:
    directory = cluster.stage.make_numbered_directory("disk")
    directory.chmod(0o711)
    with small_disk(directory, kib=256) as disk, ExitStack() as undo:
        yield OnDisk(cluster, pgpool, disk, undo, tmp_path.name)
    for pid in follow_ups(cluster):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def fill_last_page(stand: OnDisk) -> None:
    """Make calls until the journal can take no more: a page that it has already is its own."""
    for _ in range(20):
        run = stand("attach", stand.cluster.nodes[2].name, "s")
        assert run.exit_code == 0, run.output
        if FULL in run.output:
            return
    raise AssertionError("the journal goes on")


def test_an_event_on_a_full_disk(stand: OnDisk) -> None:
    old, new, _ = stand.cluster.nodes
    assert stand("attach", old.name, "p").exit_code == 0
    assert stand("maintenance", "set", "edge1", "--for", "1s").exit_code == 0
    time.sleep(1)
    stand.disk.fill()
    fill_last_page(stand)
    assert f"{stand.state} is on a full disk: no journal" in " ".join(stand("check").output.split())
    before = stand.files()
    detach = stand("detach", old.name, "p")
    assert detach.exit_code == 0, detach.output
    assert f"not journalled: {stand.state}/efm.journal: {FULL}" in detach.output
    assert stand.pgbouncer.paused(), "clients are held, file or no file"
    stand.switch()

    attach = stand("attach", new.name, "p")
    assert attach.exit_code == 75, attach.output
    assert f"not journalled: {stand.state}/efm.journal: {FULL}" in attach.output
    assert told(attach.output, "pool1").startswith(("changed", "unchanged")), attach.output
    assert FULL in told(attach.output, "edge1"), attach.output
    assert FULL in told(attach.output, "pgb1"), attach.output
    assert stand.haproxy.ready() == [new.host], "it is driven, file or no file"
    assert stand.balancers[0].primary() == new.host
    assert wait_until(lambda: not stand.pgbouncer.paused(), timeout=10), "they are let go after HOLD"

    again = stand("reconcile")
    assert again.exit_code == 75, again.output
    assert FULL in again.output
    after = stand.files()
    journal, longer = before.pop("efm.journal"), after.pop("efm.journal")
    assert longer.startswith(journal), "what was recorded stays"
    assert {name: after.get(name) for name in before} == before, "no file is half another one"
    assert not [name for name in after if name not in before and not name.endswith((".lock", ".held"))]

    stand.disk.clear()
    assert stand("reconcile").exit_code == 0
    assert [wait_right(stand.cluster, each, [old])[0] for each in stand.balancers] == [[], [], []]
    assert new.host in stand.files("databases.ini")["databases.ini"].decode()
    assert stand("attach", new.name, "p").exit_code == 0
    history = stand("history", "--limit", "0")
    assert history.exit_code == 0, history.output
    assert f"attach {new.name} primary: exit 0" in history.output
    assert f"attach {old.name} primary: exit 0" in history.output


def test_the_service_while_the_disk_is_full(stand: OnDisk) -> None:
    old, new, _ = stand.cluster.nodes
    assert stand("attach", old.name, "p").exit_code == 0
    with stand.disk.inside(), Service(stand.env_file) as service:
        assert wait_until(lambda: "efm.plan" in stand.files(), timeout=10)
        stand.disk.fill()
        fill_last_page(stand)
        stand.switch()
        assert wait_until(lambda: stand.haproxy.ready() == [new.host], timeout=20), service.output
        assert wait_until(lambda: f"cannot replace {stand.pgbouncer.entries}: {FULL}" in service.output, timeout=20)
        assert wait_until(lambda: "not journalled" in service.output, timeout=20), service.output
        stand.disk.clear()
        assert wait_until(stand.is_right, timeout=30, interval=0.1), service.output
        assert "Traceback" not in service.output


def test_records_that_did_not_fit(stand: OnDisk) -> None:
    """The last page of the disk takes a part of them; all that are whole are read, before and after."""
    standby = stand.cluster.nodes[2].name
    assert stand("attach", standby, "s").exit_code == 0
    stand.disk.fill(left=4096)
    runs = [stand("attach", standby, "s") for _ in range(5)]
    assert [run.exit_code for run in runs] == [0] * 5, "every balancer is right, and proven so"
    assert FULL in runs[-1].output
    history = stand("history", "--limit", "0")
    assert history.exit_code == 0, history.output
    stand.disk.clear()
    assert stand("attach", standby, "s").exit_code == 0
    history = stand("history", "--limit", "0")
    assert history.exit_code == 0, history.output
    recorded = sum("not journalled" not in run.output for run in runs)
    assert history.output.count(f"attach {standby} standby: exit 0 in") == recorded + 2, history.output


def test_what_is_kept_for_later_is_kept_or_refused(stand: OnDisk) -> None:
    """Maintenance, and settings that have changed."""
    standby = stand.cluster.nodes[2].name
    assert stand("maintenance", "set", standby, "--for", "2h", "--reason", "new disks").exit_code == 0
    stand.disk.fill()
    plan = stand.files("efm.plan")
    refused = stand("maintenance", "set", "edge1", "--for", "2h")
    assert refused.exit_code == 75, refused.output
    assert refused.output.endswith(f"{stand.state} cannot be written: {FULL}"), refused.output
    stand.env_file.write_text(stand.env_file.read_text().replace("EFM_LB_DEADLINE=8", "EFM_LB_DEADLINE=7"))
    run = stand("attach", standby, "s")
    assert run.exit_code == 0, run.output
    assert f"no plan could be stored: {stand.state}" in run.output, run.output
    assert FULL in run.output
    assert f"{standby} is in maintenance" in run.output
    assert stand.files("efm.plan") == plan
    stand.disk.clear()
    stand("attach", standby, "s")
    assert stand.files("efm.plan") != plan


def test_a_process_that_may_write_nothing(cluster: Cluster, pgpool: Pgpool, haproxy: Haproxy, tmp_path: Path) -> None:
    """The same without root's help: the kernel refuses each byte, as it does with a quota."""
    without = dict.fromkeys([name for name in SETTINGS if "PGB1" in name])
    env_file = hook_environment(cluster, [pgpool, haproxy], tmp_path.name, {**SETTINGS, **without})
    old, new, other = cluster.nodes
    assert efm_lb_hook(env_file)("attach", old.name, "p").exit_code == 0
    config = haproxy.config.read_text()
    old.stop()
    new.promote()
    other.follow(new)
    run = limited_hook("RLIMIT_FSIZE", 0, env_file)("attach", new.name, "p")
    assert run.exit_code == 75, run.output
    assert "not journalled" in run.output
    assert "File too large" in told(run.output, "edge1")
    assert haproxy.ready() == [new.host]
    assert pgpool.primary() == new.host
    assert haproxy.config.read_text() == config
    assert efm_lb_hook(env_file)("reconcile").exit_code == 0
    assert haproxy.config.read_text() != config
