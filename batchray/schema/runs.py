"""Runs and steps, as Letta's clients see them: a run is one item of a job, a step one of its model calls.

Source: Letta server 0.16.8, `Run`, `Step` and `StepMetrics`, and the types of letta-client 1.7.0.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from batchray.schema.base import UtcDatetime, WireModel
from batchray.schema.jobs import StopReason
from batchray.schema.messages import Message
from batchray.schema.requests import MessageType


class RunStatus(StrEnum):
    """The state of a run: `created` until its first attempt, `running` until its outcome."""

    CREATED = "created"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class RequestConfig(WireModel):
    """How a run's request asks for its messages."""

    use_assistant_message: bool = True
    assistant_message_tool_name: str = "send_message"
    assistant_message_tool_kwarg: str = "message"
    include_return_message_types: list[MessageType] | None = None


class Run(WireModel):
    """Letta's Run.

    `background`: no client waits for it, and it was no part of a batch.  `metadata` has the run's `job_id`, its
    `batch_item_id` and `custom_id` in a batch, and its `error`.  Durations are in nanoseconds.
    """

    id: str
    agent_id: str
    status: RunStatus = RunStatus.CREATED
    created_at: UtcDatetime | None = None
    completed_at: UtcDatetime | None = None
    conversation_id: str | None = None
    base_template_id: str | None = None
    background: bool | None = None
    metadata: dict[str, Any] | None = None
    request_config: RequestConfig | None = None
    stop_reason: StopReason | None = None
    callback_url: str | None = None
    callback_sent_at: UtcDatetime | None = None
    callback_status_code: int | None = None
    callback_error: str | None = None
    ttft_ns: int | None = None
    total_duration_ns: int | None = None


class PromptTokensDetails(WireModel):
    """Which prompt tokens were read from or written to a provider's cache; None if the provider did not report them."""

    cached_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_creation_tokens: int | None = None


class CompletionTokensDetails(WireModel):
    """How many completion tokens were reasoning; None if the provider did not report them."""

    reasoning_tokens: int | None = None


class RunUsage(WireModel):
    """The tokens of a run so far."""

    completion_tokens: int = 0
    prompt_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None


class Feedback(StrEnum):
    """The judgement of a person on a step."""

    POSITIVE = "positive"
    NEGATIVE = "negative"


class Step(WireModel):
    """Letta's Step: a model call and the tool calls that it asked for.

    `model` is the name that its provider knows.  Its messages have a list of their own, so `messages` is None.  The
    tokens are None if only those of the whole run are known.
    """

    id: str
    agent_id: str | None = None
    run_id: str | None = None
    origin: str | None = None
    provider_id: str | None = None
    provider_name: str | None = None
    provider_category: str | None = None
    model: str | None = None
    model_handle: str | None = None
    model_endpoint: str | None = None
    context_window_limit: int | None = None
    completion_tokens: int | None = None
    prompt_tokens: int | None = None
    total_tokens: int | None = None
    completion_tokens_details: dict[str, Any] | None = None
    prompt_tokens_details: dict[str, Any] | None = None
    stop_reason: StopReason | None = None
    status: Literal["pending", "success", "failed", "cancelled"] | None = None
    error_type: str | None = None
    error_data: dict[str, Any] | None = None
    feedback: Feedback | None = None
    tags: list[str] = Field(default_factory=list)
    messages: list[Message] | None = None
    project_id: str | None = None
    request_id: str | None = None
    tid: str | None = None
    trace_id: str | None = None


class StepMetrics(WireModel):
    """Letta's StepMetrics.  Durations are in nanoseconds; None if they were not measured for the step alone."""

    id: str
    agent_id: str | None = None
    run_id: str | None = None
    provider_id: str | None = None
    llm_request_ns: int | None = None
    llm_request_start_ns: int | None = None
    step_ns: int | None = None
    step_start_ns: int | None = None
    tool_execution_ns: int | None = None
    base_template_id: str | None = None
    template_id: str | None = None
    project_id: str | None = None


class ProviderTrace(WireModel):
    """Letta's ProviderTrace: the raw request and response of a step.  batchray keeps none."""

    request_json: dict[str, Any]
    response_json: dict[str, Any]
    id: str | None = None
    step_id: str | None = None
    created_at: UtcDatetime | None = None
