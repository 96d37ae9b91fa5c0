"""Agents, tools, blocks and responses, with the fields of Letta's server.  Unknown fields are kept."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from batchray.schema.agent_settings import GivenLLMConfig, MaxTokens, ModelSettings, ResponseFormat, ToolRule
from batchray.schema.base import WHOLE, Integer, OpenModel, UtcDatetime, WireModel, any_given
from batchray.schema.jobs import StopReason
from batchray.schema.letta_messages import LettaMessage, StopReasonMessage, UsageStatistics


class LLMConfig(OpenModel):
    """The model that an agent calls, and its settings.  `context_window` is in tokens."""

    model: Annotated[str, Field(min_length=1)]
    model_endpoint_type: str
    context_window: int
    model_endpoint: str | None = None
    provider_name: str | None = None
    handle: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None


class EmbeddingConfig(OpenModel):
    """The model that embeds an agent's memory."""

    embedding_model: str
    embedding_endpoint_type: str
    embedding_dim: int
    embedding_endpoint: str | None = None
    embedding_chunk_size: int | None = None
    handle: str | None = None


class Model(OpenModel):
    """An entry of GET /v1/models/.  Windows are in tokens."""

    name: str
    model: str
    handle: str | None = None
    context_window: int
    max_context_window: int
    model_endpoint_type: str
    provider_type: str
    provider_name: str | None = None
    display_name: str | None = None


BlockLabel = Annotated[str, Field(pattern=r"^\w[\w ./-]{0,127}$")]
"""The name of a memory block, which the model sees."""


class BlockFields(OpenModel):
    """The fields of a memory block that have no meaning here, except the description; they are kept and shown."""

    description: str | None = None
    metadata: dict[str, Any] | None = None
    tags: list[str] | None = None
    project_id: str | None = None
    template_name: str | None = None
    template_id: str | None = None
    base_template_id: str | None = None
    deployment_id: str | None = None
    entity_id: str | None = None
    hidden: bool | None = None
    preserve_on_migration: bool | None = None


class UpdateBlock(BlockFields):
    """The body of PATCH /v1/blocks/{id}.  Fields that are absent or null are left as they are."""

    label: BlockLabel | None = None
    value: str | None = None
    limit: Annotated[int, Field(ge=1), WHOLE] | None = None
    read_only: bool | None = None
    is_template: bool | None = None


class CreateBlock(UpdateBlock):
    """A new memory block."""

    label: BlockLabel
    value: str


class Block(BlockFields):
    """A memory block: a labelled text in the agent's context.  `limit` is in characters."""

    id: str
    value: str
    label: str | None = None
    limit: int | None = None
    read_only: bool = False
    is_template: bool = False
    created_by_id: str | None = None
    last_updated_by_id: str | None = None


class Tool(OpenModel):
    """A tool of an agent."""

    id: str
    name: str | None = None
    description: str | None = None
    tool_type: str | None = None
    source_type: str | None = None
    source_code: str | None = None
    json_schema: dict[str, Any] | None = None
    tags: list[str] | None = None


class Source(OpenModel):
    """A set of files that an agent may read."""

    id: str
    name: str
    embedding_config: EmbeddingConfig


class Memory(OpenModel):
    """An agent's memory blocks."""

    blocks: list[Block]
    file_blocks: list[dict[str, Any]] = Field(default_factory=list)
    prompt_template: str = ""
    agent_type: str | None = None
    git_enabled: bool = False


class AgentState(OpenModel):
    """An agent, with the 45 keys of Letta's server.  Strict clients require the keys without a default."""

    id: str
    agent_type: str = "letta_v1_agent"
    name: str
    system: str
    llm_config: LLMConfig
    memory: Memory
    blocks: list[Block]
    tools: list[Tool]
    sources: list[Source]
    tags: list[str]
    created_at: UtcDatetime | None = None
    updated_at: UtcDatetime | None = None
    created_by_id: str | None = None
    last_updated_by_id: str | None = None
    description: str | None = None
    metadata: dict[str, Any] | None = None
    model: str | None = None
    model_settings: dict[str, Any] | None = None
    embedding: str | None = None
    embedding_config: EmbeddingConfig | None = None
    compaction_settings: dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    message_ids: list[str] | None = None
    tool_rules: list[dict[str, Any]] | None = None
    tool_exec_environment_variables: list[dict[str, Any]] = Field(default_factory=list)
    secrets: list[dict[str, Any]] = Field(default_factory=list)
    project_id: str | None = None
    template_id: str | None = None
    base_template_id: str | None = None
    deployment_id: str | None = None
    entity_id: str | None = None
    identity_ids: list[str] = Field(default_factory=list)
    identities: list[dict[str, Any]] = Field(default_factory=list)
    pending_approval: dict[str, Any] | None = None
    message_buffer_autoclear: bool = False
    enable_sleeptime: bool | None = None
    multi_agent_group: dict[str, Any] | None = None
    managed_group: dict[str, Any] | None = None
    last_run_completion: UtcDatetime | None = None
    last_run_duration_ms: int | None = None
    last_stop_reason: StopReason | None = None
    timezone: str | None = "UTC"
    max_files_open: int | None = None
    per_file_view_window_char_limit: int | None = None
    hidden: bool | None = None


