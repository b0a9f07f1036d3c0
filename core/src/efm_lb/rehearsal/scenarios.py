"""What can happen to a cluster, and the orders in which EFM may call about it."""

from __future__ import annotations

from enum import Enum

__all__ = ["Order", "Scenario"]


class Scenario(Enum):
    """What happens to the cluster."""

    CONSISTENT = "consistent"
    """Nothing: the state before testing."""
    SWITCHOVER = "switchover"
    """``efm promote -switchover``: a standby takes over, the old primary becomes its standby."""
    FAILOVER = "failover"
    """The primary crashes; a standby takes over."""
    REJOIN = "rejoin"
    """The crashed primary comes back as a standby."""
    STANDBY_STOP = "standby-stop"
    """A standby is stopped."""
    STANDBY_START = "standby-start"
    """The stopped standby comes back."""


class Order(Enum):
    """Which calls EFM makes, and in which order."""

    DOCUMENTED = "documented"
    """As the manual says: a node that is about to be stopped is detached before it is."""
    DETACH_AFTER_STOP = "detach-after-stop"
    """A node is detached once it has been stopped, as logs of real runs show."""
    MISSING_DETACH = "missing-detach"
    """No node is ever detached: the agent that should have called is gone."""
    MISSING_ATTACH = "missing-attach"
    """No node is attached: the call is lost. A person makes it by hand, once the hook has shown what it does alone."""
    DUPLICATE = "duplicate"
    """Each call is made twice."""
    TWO_HOSTS = "two-hosts"
    """Each call is made by two hosts at once."""
    MISSING_TYPE = "missing-type"
    """No call says whether the node is a primary, as in EFM 3.2."""
