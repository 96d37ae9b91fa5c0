"""Settings, providers and agents: read from files, the environment and arguments; checked whole before anything runs.

Keys of providers are never part of it: a provider names the environment variable that holds its key.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import orjson
import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from batchray.errors import ConfigError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]

# What a request's body may be set to by an agent's file without being named under `body`.
_BODY_FIELDS = ("temperature", "max_tokens")
# What only an agent with a model can have.
_OF_MODELS = (
    "system",
    "tools",
    "script",
    "requires_approval",
    "terminal_tools",
    "requires_tool",
    "stateful",
    "memory_blocks",
    "max_total_tokens",
    "max_cost_usd",
    "prices",
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Settings(BaseSettings):
    """How a driver runs.  Later wins: defaults, the file, `BATCHRAY_*` variables, arguments."""

    model_config = SettingsConfigDict(env_prefix="BATCHRAY_", extra="forbid", frozen=True)

    data_dir: Path = Path(".batchray")
    """Where the store lives; beside the work it belongs to, so that two projects never mix."""
    database_url: SecretStr | None = None
    """A PostgreSQL database instead of the SQLite file: postgresql+psycopg://user:password@host/database."""
    allow_network_fs: bool = False
    """Whether the SQLite file may lie on a network file system, where locks and shared memory are not to be trusted."""
    lease_s: Positive = 15.0
    """On PostgreSQL: how long a job's leader may be silent before another server takes over."""
    max_in_flight: Count = 256
    """The window: requests in flight at once.  Most providers' limits are below it, and one lane carries it."""
    lanes: Count | None = None
    """Lanes to start.  None: one a CPU of the cluster, at most 8, since one driver feeds no more of them."""
    executor: Literal["ray", "local"] = "ray"
    """Where requests run.  `local` is this process, for tests and for a look at an agent under a debugger."""
    ray_address: str | None = None
    """An existing cluster.  None: `RAY_ADDRESS`, or else a cluster of our own on loopback."""
    num_cpus: Count | None = None
    """CPUs of a cluster of our own.  None: as many as the machine has."""
    max_attempts: Count = 3
    """Attempts of a request whose process keeps dying under it, before it ends as errored."""
    job_deadline_s: Positive = 86_400.0
    """A whole job, from its creation, restarts included; what is not done then expires.  A day, as providers give."""
    deadline_grace_s: Positive = 30.0
    """What a lane gets beyond a request's own deadline before the driver stops waiting for its answer."""
    min_watched_items: Count = 1
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
    min_watched_items: Count = 1000
    """A server has many small jobs, and clients watch them over HTTP."""
    max_running_jobs: Count = 64
    """Jobs that share the window; later ones wait for their turn, in the order of their acceptance."""
    max_uploads: Count = 8
    """Bodies that are received or checked at once; each may take 256 MiB of disk."""
    upload_idle_s: Positive = 30.0
    """The longest silence of a sender, of headers and of a body."""
    min_upload_bytes_per_s: Count = 16 * 1024
    """A sender that stays below it is cut off; a phone on a bad line is faster."""
    retention_days: Positive | None = 29.0
    """How long an ended job is kept, as Anthropic keeps its batches' results.  None: for ever."""
    shutdown_grace_s: Positive = 30.0
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
    given = {key: value for key, value in overrides.items() if value is not None}
    from_file = _read_mapping(file).data if file else {}
    from_env = {key for key in kind.model_fields if f"BATCHRAY_{key.upper()}" in os.environ}
    try:
        return kind(**{**{key: value for key, value in from_file.items() if key not in from_env}, **given})
    except ValidationError as error:
        raise ConfigError(first_sentence(error, kind), str(file or "settings")) from None


class Timeouts(_Strict):
    """Limits of one model call, in seconds."""

    connect_s: Positive = 10.0
    """A provider that takes longer to accept a connection is down."""
    idle_s: Positive = 120.0
    """Time between bytes; reasoning models stay silent for a minute and more before their first token."""
    call_s: Positive = 900.0
    """A whole call; the request's own deadline is usually shorter."""


