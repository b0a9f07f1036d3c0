"""Find what will go wrong on the day: pgpool's settings, its backends and its watchdog, as PCP tells them.

pgpool's own mechanisms compete with an external failover manager (its manual leaves that
out): each row of `SETTINGS` is one that does something by itself. All values come from PCP's pool
status, where booleans are 0 and 1, so neither pgpool.conf nor its host need to be readable.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from efm_lb import Balancer, Finding, Node, PermanentError, Reach, Severity, TemporaryError, Truth
from efm_lb_pgpool.members import Member, members_of
from efm_lb_pgpool.node_info import Backend
from efm_lb_pgpool.steps import backend_of, primary_of

__all__ = ["SETTINGS", "Rule", "check", "of_backends", "of_settings", "of_sr_check_user", "of_watchdog"]


class Rule(NamedTuple):
    """One setting that matters.

    :param names: the setting's name, and what older releases call it
    :param is_good: judges the value
    :param harm: what happens otherwise
    :param remedy: a line for pgpool.conf
    """

    names: tuple[str, ...]
    is_good: Callable[[str], bool]
    severity: Severity
    harm: str
    remedy: str


def _is(*values: str) -> Callable[[str], bool]:
    return lambda value: value in values


def _between(least: int, most: int) -> Callable[[str], bool]:
    return lambda value: value.isascii() and value.isdigit() and len(value) < 19 and least <= int(value) <= most


_OFF = _is("0", "off")

SETTINGS = (
    Rule(
        ("backend_clustering_mode",),
        _is("1", "streaming_replication"),
        Severity.ERROR,
        "pgpool knows no primary in another mode, and refuses to be told one",
        "backend_clustering_mode = 'streaming_replication'",
    ),
    Rule(
        ("sr_check_user",),
        bool,
        Severity.ERROR,
        "pgpool looks for the primary as this role, even with sr_check_period = 0: without it none is ever found",
        "sr_check_user = 'a role that can log in to every node'",
    ),
    Rule(
        ("failover_on_backend_shutdown",),
        _OFF,
        Severity.WARNING,
        "a node that is stopped, or one session ended by pg_terminate_backend(), is detached by pgpool itself;"
        " the default is on in 4.3.0-4.3.8 and 4.4.0-4.4.5, whatever their manual says",
        "failover_on_backend_shutdown = off",
    ),
    Rule(
        ("failover_on_backend_error", "fail_over_on_backend_error"),
        _OFF,
        Severity.WARNING,
        "one failed connection detaches a node, and EFM attaches none that it did not see fail",
        "failover_on_backend_error = off",
    ),
    Rule(
        ("health_check_period",),
        _OFF,
        Severity.WARNING,
        "pgpool detaches a node after failed checks, and EFM attaches none that it did not see fail",
        "health_check_period = 0",
    ),
    Rule(
        ("auto_failback",),
        _OFF,
        Severity.WARNING,
        "pgpool undoes a detach while the standby still streams",
        "auto_failback = off",
    ),
    Rule(
        ("detach_false_primary",),
        _OFF,
        Severity.WARNING,
        "pgpool detaches a primary that it takes for a false one, in a race with EFM",
        "detach_false_primary = off",
    ),
    Rule(
        ("failover_command",),
        _is(""),
        Severity.WARNING,
        "it is run on every detach, also of a standby, and may promote behind EFM's back",
        "failover_command = ''",
    ),
    Rule(
        ("failback_command",),
        _is(""),
        Severity.WARNING,
        "it is run on every attach",
        "failback_command = ''",
    ),
    Rule(
        ("follow_primary_command", "follow_master_command"),
        _is(""),
        Severity.WARNING,
        "a detach of the primary then detaches all other nodes too, and runs it for each",
        "follow_primary_command = ''",
    ),
    Rule(
        ("failover_if_affected_tuples_mismatch",),
        _OFF,
        Severity.WARNING,
        "pgpool detaches nodes by itself",
        "failover_if_affected_tuples_mismatch = off",
    ),
    Rule(
        ("search_primary_node_timeout",),
        _between(1, 10),
        Severity.WARNING,
        "while pgpool looks for a primary and there is none, no client is served for this many seconds (0 is for ever)",
        "search_primary_node_timeout = 3",
    ),
    Rule(
        ("connect_timeout",),
        _between(1, 10_000),
        Severity.WARNING,
        "pgpool's main process waits this many milliseconds for a node that is silent",
        "connect_timeout = 3000",
    ),
)

_ALWAYS_THERE = "failover_on_backend_shutdown"
"""Where this setting is missing, what it switches off is always on: pgpool 4.2 and older."""


def check(truth: Truth, balancer: Balancer, log_in: Callable[[str, str], Truth], deadline: float) -> list[Finding]:
    """All findings about one balancer. Of several members, one that does not answer is a finding too.

    :param log_in: asks all databases as the role and in the database that it is given
    :param deadline: by ``time.monotonic()``
    :raises TemporaryError: no member answers
    :raises PermanentError: none can be logged in to
    """
    findings: list[Finding] = []
    problems: list[TemporaryError | PermanentError] = []
    members = members_of(balancer).all
    for member in members:
        try:
            backends = member.nodes(deadline).backends
            with member.session(deadline) as session:
                settings = session.settings()
                watchdog = session.watchdog()
        except (TemporaryError, PermanentError) as error:
            problems.append(error)
            findings.append(Finding(Severity.ERROR, str(member), str(error)))
            continue
        findings.append(Finding(Severity.OK, str(member), f"answers, and knows {len(backends)} backends"))
        findings += of_settings(settings)
        findings += of_backends(truth, backends, settings)
        findings += of_watchdog(member, len(members), watchdog)
        user = settings.get("sr_check_user")
        if user:
            # without sr_check_database pgpool takes postgres
            findings += of_sr_check_user(user, log_in(user, settings.get("sr_check_database") or "postgres"))
    if len(problems) == len(members):
        raise problems[0]
    return findings


def of_settings(settings: Mapping[str, str]) -> Iterator[Finding]:
    """Judge pgpool's settings. Pure."""
    for rule in SETTINGS:
        name = next((name for name in rule.names if name in settings), None)
        if name is None:
            if rule.names[0] == _ALWAYS_THERE:
                remedy = f"upgrade to pgpool 4.3 or newer, then {rule.remedy}"
                yield Finding(rule.severity, rule.names[0], "this pgpool cannot switch it off: " + rule.harm, remedy)
        elif rule.is_good(settings[name]):
            yield Finding(Severity.OK, name, settings[name] or "''")
        else:
            # the value itself may be a command line with a secret in it
            yield Finding(rule.severity, name, rule.harm, rule.remedy)
    for name, value in settings.items():
        if name.startswith("backend_flag"):
            yield _of_flag(name, value)


