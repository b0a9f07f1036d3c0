"""Find what will go wrong on the day: rights, the file, PgBouncer's settings, and what its entries lead to."""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from efm_lb import Finding, PermanentError, Severity, TemporaryError, Truth
from efm_lb_pgbouncer.console import Database, Refused, Session
from efm_lb_pgbouncer.entries import Entry, EntryError, Location, entry_of, location_of, parse
from efm_lb_pgbouncer.pooler import Pooler
from efm_lb_pgbouncer.targets import is_at, nodes_at
from efm_lb_pgbouncer.wishes import demand_newest

__all__ = ["Reader", "check", "may_read", "of_databases", "of_file", "of_others", "of_settings", "of_timeline"]

_NOBODY = '"efm-lb has no such database"'
_LOGIN_RETRY = 1


class Reader(NamedTuple):
    """Whom PgBouncer runs as."""

    uid: int
    groups: frozenset[int]


def check(truth: Truth, pooler: Pooler, deadline: float) -> list[Finding]:
    """All findings about one balancer. Of several processes, one that does not answer is a finding too.

    :param deadline: by ``time.monotonic()``
    :raises TemporaryError: no process answers
    :raises PermanentError: none can be logged in to
    """
    findings: list[Finding] = []
    problems: list[TemporaryError | PermanentError] = []
    locations: dict[str, Location] = {}
    try:
        content = pooler.content()
    except (TemporaryError, PermanentError) as error:
        findings.append(Finding(Severity.ERROR, pooler.config, str(error), "let efm-lb's user read it"))
    else:
        findings += of_file(pooler, content, locations)
        findings += of_timeline(truth, pooler, content) if locations else ()
        findings += of_others(truth, pooler, content)
    readers: list[Reader] = []
    for console in pooler.consoles:
        try:
            session = console.session(deadline)
            try:
                findings += _of_process(truth, pooler, session, locations, deadline)
                readers += _reader(session)
            finally:
                session.close()
        except (TemporaryError, PermanentError) as error:
            problems.append(error)
            findings.append(Finding(Severity.ERROR, str(console), str(error)))
    if len(problems) == len(pooler.consoles):
        raise problems[0]
    return findings + list(_of_rights(pooler, readers))


def of_file(pooler: Pooler, content: bytes, locations: dict[str, Location]) -> Iterator[Finding]:
    """Judge the entries. Pure.

    :param locations: is filled with where they lead to
    """
    try:
        parsed = parse(content)
    except EntryError as error:
        yield Finding(Severity.ERROR, f"{pooler.config}:{error.line}", str(error), "PgBouncer does not load it: repair")
        return
    for name in pooler.entries:
        try:
            locations[name] = location_of(entry_of(name, parsed))
        except EntryError as error:
            yield Finding(Severity.ERROR, name, pooler.said(error), "name the file and the entry that PgBouncer uses")
        else:
            yield Finding(Severity.OK, name, f"is in {pooler.config}, and leads to {locations[name]}")
    if any(_is_everything(entry) for entry in parsed.entries):
        yield Finding(
            Severity.WARNING,
            "*",
            "clients of databases that have no entry of their own go where this entry leads, which efm-lb never moves",
            "give each database an entry, and remove this one; PgBouncer forgets it only when it is restarted",
        )


def of_timeline(truth: Truth, pooler: Pooler, content: bytes) -> Iterator[Finding]:
    """Whether the next promote would be refused because of what the file remembers. Pure."""
    primary = truth.primary
    if primary is None:
        return
    try:
        demand_newest(pooler, content, primary, truth.state(primary).timeline)
    except PermanentError as error:
        yield Finding(Severity.ERROR, pooler.config, str(error))


def of_others(truth: Truth, pooler: Pooler, content: bytes) -> Iterator[Finding]:
    """Entries that lead to the primary, and that no event moves. Pure."""
    try:
        entries = parse(content).entries
    except EntryError:  # a finding of its own
        return
    for entry in entries:
        if truth.primary is None or entry.name in pooler.entries or _is_everything(entry) or entry.problem:
            continue
        if is_at(location_of(entry), truth.primary):
            yield Finding(
                Severity.WARNING,
                entry.name,
                "leads to the primary, and is neither in WRITE nor in READ: nobody moves it",
                f"add it to WRITE, unless another balancer's has it or it shall stay on {truth.primary.name}",
            )


