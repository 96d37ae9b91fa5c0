"""Replies that are still arriving: the interface and helpers that the protocols share."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Protocol

import orjson

from batchray.errors import InvalidResponseError
from batchray.models.arguments import as_object, is_object, joined_surrogates
from batchray.models.endings import truncated
from batchray.models.http import HttpTransport
from batchray.models.provider_errors import error_in
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

    @property
    def is_learning(self) -> bool:
        """Whether `take_plain` wants to be called again after the next event."""
        ...

    def take_plain(self, chunk: bytes) -> bytes:
        """Process the ordinary events at the beginning of a chunk, which begins with an event; return the rest."""
        ...

    def add_body(self, body: bytes) -> None:
        """Process a reply that arrived whole, not streamed."""
        ...

    def check(self) -> None:
        """Raise TransientError or InvalidResponseError if the reply is incomplete or unusable."""
        ...

    def usage(self) -> Usage:
        """Return the tokens reported so far; counts that cannot be read are 0."""
        ...


class JsonReply(ABC):
    """A reply whose events, or whose body, are JSON; a subclass for each protocol fills in the content.

    Fields that a reply does not need may be odd: NaN and Infinity, halves of a surrogate pair, and bytes that are no
    UTF-8 are read.  `what` names a reply of the protocol in errors.
    """

    __slots__ = ("_transport", "first_token_ns", "is_done")

    what: ClassVar[str]

    def __init__(self, transport: HttpTransport) -> None:
        self._transport = transport
        self.is_done = False
        self.first_token_ns: int | None = None

    @abstractmethod
    def _take(self, content: Any, name: bytes) -> None:
        """Process the decoded data of the event `name`.  Raises one of `BAD_SHAPE` for content of another shape."""

    @abstractmethod
    def _take_whole(self, content: Any) -> None:
        """Process a decoded body.  Raises one of `BAD_SHAPE` for content of another shape."""

    @property
    def is_learning(self) -> bool:
        """Whether `take_plain` wants to be called again after the next event."""
        return False

    def take_plain(self, chunk: bytes) -> bytes:
        """Process the ordinary events at the beginning of a chunk, which begins with an event; return the rest."""
        return chunk

    def _learn(self, content: Any, data: bytes) -> None:  # noqa: B027  # not all protocols have ordinary events
        """Learn from an event that was processed, for `take_plain`."""

    def add(self, event: Event) -> None:
        """Process one event of the stream; its data is not empty."""
        content = None
        try:
            if event.data == b"[DONE]":
                self.is_done = True
                return
            content = orjson.loads(event.data)
            self._take(content, event.name)
            if not event.name:
                self._learn(content, event.data)
        except orjson.JSONDecodeError as error:
            self._reread(event, error)
        except BAD_SHAPE as error:
            raise self._unusable("malformed_stream", error, content, event.data) from None

    def add_body(self, body: bytes) -> None:
        """Process a reply that arrived whole, not streamed."""
        content = None
        try:
            content = _read_json(body)
            self._take_whole(content)
        except BAD_SHAPE as error:
            if content is None and not body.rstrip().endswith((b"}", b"]")):
                raise truncated("last bracket") from None
            raise self._unusable("malformed_response", error, content, body) from None
        self.first_token_ns, self.is_done = None, True

    def _mark_first_token(self) -> None:
        if self.first_token_ns is None:
            self.first_token_ns = int(self._transport.clock() * 1e9)

    def _reread(self, event: Event, error: ValueError) -> None:
        """Process data that is not strict JSON: odd JSON, an end mark, or several events without blank lines."""
        if event.data.strip().upper() == b"[DONE]":
            self.is_done = True
            return
        if event.name == b"ping":
            return
        if event.name == b"error":
            raise self._transport.error_in_reply(event.data.decode(errors="replace"))
        content = None
        try:
            content = _lenient_json(event.data)
            self._take(content, event.name)
        except BAD_SHAPE as problem:
            lines = [line for line in event.data.split(b"\n") if line.strip()]
            if content is not None or len(lines) < 2:
                raise self._unusable("malformed_stream", problem if content else error, content, event.data) from None
            for line in lines:
                self.add(Event(event.name, line))

    def _unusable(self, type: str, problem: Exception, content: Any, data: bytes) -> Exception:
        """Return the error for content of another shape, which may be an error object."""
        if (error := error_in(content)) is not None:
            return self._transport.error_in_reply(error)
        quoted = data[:_MAX_QUOTED_CHARS].decode(errors="replace")
        reason = self._transport.clean(f"{problem}; it begins with {quoted}")
        return InvalidResponseError(type, f"{self._transport.name}: not {self.what}: {reason}")


class PartialCall:
    """A tool call that is still arriving.  `arguments` are pieces of its JSON text, `extra` other fields."""

    __slots__ = ("arguments", "extra", "id", "name")

    def __init__(self, id: str = "", name: str = "", *arguments: str) -> None:
        self.id, self.name, self.arguments = id, name, list(arguments)
        self.extra: dict[str, Any] = {}

    def text(self) -> str:
        """Return the arguments that have arrived."""
        return "".join(self.arguments)

    def is_whole(self) -> bool:
        """Whether the arguments that have arrived are an object; cheap while they are none."""
        return bool(self.arguments) and self.arguments[-1].rstrip().endswith("}") and is_object(self.text())


def complete_calls(
    calls: Iterable[PartialCall], provider: str, *, is_cut: bool, used: set[str], ids: Callable[[], str]
) -> list[ToolCall]:
    """Return the tool calls of a complete reply, each with an id that is not in `used`.

    A call's id stays as the server gave it; only a missing id, or one in `used`, is replaced, in `calls` too.
    Arguments are read leniently; those that are not an object stay as they are, so that the model can be told.
    `is_cut` is True if the reply reached its token limit: a call that was cut off is then left out.
    Raises InvalidResponseError for a call without a name.
    """
    whole = []
    for call in calls:
        arguments = joined_surrogates(call.text())
        if is_cut and arguments and not is_object(arguments):
            continue
        if not call.name:
            quoted = f"; its arguments are {arguments[:_MAX_QUOTED_CHARS]!r}" if arguments else ""
            raise InvalidResponseError("malformed_stream", f"{provider}: a tool call without a name{quoted}")
        call_id = joined_surrogates(call.id)
        while not call_id or call_id in used:
            call_id = ids()
        used.add(call_id)
        call.id = call_id
        whole.append(ToolCall.of(call_id, joined_surrogates(call.name), as_object(arguments) or arguments))
    return whole


def _read_json(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return _lenient_json(data)


def _lenient_json(data: bytes) -> Any:
    """Return the value of JSON with NaN, Infinity, single surrogates, control characters, or bytes that are not UTF-8.

    Raises ValueError.
    """
    try:
        return json.loads(data.decode("utf-8-sig", "replace"), strict=False)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def string(value: Any) -> str:
    """Return `value`.  Raises TypeError if it is not a string."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is not a string")
    return value
