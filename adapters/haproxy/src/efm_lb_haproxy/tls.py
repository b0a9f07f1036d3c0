"""TLS on a connection to HAProxy, with both sides proven by certificates."""

from __future__ import annotations

import _socket
import ssl

from efm_lb import PermanentError, TemporaryError
from efm_lb_haproxy.settings import Endpoint, Tls

__all__ = ["wrapped"]


def wrapped(connection: _socket.socket, endpoint: Endpoint, tls: Tls) -> ssl.SSLSocket:
    """The connection after the handshake; it keeps the time-out that is set on it.

    :raises TemporaryError: the handshake failed or took too long
    :raises PermanentError: the other side is not who it shall be, or one of the files cannot be used
    """
    try:
        context = ssl.create_default_context(cafile=tls.cafile)
        if tls.certfile:
            # An empty password, because without one a key that has one would be asked for on the terminal.
            context.load_cert_chain(tls.certfile, tls.keyfile or None, password="")
    except OSError as error:
        names = ", ".join(name for name in tls if name)
        raise PermanentError(f"CAFILE, CERTFILE or KEYFILE ({names}) cannot be used: {_reason(error)}") from None
    try:
        return context.wrap_socket(connection, server_hostname=endpoint.host)  # type: ignore[arg-type]
    except ssl.SSLCertVerificationError as error:
        raise PermanentError(f"{endpoint}: its certificate is not accepted: {error.verify_message}") from None
    except TimeoutError:
        raise TemporaryError(f"{endpoint} accepted the connection and did not answer in time") from None
    except OSError as error:
        raise TemporaryError(f"{endpoint}: the TLS handshake failed: {_reason(error)}") from None


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