def _of_flag(name: str, value: str) -> Finding:
    remedy = f"{name} = 'ALLOW_TO_FAILOVER'"
    flags = value.replace(" ", "").split("|")
    if "DISALLOW_TO_FAILOVER" in flags:
        return Finding(Severity.ERROR, name, "DISALLOW_TO_FAILOVER makes pgpool refuse every detach", remedy)
    if "ALWAYS_PRIMARY" in flags or "ALWAYS_MASTER" in flags:
        return Finding(Severity.ERROR, name, f"{value} makes pgpool undo every promotion", remedy)
    return Finding(Severity.OK, name, value)


def of_backends(truth: Truth, backends: tuple[Backend, ...], settings: Mapping[str, str]) -> Iterator[Finding]:
    """Compare pgpool's backends with the nodes of the cluster. Pure."""
    used = {backend.id for backend in backends if backend.host}
    free = next(number for number in range(len(backends) + 1) if number not in used)
    for node in truth.nodes:
        backend = backend_of(node, backends)
        if backend is None:
            remedy = (
                f"backend_hostname{free} = '{node.host}' and backend_port{free} = {node.port};"
                f" or, when it is there under another name, {node.name}={node.address} and that name in EFM_LB_NODES"
            )
            yield Finding(Severity.ERROR, node.address, "pgpool has no such backend", remedy)
        elif truth.role(node) and not backend.attached:
            remedy = f"efm-lb attach {node.name} s" if truth.primary not in (None, node) else ""
            yield Finding(Severity.WARNING, node.address, f"is up, but {backend.state} in pgpool", remedy)
        else:
            yield Finding(Severity.OK, node.address, f"is backend {backend.id}, {backend.state}")
    for backend in backends:
        if backend.host and not any(node.is_at(backend.host, backend.port) for node in truth.nodes):
            yield Finding(
                Severity.WARNING,
                f"backend {backend}",
                "is no node of the cluster: efm-lb never touches it",
                f"name it in EFM_LB_NODES, or remove backend_hostname{backend.id} from pgpool.conf",
            )
    yield from _of_primary(truth, truth.primary, backends, settings)