def of_databases(
    truth: Truth,
    pooler: Pooler,
    databases: Mapping[str, Database],
    locations: Mapping[str, Location],
    abandoned: bool = False,
) -> Iterator[Finding]:
    """Compare what PgBouncer has with the file and with the databases. Pure.

    :param abandoned: what we paused, nobody is left to let go
    """
    for name in pooler.entries:
        database = databases.get(name)
        if database is None:
            yield Finding(
                Severity.ERROR,
                name,
                "this PgBouncer has no such entry",
                f"let its pgbouncer.ini %include {pooler.config}, then RELOAD",
            )
            continue
        if name in locations and database.location != locations[name]:
            yield Finding(
                Severity.ERROR,
                name,
                f"leads to {database.location}, but to {locations[name]} in {pooler.config}",
                "RELOAD; when that does not help, see PgBouncer's log: before 1.25 a RELOAD reports no failure",
            )
        if database.paused and abandoned and name in pooler.write:
            yield Finding(
                Severity.ERROR,
                name,
                "is paused by efm-lb, and the process that lets its clients go was killed",
                f"RESUME {name} at {pooler.consoles[0]}; else the next event does, once a primary is proven",
            )
        elif database.paused or database.disabled:
            yield Finding(Severity.WARNING, name, "is paused" if database.paused else "is disabled", "RESUME or ENABLE")
        yield from _of_place(truth, name, database.location, name in pooler.write)


def _of_place(truth: Truth, name: str, location: Location, writes: bool) -> Iterator[Finding]:
    primary = truth.primary
    strangers = [host for host in location.hosts if not any(node.is_at(host, location.port) for node in truth.nodes)]
    if strangers:
        yield Finding(
            Severity.WARNING,
            name,
            f"leads to {', '.join(strangers)} port {location.port}, which is no node of the cluster",
            "name it in EFM_LB_NODES, as a node or as the alias of one",
        )
    if writes and primary and not is_at(location, primary):
        detail = f"leads to {location}, but the primary is {primary.address}"
        yield Finding(Severity.ERROR, name, detail, f"efm-lb attach {primary.name} p")
    if not writes:
        listed = nodes_at(location, truth.nodes)
        for node in truth.standbys:
            if node not in listed and primary:
                yield Finding(
                    Severity.WARNING,
                    name,
                    f"does not lead to {node.address}, which is up",
                    f"efm-lb attach {node.name} s",
                )


def of_settings(pooler: Pooler, settings: Mapping[str, str], databases: Mapping[str, Database]) -> Iterator[Finding]:
    """Judge PgBouncer's settings. Pure."""
    retry = settings.get("server_login_retry", "")
    if _seconds(retry) > _LOGIN_RETRY:
        yield Finding(
            Severity.WARNING,
            "server_login_retry",
            f"a pool that met a dead primary tries no other server for {retry} s; efm-lb lifts that for the clients"
            " that wait when it moves writes, not for those that come later",
            f"server_login_retry = {_LOGIN_RETRY}",
        )
    else:
        yield Finding(Severity.OK, "server_login_retry", retry)
    default = settings.get("pool_mode", "session")
    in_sessions = [name for name in pooler.write if name in databases and _mode(databases[name], default) == "session"]
    if in_sessions and settings.get("server_fast_close", "0") != "1":
        yield Finding(
            Severity.WARNING,
            "server_fast_close",
            f"{', '.join(in_sessions)}: in session pooling clients stay on the old primary until they leave; after"
            f" {pooler.kill_after:g} s efm-lb cuts them all, and it cannot hold them in a switchover",
            "server_fast_close = 1, or pool_mode = transaction",
        )
    if settings.get("so_reuseport", "0") == "1":
        if len(pooler.consoles) == 1:
            yield Finding(
                Severity.WARNING,
                "so_reuseport",
                "more than one process may share the port, and ADMIN names one console",
                "give each process a unix_socket_dir of its own, and list all of them in ADMIN",
            )
        else:
            yield Finding(Severity.OK, "so_reuseport", f"{len(pooler.consoles)} processes are told")
    wait = settings.get("query_wait_timeout", "0")
    if pooler.hold and 0 < _seconds(wait) <= pooler.hold:
        yield Finding(
            Severity.WARNING,
            "query_wait_timeout",
            f"clients that are held for {pooler.hold:g} s get an error after {wait} s",
            f"query_wait_timeout above HOLD, or HOLD below {wait}",
        )


