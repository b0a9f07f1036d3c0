"""PgBouncer's host, as far as ssh goes: an env file of its own, and a key that may run ``efm-lb apply``."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from efm_lb.rehearsal.cluster import Cluster
from efm_lb.rehearsal.hooks import EFM_LB, Hook, hook_environment
from efm_lb.rehearsal.pgbouncer import Pgbouncer
from efm_lb.rehearsal.sshd import Sshd


class Estate:
    """A cluster, a PgBouncer on another host, and a hook that reaches it by ssh only.

    :ivar there: the env file of PgBouncer's host
    """

    def __init__(self, cluster: Cluster, pooler: Pgbouncer, directory: Path) -> None:
        self.cluster = cluster
        self.pooler = pooler
        name = directory.name
        self.there = hook_environment(cluster, [pooler], f"{name}-there")
        self.sshd = Sshd(directory, self.forced())
        self.extra: dict[str, object] = {
            "EFM_LB_BALANCERS__PGB1__ADAPTER": "pgbouncer",
            "EFM_LB_BALANCERS__PGB1__HOST_SSH": self.sshd.destination,
        }
        self._name = f"{name}-here"

    def forced(self) -> str:
        """The forced command."""
        return " ".join([*EFM_LB, "apply", f"--env-file={self.there}"])

    def hook(self, **extra: object) -> Hook:
        env_file = hook_environment(self.cluster, [], self._name, {**self.extra, **extra})
        return Hook(lambda words: [*EFM_LB, *words, f"--env-file={env_file}"], {"PATH": self.sshd.path}, timeout=40)

    def state(self, where: str) -> Path:
        """The state directory ``here``, where the hook runs, or ``there``."""
        return self.there.parent / f"{self._name.removesuffix('-here')}-{where}.state"

    def close(self) -> None:
        """End sshd, and the shared connections, which go on for a minute otherwise."""
        self.sshd.stop()
        for socket in self.state("here").parent.glob("*/*.ssh"):
            argv = ["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "nobody"]
            subprocess.run(argv, check=False, capture_output=True, timeout=10)


@pytest.fixture
def estate(cluster: Cluster, pgbouncer: Pgbouncer, tmp_path: Path) -> Iterator[Estate]:
    made = Estate(cluster, pgbouncer, tmp_path)
    yield made
    made.close()
