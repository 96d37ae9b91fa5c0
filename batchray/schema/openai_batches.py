"""The batches of OpenAI's API.  Times are in seconds since 1970.

Source: OpenAI's API reference, "Batches", and the types of its client.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, StringConstraints, WithJsonSchema

from batchray.schema.base import WireModel
from batchray.schema.openai_files import ExpirySeconds

OPENAI_URLS = ("/v1/chat/completions", "/v1/responses")
"""The endpoints that a batch may have."""


def _one_of(*values: str) -> Any:
    """Return the type of a text that is one of these, whose error is OpenAI's."""

    def check(value: str) -> str:
        if value not in values:
            supported = " and ".join(f"'{each}'" for each in values)
            raise ValueError(f"Invalid value: {value[:60]!r}. Supported values are: {supported}.")
        return value

    return Annotated[str, AfterValidator(check), WithJsonSchema({"type": "string", "enum": list(values)})]


_Name = Annotated[str, StringConstraints(max_length=64)]
_Text = Annotated[str, StringConstraints(max_length=512)]


class OutputExpiry(WireModel):
    """When the output and the error file expire."""

    anchor: Literal["created_at"]
    seconds: ExpirySeconds


class CreateOpenAIBatch(WireModel):
    """The body of POST /v1/batches."""

    input_file_id: str
    endpoint: _one_of(*OPENAI_URLS)  # type: ignore[valid-type]
    completion_window: _one_of("24h")  # type: ignore[valid-type]
    metadata: Annotated[dict[_Name, _Text], Field(max_length=16)] | None = None
    output_expires_after: OutputExpiry | None = None


class OpenAIBatchProblem(WireModel):
    """Why a batch has failed; `line` counts from 1, and is null if the whole file is meant."""

    code: str
    message: str
    param: str | None
    line: int | None


class OpenAIBatchProblems(WireModel):
    """Why a batch has failed before any of its requests ran."""

    object: Literal["list"] = "list"
    data: list[OpenAIBatchProblem]


class OpenAIRequestCounts(WireModel):
    """Numbers of requests; those that have not ended are neither completed nor failed."""

    total: NonNegativeInt
    completed: NonNegativeInt
    failed: NonNegativeInt


class OpenAIInputTokensDetails(WireModel):
    """Which of the input tokens the provider had cached."""

    cached_tokens: NonNegativeInt


class OpenAIOutputTokensDetails(WireModel):
    """Which of the output tokens were reasoning."""

    reasoning_tokens: NonNegativeInt


class OpenAIBatchUsage(WireModel):
    """The tokens of all requests of a batch that has ended."""

    input_tokens: NonNegativeInt
    input_tokens_details: OpenAIInputTokensDetails
    output_tokens: NonNegativeInt
    output_tokens_details: OpenAIOutputTokensDetails
    total_tokens: NonNegativeInt


class OpenAIBatch(WireModel):
    """A batch.  `input_file_id` is empty for one that was made in another way than from a file.

    `usage` is null until the batch has ended.
    """

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: OpenAIBatchProblems | None
    input_file_id: str
    completion_window: str = "24h"
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: OpenAIRequestCounts
    usage: OpenAIBatchUsage | None
    metadata: Mapping[str, str] | None


class OpenAIBatchList(WireModel):
    """A page of batches, the newest first."""

    object: Literal["list"] = "list"
    data: list[OpenAIBatch]
    first_id: str | None
    last_id: str | None
    has_more: bool
