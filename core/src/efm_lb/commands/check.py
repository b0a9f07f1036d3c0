"""``efm-lb check``: look for what will go wrong on the day, and change nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from efm_lb.commands import efm_properties
from efm_lb.commands.observe import ask, log_in
from efm_lb.commands.tables import print_table
from efm_lb.configuration import Configuration
from efm_lb.dispatch import Dispatcher
from efm_lb.errors import EX_OK, EX_UNAVAILABLE
from efm_lb.reconcile.differences import no_primary
from efm_lb.truth import NodeState, Reach, Truth
from efm_lb.views import Finding, Severity

__all__ = ["check"]

SCHEMA = "efm-lb/check/v1"
_STYLES = {Severity.OK: "", Severity.WARNING: "yellow", Severity.ERROR: "red"}


def check(configuration: Configuration, as_json: bool, properties: str | None = None) -> int:
    """Print what was looked at and what was found, errors last.

    :param properties: the path of EFM's properties, None to leave them out
    :return: 0 when there is no error (warnings may remain), 69 otherwise
    :raises EfmLbError: there is no libpq on this host, or EFM's properties cannot be read
    """
    given = efm_properties.read(properties) if properties else None
    truth = ask(configuration)
    found = [("efm-lb", finding) for finding in _own(configuration)]
    found += [("databases", finding) for finding in _databases(truth)]
    if properties and given is not None:
        found += [("EFM", finding) for finding in efm_properties.judged(given, properties, configuration.cluster)]
    deadline = time.monotonic() + configuration.deadline
    for name, answer in Dispatcher(configuration).findings(truth, log_in(configuration), deadline).items():
        if answer.failure:
            found.append((name, Finding(Severity.ERROR, "balancer", answer.failure.detail)))
        elif answer.value is None:
            found.append((name, Finding(Severity.WARNING, "balancer", "its adapter has no check")))
        else:
            found += [(name, finding) for finding in answer.value]
    order = list(Severity)
    found.sort(key=lambda pair: order.index(pair[1].severity))
    if as_json:
        print(json.dumps({"schema": SCHEMA, "cluster": configuration.cluster, "findings": _document(found)}, indent=2))
    else:
        print_table(
            ["", "where", "what", "finding", "remedy"],
            [[f.severity.value, where, f.subject, f.detail, f.remedy] for where, f in found],
            [_STYLES[f.severity] for _, f in found],
        )
    return EX_UNAVAILABLE if any(f.severity is Severity.ERROR for _, f in found) else EX_OK


def _document(found: Iterable[tuple[str, Finding]]) -> list[dict[str, str]]:
    return [
        {
            "where": where,
            "severity": finding.severity.value,
            "subject": finding.subject,
            "detail": finding.detail,
            "remedy": finding.remedy,
        }
        for where, finding in found
    ]


def _own(configuration: Configuration) -> Iterator[Finding]:
    """efm-lb's own files, as the user who runs this; EFM runs the hook as efm."""
    if os.geteuid() == 0:
        yield Finding(
            Severity.WARNING,
            "user",
            "root may read what EFM's user may not: this check proves nothing about files",
            "run it as EFM's user: sudo -u efm efm-lb check",
        )
    yield _state_directory(Path(configuration.state_dir))
    passfile = configuration.probe.get("passfile")
    if passfile:
        yield _password_file(Path(passfile))
    bytecode = importlib.util.cache_from_source(str(Path(__file__).parent.parent / "hook.py"))
    if Path(bytecode).exists():
        yield Finding(Severity.OK, "bytecode", "compiled")
    else:
        yield Finding(
            Severity.WARNING,
            "bytecode",
            "efm-lb is not compiled to bytecode: every hook run compiles it again",
            f"{sys.executable} -m compileall -q {Path(__file__).parent.parent}",
        )


def _state_directory(path: Path) -> Finding:
    subject, lost = "EFM_LB_STATE_DIR", "no journal, no lock, no compiled plan"
    if not os.access(path, os.W_OK | os.X_OK):
        return Finding(
            Severity.WARNING,
            subject,
            f"{path} is not a directory that this user can write: {lost}",
            f"install -d -o efm -g efm -m 0700 {path}",
        )
    space = os.statvfs(path)
    # Some file systems say 0 files where they have no limit.
    if not space.f_bavail or (space.f_files and not space.f_favail):
        return Finding(Severity.WARNING, subject, f"{path} is on a full disk: {lost}", f"df -h {path}; df -i {path}")
    return Finding(Severity.OK, subject, f"{path} is writable")


def _password_file(path: Path) -> Finding:
    subject = "EFM_LB_PROBE__PASSFILE"
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return Finding(Severity.ERROR, subject, f"{path}: {error.strerror}")
    if not stat.S_ISREG(mode):
        return Finding(Severity.ERROR, subject, f"{path} is no regular file: libpq ignores it")
    if stat.S_IMODE(mode) & 0o077:
        return Finding(Severity.ERROR, subject, f"{path} is open to others: libpq ignores it", f"chmod 0600 {path}")
    if not os.access(path, os.R_OK):
        return Finding(Severity.ERROR, subject, f"{path} is not readable for this user")
    return Finding(Severity.OK, subject, f"{path} is private and readable")


def _databases(truth: Truth) -> Iterator[Finding]:
    for state in truth.states:
        yield _database(state)
    if not truth.primary:
        yield Finding(Severity.ERROR, "primary", no_primary(truth))


def _database(state: NodeState) -> Finding:
    subject = state.node.name
    if state.role is not None:
        return Finding(
            Severity.OK, subject, f"{state.role.value}, timeline {state.timeline}, {state.seconds * 1000:.0f} ms"
        )
    if state.reach is Reach.DENIED:
        return Finding(
            Severity.ERROR,
            subject,
            f"does not tell its role: {state.detail}",
            "check EFM_LB_PROBE__USER, __PASSFILE, __SSLMODE and pg_hba.conf",
        )
    if state.reach is Reach.FULL:
        return Finding(
            Severity.WARNING,
            subject,
            f"does not tell its role: {state.detail}",
            "keep a connection slot for EFM_LB_PROBE__USER: reserved_connections and pg_use_reserved_connections"
            " from PostgreSQL 16 on",
        )
    return Finding(Severity.WARNING, subject, f"{state.reach.value}: {state.detail}")
