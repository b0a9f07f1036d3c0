"""efm-lb's own variables: their names, types, defaults and documentation, for pydantic-settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from efm_lb.config.nodes import parse_nodes
from efm_lb.sources import DEFAULT_STATE_DIR, PREFIX

__all__ = ["DELIMITER", "GROUPS", "Probe", "Reconcile", "Settings", "nested"]

DELIMITER = "__"
GROUPS = ("probe", "reconcile")
"""Settings that are groups of settings, each with a model of the same name."""


def _nodes(text: str) -> str:
    parse_nodes(text)
    return text


AbsolutePath = Annotated[str, Field(pattern="^/")]
Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]


class Probe(BaseModel):
    """How the databases are asked for their role: libpq's connection keywords."""

    model_config = ConfigDict(extra="forbid")

    user: str = Field(default="efm", description="Database user. The role query needs no rights beyond CONNECT.")
    dbname: str = Field(default="postgres", description="Database to connect to.")
    passfile: AbsolutePath | None = Field(
        default=None, description="File with the password; libpq reads ~/.pgpass when this is not set."
    )
    sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = Field(
        default="prefer", description="TLS, as for libpq."
    )
    sslrootcert: AbsolutePath | None = Field(default=None, description="File with the certificates to trust.")
    sslcert: AbsolutePath | None = Field(default=None, description="File with the client's certificate.")
    sslkey: AbsolutePath | None = Field(default=None, description="File with the client's key.")


class Reconcile(BaseModel):
    """How `efm-lb reconcile` behaves."""

    model_config = ConfigDict(extra="forbid")

    period: Seconds = Field(default=5, description="Seconds between two looks at the balancers.")
    settle: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = Field(
        default=2, description="Seconds that belong to EFM's own calls after a node has changed."
    )
    detach_after: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = Field(
        default=15,
        description="Seconds that a standby has to be down before it is taken out: one that is restarted stays in.",
    )
    hold: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = Field(
        default=60, description="Seconds that a standby stays out which somebody has taken out while it is up."
    )
    majority: Literal["on", "off"] = Field(
        default="on",
        description="Whether a host that gets answers from half of three or more nodes, or fewer, changes nothing.",
    )


class Settings(BaseSettings):
    """The settings of one cluster."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter=DELIMITER, extra="forbid")

    nodes: Annotated[str, AfterValidator(_nodes)] = Field(
        description="The cluster's databases as EFM names them in %h: host:port, [IPv6]:port,"
        " or name=host:port where the name is EFM's; separated by commas. The port is 5432 when left out.",
        examples=["10.0.0.11:5444,10.0.0.12:5444", "db1=10.0.0.11:5444,db2=[fd00::12]:5444"],
    )
    probe: Probe = Field(default_factory=Probe)
    deadline: Seconds = Field(
        default=10, description="Seconds that one hook run may take after it has got the lock; at most 3600."
    )
    connect_timeout: Seconds = Field(
        default=2,
        description="Seconds that a database or a balancer has to answer a connect and a login;"
        " less than EFM_LB_DEADLINE.",
    )
    state_dir: AbsolutePath = Field(
        default=DEFAULT_STATE_DIR, description="Directory of the journal, the lock and the compiled plan."
    )
    detach_live_primary: Literal["defer", "obey", "refuse"] = Field(
        default="defer",
        description="What a detach does that would take the service down, the node being the only writable primary:"
        " wait for a promotion and judge again, do it, or refuse.",
    )
    reconcile: Reconcile = Field(default_factory=Reconcile)
    balancers: dict[str, dict[str, str]] = Field(
        description="The balancers, by name. EFM_LB_BALANCERS__<NAME>__ADAPTER says which adapter speaks to it;"
        " the other settings are the adapter's."
    )

    @field_validator("connect_timeout")
    @classmethod
    def _within_deadline(cls, seconds: float, info: ValidationInfo) -> float:
        deadline = info.data.get("deadline")
        if deadline is not None and seconds >= deadline:
            raise ValueError(f"{seconds:g} is not less than EFM_LB_DEADLINE ({deadline:g})")
        return seconds

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take what the caller gives and nothing else: `nested` has merged environment and env file already."""
        return (init_settings,)


class _Given(EnvSettingsSource):
    """Variables from a mapping instead of the process environment, all of them texts."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        super().__init__(Settings)
        self.env_vars = {name.lower(): value for name, value in variables.items()}

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        return value


def nested(variables: Mapping[str, str]) -> dict[str, Any]:
    """Variables by upper-case name as the nested mapping that `Settings` takes."""
    return _Given(variables)()
