"""What an agent asks of a model, what comes back, and the one-method seam between the two."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from batchray.schema import (
    Message,
    OmittedReasoningContent,
    ReasoningContent,
    RedactedReasoningContent,
    TextContent,
    ToolCall,
    Usage,
)

ReplyPart = TextContent | ReasoningContent | RedactedReasoningContent | OmittedReasoningContent
"""A part of what a model said."""


def ignore(usage: Usage) -> None:
    """Count nothing."""


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as a model sees it.  `parameters` is a JSON Schema of type object."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One question to a model: the conversation so far, and what it may answer with.

    `model` is the provider's own name, without the provider.  `body` holds further fields of the provider's request
    body (`temperature`, `max_tokens`, `tool_choice`, ...), as the agent's file gives them.  `deadline` is on
    `time.monotonic()`'s clock, in seconds: neither the call nor a retry goes on past it.  `thinking` switches the
    model's reasoning on or off where the provider has such a switch; None leaves it as `body` has it.
    `on_wasted_usage` receives the usage of attempts that led to no reply, as far as the provider reported it.
    """

    model: str
    messages: Sequence[Message]
    system: str | None = None
    tools: Sequence[ToolSpec] = ()
    body: Mapping[str, Any] = field(default_factory=dict)
    deadline: float = float("inf")
    thinking: bool | None = None
    on_wasted_usage: Callable[[Usage], None] = ignore


@dataclass(frozen=True, slots=True)
class ModelReply:
    """One whole answer.

    `content` is what was said and thought, in its order: a provider that signs its reasoning wants it back like that.
    `finish_reason` is in OpenAI's words.  `first_token_ns` is on `time.monotonic_ns()`'s clock; None where nothing was
    streamed.
    """

    content: Sequence[ReplyPart] = ()
    tool_calls: Sequence[ToolCall] = ()
    finish_reason: str = "stop"
    usage: Usage = field(default_factory=Usage)
    first_token_ns: int | None = None

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.content if isinstance(part, TextContent))

    @property
    def reasoning(self) -> str:
        """The reasoning that can be read, joined."""
        return "".join(part.reasoning for part in self.content if isinstance(part, ReasoningContent))


def said(text: str, reasoning: str = "") -> list[ReplyPart]:
    """Return the parts of a reply that thought and then spoke; what is empty is no part."""
    thought: list[ReplyPart] = [ReasoningContent(is_native=True, reasoning=reasoning)] if reasoning else []
    return [*thought, TextContent(text=text)] if text else thought


class ModelClient(Protocol):
    """Answers model calls; one a provider and event loop, shared by all requests that run there."""

    async def ask(self, call: ModelCall) -> ModelReply:
        """Return the model's whole answer, after the retries that are due.

        Raises ModelAPIError, InvalidResponseError, InvalidToolCallError or DeadlineExceededError.
        """
        ...

    async def close(self) -> None:
        """Close the connections.  Calls under way fail."""
        ...
