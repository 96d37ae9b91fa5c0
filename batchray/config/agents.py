"""Models of the configuration: providers and agents."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from batchray.config.base import PositiveFloat, PositiveInt, Strict
from batchray.config.reaching import Auth, CaFile, Headers, Proxy, Query, check_address
from batchray.schema import BlockLabel, Usage

# Fields of the provider's request body that are options of an agent, outside of `body`.
_BODY_FIELDS = ("temperature", "max_tokens")
# Options that only an agent with a model can have.
_MODEL_OPTIONS = (
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
    "protocol",
    "cache",
    "enable_thinking",
)


class ProviderTimeouts(Strict):
    """Limits of one model call, in seconds."""

    connect_s: PositiveFloat = 10.0
    """A provider that takes longer to accept a connection is down."""
    idle_s: PositiveFloat = 120.0
    """Time between bytes; reasoning models can be silent for over a minute before their first token."""
    call_s: PositiveFloat = 900.0
    """A whole call; the request's own deadline is usually shorter."""


class Provider(Strict):
    """A model server: its protocol, its address, and the environment variable that holds its key."""

    protocol: Literal["openai", "responses", "anthropic", "offline"]
    """`openai` is chat completions, except for models of OpenAI's own server that need Responses."""
    base_url: str | None = None
    """The server's address.  None: the own address of Anthropic or OpenAI for anthropic or responses, else an error."""
    api_key_env: str | None = None
    auth: Auth | None = None
    """The header of the key.  None: that of the protocol, `bearer` for openai and `x-api-key` for anthropic."""
    headers: Headers = Field(default_factory=dict)
    """Sent with each call; they win over the protocol's own."""
    query: Query = Field(default_factory=dict)
    """Parameters added to the address of each call."""
    proxy: Proxy = None
    """The proxy's address.  None: as HTTP_PROXY, HTTPS_PROXY and NO_PROXY say; False: none."""
    ca_file: CaFile | None = None
    """PEM file of the certificates to trust instead of the system's."""
    stream: bool = True
    """Whether answers are streamed; a server that cannot stream gets `stream: false`."""
    stream_options: bool = True
    """Whether protocol openai asks for usage in a stream; some servers refuse the field."""
    send_reasoning: Literal["auto", "always", "never"] = "auto"
    """Whether protocol openai sends a model's reasoning back.  `auto`: as known hosts want it, else with tool calls."""
    max_in_flight: PositiveInt | None = None
    """Limit of requests in flight to this provider, over all jobs of a process.  None: only the windows limit them."""
    max_retries: Annotated[int, Field(ge=0)] = 8
    """Retries of one model call after failures that no state of the provider explains: 500, 408, timeouts, breaks."""
    provider_patience_s: PositiveFloat | None = None
    """How long a call waits in all for a provider that is away or asks to wait.  None: the job's deadline ends it."""
    timeouts: ProviderTimeouts = ProviderTimeouts()

    @model_validator(mode="after")
    def _check_base_url(self) -> Self:
        if self.protocol != "offline":
            check_address(self.protocol, self.base_url)
        return self

    @property
    def request_body(self) -> dict[str, Any]:
        """The fields that the provider adds to the body of each model call; those of an agent win."""
        body: dict[str, Any] = {} if self.stream else {"stream": False}
        return body if self.stream_options or self.protocol != "openai" else {**body, "stream_options": None}


class MemoryBlock(Strict):
    """A labelled text that the agent's model sees with every request and can edit."""

    label: BlockLabel
    value: str = ""
    limit: PositiveInt = 20_000
    """In characters; a block that grows without limit would displace the conversation."""
    description: str | None = None
    read_only: bool = False

    @model_validator(mode="after")
    def _check_limit(self) -> Self:
        if len(self.value) > self.limit:
            raise ValueError(f"the value of block {self.label!r} has {len(self.value):,} characters of {self.limit:,}")
        return self


class StoredMemoryBlock(MemoryBlock):
    """A block that a store keeps under its own id, and that several agents may share.  Only a server makes one."""

    id: str


