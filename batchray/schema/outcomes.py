"""Outcomes of items: status, usage, error and timing, and the result line in the output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import Field, NonNegativeInt, field_serializer

from batchray.schema.base import WireModel
from batchray.schema.jobs import StopReason
from batchray.schema.json_values import json_value
from batchray.schema.letta_messages import AssistantMessage, LettaMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeData:
    """How an attempt at an item ended: what a lane's report, a new outcome and a stored result have in common.

    Plain data, because it is on the path of every request.  `messages` is a JSON array in bytes.  `ttft_ns` is the time
    to the first token, None without one.
    """

    status: str
    stop_reason: str
    error: Mapping[str, str] | None
    usage: Mapping[str, int]
    ttft_ns: int | None
    duration_ns: int
    messages: bytes


class ItemStatus(StrEnum):
    """The status of an ended item, with the values of Anthropic's batches."""

    SUCCEEDED = "succeeded"
    ERRORED = "errored"
    CANCELED = "canceled"
    EXPIRED = "expired"


_SUCCESSES = frozenset({StopReason.END_TURN, StopReason.MAX_STEPS, StopReason.TOOL_RULE, StopReason.REQUIRES_APPROVAL})


def status_of(stop_reason: StopReason) -> ItemStatus:
    """Return the status of an item whose agent stopped for this reason; never `expired`, which only a job sets."""
    if stop_reason is StopReason.CANCELLED:
        return ItemStatus.CANCELED
    return ItemStatus.SUCCEEDED if stop_reason in _SUCCESSES else ItemStatus.ERRORED


_MAX_TALLY = 2**53
_REPR_CHARS = 80

Tally = Annotated[int, Field(ge=0, le=_MAX_TALLY)]
"""A number of tokens or steps that every JSON reader and the store can represent."""


class Usage(WireModel):
    """Usage of an item, step or job: tokens, and `step_count` model calls.

    `prompt_tokens` include `cached_input_tokens` and `cache_write_tokens`; `completion_tokens` include
    `reasoning_tokens`.
    """

    prompt_tokens: Tally = 0
    completion_tokens: Tally = 0
    total_tokens: Tally = 0
    cached_input_tokens: Tally = 0
    cache_write_tokens: Tally = 0
    reasoning_tokens: Tally = 0
    step_count: Tally = 0

    def __add__(self, other: Usage) -> Usage:
        """Return the sum of each field, capped at the largest value that a field can hold."""
        added = vars(other)
        if not any(added.values()):
            return self
        return Usage(**{name: min(n + added[name], _MAX_TALLY) for name, n in vars(self).items()})


class ErrorInfo(WireModel):
    """Why a request failed: `type` is a stable word for programs, `message` a sentence for people.

    `traceback` is that of the request's own code, without the frames of this package; None for other failures.
    """

    type: str
    message: str
    traceback: str | None = None

    def __repr__(self) -> str:
        """Return the type and the start of the message, without the traceback."""
        return f"ErrorInfo(type={_short_repr(self.type)}, message={_short_repr(self.message)})"

    __str__ = __repr__


class Timing(WireModel):
    """Durations of an item, in nanoseconds of a monotonic clock.

    `queued_ns` from accepted to started, `ttft_ns` from started to the first token of the first model call (None if
    nothing was streamed), `duration_ns` from started to ended.
    """

    queued_ns: NonNegativeInt
    ttft_ns: NonNegativeInt | None = None
    duration_ns: NonNegativeInt


class Result(WireModel):
    """One line of the output: an item's outcome as the caller sees it, with all of the request that it needs.

    `metadata` is the request's; `input` is its `input`, or else its `messages`, and None unless it was asked for.
    `row` is the row of the table that the request was made of, by column, None if it was not made of one; as JSON,
    bytes are base64, times are ISO 8601 and decimals are texts.  `model` is the agent's, None for a Python function.
    `cost_usd` is computed from the agent's prices; None without prices, or if the provider reported no tokens.
    `messages` are filtered by the request's `include_return_message_types`; `attempts` does not count attempts that
    were lost because another request crashed the worker.  `stdout` and `stderr` are what the code of a function agent
    has written, None for nothing; what a tool has written is in its return, in `messages`.
    """

    index: NonNegativeInt
    custom_id: str | int | None = None
    metadata: dict[str, Any] | None = None
    row: dict[str, Any] | None = None
    batch_item_id: str
    agent_id: str
    model: str | None = None
    status: ItemStatus
    stop_reason: StopReason
    input: str | list[Any] | None = None
    messages: list[LettaMessage]
    usage: Usage
    cost_usd: float | None = None
    error: ErrorInfo | None = None
    stdout: str | None = None
    stderr: str | None = None
    attempts: NonNegativeInt
    timing: Timing

    to_html: ClassVar[Callable[[Result], str] | None] = None
    """How a notebook shows a result.  `batchray.views.results` sets it, because views are above the wire types."""

    @field_serializer("row", when_used="json-unless-none")
    def _row_as_json(self, row: dict[str, Any]) -> dict[str, Any]:
        return {name: json_value(value) for name, value in row.items()}

    def __repr__(self) -> str:
        """Return the request, its end and the start of the answer: messages may have megabytes."""
        info = {"index": self.index, "custom_id": self.custom_id, "agent_id": self.agent_id, "status": str(self.status)}
        end = self.text if self.error is None else f"{self.error.type}: {self.error.message}"
        info["text" if self.error is None else "error"] = end
        return f"Result({', '.join(f'{name}={_short_repr(value)}' for name, value in info.items())})"

    __str__ = __repr__

    def _repr_html_(self) -> str | None:
        """Return the conversation as HTML, for notebooks; None, and so the repr, if no view is loaded."""
        to_html = type(self).to_html
        return None if to_html is None else to_html(self)

    @property
    def text(self) -> str:
        """The text of the agent's last message; empty if there is none."""
        for message in reversed(self.messages):
            if isinstance(message, AssistantMessage):
                content = message.content
                return content if isinstance(content, str) else "".join(part.text for part in content)
        return ""


def _short_repr(value: Any) -> str:
    is_long = isinstance(value, str) and len(value) > _REPR_CHARS
    return repr(value[:_REPR_CHARS] + "...") if is_long else repr(value)
