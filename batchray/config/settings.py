"""Settings of a driver and of a server."""

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

from batchray.config.base import FailureLimit, PositiveFloat, PositiveInt
from batchray.config.documents import read_mapping
from batchray.errors import ConfigError
from batchray.schema.validation_text import first_problem, problem_path


class StoreSettings(BaseSettings):
    """Where jobs are stored.  Later ones win: defaults, the file, `BATCHRAY_*` variables, arguments."""

    model_config = SettingsConfigDict(env_prefix="BATCHRAY_", extra="forbid", frozen=True)

    data_dir: Path = Path(".batchray")
    """The directory of the store; by default in the working directory, so that projects do not share one."""
    database_url: SecretStr | None = None
    """A PostgreSQL database instead of the SQLite file: postgresql+psycopg://user:password@host/database."""
    allow_network_fs: bool = False
    """Whether the SQLite file may be on a network file system, whose locks and shared memory are unreliable."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read only arguments and the environment; `load_settings` adds the file."""
        return init_settings, env_settings

    @property
    def database(self) -> Path:
        """The SQLite file inside the data directory."""
        return self.data_dir / "batchray.db"

    def check_exists(self) -> None:
        """Raise ConfigError if the data directory has no database.  A database with a URL is not asked."""
        if self.url is None and not self.database.exists():
            raise ConfigError(f"no batchray data in {self.data_dir}; give the --data-dir that the job was run with")

    @property
    def url(self) -> str | None:
        """The URL of the database, with the password; None: SQLite in the data directory."""
        return self.database_url.get_secret_value() if self.database_url else None


class Settings(StoreSettings):
    """Settings of a driver."""

    lease_s: PositiveFloat = 15.0
    """On PostgreSQL: how long a job's leader may be silent before another server takes the job over."""
    max_in_flight: PositiveInt = 256
    """The window: requests in flight at once.  Most providers' limits are lower, and one lane can run that many."""
    lanes: PositiveInt | None = None
    """Lanes to start.  None: one per free CPU, at most 8 per node and 64 together."""
    executor: Literal["ray", "local"] = "ray"
    """Where requests run.  `local` is this process, for tests and for debugging an agent."""
    ray_address: str | None = None
    """The address of an existing cluster.  None: `RAY_ADDRESS`, or else a new cluster on loopback."""
    num_cpus: PositiveInt | None = None
    """CPUs of a new cluster.  None: as many as the machine has."""
    max_attempts: PositiveInt = 3
    """Attempts of a request whose process crashes each time, before it ends as errored."""
    job_deadline_s: PositiveFloat = 86_400.0
    """Limit of a whole job from its creation, restarts included; the rest then expires.  A day, as at providers."""
    deadline_grace_s: PositiveFloat = 30.0
    """Extra time after a request's deadline before the driver stops waiting for the lane's report."""
    lane_silence_s: PositiveFloat = 300.0
    """How long a lane may be blocked before it is restarted; large imports can block one for a while."""
    max_failures: FailureLimit | None = None
    """Pause a job that has more failures than this in one run: `25`, or `5%` of its outcomes so far.  None: never."""
    max_consecutive_failures: PositiveInt = 20
    """Pause a job after this many failures in a row that all requests to a provider share, such as a wrong key."""
    provider_start_patience_s: PositiveFloat = 120.0
    """Pause a job if a provider has not answered for this time since its start: its address may be wrong."""
    min_watched_items: PositiveInt = 1
    """Jobs with at least this many items are shown by the job actor, a process that all jobs of a driver share."""


