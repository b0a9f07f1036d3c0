"""The hooks of the HAProxy adapter: what efm-lb calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from efm_lb import Attach, Balancer, Detach, Event, Node, Outcome, Promote, Truth, hookimpl
from efm_lb_haproxy.drive import drive
from efm_lb_haproxy.settings import setup_of

if TYPE_CHECKING:
    from efm_lb import Finding, View

_PROXY = {
    "type": "string",
    "pattern": "^[A-Za-z0-9_.:-]+$",
    "x-expected": "the name of a proxy: letters, digits and _ . : -",
}
_PROXIES = {"type": "array", "items": _PROXY, "minItems": 1, "uniqueItems": True}


@hookimpl
def efm_lb_settings_schema() -> Mapping[str, Any]:
    return {
        "type": "object",
        "properties": {
            "socket": {
                "type": "string",
                "minLength": 1,
                "description": (
                    "Where HAProxy's `stats socket` listens: the path of the Unix socket, or `host:port`. Its level"
                    " must be `admin`."
                ),
            },
            "write": {
                **_PROXIES,
                "description": (
                    "The proxy (`listen` or `backend`) that carries writes; several are separated by commas. One"
                    " node of it is ready at a time."
                ),
            },
            "read": {
                **_PROXIES,
                "description": "The proxy that carries reads; several are separated by commas. WRITE, READ or both.",
            },
            "read_includes_primary": {
                "type": "string",
                "enum": ["never", "always", "fallback"],
                "default": "fallback",
                "description": (
                    "Whether the primary serves reads too: `fallback` is only while no other server of READ is ready."
                ),
            },
            "config": {
                "type": "array",
                "items": {"type": "string", "pattern": "^/"},
                "minItems": 1,
                "description": (
                    "Where HAProxy's configuration is, so that a reload keeps what was changed: files and directories"
                    " on this host, in the order in which haproxy gets them by `-f`. Only the word `disabled` on"
                    " `server` lines of WRITE and READ is changed, and a comment of ours on those of WRITE. Without it,"
                    " nothing is kept."
                ),
            },
            "program": {
                "type": "string",
                "pattern": "^(/.*|none)$",
                "x-expected": "an absolute path or none",
                "description": (
                    "The haproxy program that validates a changed configuration; `none` not to validate. Without it,"
                    " it is looked for on this host."
                ),
            },
            "cafile": {
                "type": "string",
                "pattern": "^/",
                "description": (
                    "Speak TLS to SOCKET (host:port), and trust the certificates in this PEM file; the host must be a"
                    " name in the other side's certificate."
                ),
            },
            "certfile": {
                "type": "string",
                "pattern": "^/",
                "description": "The PEM file with the own certificate for TLS, and with its key unless KEYFILE is set.",
            },
            "keyfile": {"type": "string", "pattern": "^/", "description": "The PEM file with the key of CERTFILE."},
        },
        "required": ["socket"],
        "x-identity": [["socket"], ["write", "read"]],
        "x-disjoint": [["write", "read"]],
        "dependentRequired": {"certfile": ["cafile"], "keyfile": ["certfile"]},
        "if": {"not": {"required": ["write"]}},
        "then": {"required": ["read"]},
    }


@hookimpl
def efm_lb_attach(event: Attach, balancer: Balancer, deadline: float) -> Outcome:
    return drive(event, setup_of(balancer), deadline)


@hookimpl
def efm_lb_detach(event: Detach, balancer: Balancer, deadline: float) -> Outcome:
    return drive(event, setup_of(balancer), deadline)


@hookimpl
def efm_lb_promote(event: Promote, balancer: Balancer, deadline: float) -> Outcome:
    return drive(event, setup_of(balancer), deadline)


@hookimpl
def efm_lb_plan(event: Event, balancer: Balancer, deadline: float) -> Iterable[str]:
    # plan, view and check are never on the hot path: imported here, so that a hook run does not load them
    from efm_lb_haproxy.plan import plan

    return plan(event, setup_of(balancer), deadline)


@hookimpl
def efm_lb_view(nodes: tuple[Node, ...], balancer: Balancer, deadline: float) -> View:
    from efm_lb_haproxy.view import view

    return view(nodes, setup_of(balancer), deadline)


@hookimpl
def efm_lb_check(truth: Truth, balancer: Balancer, deadline: float) -> Iterable[Finding]:
    from efm_lb_haproxy.check import check

    return check(truth, setup_of(balancer), deadline)
