"""Conversion of stored results into `Result` objects and pandas frames."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from batchray.schema import (
    AgentRequest,
    ErrorInfo,
    ItemStatus,
    Message,
    Result,
    StopReason,
    Timing,
    Usage,
    item_id,
    visible_messages,
)
from batchray.store import JobRecord, StoredResult

if TYPE_CHECKING:
    import pandas as pd

_MESSAGES = TypeAdapter(list[Message])


def result_of(job: JobRecord, stored: StoredResult) -> Result:
    """Return an item's outcome as a line of the output."""
    request = AgentRequest.model_validate_json(stored.request)
    return Result(
        index=stored.index,
        custom_id=stored.custom_id,
        metadata=request.metadata,
        batch_item_id=item_id(job.id, stored.index),
        agent_id=stored.agent_id,
        status=ItemStatus(stored.status),
        stop_reason=StopReason(stored.stop_reason),
        messages=visible_messages(_MESSAGES.validate_json(stored.messages), request),
        usage=Usage(**stored.usage),
        error=ErrorInfo(**stored.error) if stored.error else None,
        attempts=stored.attempts,
        timing=Timing(queued_ns=stored.queued_ns, ttft_ns=stored.ttft_ns, duration_ns=stored.duration_ns),
    )


def text_of(result: Result) -> str:
    """Return `result.text`.  Deprecated: use that."""
    warnings.warn("text_of(result) is deprecated; use result.text", DeprecationWarning, stacklevel=2)
    return result.text


def to_frame(results: Iterable[Result]) -> pd.DataFrame:
    """Return a pandas frame with one row per item, indexed by its position in the batch.  Durations are in seconds."""
    import pandas as pd

    return pd.DataFrame.from_records(list(_rows(results)), index="index")


def _rows(results: Iterable[Result]) -> Iterator[dict[str, Any]]:
    for result in results:
        timing = result.timing
        yield {
            "index": result.index,
            "custom_id": result.custom_id,
            "agent_id": result.agent_id,
            "status": str(result.status),
            "stop_reason": str(result.stop_reason),
            "text": result.text,
            "error_type": result.error.type if result.error else None,
            "error": result.error.message if result.error else None,
            "prompt_tokens": result.usage.prompt_tokens,
            "completion_tokens": result.usage.completion_tokens,
            "steps": result.usage.step_count,
            "attempts": result.attempts,
            "queued_s": timing.queued_ns / 1e9,
            "ttft_s": None if timing.ttft_ns is None else timing.ttft_ns / 1e9,
            "duration_s": timing.duration_ns / 1e9,
        }


def parse_time(timestamp: str | None) -> datetime | None:
    """Parse a timestamp of the store."""
    return datetime.fromisoformat(timestamp) if timestamp else None