class Provider(_Strict):
    """A model server: its protocol, its address, and the variable that holds its key."""

    protocol: Literal["openai", "anthropic", "offline"]
    base_url: str | None = None
    """Where the server is.  None: Anthropic's own address for the protocol anthropic, an error for openai."""
    api_key_env: str | None = None
    max_in_flight: Count | None = None
    """Requests of one job in flight at once that use this provider.  None: the window alone decides."""
    max_retries: Annotated[int, Field(ge=0)] = 8
    """Retries of one model call after 408, 409, 429, 5xx, resets and timeouts."""
    timeouts: Timeouts = Timeouts()

    @model_validator(mode="after")
    def _has_an_address(self) -> Self:
        if self.protocol == "offline" or (self.protocol == "anthropic" and self.base_url is None):
            return self
        if not re.match(r"https?://[^/]", self.base_url or ""):
            raise ValueError(f"protocol {self.protocol} needs a base_url that starts with http:// or https://")
        if self.protocol == "anthropic" and str(self.base_url).rstrip("/").endswith("/v1"):
            raise ValueError("leave /v1 out of base_url: protocol anthropic asks at base_url + /v1/messages")
        return self


class MemoryBlock(_Strict):
    """A labelled text that the agent's model sees with every request, and may edit."""

    label: Annotated[str, Field(pattern=r"^\w[\w ./-]{0,127}$")]
    """Names the block to the model."""
    value: str = ""
    limit: Count = 20_000
    """Characters; a block that grows without end would crowd out the conversation."""
    description: str | None = None
    read_only: bool = False

    @model_validator(mode="after")
    def _is_within_its_limit(self) -> Self:
        if len(self.value) > self.limit:
            raise ValueError(f"the value of block {self.label!r} has {len(self.value):,} characters of {self.limit:,}")
        return self


Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Prices(_Strict):
    """What a million tokens cost, in US dollars."""

    input: Price
    output: Price
    cached_input: Price | None = None
    """Prompt tokens read from the provider's cache.  None: as `input`."""
    cache_write: Price | None = None
    """Prompt tokens written to it.  None: as `input`."""


