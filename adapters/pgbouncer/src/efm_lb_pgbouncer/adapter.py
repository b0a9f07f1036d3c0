"""The hooks of the PgBouncer adapter: what efm-lb calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from efm_lb import Attach, Balancer, Detach, Event, Node, Outcome, Promote, Truth, hookimpl
from efm_lb_pgbouncer.console import LOGIN
from efm_lb_pgbouncer.drive import drive
from efm_lb_pgbouncer.pooler import HOLD, KILL_AFTER, NAME, pooler_of

if TYPE_CHECKING:
    from efm_lb import Finding, View


@hookimpl
def efm_lb_settings_schema() -> Mapping[str, Any]:
    name = {"type": "string", "pattern": NAME, "x-expected": "the name of an entry: letters, digits and _ . -"}
    console = {
        "type": "string",
        "pattern": "=|^postgres(ql)?://",  # libpq would take a word for a database, and connect to its default place
        "x-expected": "a connection string such as host=/run/pgbouncer port=6432 user=efm_lb",
    }
    return {
        "type": "object",
        "properties": {
            "admin": {
                "type": "array",
                "items": console,
                "minItems": 1,
                "uniqueItems": True,
                "x-login": dict(LOGIN),
                "description": (
                    "How to reach PgBouncer's console: a libpq connection string without a password, such as"
                    " `host=/run/pgbouncer port=6432 user=efm_lb`. The user must be in admin_users. Several, separated"
                    " by commas, are the processes that read CONFIG, as with so_reuseport: each is told."
                ),
            },
            "config": {
                "type": "string",
                "pattern": "^/",
                "description": (
                    "The file that holds the entries: pgbouncer.ini, or the file that it takes in by `%include`."
                    " Only the values of `host=` and `port=` of the named entries are changed, and a comment of ours"
                    " above those of WRITE."
                ),
            },
            "write": {
                "type": "array",
                "items": name,
                "minItems": 1,
                "uniqueItems": True,
                "description": "The entries of `[databases]` that must lead to the primary, separated by commas.",
            },
            "read": {
                "type": "array",
                "items": name,
                "default": [],
                "uniqueItems": True,
                "description": "The entries that must lead to the attached standbys, separated by commas.",
            },
            "read_includes_primary": {
                "type": "string",
                "enum": ["never", "always", "fallback"],
                "default": "fallback",
                "description": "Whether READ leads to the primary as well: `fallback` is only when no standby is left.",
            },
            "hold": {
                "type": "number",
                "minimum": 0,
                "maximum": 100,
                "default": HOLD,
                "description": (
                    "Seconds that clients of WRITE may be held back in a planned switchover, instead of getting"
                    " errors; 0 is never. PgBouncer must run on the host that the hook runs on."
                ),
            },
            "kill_after": {
                "type": "number",
                "minimum": 0,
                "maximum": 60,
                "default": KILL_AFTER,
                "description": (
                    "Seconds that sessions on the old primary have to end after a promotion. Then the clients of that"
                    " entry are cut, so that nothing stuck commits on the old primary later."
                ),
            },
            "passfile": {
                "type": "string",
                "pattern": "^/",
                "description": "libpq's password file for ADMIN, mode 0600. Without it, libpq's own rules hold.",
            },
        },
        "required": ["admin", "config", "write"],
        "x-identity": [["config"], ["write", "read"]],
        "x-disjoint": [["write", "read"]],
    }


@hookimpl
def efm_lb_attach(event: Attach, balancer: Balancer, deadline: float) -> Outcome:
    return drive(event, pooler_of(balancer), deadline)


@hookimpl
def efm_lb_detach(event: Detach, balancer: Balancer, deadline: float) -> Outcome:
    return drive(event, pooler_of(balancer), deadline)


@hookimpl
def efm_lb_hold(event: Detach, balancer: Balancer, deadline: float) -> Outcome | None:
    # not needed while clients wait for a promote: imported here, as plan and check are
    from efm_lb_pgbouncer.hold import hold

    return hold(event, pooler_of(balancer), deadline)


@hookimpl
def efm_lb_promote(event: Promote, balancer: Balancer, deadline: float) -> Outcome:
    return drive(event, pooler_of(balancer), deadline)


@hookimpl
def efm_lb_plan(event: Event, balancer: Balancer, deadline: float) -> Iterable[str]:
    from efm_lb_pgbouncer.plan import plan

    return plan(event, pooler_of(balancer), deadline)


@hookimpl
def efm_lb_view(nodes: tuple[Node, ...], balancer: Balancer, deadline: float) -> View:
    from efm_lb_pgbouncer.view import view

    return view(nodes, pooler_of(balancer), deadline)


@hookimpl
def efm_lb_check(truth: Truth, balancer: Balancer, deadline: float) -> Iterable[Finding]:
    from efm_lb_pgbouncer.check import check

    return check(truth, pooler_of(balancer), deadline)
