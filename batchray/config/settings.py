"""How a driver or a server runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from batchray.config.base import PositiveFloat, PositiveInt
from batchray.config.documents import read_mapping
from batchray.errors import ConfigError
from batchray.schema.validation_text import first_problem


class Settings(BaseSettings):
    """How a driver runs.  Later wins: defaults, the file, `BATCHRAY_*` variables, arguments."""

    model_config = SettingsConfigDict(env_prefix="BATCHRAY_", extra="forbid", frozen=True)

    data_dir: Path = Path(".batchray")
    """Where the store lives; beside the work it belongs to, so that two projects never mix."""
    database_url: SecretStr | None = None
    """A PostgreSQL database instead of the SQLite file: postgresql+psycopg://user:password@host/database."""
    allow_network_fs: bool = False
    """Whether the SQLite file may lie on a network file system, where locks and shared memory are not to be trusted."""
    lease_s: PositiveFloat = 15.0
    """On PostgreSQL: how long a job's leader may be silent before another server takes over."""
    max_in_flight: PositiveInt = 256
    """The window: requests in flight at once.  Most providers' limits are below it, and one lane carries it."""
    lanes: PositiveInt | None = None
    """Lanes to start.  None: one a CPU of the cluster, at most 8, since one driver feeds no more of them."""
    executor: Literal["ray", "local"] = "ray"
    """Where requests run.  `local` is this process, for tests and for a look at an agent under a debugger."""
    ray_address: str | None = None
    """An existing cluster.  None: `RAY_ADDRESS`, or else a cluster of our own on loopback."""
    num_cpus: PositiveInt | None = None
    """CPUs of a cluster of our own.  None: as many as the machine has."""
    max_attempts: PositiveInt = 3
    """Attempts of a request whose process keeps dying under it, before it ends as errored."""
    job_deadline_s: PositiveFloat = 86_400.0
    """A whole job, from its creation, restarts included; what is not done then expires.  A day, as providers give."""
    deadline_grace_s: PositiveFloat = 30.0
    """What a lane gets beyond a request's own deadline before the driver stops waiting for its answer."""
    lane_silence_s: PositiveFloat = 300.0
    """How long a lane may stand still before it is started anew; the import of much code may hold one up for long."""
    min_watched_items: PositiveInt = 1
    """Jobs of so many items have a job actor, which is a process of its own."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments and the environment only; the file comes in through `load_settings`."""
        return init_settings, env_settings

    @property
    def database(self) -> Path:
        """The SQLite file inside the data directory."""
        return self.data_dir / "batchray.db"

    @property
    def url(self) -> str | None:
        """The URL of the database, password included; None: SQLite in the data directory."""
        return self.database_url.get_secret_value() if self.database_url else None


class ServerSettings(Settings):
    """How `batchray serve` runs.  `max_in_flight` is that of all its jobs together."""

    host: str = "127.0.0.1"
    """Where to listen.  Beyond loopback only with API keys."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8283
    """Letta's default port; 0 takes a free one."""
    min_watched_items: PositiveInt = 1000
    """A server has many small jobs, and clients watch them over HTTP."""
    max_running_jobs: PositiveInt = 64
    """Jobs that share the window; later ones wait for their turn, in the order of their acceptance."""
    max_uploads: PositiveInt = 8
    """Bodies that are received or checked at once; each may take 256 MiB of disk."""
    upload_idle_s: PositiveFloat = 30.0
    """The longest silence of a sender, of headers and of a body."""
    min_upload_bytes_per_s: PositiveInt = 16 * 1024
    """A sender that stays below it is cut off; a phone on a bad line is faster."""
    retention_days: PositiveFloat | None = 29.0
    """How long an ended job is kept, as Anthropic keeps its batches' results.  None: for ever."""
    shutdown_grace_s: PositiveFloat = 30.0
    """What running items get to finish after SIGTERM; the usual supervisors kill after it."""
    callback_secret: SecretStr | None = None
    """Signs callbacks after the Standard Webhooks scheme; several, separated by spaces, while one replaces another."""
    callback_delays_s: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """The waits between the attempts at a callback.  None: nine, over about three days."""
    callback_networks: tuple[str, ...] = ()
    """Networks (CIDR) beside the public ones that callbacks may be sent to, as of a private cluster."""


S = TypeVar("S", bound=Settings)


def load_settings(file: Path | None = None, **overrides: Any) -> Settings:
    """Build the settings from an optional YAML file, the environment, and overrides that are not None.

    Raises ConfigError for an unreadable file, an unknown key or a bad value.
    """
    return _load(Settings, file, overrides)


def load_server_settings(file: Path | None = None, **overrides: Any) -> ServerSettings:
    """Build the settings of a server; otherwise as `load_settings`."""
    return _load(ServerSettings, file, overrides)


def _load(kind: type[S], file: Path | None, overrides: Mapping[str, Any]) -> S:
    arguments = {key: value for key, value in overrides.items() if value is not None}
    document = read_mapping(file, "of settings") if file else None
    try:
        # Pydantic reads the variables, whatever their case, and takes arguments before them: so the file's keys that a
        # variable sets are left out here.
        from_env = EnvSettingsSource(kind)()
        from_file = {key: value for key, value in (document.data if document else {}).items() if key not in from_env}
        return kind(**{**from_file, **arguments})
    except SettingsError as error:
        raise ConfigError(str(error), "environment") from None
    except ValidationError as error:
        key = error.errors()[0]["loc"][0]
        if document and key in document.data and key not in from_env and key not in arguments:
            location = f"{document.file}, line {document.line((key,))}"
        else:
            location = f"BATCHRAY_{str(key).upper()}" if key in from_env and key not in arguments else "settings"
        raise ConfigError(first_problem(error, kind), location) from None
