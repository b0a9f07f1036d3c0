"""efm-lb with less than it wants of what the kernel gives to a process."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from efm_lb.rehearsal.hooks import EFM_LB, Hook

__all__ = ["limited", "limited_hook"]

# The limit counts from its first instruction on, as when EFM's unit or PAM sets it.
_LIMITED = (
    "import os, resource, sys; name, value = sys.argv[1:3];"
    " resource.setrlimit(getattr(resource, name), (int(value), resource.getrlimit(getattr(resource, name))[1]));"
    " os.execv(sys.argv[3], sys.argv[3:])"
)


def limited(name: str, value: int, argv: Sequence[str]) -> list[str]:
    """A command line that runs another one with a soft limit.

    :param name: such as ``RLIMIT_NOFILE``
    """
    return [sys.executable, "-I", "-c", _LIMITED, name, str(value), *argv]


def limited_hook(name: str, value: int, env_file: object, timeout: float = 60.0) -> Hook:
    """This installation's ``efm-lb`` with a soft limit."""
    return Hook(lambda words: limited(name, value, [*EFM_LB, *words, f"--env-file={env_file}"]), timeout=timeout)
