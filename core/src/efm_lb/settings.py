"""The settings of a cluster: from the compiled plan when it can be trusted, else the slow way."""

from __future__ import annotations

from collections.abc import Mapping

from efm_lb import compiled
from efm_lb.configuration import Configuration
from efm_lb.sources import Sources, gather
from efm_lb.state import in_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from efm_lb.config.compose import Loaded

__all__ = ["settings_of"]


def settings_of(
    cluster: str, env_file: str | None, environ: Mapping[str, str], here: bool = False
) -> tuple[Configuration, str]:
    """The validated settings, and why they took the slow way (empty when they did not).

    :param env_file: ``--env-file``, or None
    :param here: for ``efm-lb apply``, on the balancers' own host, where HOST_SSH does not count
    :raises CallError: the cluster's name is no safe file name
    :raises NotReadableError: the env file may not be read
    :raises SettingsError: the settings are wrong; all that is wrong is said at once
    """
    sources = gather(cluster, env_file, environ, here)
    plan = compiled.load(sources)
    if isinstance(plan, Configuration):
        return plan, ""
    from efm_lb.config import compose

    loaded = compose(sources)
    reasons = [plan.reason]
    if loaded.failures:
        # What no adapter has validated is not compiled.
        reasons += [f"adapter {name}: {reason}" for name, reason in loaded.failures.items()]
    else:
        reasons += _stored(loaded, sources)
    return loaded.configuration, "; ".join(reasons)


def _stored(loaded: Loaded, sources: Sources) -> list[str]:
    """Store the plan; why it could not be. A disk that hangs keeps nobody waiting: the balancers come first."""
    failures: list[str] = []

    def store() -> None:
        try:
            compiled.store(loaded.configuration, sources, loaded.files)
        except OSError as error:
            path = error.filename or loaded.configuration.state_dir
            failures.append(f"no plan could be stored: {path}: {error.strerror}")

    if not in_time(store):
        return [f"no plan could be stored: {loaded.configuration.state_dir}: the disk has not taken it in time"]
    return failures
