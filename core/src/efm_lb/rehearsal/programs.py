"""Where the server programs of PostgreSQL and the load balancers are, and as whom they run."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from efm_lb.errors import EX_UNAVAILABLE, EfmLbError

__all__ = [
    "Account",
    "MissingProgramError",
    "haproxy",
    "pgbouncer",
    "pgpool",
    "postgres_bindir",
    "server_account",
    "sshd",
]


class MissingProgramError(EfmLbError):
    """A server program that the rehearsal needs is not installed; the message names its package."""

    exit_code = EX_UNAVAILABLE


@dataclass(frozen=True)
class Account:
    """An operating system account to run a server as."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def postgres_bindir() -> Path:
    """The directory of ``postgres`` and ``initdb``: pg_config's, else the newest packaged one, else the PATH's.

    :raises MissingProgramError: PostgreSQL's server is not installed
    """
    for directory in _bindirs():
        if all(os.access(directory / program, os.X_OK) for program in ("postgres", "initdb", "pg_rewind")):
            return directory
    raise MissingProgramError(
        "PostgreSQL's server programs (postgres, initdb) were not found:"
        " install the package postgresql (Debian, Ubuntu) or postgresql-server (Red Hat)"
    )


def pgpool() -> Path:
    """The program ``pgpool``.

    :raises MissingProgramError: pgpool is not installed
    """
    found = _server_program("pgpool")
    if not found:
        raise MissingProgramError(
            "pgpool was not found: install the package pgpool2 (Debian, Ubuntu) or pgpool-II (Red Hat)"
        )
    return found


def pgbouncer() -> Path:
    """The program ``pgbouncer``.

    :raises MissingProgramError: PgBouncer is not installed
    """
    found = _server_program("pgbouncer")
    if not found:
        raise MissingProgramError("pgbouncer was not found: install the package pgbouncer")
    return found


def sshd() -> Path:
    """The program ``sshd``.

    :raises MissingProgramError: OpenSSH's server is not installed
    """
    found = _server_program("sshd")
    if not found:
        raise MissingProgramError("sshd was not found: install the package openssh-server")
    return found


def haproxy() -> Path:
    """The program ``haproxy``.

    :raises MissingProgramError: HAProxy is not installed
    """
    found = _server_program("haproxy")
    if not found:
        raise MissingProgramError("haproxy was not found: install the package haproxy")
    return found


def server_account() -> Account | None:
    """The account to run servers as: ``postgres`` when this process is root, which PostgreSQL refuses; else None.

    :raises MissingProgramError: this process is root and there is no such account
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("postgres")
    except KeyError:
        raise MissingProgramError(
            "PostgreSQL does not run as root, and there is no account postgres: run as an ordinary user"
        ) from None
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, groups)


def _server_program(name: str) -> Path | None:
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def _bindirs() -> list[Path]:
    found: list[Path] = []
    if pg_config := shutil.which("pg_config"):
        answer = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, timeout=10, check=False)
        if answer.returncode == 0:
            found.append(Path(answer.stdout.strip()))
    packaged = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr").glob("pgsql-*/bin")]
    found += sorted(packaged, key=lambda path: int("".join(re.findall(r"\d+", str(path))) or 0), reverse=True)
    if postgres := shutil.which("postgres"):
        found.append(Path(postgres).parent)
    return found
