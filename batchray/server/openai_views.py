"""Stored files and jobs as OpenAI's API shows them.

A batch has the digits of its job's id, and so have its output and its error file, which are made of the job's results
when they are read.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, NamedTuple

from batchray.schema.openai_batches import (
    OpenAIBatch,
    OpenAIBatchProblems,
    OpenAIBatchUsage,
    OpenAIInputTokensDetails,
    OpenAIOutputTokensDetails,
    OpenAIRequestCounts,
)
from batchray.schema.openai_files import OpenAIFile
from batchray.schema.progress import Progress
from batchray.store import JobRecord, StoredFile

ResultKind = Literal["output", "error"]
Spec = Mapping[str, Any]

_BATCH_ID = re.compile("batch_([0-9a-f]{32})")
_RESULTS_ID = re.compile("file-(output|error)-([0-9a-f]{32})")
_CHAT_COMPLETIONS = "/v1/chat/completions"


class ResultFile(NamedTuple):
    """The output or the error file of a batch."""

    job_id: str
    kind: ResultKind


def batch_id(job_id: str) -> str:
    """Return the id of a job as a batch."""
    return f"batch_{_digits(job_id)}"


def job_id_of(batch_id: str) -> str | None:
    """Return the id of a batch's job, or None if this is not an id of a batch."""
    found = _BATCH_ID.fullmatch(batch_id)
    return _job_id(found[1]) if found else None


def result_file_id(job_id: str, kind: ResultKind) -> str:
    """Return the id of the output or the error file of a batch."""
    return f"file-{kind}-{_digits(job_id)}"


def result_file_of(file_id: str) -> ResultFile | None:
    """Return what a file's id says, or None if it is not that of an output or error file."""
    found = _RESULTS_ID.fullmatch(file_id)
    return ResultFile(_job_id(found[2]), "output" if found[1] == "output" else "error") if found else None


def has_results(job: JobRecord, kind: ResultKind) -> bool:
    """Return whether a batch has an output, or an error file: once it has ended, if any line belongs there."""
    n_succeeded = job.counts["succeeded"]
    return job.is_ended and (n_succeeded if kind == "output" else job.done - n_succeeded) > 0


def endpoint_of(spec: Spec | None) -> str:
    """Return the endpoint of a batch; that of a job which was made in another way is that of chat completions."""
    return str((spec or {}).get("endpoint", _CHAT_COMPLETIONS))


def file_view(file: StoredFile) -> OpenAIFile:
    """Return an uploaded file."""
    return OpenAIFile(
        id=file.id,
        bytes=file.n_bytes,
        created_at=seconds(file.created_at) or 0,
        expires_at=seconds(file.expires_at),
        filename=file.filename,
        purpose="batch",
    )


def result_file_view(job: JobRecord, kind: ResultKind, spec: Spec | None, n_bytes: int) -> OpenAIFile | None:
    """Return the output or the error file of a batch; None if there is none, or it was deleted or has expired."""
    if not has_results(job, kind) or kind in (spec or {}).get("deleted", ()):
        return None
    created_at = seconds(job.completed_at) or 0
    lasts_s = (spec or {}).get("output_expires_after_s")
    expires_at = None if lasts_s is None else created_at + lasts_s
    if expires_at is not None and expires_at <= time.time():
        return None
    return OpenAIFile(
        id=result_file_id(job.id, kind),
        bytes=n_bytes,
        created_at=created_at,
        expires_at=expires_at,
        filename=f"{batch_id(job.id)}_{kind}.jsonl",
        purpose="batch_output",
    )


def batch_view(job: JobRecord, spec: Spec | None, deadline_s: float) -> OpenAIBatch:
    """Return a job as a batch.  `deadline_s` is how long a job may run."""
    given = spec or {}
    ended_at, problems = seconds(job.completed_at), given.get("errors")
    status = _status_of(job, given)
    n_completed = job.counts["succeeded"]
    return OpenAIBatch(
        id=batch_id(job.id),
        endpoint=endpoint_of(spec),
        model=given.get("model"),
        errors=OpenAIBatchProblems(data=problems) if problems else None,
        input_file_id=given.get("input_file_id", ""),
        status=status,
        output_file_id=result_file_id(job.id, "output") if has_results(job, "output") else None,
        error_file_id=result_file_id(job.id, "error") if has_results(job, "error") else None,
        created_at=seconds(job.created_at) or 0,
        in_progress_at=seconds(job.started_at),
        expires_at=(seconds(job.created_at) or 0) + int(deadline_s),
        finalizing_at=ended_at if status in ("completed", "expired") else None,
        completed_at=ended_at if status == "completed" else None,
        failed_at=ended_at if status == "failed" else None,
        expired_at=ended_at if status == "expired" else None,
        cancelling_at=given.get("cancelling_at") if status in ("cancelling", "cancelled") else None,
        cancelled_at=ended_at if status == "cancelled" else None,
        request_counts=OpenAIRequestCounts(total=job.total, completed=n_completed, failed=job.done - n_completed),
        usage=_usage_of(job.progress) if job.is_ended and job.progress is not None else None,
        metadata=given.get("metadata"),
    )


def seconds(time: str | None) -> int | None:
    """Return a time of the store in seconds since 1970."""
    return None if time is None else int(datetime.fromisoformat(time).timestamp())


def _usage_of(progress: Progress) -> OpenAIBatchUsage:
    return OpenAIBatchUsage(
        input_tokens=progress.prompt_tokens,
        input_tokens_details=OpenAIInputTokensDetails(cached_tokens=progress.cached_input_tokens),
        output_tokens=progress.completion_tokens,
        output_tokens_details=OpenAIOutputTokensDetails(reasoning_tokens=progress.reasoning_tokens),
        total_tokens=progress.prompt_tokens + progress.completion_tokens,
    )


def _status_of(
    job: JobRecord, spec: Spec
) -> Literal["validating", "failed", "in_progress", "completed", "expired", "cancelling", "cancelled"]:
    """Return the status of a batch.  As in OpenAI's API one whose requests have all failed is completed."""
    match job.status:
        case "cancelled":
            return "cancelled"
        case "expired":
            return "expired"
        case _ if job.is_ended:
            return "completed" if job.total else "failed"
        case _ if "cancelling_at" in spec:
            return "cancelling"
        case "created":
            return "validating"
        case _:
            return "in_progress"


def _digits(job_id: str) -> str:
    return job_id.removeprefix("job-").replace("-", "")


def _job_id(digits: str) -> str:
    return f"job-{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