class Agent(_Strict):
    """A named, configured thing that answers requests.

    Either `model` ("provider/model") with `system` and `tools`, or `run`: a Python callable, or its name
    "package.module:function", that takes the request and returns its answer, sync or async.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    id: Annotated[str, Field(min_length=1, max_length=256)]
    model: str | None = None
    run: str | Callable[..., Any] | None = None
    system: str | None = None
    tools: tuple[str | Callable[..., Any], ...] = ()
    max_steps: Count = 50
    """The most steps of one request; a request's own `max_steps` can lower it, not raise it."""
    deadline_s: Positive = 600.0
    """A request's whole run, retries and tools included."""
    tool_timeout_s: Positive = 60.0
    """One tool call."""
    requires_approval: tuple[str, ...] = ()
    """Names of tools whose calls wait for the caller; the run stops there, and a later request goes on from there."""
    terminal_tools: tuple[str, ...] = ()
    """Names of tools that end the run once they have returned."""
    requires_tool: bool = False
    """Whether an answer counts only after a tool was called."""
    stateful: bool = False
    """Whether it remembers: its conversation and memory are kept, and its requests run one after another."""
    memory_blocks: tuple[MemoryBlock, ...] = ()
    max_total_tokens: Count | None = None
    """Tokens of all model calls of one request, prompts included; no further step begins once they are used up."""
    max_cost_usd: Positive | None = None
    """The same in money, by `prices`."""
    prices: Prices | None = None
    placement: Literal["lane", "process"] = "lane"
    """`process` gives each request a worker process of its own: for blocking, CPU-bound or GPU-bound agents."""
    num_cpus: Annotated[float, Field(ge=0)] | None = None
    num_gpus: Annotated[float, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    max_tokens: Count | None = None
    body: Mapping[str, Any] = Field(default_factory=dict)
    """Further fields of the provider's request body."""
    script: tuple[Mapping[str, Any], ...] | None = None
    """The turns of `offline/scripted`."""

    @field_validator("body")
    @classmethod
    def _is_json(cls, body: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            return orjson.loads(orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS))  # type: ignore[no-any-return]
        except orjson.JSONEncodeError as error:
            raise ValueError(f"cannot be written as JSON: {error}") from None

    @field_validator("model")
    @classmethod
    def _is_a_handle(cls, model: str | None) -> str | None:
        if model is not None and not re.fullmatch(r"[^/\s]+/\S+", model):
            raise ValueError(f"{model!r} is not of the form provider/model")
        return model

    @model_validator(mode="after")
    def _is_one_of_two_kinds(self) -> Self:
        if (self.model is None) == (self.run is None):
            raise ValueError("give exactly one of model and run")
        if self.run is not None and (alien := [name for name in _OF_MODELS if getattr(self, name)]):
            raise ValueError(f"{', '.join(alien)} cannot be given with run, only with a model")
        if self.script is not None and self.model != "offline/scripted":
            raise ValueError("script belongs to the model offline/scripted")
        if self.max_cost_usd is not None and self.prices is None:
            raise ValueError("max_cost_usd needs prices")
        labels = [block.label for block in self.memory_blocks]
        if twice := {label for label in labels if labels.count(label) > 1}:
            raise ValueError(f"two memory blocks are labelled {min(twice)!r}")
        if self.placement == "lane" and (self.num_cpus is not None or self.num_gpus is not None):
            raise ValueError("num_cpus and num_gpus belong to placement: process")
        return self

    @property
    def provider_name(self) -> str | None:
        """The part of the model's handle before the first slash."""
        return self.model.partition("/")[0] if self.model else None

    @property
    def model_name(self) -> str:
        """The part of the model's handle after the first slash."""
        return self.model.partition("/")[2] if self.model else ""

    @property
    def request_body(self) -> dict[str, Any]:
        """What the agent adds to the body of each model call."""
        named = {key: getattr(self, key) for key in _BODY_FIELDS if getattr(self, key) is not None}
        script = {"script": [dict(turn) for turn in self.script]} if self.script is not None else {}
        return {**self.body, **named, **script}


class AgentsFile(_Strict):
    """What an agents file holds."""

    providers: Mapping[str, Provider] = Field(default_factory=dict)
    agents: tuple[Agent, ...] = ()
    tools: tuple[str, ...] = ()
    """Tools that agents made over HTTP may have beside those of the file's own agents."""


@dataclass(frozen=True, eq=False)
class BoundAgent:
    """An agent with all that a worker needs to run it.

    `key` is the provider's; it travels to the workers inside pickled bytes, and neither a repr nor a snapshot shows it.
    `import_paths` is where its Python code is found.
    """

    agent: Agent
    provider: Provider | None
    key: SecretStr | None = None
    import_paths: tuple[str, ...] = ()


@dataclass(frozen=True)
class AgentSet:
    """The agents that a job may name, by id, each bound to its provider; and what further ones may be made of."""

    agents: Mapping[str, BoundAgent] = field(default_factory=dict)
    providers: Mapping[str, Provider] = field(default_factory=dict)
    tools: tuple[str, ...] = ()
    import_paths: tuple[str, ...] = ()

    def bind(self, agent: Agent, environment: Mapping[str, str] | None = None) -> BoundAgent:
        """Return one more agent, bound to a provider of the set or a built-in one.  Raises ConfigError."""
        return bind_agents([agent], self.providers, environment, self.import_paths).agents[agent.id]

    def limits(self) -> dict[str, int]:
        """`max_in_flight` of each provider that sets one."""
        return {
            bound.agent.provider_name: bound.provider.max_in_flight
            for bound in self.agents.values()
            if bound.agent.provider_name and bound.provider and bound.provider.max_in_flight
        }

    def snapshot(self, agent_ids: Set[str] | None = None) -> dict[str, Any]:
        """The set, or these of it, as plain data for the store: names of keys, never keys; of functions, never code.

        A callable that cannot be imported by name is kept as null, and a resume has to be given it again.
        """
        return {
            agent_id: {
                "agent": _plain_agent(bound.agent),
                "provider": bound.provider.model_dump(mode="json") if bound.provider else None,
                "import_paths": list(bound.import_paths),
            }
            for agent_id, bound in self.agents.items()
            if agent_ids is None or agent_id in agent_ids
        }

    @classmethod
    def from_snapshot(
        cls,
        snapshot: Mapping[str, Any],
        replaced: AgentSet | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> AgentSet:
        """Rebuild a set; agents of `replaced` win.  Raises ConfigError where a callable or a key is missing."""
        agents = dict(replaced.agents) if replaced else {}
        for agent_id, kept in snapshot.items():
            if agent_id not in agents:
                agents[agent_id] = _bound_again(agent_id, kept, os.environ if environment is None else environment)
        return replace(replaced or cls(), agents=agents)


def builtin_providers(environment: Mapping[str, str]) -> dict[str, Provider]:
    """The providers that need no file.  Raises ConfigError for an address in the environment that is none."""
    openai_url = environment.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    anthropic_url = environment.get("ANTHROPIC_BASE_URL") or None
    if anthropic_url:  # some tools that share the variable have the version in it
        anthropic_url = anthropic_url.rstrip("/").removesuffix("/v1")
    return {
        "offline": Provider(protocol="offline"),
        "openai": _builtin("OPENAI", protocol="openai", base_url=openai_url),
        "anthropic": _builtin("ANTHROPIC", protocol="anthropic", base_url=anthropic_url),
    }


def _builtin(prefix: str, **fields: Any) -> Provider:
    try:
        return Provider(**fields, api_key_env=f"{prefix}_API_KEY")
    except ValidationError as error:
        raise ConfigError(first_sentence(error, Provider), f"{prefix}_BASE_URL") from None


def bind_agents(
    agents: Sequence[Agent],
    providers: Mapping[str, Provider] | None = None,
    environment: Mapping[str, str] | None = None,
    import_paths: Sequence[str] = (),
    places: Sequence[str] = (),
) -> AgentSet:
    """Join agents and providers.  `places` names where each agent was read, for the errors.

    Raises ConfigError for a duplicate id, an unknown or unusable provider, or a key that is not in the environment.
    """
    environment = os.environ if environment is None else environment
    known = {**builtin_providers(environment), **(providers or {})}
    bound: dict[str, BoundAgent] = {}
    for position, agent in enumerate(agents):
        place = places[position] if places else f"agents[{position}]"
        if agent.id in bound:
            raise ConfigError(f"duplicate agent id {agent.id!r}", place)
        provider = _provider_of(agent, known, place) if agent.provider_name else None
        bound[agent.id] = BoundAgent(agent, provider, _key_of(agent, provider, environment, place), tuple(import_paths))
    return AgentSet(bound, known, import_paths=tuple(import_paths))


def load_agents(
    files: Sequence[Path], environment: Mapping[str, str] | None = None, *, needs_agents: bool = True
) -> AgentSet:
    """Read agents and providers from YAML or JSON files; a provider named in one serves the agents of all.

    Python code that an agents file names is looked for beside the file, in the working directory, and where Python
    looks.  Raises ConfigError with the file, the line and the reason; also for no agents at all, unless `needs_agents`
    is False.
    """
    providers: dict[str, Provider] = {}
    tools: list[str] = []
    agents: list[Agent] = []
    places: list[str] = []
    paths: list[str] = []
    for file in files:
        document = _read_mapping(file)
        try:
            content = AgentsFile.model_validate(document.data)
        except ValidationError as error:
            place = document.place(error.errors()[0]["loc"])
            raise ConfigError(first_sentence(error, AgentsFile), place) from None
        providers.update(content.providers)
        tools.extend(content.tools)
        agents.extend(content.agents)
        places.extend(document.place(("agents", i)) for i in range(len(content.agents)))
        paths.append(str(file.resolve().parent))
    if needs_agents and not agents:
        raise ConfigError("no agents in it", ", ".join(str(file) for file in files) or "agents")
    bound = bind_agents(agents, providers, environment, list(dict.fromkeys([*paths, str(Path.cwd())])), places)
    return replace(bound, tools=tuple(dict.fromkeys(tools)))


@dataclass(frozen=True)
class _Document:
    """A YAML or JSON mapping that remembers its lines."""

    file: Path
    data: dict[str, Any]
    root: yaml.Node | None

    def place(self, path: Sequence[int | str]) -> str:
        """Name the file, the line and the path of a value, as far down as it exists."""
        node, known = self.root, ""
        line = node.start_mark.line + 1 if node else 1
        for key in path:
            child, mark = _child(node, key)
            if mark is None:
                break
            node, line = child, mark.line + 1
            known += f"[{key}]" if isinstance(key, int) else f".{key}" if known else key
        return f"{self.file}, line {line}" + (f", {known}" if known else "")


def _child(node: yaml.Node | None, key: int | str) -> tuple[yaml.Node | None, yaml.Mark | None]:
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        child = node.value[key]
        return child, child.start_mark
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.value == key:
                return value, name.start_mark
    return None, None


def _read_mapping(file: Path) -> _Document:
    try:
        text = file.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", str(file)) from None
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8 text", str(file)) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise ConfigError(f"is not YAML: {error.problem}", f"{file}, line {mark.line + 1 if mark else 1}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that there is not
        raise ConfigError(f"is not YAML: {str(error).splitlines()[0]}", str(file)) from None
    except RecursionError:
        raise ConfigError("is nested too deep", str(file)) from None
    if not isinstance(data, dict):
        raise ConfigError("must be a mapping with the keys providers and agents", str(file))
    return _Document(file, data, root)


def _bound_again(agent_id: str, kept: Mapping[str, Any], environment: Mapping[str, str]) -> BoundAgent:
    place = "the job's snapshot"
    if None in (kept["agent"].get("run", ""), *kept["agent"].get("tools", ())):
        raise ConfigError(f"agent {agent_id!r} is a Python function that cannot be found by name; pass it in agents=")
    agent = Agent.model_validate(kept["agent"])
    provider = Provider.model_validate(kept["provider"]) if kept["provider"] else None
    return BoundAgent(agent, provider, _key_of(agent, provider, environment, place), tuple(kept["import_paths"]))


def _key_of(agent: Agent, provider: Provider | None, environment: Mapping[str, str], place: str) -> SecretStr | None:
    if provider is None or provider.api_key_env is None:
        return None
    key = environment.get(provider.api_key_env)
    if not key:
        raise ConfigError(
            f"agent {agent.id!r}: provider {agent.provider_name!r} needs its key "
            f"in the environment variable {provider.api_key_env}",
            place,
        )
    return SecretStr(key)


def _provider_of(agent: Agent, known: Mapping[str, Provider], place: str) -> Provider:
    name = agent.provider_name or ""
    provider = known.get(name)
    if provider is None:
        raise ConfigError(f"agent {agent.id!r}: unknown provider {name!r}; known: {', '.join(sorted(known))}", place)
    if provider.protocol == "offline" and agent.model_name not in ("scripted", "rules"):
        raise ConfigError(
            f"agent {agent.id!r}: no offline model {agent.model_name!r}; there are offline/rules and offline/scripted",
            place,
        )
    return provider


def _plain_agent(agent: Agent) -> dict[str, Any]:
    plain = agent.model_dump(mode="json", exclude={"run", "tools"}, exclude_defaults=True)
    if agent.run is not None:
        plain["run"] = function_name(agent.run)
    if agent.tools:
        plain["tools"] = [function_name(tool) for tool in agent.tools]
    return plain


def function_name(function: str | Callable[..., Any]) -> str | None:
    """Return "module:qualified.name" of a function that can be imported by it; None for one that cannot."""
    if isinstance(function, str):
        return function
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "<>")
    if module in (None, "__main__") or "<" in name or module not in sys.modules:
        return None
    try:
        found: Any = functools.reduce(getattr, name.split("."), sys.modules[module])
    except AttributeError:
        return None
    return f"{module}:{name}" if found is function else None  # a bound method's name leads to another function


def first_sentence(error: ValidationError, model: type[BaseModel]) -> str:
    """Say the first of pydantic's complaints as one sentence."""
    first = error.errors(include_url=False)[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        close = difflib.get_close_matches(key, _all_keys(model), n=1)
        return f"unknown key {key!r}" + (f"; did you mean {close[0]!r}?" if close else "")
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _all_keys(model: type[BaseModel]) -> list[str]:
    nested = (Agent, Provider, Timeouts, MemoryBlock, Prices) if model is AgentsFile else ()
    return [key for each in (model, *nested) for key in each.model_fields]
