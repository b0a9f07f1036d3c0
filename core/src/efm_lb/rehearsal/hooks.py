"""The hook as EFM runs it: a fresh process, a bare environment, ``/`` as its directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from efm_lb.rehearsal.balancer import Balancer, named
from efm_lb.rehearsal.cluster import PROBE_PASSWORD, PROBE_USER, Cluster

__all__ = ["EFM_LB", "Hook", "Run", "check", "efm_lb_hook", "hook_environment", "probe_passfile"]

EFM_LB = (sys.executable, "-I", "-m", "efm_lb")
"""The command of this installation."""

BARE_ENVIRONMENT: Mapping[str, str] = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"}
"""What systemd gives to EFM, and EFM to its scripts."""


@dataclass(frozen=True)
class Run:
    """One run of a hook.

    :param argv: the command line
    :param started: by ``time.monotonic()``
    :param seconds: the wall time, until the process had ended and its output was closed
    :param exit_code: None when it was killed because it took too long
    """

    argv: tuple[str, ...]
    started: float
    seconds: float
    exit_code: int | None
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        """What EFM would mail to a person."""
        return "\n".join(part for part in (self.stdout.strip(), self.stderr.strip()) if part)


@dataclass(frozen=True)
class Hook:
    """A load balancer script of EFM, with its settings.

    :param command: from the words EFM passes (``attach``, HOST, TYPE) to a command line
    :param environment: added to `BARE_ENVIRONMENT`
    :param timeout: seconds after which a run is killed; EFM itself has no limit
    """

    command: Callable[[Sequence[str]], Sequence[str]]
    environment: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 60.0

    def __call__(self, *words: str) -> Run:
        """Run it, such as ``hook("attach", "127.0.0.12", "p")``, and wait for its end.

        :raises OSError: it cannot be started
        """
        argv = tuple(self.command(words))
        started = time.monotonic()
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env={**BARE_ENVIRONMENT, **self.environment},
            start_new_session=True,
        )
        exit_code: int | None
        try:
            stdout, stderr = process.communicate(timeout=self.timeout)
            exit_code = process.returncode
        except subprocess.TimeoutExpired:
            # What a script has started holds its output open.
            os.killpg(process.pid, signal.SIGKILL)
            stdout, stderr = process.communicate(timeout=10)
            exit_code = None
        seconds = time.monotonic() - started
        return Run(
            argv, started, seconds, exit_code, stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace")
        )


def probe_passfile(cluster: Cluster) -> Path:
    """Write a PostgreSQL password file with the password of the role that hooks ask the databases as."""
    passfile = cluster.stage.directory / "probe.pgpass"
    passfile.touch(mode=0o600)
    passfile.write_text(f"*:*:*:{PROBE_USER}:{PROBE_PASSWORD}\n")
    return passfile


def hook_environment(
    cluster: Cluster,
    balancers: Sequence[Balancer],
    name: str = "efm",
    extra: Mapping[str, object] | None = None,
) -> Path:
    """Write an env file for efm-lb, and the password files and the state directory that it names.

    :param balancers: all that the hook brings right, called as `named` says
    :param name: of the file and of the state directory, for several hosts of one cluster
    :param extra: further variables, or other values for them; None leaves a variable out
    :return: the env file
    """
    directory = cluster.stage.directory
    state = directory / f"{name}.state"
    state.mkdir(mode=0o700, exist_ok=True)
    variables: dict[str, object] = {
        "EFM_LB_NODES": ",".join(node.address for node in cluster.nodes),
        "EFM_LB_PROBE__USER": PROBE_USER,
        "EFM_LB_PROBE__DBNAME": "postgres",
        "EFM_LB_PROBE__PASSFILE": probe_passfile(cluster),
        "EFM_LB_STATE_DIR": state,
    }
    for called, balancer in named(balancers).items():
        variables |= {f"EFM_LB_BALANCERS__{called.upper()}__{key}": value for key, value in balancer.settings.items()}
    variables |= extra or {}
    file = directory / f"{name}.env"
    file.touch(mode=0o600)
    file.write_text("".join(f"{key}={value}\n" for key, value in variables.items() if value is not None))
    return file


def check(env_file: Path) -> Run:
    """``efm-lb check`` with the settings in ``env_file``; it compiles them, as it does on a host that EFM runs on."""
    return efm_lb_hook(env_file)("check")


def efm_lb_hook(env_file: Path, timeout: float = 60.0) -> Hook:
    """This installation's ``efm-lb`` with the settings in ``env_file``."""

    return Hook(lambda words: [*EFM_LB, *words, f"--env-file={env_file}"], timeout=timeout)
