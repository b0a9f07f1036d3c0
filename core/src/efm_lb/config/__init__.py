"""The slow way to the settings: read, validate, explain. No hook run imports this while its compiled plan is fresh."""

from __future__ import annotations

from collections.abc import Mapping

from efm_lb.config.compose import Loaded, Value, compose
from efm_lb.configuration import Configuration
from efm_lb.sources import gather

__all__ = ["Loaded", "Value", "compose", "load"]


def load(cluster: str, env_file: str | None, environ: Mapping[str, str]) -> Configuration:
    """Read and validate the settings of a cluster, with no regard to a compiled plan.

    :param env_file: ``--env-file``, or None
    :raises CallError: the cluster's name is no safe file name
    :raises NotReadableError: the env file may not be read
    :raises SettingsError: the settings are wrong; all that is wrong is said at once
    """
    return compose(gather(cluster, env_file, environ)).configuration
