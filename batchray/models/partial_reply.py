"""What arriving answers have in common, whatever their protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import orjson

from batchray.errors import InvalidResponseError, InvalidToolCallError
from batchray.models.sse import Event
from batchray.schema import ToolCall, Usage

# What code that takes decoded JSON apart raises where its shape is not the protocol's.
BAD_SHAPE = (AttributeError, IndexError, KeyError, TypeError, ValueError)


class PartialReply(Protocol):
    """An answer that is still arriving.  All of it raises Fault where asking again may help."""

    is_done: bool
    """Whether the protocol's own end has come; nothing behind it matters."""

    def add(self, event: Event) -> None:
        """Take in one event of the stream; its data is not empty."""
        ...

    def add_whole(self, body: bytes) -> None:
        """Take in an answer that came in one piece."""
        ...

    def check(self) -> None:
        """Raise InvalidResponseError where this is not a whole answer, or none that can be used."""
        ...

    def usage(self) -> Usage:
        """Return what it cost, as far as it told.  Raises InvalidResponseError for counts that are none."""
        ...


class PartialCall:
    """A tool call that is still arriving.  `arguments` are pieces of its JSON text."""

    __slots__ = ("arguments", "id", "name")

    def __init__(self, id: str = "", name: str = "", *arguments: str) -> None:
        self.id, self.name, self.arguments = id, name, list(arguments)


def whole_calls(
    calls: Iterable[PartialCall], provider: str, *, is_cut: bool, used: set[str], ids: Callable[[], str]
) -> list[ToolCall]:
    """Return the calls of a whole answer, each with an id that its conversation has not `used` yet.

    `is_cut` tells whether the answer reached its limit of tokens: a call that it ended in the middle of is left out.
    Raises InvalidToolCallError for arguments that are no object, InvalidResponseError for a call without a name.
    """
    whole = []
    for call in calls:
        arguments = "".join(call.arguments) or "{}"
        if not is_object(arguments):
            if is_cut:
                continue
            reason = f"{provider}: the arguments of {call.name!r} are not a JSON object"
            raise InvalidToolCallError("invalid_arguments", reason)
        if not call.name:
            raise InvalidResponseError("malformed_stream", f"{provider}: a tool call without a name")
        call_id = call.id
        while not call_id or call_id in used:
            call_id = ids()
        used.add(call_id)
        whole.append(ToolCall.of(call_id, call.name, arguments))
    return whole


def string(value: Any) -> str:
    """Return `value`.  Raises TypeError where it is no string."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is not a string")
    return value


def is_object(text: str) -> bool:
    """Whether `text` is a JSON object."""
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False
