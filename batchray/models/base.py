"""The interface between agents and models: ModelCall in, ModelReply out, through a ModelClient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from batchray.schema import (
    Message,
    OmittedReasoningContent,
    ReasoningContent,
    RedactedReasoningContent,
    SummarizedReasoningContent,
    TextContent,
    ToolCall,
    Usage,
)

if TYPE_CHECKING:
    from batchray.models.reply_cache import CallCache

ReplyPart = (
    TextContent | ReasoningContent | RedactedReasoningContent | OmittedReasoningContent | SummarizedReasoningContent
)
"""A content part of a model's reply."""


def discard_usage(usage: Usage) -> None:
    """Ignore usage that led to no reply."""


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as the model sees it.  `parameters` is a JSON Schema of type object."""

    name: str
    description: str
    parameters: Mapping[str, Any]


class WrittenMessages:
    """Messages in the form of a protocol, each written once for all calls of a run, which send it again and again."""

    def __init__(self) -> None:
        self._by_id: dict[int, tuple[Message, list[dict[str, Any]]]] = {}

    def of(
        self, messages: Sequence[Message], write: Callable[[Message], Iterable[dict[str, Any]]]
    ) -> list[dict[str, Any]]:
        """Return messages as `write` writes them, or has written them for the last call.

        Messages with `provider_items` are written each time: what the provider wants of those may change.
        """
        known = self._by_id
        written = [known.get(id(message)) or (message, list(write(message))) for message in messages]
        self._by_id = {id(each[0]): each for each in written if not each[0].provider_items}
        return [part for _, parts in written for part in parts]


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One request to a model: the conversation so far, and the tools that the model may call.

    `model` is the provider's name for the model, without the provider.  `body` holds further fields of the provider's
    request body (`temperature`, `max_tokens`, `tool_choice`, ...) from the agent's file; `settings` are the request's
    own, in chat completions' spelling, which win.  `deadline` is in seconds of
    `time.monotonic()`; neither the call nor a retry continues after it.  `thinking` switches the model's reasoning on
    or off if the provider has such a switch; None leaves it as `body` sets it.
    `on_wasted_usage` receives the usage of attempts that led to no reply, if the provider reported it.
    `while_held` is entered while the call waits for a provider that takes none; the deadline moves by that time.
    `cache` has replies of earlier calls; None makes every call.  `written` has the messages of the run's last call.
    """

    model: str
    messages: Sequence[Message]
    system: str | None = None
    tools: Sequence[ToolSpec] = ()
    body: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    deadline: float = float("inf")
    thinking: bool | None = None
    on_wasted_usage: Callable[[Usage], None] = discard_usage
    while_held: Callable[[], AbstractContextManager[object]] = nullcontext
    cache: CallCache | None = None
    written: WrittenMessages = field(default_factory=WrittenMessages)

    def ids(self, new: Callable[[], str]) -> Callable[[], str]:
        """Return what makes ids for tool calls without one: `new`, unless a cache has to make the same ones again."""
        return new if self.cache is None else self.cache.tool_call_id


def with_settings(
    call: ModelCall, spelled: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda settings: settings
) -> ModelCall:
    """Return the call with its settings among the fields of its body, as `spelled` writes them for a protocol."""
    if not call.settings:
        return call
    limits = ("max_completion_tokens", "max_output_tokens") if "max_tokens" in call.settings else ()
    kept = {name: value for name, value in call.body.items() if name not in limits}
    return replace(call, body={**kept, **spelled(call.settings)}, settings={})


@dataclass(frozen=True, slots=True)
class ModelReply:
    """A model's complete reply.

    `content` holds text and reasoning in their order: a provider that signs its reasoning wants it back unchanged.
    `finish_reason` is one of `endings.FinishReason`.  `max_tokens` is the limit of the reply that the call asked for.
    `first_token_ns` is from `time.monotonic_ns()`; None if the reply was not streamed.  `items` is the reply in its
    protocol's JSON, if the provider wants it back as it came.
    """

    content: Sequence[ReplyPart] = ()
    tool_calls: Sequence[ToolCall] = ()
    finish_reason: str = "stop"
    usage: Usage = field(default_factory=Usage)
    first_token_ns: int | None = None
    max_tokens: int | None = None
    items: Sequence[dict[str, Any]] = ()

    @property
    def is_cut(self) -> bool:
        """Whether a limit cut the reply.  See `endings.cut_error`."""
        return self.finish_reason in ("length", "context_length")

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.content if isinstance(part, TextContent))

    @property
    def reasoning(self) -> str:
        """The readable reasoning, joined."""
        return "".join(part.reasoning for part in self.content if isinstance(part, ReasoningContent))


def reply_parts(text: str, reasoning: str = "") -> list[ReplyPart]:
    """Return a reply's content: reasoning, then text.  An empty string adds no part."""
    thoughts: list[ReplyPart] = [ReasoningContent(is_native=True, reasoning=reasoning)] if reasoning else []
    return [*thoughts, TextContent(text=text)] if text else thoughts


class ModelClient(Protocol):
    """Makes model calls; one per provider and event loop, shared by all requests on that loop."""

    async def ask(self, call: ModelCall) -> ModelReply:
        """Return the model's complete reply, retrying transient failures.

        Raises ModelAPIError, InvalidResponseError or DeadlineExceededError.
        """
        ...

    async def close(self) -> None:
        """Close the connections.  Calls in progress fail."""
        ...