def _of_primary(
    truth: Truth, primary: Node | None, backends: tuple[Backend, ...], settings: Mapping[str, str]
) -> Iterator[Finding]:
    if any(backend.role is None for backend in backends):
        yield Finding(
            Severity.ERROR,
            "version",
            "this pgpool does not tell which backend is primary",
            "upgrade to pgpool 3.7 or newer",
        )
        return
    if primary is None:
        return
    believed = primary_of(backends)
    if believed is None or not believed.attached:
        user = settings.get("sr_check_user", "")
        yield Finding(
            Severity.ERROR,
            "primary",
            f"pgpool has found no primary, which is {primary.address}: probably sr_check_user {user!r} cannot log in",
            "let sr_check_user log in to sr_check_database on every node (pg_hba.conf, sr_check_password),"
            f" then efm-lb attach {primary.name} p",
        )
    elif not primary.is_at(believed.host, believed.port):
        detail = f"pgpool sends writes to {believed.address}, but the primary is {primary.address}"
        yield Finding(Severity.ERROR, "primary", detail, f"efm-lb attach {primary.name} p")
    else:
        yield Finding(Severity.OK, "primary", f"is {primary.address}, for pgpool too")


_WRONG_ROLE = ("28P01", "28000", "3D000")
"""SQLSTATEs: wrong password, no such role or one without LOGIN, no such database."""


def of_sr_check_user(user: str, truth: Truth) -> Iterator[Finding]:
    """Judge whether the role that pgpool looks for its primary with can log in to every node. Pure.

    PCP does not tell: its node info shows what this role sees only while health checks are on.

    :param truth: what the databases said to this role, from this host
    """
    denied = [state for state in truth.states if state.reach is Reach.DENIED]
    for state in denied:
        # a missing password is libpq's own finding, without an SQLSTATE; and pgpool's host has its own pg_hba.conf line
        proven = any(code in state.detail for code in _WRONG_ROLE) and "pg_hba.conf" not in state.detail
        if not proven:
            detail = f"whether {user} can log in to {state.node.address} cannot be tried from here: {state.detail}"
            remedy = "try it on pgpool's host, or put the role's password into EFM_LB_PROBE__PASSFILE"
        else:
            detail = f"{user} cannot log in to {state.node.address}, so pgpool finds no primary there: {state.detail}"
            remedy = "correct sr_check_user, sr_check_database, their password or the role"
        yield Finding(Severity.ERROR if proven else Severity.WARNING, "sr_check_user", detail, remedy)
    if not denied and any(state.reach is Reach.ACCEPTING for state in truth.states):
        yield Finding(Severity.OK, "sr_check_user", f"{user} can log in to every node that is up")


def of_watchdog(member: Member, configured: int, document: str | None) -> Iterator[Finding]:
    """Judge the watchdog cluster.

    :param configured: how many pgpools HOST lists
    :param document: PCP's watchdog information, None when the watchdog is off
    """
    if document is None:
        if configured > 1:
            detail = "HOST lists several pgpools, but this one runs without watchdog"
            yield Finding(Severity.ERROR, str(member), detail, "make each pgpool a balancer of its own")
        return
    try:
        cluster = json.loads(document)
        nodes = [(str(node["NodeName"]), str(node["StateName"])) for node in cluster["WatchdogNodes"]]
        quorum = int(cluster.get("QuorumStatus", 0))
    except (ArithmeticError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        yield Finding(Severity.WARNING, str(member), "does not tell the state of its watchdog")
        return
    for name, state in nodes:
        if state not in ("LEADER", "MASTER", "STANDBY"):
            yield Finding(Severity.WARNING, f"watchdog {name}", f"is {state}", "start that pgpool, or its network")
    if quorum < 0:
        yield Finding(Severity.WARNING, f"watchdog of {member}", "has no quorum; PCP commands work nevertheless")
    if len(nodes) > configured:
        detail = f"{len(nodes)} pgpools are in the watchdog cluster, HOST lists {configured}"
        yield Finding(Severity.WARNING, f"watchdog of {member}", detail, "list them all in HOST, separated by commas")
    else:
        yield Finding(Severity.OK, f"watchdog of {member}", f"{len(nodes)} pgpools")