class Tool(Strict):
    """A tool with its properties: a function, or its name "package.module:function"."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    function: str | Callable[..., Any]
    idempotent: bool = False
    """Whether calls of the tool may be repeated without harm, so that it starts while its call is still being stored.

    So does the next model call, if all tools of the step are idempotent.  A crash then may leave no record of a call
    that has run, and the next attempt may call it again, or another one.
    """


def _check_tool(given: Any) -> Any:
    """Refuse what is not a tool in one sentence; otherwise each kind that it could be has one."""
    if isinstance(given, Mapping):
        function, idempotent = given.get("function"), given.get("idempotent", False)
        is_tool = _is_function(function) and isinstance(idempotent, bool)
        has_unknown_key = not given.keys() <= {"function", "idempotent"}  # which the model names
    else:
        is_tool, has_unknown_key = isinstance(given, Tool) or _is_function(given), False
    if not is_tool and not has_unknown_key:
        raise ValueError("a tool is a function, `module:function`, or {function: module:function, idempotent: true}")
    return given


def _is_function(given: Any) -> bool:
    return isinstance(given, str) or callable(given)


ToolEntry = Annotated[str | Tool | Callable[..., Any], BeforeValidator(_check_tool)]
"""A tool of an agent: a function, its name, or a `Tool`."""

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Prices(Strict):
    """Prices of a million tokens, in US dollars."""

    input: Price
    output: Price
    cached_input: Price | None = None
    """Prompt tokens read from the provider's cache.  None: as `input`."""
    cache_write: Price | None = None
    """Prompt tokens written to the cache.  None: as `input`."""

    def cost_usd(self, usage: Usage) -> float:
        """Return the price of these tokens in US dollars."""
        cached = self.input if self.cached_input is None else self.cached_input
        written = self.input if self.cache_write is None else self.cache_write
        uncached = usage.prompt_tokens - usage.cached_input_tokens - usage.cache_write_tokens
        of_prompt = uncached * self.input + usage.cached_input_tokens * cached + usage.cache_write_tokens * written
        return (of_prompt + usage.completion_tokens * self.output) / 1e6


