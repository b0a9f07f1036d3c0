"""The hooks of the pgpool adapter: what efm-lb calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from efm_lb import Attach, Balancer, Detach, Event, Node, Outcome, Promote, Truth, hookimpl
from efm_lb_pgpool.drive import drive
from efm_lb_pgpool.members import members_of

if TYPE_CHECKING:
    from efm_lb import Finding, View


@hookimpl
def efm_lb_settings_schema() -> Mapping[str, Any]:
    return {
        "type": "object",
        "properties": {
            "host": {
                "type": "array",
                "items": {"type": "string", "minLength": 1},
                "minItems": 1,
                "description": (
                    "Where pgpool listens for PCP (pcp_listen_addresses): a name or an address, with `:port` when it"
                    " differs from PORT, or the directory of the Unix socket (pcp_socket_dir). Several, separated by"
                    " commas, are the members of one watchdog cluster: a command goes to one of them, and is proven on"
                    " all. Pgpools without watchdog are balancers of their own."
                ),
            },
            "port": {
                "type": "integer",
                "minimum": 1,
                "maximum": 65535,
                "default": 9898,
                "description": "pgpool's pcp_port.",
            },
            "user": {"type": "string", "minLength": 1, "description": "A user of pgpool's pcp.conf."},
            "passfile": {
                "type": "string",
                "minLength": 1,
                "description": (
                    "The file with the PCP password, in the format of .pcppass: lines of `host:port:user:password`,"
                    " mode 0600. The host is compared as text with HOST; the socket directory /tmp counts as"
                    " `localhost`. Without it, PCPPASSFILE or ~/.pcppass are read, as the pcp_* programs do."
                ),
            },
        },
        "required": ["host", "user"],
        "x-identity": [["host"], ["port"]],
    }


@hookimpl
def efm_lb_attach(event: Attach, balancer: Balancer, deadline: float) -> Outcome:
    return drive(event, members_of(balancer), deadline)


@hookimpl
def efm_lb_detach(event: Detach, balancer: Balancer, deadline: float) -> Outcome:
    return drive(event, members_of(balancer), deadline)


@hookimpl
def efm_lb_promote(event: Promote, balancer: Balancer, deadline: float) -> Outcome:
    return drive(event, members_of(balancer), deadline)


@hookimpl
def efm_lb_plan(event: Event, balancer: Balancer, deadline: float) -> Iterable[str]:
    # plan and check are never on the hot path: imported here, so that a hook run does not load them
    from efm_lb_pgpool.plan import plan

    return plan(event, members_of(balancer), deadline)


@hookimpl
def efm_lb_view(nodes: tuple[Node, ...], balancer: Balancer, deadline: float) -> View:
    from efm_lb_pgpool.view import view

    return view(nodes, members_of(balancer), deadline)


@hookimpl
def efm_lb_check(
    truth: Truth, balancer: Balancer, log_in: Callable[[str, str], Truth], deadline: float
) -> Iterable[Finding]:
    from efm_lb_pgpool.check import check

    return check(truth, balancer, log_in, deadline)
