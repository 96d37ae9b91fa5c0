"""A job, the durable record of a batch: its states, stop reasons and counts."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import NonNegativeInt

from batchray.schema.base import UtcDatetime, WireModel


class JobStatus(StrEnum):
    """The state of a job.  batchray never sets `pending`."""

    CREATED = "created"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    PENDING = "pending"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


TERMINAL_JOB_STATUSES = frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.EXPIRED})
"""The states that a job never leaves."""


class JobType(StrEnum):
    """The kind of a job: `run` is a single request to one agent.  batchray has no `job`."""

    JOB = "job"
    RUN = "run"
    BATCH = "batch"


class StopReason(StrEnum):
    """Why an agent stopped.

    batchray emits only the first ten, which the batch endpoint documents.  The last three come from newer Letta
    servers; clients of the documented endpoint do not know them.
    """

    END_TURN = "end_turn"
    ERROR = "error"
    LLM_API_ERROR = "llm_api_error"
    INVALID_LLM_RESPONSE = "invalid_llm_response"
    INVALID_TOOL_CALL = "invalid_tool_call"
    MAX_STEPS = "max_steps"
    NO_TOOL_CALL = "no_tool_call"
    TOOL_RULE = "tool_rule"
    CANCELLED = "cancelled"
    REQUIRES_APPROVAL = "requires_approval"
    MAX_TOKENS_EXCEEDED = "max_tokens_exceeded"
    INSUFFICIENT_CREDITS = "insufficient_credits"
    CONTEXT_WINDOW_OVERFLOW_IN_SYSTEM_PROMPT = "context_window_overflow_in_system_prompt"


class RequestCounts(WireModel):
    """Numbers of items by outcome; `pending` items have none yet.  `total` is the sum of the others."""

    total: NonNegativeInt = 0
    succeeded: NonNegativeInt = 0
    errored: NonNegativeInt = 0
    canceled: NonNegativeInt = 0
    expired: NonNegativeInt = 0
    pending: NonNegativeInt = 0


class BatchJob(WireModel):
    """Letta's BatchJob, with its 18 fields.  `metadata["request_counts"]` holds a RequestCounts in batchray's jobs."""

    id: str
    status: JobStatus = JobStatus.CREATED
    job_type: JobType = JobType.BATCH
    created_at: UtcDatetime | None = None
    updated_at: UtcDatetime | None = None
    created_by_id: str | None = None
    last_updated_by_id: str | None = None
    completed_at: UtcDatetime | None = None
    stop_reason: StopReason | None = None
    metadata: dict[str, Any] | None = None
    background: bool | None = None
    agent_id: str | None = None
    callback_url: str | None = None
    callback_sent_at: UtcDatetime | None = None
    callback_status_code: int | None = None
    callback_error: str | None = None
    ttft_ns: int | None = None
    total_duration_ns: int | None = None
