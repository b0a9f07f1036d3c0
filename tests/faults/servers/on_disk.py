"""A pgpool, a HAProxy and a PgBouncer, with efm-lb's state and the balancers' own files on one disk."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.haproxy import Haproxy
from efm_lb.rehearsal.hooks import Run, efm_lb_hook, hook_environment
from efm_lb.rehearsal.host import Host
from efm_lb.rehearsal.pgbouncer import Pgbouncer
from efm_lb.rehearsal.pgpool import Pgpool
from efm_lb.rehearsal.verdict import misbeliefs
from faults.servers.disks import Disk

__all__ = ["SETTINGS", "OnDisk"]

SETTINGS: Mapping[str, object] = {
    "EFM_LB_DEADLINE": 8,
    "EFM_LB_CONNECT_TIMEOUT": 1,
    "EFM_LB_RECONCILE__PERIOD": 1,
    "EFM_LB_RECONCILE__SETTLE": 0.2,
    "EFM_LB_RECONCILE__HOLD": 1,
    "EFM_LB_RECONCILE__DETACH_AFTER": 1,
    "EFM_LB_BALANCERS__PGB1__HOLD": 1,
}


class OnDisk:
    """They.

    :ivar config: where the balancers' files are
    :ivar state: ``EFM_LB_STATE_DIR``
    """

    def __init__(self, cluster: Cluster, pgpool: Pgpool, disk: Disk, undo: ExitStack, name: str) -> None:
        self.cluster = cluster
        self.disk = disk
        host = Host("127.0.0.1", inside=disk.inside)
        self.haproxy = undo.enter_context(Haproxy.start(cluster, host=host))
        self.pgbouncer = undo.enter_context(Pgbouncer.start(cluster, {"server_login_retry": 1}, host=host))
        self.balancers = (pgpool, self.haproxy, self.pgbouncer)
        self.config, self.state = disk.directory / "conf", disk.directory / "state"
        with disk.inside():
            self.config.mkdir()
            self.state.mkdir()
            cluster.stage.give(self.config)
            self._move_files()
        self.env_file = hook_environment(cluster, self.balancers, name, {**SETTINGS, "EFM_LB_STATE_DIR": self.state})

    def _move_files(self) -> None:
        self.haproxy.process.stop()
        text = self.haproxy.config.read_text()
        self.haproxy.config = self.config / "haproxy.cfg"
        self.haproxy.write_config(text)
        self.haproxy.launch()
        ini = self.pgbouncer.directory / "pgbouncer.ini"
        entries = self.config / "databases.ini"
        ini.write_text(ini.read_text().replace(str(self.pgbouncer.entries), str(entries)))
        self.pgbouncer.entries = entries
        self.pgbouncer.write_entries(self.pgbouncer.first_entries())
        self.pgbouncer.restart()

    def __call__(self, *words: str) -> Run:
        """Run efm-lb; it ends in a way that the contract knows, and without a traceback."""
        with self.disk.inside():
            run = efm_lb_hook(self.env_file)(*words)
        assert "Traceback" not in run.output, run.output
        assert "a bug in efm-lb" not in run.output, run.output
        return run

    def files(self, *ending: str) -> dict[str, bytes]:
        """The files on the disk, or those with such an ending, by their names."""
        with self.disk.inside():
            return {
                path.name: path.read_bytes()
                for directory in (self.config, self.state)
                for path in sorted(directory.iterdir())
                if not ending or path.name.endswith(ending)
            }

    def is_right(self) -> bool:
        return not any(misbeliefs(self.cluster, each) for each in self.balancers)

    def switch(self) -> None:
        """Node 0 stops, and node 1 is promoted."""
        old, new, other = self.cluster.nodes
        old.stop()
        new.promote()
        other.follow(new)
