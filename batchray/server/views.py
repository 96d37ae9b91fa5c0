"""Converts stored records to the models that clients see: jobs, items, messages, runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, TypeAdapter

from batchray.agents import completed_work
from batchray.jobs import context
from batchray.schema import (
    AgentRequest,
    BatchJob,
    ErrorInfo,
    ItemStatus,
    JobStatus,
    JobType,
    LettaMessage,
    LettaResponse,
    Message,
    RequestCounts,
    Result,
    StopReason,
    StopReasonMessage,
    Timing,
    Usage,
    UsageStatistics,
    item_id,
    run_id,
    visible_messages,
)
from batchray.schema.base import WireModel
from batchray.schema.letta_messages import LettaMessageBase
from batchray.store import HistoryItem, JobRecord, StoredItem, StoredResult
from batchray.views.results import parse_time

_MESSAGES = TypeAdapter(list[Message])


class ItemView(WireModel):
    """One request of a batch with its outcome.  `status` is `pending` until the request has ended."""

    id: str
    index: NonNegativeInt
    custom_id: str | None
    agent_id: str
    run_id: str
    status: ItemStatus | Literal["pending"]
    stop_reason: StopReason | None
    error: ErrorInfo | None
    usage: Usage
    attempts: NonNegativeInt
    timing: Timing | None


class OutcomeView(Result):
    """An outcome as an event of a batch: a result without its texts."""

    input: Annotated[Any, Field(exclude=True)] = None
    messages: Annotated[list[LettaMessage], Field(exclude=True)]


class MessagesPage(WireModel):
    """A page of a batch's messages."""

    messages: list[Message]


def batch_job(record: JobRecord) -> BatchJob:
    """Return a job as Letta's BatchJob, with all 18 fields; its metadata says why it has paused itself."""
    counts = RequestCounts(total=record.total, pending=record.total - record.done, **record.counts)
    kind = "send_message" if record.is_single else "batch_messages"
    metadata: dict[str, Any] = {"job_type": kind, "request_counts": counts.model_dump()}
    if record.is_single:
        metadata["run_id"] = run_id(record.id, 0)
    if record.paused_because is not None:
        metadata["paused_because"] = record.paused_because
    if record.unused_fields is not None:
        metadata["unused_fields"] = record.unused_fields.split(",")
    return BatchJob(
        id=record.id,
        status=JobStatus(record.status),
        job_type=JobType.RUN if record.is_single else JobType.BATCH,
        created_at=parse_time(record.created_at),
        updated_at=parse_time(record.updated_at),
        created_by_id=record.user_id,
        last_updated_by_id=record.user_id,
        completed_at=parse_time(record.completed_at),
        stop_reason=StopReason(record.stop_reason) if record.stop_reason else None,
        metadata=metadata,
        background=record.kind == "background",
        agent_id=record.agent_id,
        callback_url=record.callback_url,
        callback_sent_at=parse_time(record.callback_sent_at),
        callback_status_code=record.callback_status_code,
        callback_error=record.callback_error,
        ttft_ns=record.ttft_ns,
        total_duration_ns=record.total_duration_ns,
    )


def item_view(job_id: str, item: StoredItem) -> ItemView:
    """Return an item as an entry of the list of a job's items."""
    timing = None
    if item.queued_ns is not None and item.duration_ns is not None:
        timing = Timing(queued_ns=item.queued_ns, ttft_ns=item.ttft_ns, duration_ns=item.duration_ns)
    return ItemView(
        id=item_id(job_id, item.index),
        index=item.index,
        custom_id=item.custom_id,
        agent_id=item.agent_id,
        run_id=run_id(job_id, item.index),
        status=ItemStatus(item.status) if item.status else "pending",
        stop_reason=StopReason(item.stop_reason) if item.stop_reason else None,
        error=ErrorInfo(**item.error) if item.error else None,
        usage=Usage(**item.usage),
        attempts=item.attempts,
        timing=timing,
    )


def wanted_messages_of(job: JobRecord, result: StoredResult) -> list[Message]:
    """Return an item's input and output messages, filtered by its request's `include_return_message_types`.

    A message is left out if none of the LettaMessages that it converts to has a requested type.
    """
    request = AgentRequest.model_validate_json(result.request)
    messages = messages_of(job, result)
    if request.include_return_message_types is None:
        return messages
    wanted = {shown.id for shown in visible_messages(messages, request) if isinstance(shown, LettaMessageBase)}
    return [message for message in messages if message.id in wanted]


def messages_of(job: JobRecord, result: StoredResult) -> list[Message]:
    """Return an item's input and output messages."""
    return context.messages_of(HistoryItem(job.id, job.created_at, result.index, result.request, result.messages))


def outputs_of(result: StoredResult) -> list[LettaMessage]:
    """Return the output of one run, as LettaMessages of the requested types."""
    request = AgentRequest.model_validate_json(result.request)
    return visible_messages(_MESSAGES.validate_json(result.messages), request)


def steps_of(request: bytes, checkpoints: Sequence[bytes]) -> list[LettaMessage]:
    """Return the output of an unfinished run so far: a prefix of what `outputs_of` will return for its result."""
    if not checkpoints:
        return []
    messages, _ = completed_work(checkpoints)
    return visible_messages(_MESSAGES.validate_json(messages), AgentRequest.model_validate_json(request))


def letta_response(job: JobRecord, result: StoredResult) -> LettaResponse:
    """Return a run as the response of POST /v1/agents/{id}/messages."""
    return LettaResponse(
        messages=outputs_of(result),
        stop_reason=StopReasonMessage(stop_reason=StopReason(result.stop_reason)),
        usage=usage_of(job, result),
    )


def usage_of(job: JobRecord, result: StoredResult) -> UsageStatistics:
    """Return the tokens and model calls of a run."""
    return UsageStatistics(**result.usage, run_ids=[run_id(job.id, result.index)])
