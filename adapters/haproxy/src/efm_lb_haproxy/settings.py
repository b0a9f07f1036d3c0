"""Where one HAProxy is talked to, which of its proxies carry what, and where its configuration is."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

from efm_lb import Balancer, PermanentError

__all__ = ["Endpoint", "Reads", "Setup", "Tls", "endpoint_of", "setup_of"]


class Reads(Enum):
    """When the primary serves reads too: READ_INCLUDES_PRIMARY."""

    NEVER = "never"
    ALWAYS = "always"
    FALLBACK = "fallback"
    """Only while no other server of the proxy is ready."""


class Endpoint(NamedTuple):
    """Where the `stats socket` listens.

    :param host: a name or an address, or the path of the Unix socket
    :param port: None for a Unix socket
    """

    host: str
    port: int | None = None

    def __str__(self) -> str:
        if self.port is None:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Tls(NamedTuple):
    """What to prove oneself with to a socket behind TLS, and the other side by. Paths of PEM files.

    :param certfile: the own certificate, and the key unless ``keyfile`` has it; empty for none
    """

    cafile: str
    certfile: str
    keyfile: str


class Setup(NamedTuple):
    """One balancer's settings.

    :param variables: what its variables begin with, for messages: ``EFM_LB_BALANCERS__EDGE__``
    :param connect_timeout: seconds that a connect, and an answer, may take
    :param config: files and directories, as haproxy gets them by ``-f``, in that order; none when it is not ours
    :param write: the proxies that carry writes
    :param read: the proxies that carry reads
    :param program: the program to validate with; empty to look for one, ``none`` not to
    :param tls: None for a socket in plain text
    """

    variables: str
    endpoint: Endpoint
    connect_timeout: float
    config: tuple[str, ...]
    write: tuple[str, ...]
    read: tuple[str, ...]
    reads: Reads
    program: str
    tls: Tls | None = None

    @property
    def proxies(self) -> tuple[str, ...]:
        return (*self.write, *self.read)

    def variable_of(self, proxy: str) -> str:
        """The variable that names ``proxy``."""
        return self.variables + ("WRITE" if proxy in self.write else "READ")


def setup_of(balancer: Balancer) -> Setup:
    """Read a balancer's settings.

    :raises PermanentError: they contradict each other, or SOCKET is none
    """
    settings = balancer.settings
    write, read = tuple(settings.get("write", ())), tuple(settings.get("read", ()))
    endpoint = endpoint_of(str(settings["socket"]))
    return Setup(
        f"EFM_LB_BALANCERS__{balancer.name.upper()}__",
        endpoint,
        balancer.connect_timeout,
        tuple(settings.get("config", ())),
        write,
        read,
        Reads(settings.get("read_includes_primary", "fallback")),
        str(settings.get("program", "")),
        _tls(settings, endpoint),
    )


def _tls(settings: Mapping[str, Any], endpoint: Endpoint) -> Tls | None:
    cafile, certfile, keyfile = (str(settings.get(name, "")) for name in ("cafile", "certfile", "keyfile"))
    if not cafile:
        return None
    if endpoint.port is None:
        raise PermanentError(f"CAFILE is for host:port, and SOCKET {endpoint} is a Unix socket")
    return Tls(cafile, certfile, keyfile)


def endpoint_of(text: str) -> Endpoint:
    """Read SOCKET: ``/run/haproxy/admin.sock``, ``host:port`` or ``[::1]:port``.

    :raises PermanentError: it is none of these
    """
    if text.startswith("/"):
        return Endpoint(text)
    host, _, number = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not host or not (number.isascii() and number.isdigit() and len(number) < 10 and 0 < int(number) < 65536):
        raise PermanentError(f"SOCKET {text!r} is neither the path of a Unix socket nor host:port")
    return Endpoint(host, int(number))