def may_read(status: os.stat_result, reader: Reader, bit: int = stat.S_IROTH) -> bool:
    """Whether the mode bits let ``reader`` in. Pure; access control lists are not looked at.

    :param bit: S_IROTH for a file, S_IXOTH for a directory on the way to it
    """
    if reader.uid == 0:
        return True
    if status.st_uid == reader.uid:
        return bool(status.st_mode & bit << 6)
    if status.st_gid in reader.groups:
        return bool(status.st_mode & bit << 3)
    return bool(status.st_mode & bit)


def _of_process(
    truth: Truth, pooler: Pooler, session: Session, locations: Mapping[str, Location], deadline: float
) -> Iterator[Finding]:
    console = session.console
    databases = session.databases(deadline)
    settings = session.settings(deadline)
    yield Finding(Severity.OK, str(console), f"answers: {session.version(deadline) or 'PgBouncer'}")
    yield _of_admin(session, deadline)
    yield from of_settings(pooler, settings, databases)
    yield from of_databases(truth, pooler, databases, locations, pooler.is_abandoned())
    if settings.get("so_reuseport") == "1" and not _is_socket(session):
        yield Finding(
            Severity.ERROR,
            str(console),
            "with so_reuseport a TCP connection reaches any one of the processes",
            "name the Unix socket of each process in ADMIN",
        )
    if not session.connection.is_local:
        detail = "is on another host: CONFIG must be a file of that host, and clients are not held in a switchover"
        yield Finding(Severity.WARNING, str(console), detail, "run efm-lb on PgBouncer's host")


def _of_admin(session: Session, deadline: float) -> Finding:
    """Find out without changing anything: a database that is not there cannot be resumed."""
    try:
        session.command(f"RESUME {_NOBODY}", deadline)
    except Refused:
        return Finding(Severity.OK, "admin_users", "the user is one")
    except PermanentError as error:
        return Finding(Severity.ERROR, "admin_users", str(error), "add ADMIN's user to admin_users")
    return Finding(Severity.OK, "admin_users", "the user is one")


def _of_rights(pooler: Pooler, readers: list[Reader]) -> Iterator[Finding]:
    path = Path(os.path.realpath(pooler.config))
    try:
        status = path.stat()
    except OSError:
        return
    if not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK | os.X_OK)):
        yield Finding(
            Severity.ERROR,
            pooler.config,
            f"uid {os.geteuid()} must be able to write it and its directory",
            "put the entries into a file of their own, in a directory that belongs to efm-lb's user, and %include it",
        )
    elif os.geteuid() not in (0, status.st_uid):
        yield Finding(
            Severity.ERROR,
            pooler.config,
            f"belongs to uid {status.st_uid}, which uid {os.geteuid()} cannot keep when it replaces it",
            f"chown it to uid {os.geteuid()}",
        )
    else:
        yield Finding(Severity.OK, pooler.config, "can be replaced")
    for reader in sorted(set(readers), key=lambda each: each.uid):
        closed = [
            str(place)
            for place, bit in [(path, stat.S_IROTH), *((parent, stat.S_IXOTH) for parent in path.parents)]
            if not may_read(place.stat(), reader, bit)
        ]
        if closed:
            yield Finding(
                Severity.ERROR,
                pooler.config,
                f"PgBouncer (uid {reader.uid}) may not read it because of {closed[0]}: a RELOAD would change nothing",
                f"chgrp {closed[0]} to a group of PgBouncer's user, and let the group read it",
            )
        else:
            yield Finding(Severity.OK, pooler.config, f"PgBouncer (uid {reader.uid}) may read it")


def _reader(session: Session) -> list[Reader]:
    """Whom the process runs as; nothing where that cannot be seen."""
    if not _is_socket(session):
        return []
    own = socket.socket(fileno=os.dup(session.connection.fileno()))
    try:
        pid, _, _ = struct.unpack("3i", own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return []
    finally:
        own.close()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    groups = {int(fields["Gid"].split()[1]), *map(int, fields["Groups"].split())}
    return [Reader(int(fields["Uid"].split()[1]), frozenset(groups))]


def _is_socket(session: Session) -> bool:
    own = socket.socket(fileno=os.dup(session.connection.fileno()))
    try:
        return own.family == socket.AF_UNIX
    finally:
        own.close()


def _is_everything(entry: Entry) -> bool:
    return entry.name == "*"


def _mode(database: Database, default: str) -> str:
    return database.pool_mode or default


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
