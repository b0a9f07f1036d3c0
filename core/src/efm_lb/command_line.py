"""The command line of a hook, as far as it must be understood before anything else is imported."""

from __future__ import annotations

from efm_lb.errors import CallError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

__all__ = ["APPLY", "CUSTOM_MONITOR", "HOOKS", "RECONCILE", "VALUED", "is_monitor", "valued"]

HOOKS = ("attach", "detach", "promote")
APPLY = "apply"
RECONCILE = "reconcile"
CUSTOM_MONITOR = "--custom-monitor"
"""Of reconcile: EFM takes any other exit code than 0 for a failed database, whatever it is that failed."""
VALUED = ("--cluster", "--env-file", "--follow-up", "--call")
"""The options of a hook that have a value."""


def is_monitor(argv: Sequence[str]) -> bool:
    """Whether EFM's custom monitor is asked for, be it in a wrong way: it must not make EFM promote."""
    return any(word.partition("=")[0] == CUSTOM_MONITOR for word in argv)


def valued(argv: Sequence[str], names: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """Take the options that have a value, ``--name VALUE`` or ``--name=VALUE``, out of a command line.

    :param names: of these options
    :return: all other words, in their order; and the values by name, the last of each
    :raises CallError: a value is missing or empty
    """
    others: list[str] = []
    options: dict[str, str] = {}
    rest = iter(argv)
    for word in rest:
        name, equals, value = word.partition("=")
        if name not in names:
            others.append(word)
            continue
        options[name] = value if equals else next(rest, "")
        if not options[name]:
            raise CallError(f"{name} needs a value")
    return others, options