class ServerSettings(Settings):
    """Settings of `batchray serve`.  `max_in_flight` limits all its jobs together."""

    host: str = "127.0.0.1"
    """The address to listen on.  Any other than loopback requires API keys."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8283
    """Letta's default port; 0 chooses a free one."""
    min_watched_items: PositiveInt = 1000
    """Higher than a driver's: a server has many small jobs, and clients watch them over HTTP."""
    max_running_jobs: PositiveInt = 64
    """Jobs that run at once and share the window; others wait in the order of their acceptance."""
    max_uploads: PositiveInt = 8
    """Bodies received or checked at once; each may take 256 MiB of disk."""
    max_connections: PositiveInt = 4096
    """Connections of clients at once; `ulimit -n` may lower it.  A new one takes the place of one that is idle."""
    upload_idle_s: PositiveFloat = 30.0
    """The longest pause of a client while it sends headers or a body."""
    min_upload_bytes_per_s: PositiveInt = 16 * 1024
    """A client that sends more slowly is disconnected; even a bad mobile connection is faster."""
    reader_idle_s: PositiveFloat = 30.0
    """The longest time in which a client takes nothing of a response.  It is then disconnected."""
    retention_days: PositiveFloat | None = 29.0
    """How long an ended job is kept; the default is Anthropic's for results of batches.  None: forever."""
    shutdown_grace_s: PositiveFloat = 30.0
    """How long running items may continue after SIGTERM; common supervisors kill after this time."""
    callback_secret: SecretStr | None = None
    """Signs callbacks by the Standard Webhooks scheme; several secrets, separated by spaces, during a rotation."""
    callback_delays_s: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """The waits between attempts at a callback.  None: nine waits over about three days."""
    callback_networks: tuple[str, ...] = ()
    """Private networks (CIDR) that callbacks may be sent to; public addresses are always allowed."""


def chosen_settings(settings: Settings) -> dict[str, Any]:
    """Return what was chosen for a run, without defaults and without where the job is stored, as JSON-able data."""
    return settings.model_dump(mode="json", exclude_unset=True, exclude=set(StoreSettings.model_fields))


def with_earlier(settings: Settings, earlier: Mapping[str, Any]) -> Settings:
    """Return settings that take over those of an earlier run, as `chosen_settings` gave them, if not chosen now.

    One that this version does not know, or refuses, is left out.
    """
    now = {name: getattr(settings, name) for name in settings.model_fields_set}
    added = {name: value for name, value in earlier.items() if name in Settings.model_fields and name not in now}
    while added:
        try:
            return Settings(**added, **now)
        except ValidationError as error:
            if added.pop(str(error.errors()[0]["loc"][0]), None) is None:
                break
    return settings


S = TypeVar("S", bound=StoreSettings)


def load_settings(file: Path | None = None, **overrides: Any) -> Settings:
    """Build the settings from an optional YAML file, the environment, and overrides that are not None.

    Raises ConfigError for an unreadable file, an unknown key or a bad value.
    """
    return _load(Settings, file, overrides)


def load_server_settings(file: Path | None = None, **overrides: Any) -> ServerSettings:
    """Build the settings of a server; see `load_settings`."""
    return _load(ServerSettings, file, overrides)


def load_store_settings(file: Path | None = None, **overrides: Any) -> StoreSettings:
    """Build the settings of the store alone; see `load_settings`.  The file may be one of a driver or of a server.

    A bad value of any other setting has no effect: a job can be shown and canceled even if no driver could start.
    """
    return _load(StoreSettings, file, overrides)


def _load(kind: type[S], file: Path | None, overrides: Mapping[str, Any]) -> S:
    arguments = {key: value for key, value in overrides.items() if value is not None}
    document = read_mapping(file, "of settings") if file else None
    others = ServerSettings.model_fields.keys() - kind.model_fields.keys() if kind is StoreSettings else set()
    try:
        # Values of the file are passed as arguments, which win over variables; so those set by a variable are dropped.
        from_env = EnvSettingsSource(kind)()
        in_file = document.data if document else {}
        from_file = {key: value for key, value in in_file.items() if key not in from_env and key not in others}
        return kind(**{**from_file, **arguments})
    except SettingsError as error:
        raise ConfigError(str(error), "environment") from None
    except ValidationError as error:
        key = problem_path(error)[0]
        if document and key in document.data and key not in from_env and key not in arguments:
            location = f"{document.file}, line {document.line((key,))}"
        else:
            location = f"BATCHRAY_{str(key).upper()}" if key in from_env and key not in arguments else "settings"
        raise ConfigError(first_problem(error, kind), location) from None