class Agent(Strict):
    """An agent: answers requests with a model and tools, or with a Python function.

    Either `model` ("provider/model") with `system` and `tools`, or `run`: a Python callable or its name
    "package.module:function", sync or async, which takes the request and returns the answer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    id: Annotated[str, Field(min_length=1, max_length=256)]
    model: str | None = None
    protocol: Literal["openai", "responses"] | None = None
    """OpenAI's protocol for this agent: chat completions or Responses.  None: as its provider and model need it."""
    run: str | Callable[..., Any] | None = None
    system: str | None = None
    tools: tuple[ToolEntry, ...] = ()
    max_steps: PositiveInt = 50
    """Limit of the steps of one request; a request's own `max_steps` can lower it, not raise it."""
    deadline_s: PositiveFloat = 600.0
    """Limit of a request as a whole, retries and tools included."""
    tool_timeout_s: PositiveFloat = 60.0
    """Limit of one tool call."""
    requires_approval: tuple[str, ...] = ()
    """Names of tools whose calls wait for the caller: the run stops there, and a later request continues it."""
    terminal_tools: tuple[str, ...] = ()
    """Names of tools that end the run when they succeed."""
    requires_tool: bool = False
    """Whether an answer without any tool call is an error."""
    stateful: bool = False
    """Whether the conversation and memory are kept between requests; its requests then run one after another."""
    memory_blocks: tuple[MemoryBlock | StoredMemoryBlock, ...] = ()
    max_total_tokens: PositiveInt | None = None
    """Limit of the tokens of all model calls of one request, prompts included; no further step starts after it."""
    max_cost_usd: PositiveFloat | None = None
    """The same limit in US dollars, computed from `prices`."""
    prices: Prices | None = None
    placement: Literal["lane", "process"] = "lane"
    """`process` runs each request in its own worker process: for blocking, CPU-bound or GPU-bound agents."""
    num_cpus: Annotated[float, Field(ge=0)] | None = None
    num_gpus: Annotated[float, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    max_tokens: PositiveInt | None = None
    enable_thinking: bool | None = None
    """Switches the model's reasoning on or off, unless a request does.  None: as the model does by itself."""
    body: Mapping[str, Any] = Field(default_factory=dict)
    """More fields of the provider's request body."""
    script: tuple[Mapping[str, Any], ...] | None = None
    """The replies of `offline/scripted`."""
    cache: bool = False
    """Whether a model call that is the same as an earlier one gets its reply, kept in files of the machine."""
    labels: Mapping[str, str] = Field(default_factory=dict)
    """Words of the user's own, such as the name of its prompt; stored with a job, and shown to no model."""

    @field_validator("body")
    @classmethod
    def _check_json(cls, body: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            return orjson.loads(orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS))  # type: ignore[no-any-return]
        except orjson.JSONEncodeError as error:
            raise ValueError(f"cannot be written as JSON: {error}") from None

    @field_validator("model")
    @classmethod
    def _check_model(cls, model: str | None) -> str | None:
        if model is not None and not re.fullmatch(r"[^/\s]+/\S+", model):
            raise ValueError(f"{model!r} is not of the form provider/model")
        return model

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        """Check that the agent has a model or a function, and only options of its kind."""
        if (self.model is None) == (self.run is None):
            raise ValueError("give exactly one of model and run")
        if self.run is not None and (extra := [name for name in _MODEL_OPTIONS if getattr(self, name)]):
            raise ValueError(f"{', '.join(extra)} cannot be given with run, only with a model")
        if self.script is not None and self.model != "offline/scripted":
            raise ValueError("script belongs to the model offline/scripted")
        return self

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        """Check options that depend on each other."""
        if self.max_cost_usd is not None and self.prices is None:
            raise ValueError("max_cost_usd needs prices")
        labels = [block.label for block in self.memory_blocks]
        if duplicates := {label for label in labels if labels.count(label) > 1}:
            raise ValueError(f"two memory blocks are labelled {min(duplicates)!r}")
        if self.placement == "lane" and (self.num_cpus is not None or self.num_gpus is not None):
            raise ValueError("num_cpus and num_gpus belong to placement: process")
        return self

    @property
    def tool_functions(self) -> tuple[str | Callable[..., Any], ...]:
        """The functions of `tools`."""
        return tuple(map(tool_function, self.tools))

    @property
    def provider_name(self) -> str | None:
        """The part of `model` before the first slash."""
        return self.model.partition("/")[0] if self.model else None

    @property
    def model_name(self) -> str:
        """The part of `model` after the first slash."""
        return self.model.partition("/")[2] if self.model else ""

    @property
    def keeps_steps(self) -> bool:
        """Whether checkpoints are saved after each step: if the agent can take several steps."""
        return bool(self.tools or self.memory_blocks) and self.max_steps > 1

    @property
    def request_body(self) -> dict[str, Any]:
        """The fields that the agent adds to the body of each model call."""
        named = {key: getattr(self, key) for key in _BODY_FIELDS if getattr(self, key) is not None}
        script = {"script": [dict(turn) for turn in self.script]} if self.script is not None else {}
        return {**self.body, **named, **script}


class AgentsFile(Strict):
    """The content of an agents file."""

    providers: Mapping[str, Provider] = Field(default_factory=dict)
    agents: tuple[Agent, ...] = ()
    tools: tuple[Annotated[str | Tool, BeforeValidator(_check_tool)], ...] = ()
    """Further tools that agents created over HTTP may have, besides those of the file's agents."""

    @field_validator("agents")
    @classmethod
    def _check_blocks(cls, agents: tuple[Agent, ...]) -> tuple[Agent, ...]:
        for agent in agents:
            if stored := [block.label for block in agent.memory_blocks if isinstance(block, StoredMemoryBlock)]:
                raise ValueError(
                    f"block {stored[0]!r} of agent {agent.id!r} has an id, which only a server may give it"
                )
        return agents


def agent_to_dict(agent: Agent) -> dict[str, Any]:
    """Return an agent as JSON-compatible data, with functions by name; None for a function without one."""
    data = agent.model_dump(mode="json", exclude={"run", "tools"}, exclude_defaults=True)
    if agent.run is not None:
        data["run"] = function_name(agent.run)
    if agent.tools:
        data["tools"] = [tool_to_data(tool) for tool in agent.tools]
    return data


def tool_function(tool: str | Tool | Callable[..., Any]) -> str | Callable[..., Any]:
    """Return the function of an entry of `Agent.tools`."""
    return tool.function if isinstance(tool, Tool) else tool


def tool_to_data(tool: str | Tool | Callable[..., Any]) -> str | dict[str, Any] | None:
    """Return an entry of `Agent.tools` as an agents file has it; None if its function cannot be imported by name."""
    name = function_name(tool_function(tool))
    return {"function": name, "idempotent": True} if name and isinstance(tool, Tool) and tool.idempotent else name


def function_name(function: str | Callable[..., Any]) -> str | None:
    """Return "module:qualified.name" of a function; None if it cannot be imported by that name."""
    if isinstance(function, str):
        return function
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "<>")
    if module in (None, "__main__") or "<" in name or module not in sys.modules:
        return None
    try:
        found: Any = functools.reduce(getattr, name.split("."), sys.modules[module])
    except AttributeError:
        return None
    return f"{module}:{name}" if found is function else None  # the name of a bound method finds another function
