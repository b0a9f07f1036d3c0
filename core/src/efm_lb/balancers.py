"""A configured balancer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from efm_lb.handover import Login

__all__ = ["Balancer"]


class Balancer(NamedTuple):
    """One running balancer, as configured by ``EFM_LB_BALANCERS__<NAME>__*``.

    :param name: lower-case ``<NAME>``
    :param adapter: the entry-point name of the adapter that speaks to it
    :param settings: the adapter's own settings, coerced and validated by its schema, defaults filled in
    :param connect_timeout: seconds that a connect or a login may take (``EFM_LB_CONNECT_TIMEOUT``)
    :param host_ssh: the account on the balancer's own host that answers for it (``HOST_SSH``); empty where its adapter
        runs, which is all that an adapter sees
    :param begun: logins that are under way, by connection string, None when none are; see `login`
    """

    name: str
    adapter: str
    settings: Mapping[str, Any]
    connect_timeout: float = 2.0
    host_ssh: str = ""
    begun: dict[str, Login] | None = None

    def login(self, conninfo: str) -> Login | None:
        """The login at a connection string of a setting with ``x-login`` that is under way for this event.

        :return: to be asked for its connection; None the second time, and when nobody has begun one
        """
        return self.begun.pop(conninfo, None) if self.begun else None
