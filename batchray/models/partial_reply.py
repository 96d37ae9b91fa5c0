"""Replies that are still arriving: the interface and helpers that the protocols share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from batchray.errors import InvalidResponseError
from batchray.models.arguments import as_object, is_object, joined_surrogates
from batchray.models.sse import Event
from batchray.schema import ToolCall, Usage

_MAX_QUOTED_CHARS = 120

# Raised when decoded JSON does not have the protocol's shape.
BAD_SHAPE = (AttributeError, IndexError, KeyError, TypeError, ValueError)


class PartialReply(Protocol):
    """A reply that is still arriving.  Each method may raise TransientError, after which a retry may succeed."""

    is_done: bool
    """Whether the protocol's end marker has arrived; anything after it is ignored."""

    def add(self, event: Event) -> None:
        """Process one event of the stream; its data is not empty."""
        ...

    def add_body(self, body: bytes) -> None:
        """Process a reply that arrived whole, not streamed."""
        ...

    def check(self) -> None:
        """Raise InvalidResponseError if the reply is incomplete or unusable."""
        ...

    def usage(self) -> Usage:
        """Return the tokens reported so far.  Raises InvalidResponseError for counts that are not numbers."""
        ...


class PartialCall:
    """A tool call that is still arriving.  `arguments` are pieces of its JSON text."""

    __slots__ = ("arguments", "id", "name")

    def __init__(self, id: str = "", name: str = "", *arguments: str) -> None:
        self.id, self.name, self.arguments = id, name, list(arguments)


def complete_calls(
    calls: Iterable[PartialCall], provider: str, *, is_cut: bool, used: set[str], ids: Callable[[], str]
) -> list[ToolCall]:
    """Return the tool calls of a complete reply, each with an id that is not in `used`.

    A call's id stays as the server gave it; only a missing id, or one in `used`, is replaced.  Arguments are read
    leniently; those that are no object stay as they are, so that the model can be told.
    `is_cut` is True if the reply reached its token limit: a call that was cut off is then left out.
    Raises InvalidResponseError for a call without a name.
    """
    whole = []
    for call in calls:
        arguments = joined_surrogates("".join(call.arguments))
        if is_cut and arguments and not is_object(arguments):
            continue
        if not call.name:
            quoted = f"; its arguments are {arguments[:_MAX_QUOTED_CHARS]!r}" if arguments else ""
            raise InvalidResponseError("malformed_stream", f"{provider}: a tool call without a name{quoted}")
        call_id = call.id
        while not call_id or call_id in used:
            call_id = ids()
        used.add(call_id)
        whole.append(ToolCall.of(call_id, call.name, as_object(arguments) or arguments))
    return whole


def string(value: Any) -> str:
    """Return `value`.  Raises TypeError if it is not a string."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is not a string")
    return value