_NO_FILES = "folders, sources and files are not part of batchray"
_NO_TEMPLATES = "templates are not part of batchray"
_NO_SECRETS = "tools run with the operator's environment, and get no values from clients"
_STATE = "it is what the agent's requests have made it"


AgentType = Literal[
    "letta_v1_agent",
    "memgpt_agent",
    "memgpt_v2_agent",
    "react_agent",
    "workflow_agent",
    "split_thread_agent",
    "sleeptime_agent",
    "voice_convo_agent",
    "voice_sleeptime_agent",
]


class UpdateAgent(WireModel):
    """The body of PATCH /v1/agents/{id}.  Fields that are absent or null are ignored."""

    without_effect: ClassVar[Set[str]] = frozenset(
        {
            *("compaction_settings", "context_window_limit", "embedding", "embedding_config", "timezone"),
            *("max_files_open", "per_file_view_window_char_limit"),
        }
    )
    refused: ClassVar[Mapping[str, str]] = {
        "identity_ids": "identities are not part of batchray",
        "enable_sleeptime": "agents that work between the requests are not part of batchray",
        **dict.fromkeys(("folder_ids", "source_ids"), _NO_FILES),
        **dict.fromkeys(("template_id", "base_template_id"), _NO_TEMPLATES),
        **dict.fromkeys(("secrets", "tool_exec_environment_variables"), _NO_SECRETS),
        **dict.fromkeys(("message_ids", "last_run_completion", "last_run_duration_ms", "last_stop_reason"), _STATE),
    }

    name: str | None = None
    system: str | None = None
    description: str | None = None
    model: Annotated[str, Field(min_length=1)] | None = None
    model_settings: ModelSettings | None = None
    llm_config: GivenLLMConfig | None = None
    max_tokens: MaxTokens | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning: bool | None = None
    context_window_limit: Integer | None = None
    compaction_settings: dict[str, Any] | None = None
    embedding: str | None = None
    embedding_config: dict[str, Any] | None = None
    block_ids: list[str] | None = None
    tool_ids: list[str] | None = None
    tool_rules: list[ToolRule] | None = None
    tags: list[str] | None = None
    metadata: dict[str, Any] | None = None
    secrets: dict[str, str] | None = None
    tool_exec_environment_variables: dict[str, str] | None = None
    message_buffer_autoclear: bool | None = None
    timezone: str | None = None
    hidden: bool | None = None
    project_id: str | None = None
    identity_ids: list[str] | None = None
    folder_ids: list[str] | None = None
    source_ids: list[str] | None = None
    template_id: str | None = None
    base_template_id: str | None = None
    enable_sleeptime: bool | None = None
    max_files_open: Integer | None = None
    per_file_view_window_char_limit: Integer | None = None
    message_ids: list[str] | None = None
    last_run_completion: str | None = None
    last_run_duration_ms: Integer | None = None
    last_stop_reason: str | None = None


class CreateAgent(UpdateAgent):
    """The body of POST /v1/agents/.  As Letta's server does, it needs `model` or `llm_config`."""

    model_config = ConfigDict(json_schema_extra=any_given("model", "llm_config"))

    without_effect: ClassVar[Set[str]] = UpdateAgent.without_effect | {
        *("agent_type", "embedding_chunk_size", "include_base_tool_rules"),
    }
    refused: ClassVar[Mapping[str, str]] = {
        **UpdateAgent.refused,
        **dict.fromkeys(("from_template", "template", "memory_variables"), _NO_TEMPLATES),
        "include_default_source": _NO_FILES,
        "include_multi_agent_tools": "agents that send messages to each other are not part of batchray",
        "initial_message_sequence": "a new agent has no messages; send them with its first request",
        "max_reasoning_tokens": "give model_settings.thinking with budget_tokens",
        "project": "give project_id",
    }

    # All agents are of the newest type, which has no base rules for tools.
    agent_type: AgentType = "letta_v1_agent"
    memory_blocks: list[CreateBlock] | None = None
    tools: list[str] | None = None
    include_base_tools: bool | None = None
    include_base_tool_rules: bool | None = None
    include_default_source: bool = False
    include_multi_agent_tools: bool = False
    initial_message_sequence: list[dict[str, Any]] | None = None
    embedding_chunk_size: Integer | None = None
    enable_reasoner: bool | None = None
    max_reasoning_tokens: Integer | None = None
    from_template: str | None = None
    template: bool = False
    memory_variables: dict[str, str] | None = None
    project: str | None = None


class LettaResponse(OpenModel):
    """The response to POST /v1/agents/{id}/messages: the agent's output, oldest first."""

    messages: list[LettaMessage]
    stop_reason: StopReasonMessage
    usage: UsageStatistics
    logprobs: dict[str, Any] | None = None
    turns: list[dict[str, Any]] | None = None
