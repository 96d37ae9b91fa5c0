"""Assembles a reply of OpenAI's Responses API, whole or streamed.

Source: OpenAI's API reference, "The response object" and "Streaming events"; the names and optional fields as in its
Python SDK 3.57.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from batchray.errors import InvalidResponseError
from batchray.models.base import ReplyPart
from batchray.models.endings import RESPONSE_ENDS, FinishReason, check_not_empty, finish_reason, truncated
from batchray.models.http import HttpTransport
from batchray.models.partial_reply import BAD_SHAPE, PartialCall, string
from batchray.models.sse import Event
from batchray.schema import (
    OmittedReasoningContent,
    ReasoningContent,
    SummarizedReasoningContent,
    TextContent,
    Usage,
)
from batchray.schema.content import SummaryPart

Item = Mapping[str, Any]
"""An item of the output, in the API's JSON."""

_DELTAS = frozenset(
    {
        "response.output_text.delta",
        "response.refusal.delta",
        "response.reasoning_text.delta",
        "response.reasoning_summary_text.delta",
        "response.function_call_arguments.delta",
    }
)
_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})
_TOKENS = _DELTAS | _ENDS | {"response.output_item.done"}
_TEXT_FIELDS = {"output_text": "text", "refusal": "refusal"}


class PartialResponse:
    """A reply that is still arriving.  See `PartialReply`."""

    __slots__ = ("_items", "_said", "_transport", "_usage", "_word", "finish_reason", "first_token_ns", "is_done")

    def __init__(self, transport: HttpTransport) -> None:
        self._transport = transport
        self._items: dict[int, dict[str, Any]] = {}  # by their index in the output
        self._said: list[str] = []
        self._usage: Any = None
        self._word: str | None = None  # the status, or why the response is incomplete
        self.finish_reason: FinishReason = "stop"
        self.is_done = False
        self.first_token_ns: int | None = None

    def add(self, event: Event) -> None:
        """Process one event of the stream."""
        if event.data.strip() == b"[DONE]":  # some servers end their streams like chat completions
            self.is_done = True
            return
        try:
            content = orjson.loads(event.data)
            self._apply(content.get("type") or event.name.decode(), content)
        except BAD_SHAPE as error:
            raise self._malformed("malformed_stream", error) from None

    def add_body(self, body: bytes) -> None:
        """Process a reply that arrived whole, not streamed."""
        try:
            response = orjson.loads(body)
            if response.get("error") and "output" not in response:
                raise self._transport.error_in_reply(response["error"])
            if not isinstance(response.get("output"), list):
                raise TypeError("it has no output")
            self._apply_end(response)
        except BAD_SHAPE as error:
            raise self._malformed("malformed_response", error) from None

    def check(self) -> None:
        """Raise TransientError or InvalidResponseError if the reply is incomplete, empty, or cut by a filter."""
        if self._word is None:
            raise truncated("response.completed")
        name = self._transport.name
        self.finish_reason = finish_reason(RESPONSE_ENDS, self._word, name)
        parts, has_calls = self.parts(), any(item.get("type") == "function_call" for item in self.items())
        has_text = any(isinstance(part, TextContent) and part.text.strip() for part in parts)
        has_reasoning = any(not isinstance(part, TextContent) for part in parts)
        check_not_empty(self.finish_reason, name, has_text=has_text, has_calls=has_calls, has_reasoning=has_reasoning)
        if has_calls and self.finish_reason == "stop":
            self.finish_reason = "tool_calls"

    def items(self) -> list[dict[str, Any]]:
        """Return the output, in its order."""
        if not self._items and self._said:  # a server that streams text and sends no items
            part = {"type": "output_text", "text": "".join(self._said), "annotations": []}
            return [{"type": "message", "role": "assistant", "content": [part]}]
        return [self._items[index] for index in sorted(self._items)]

    def parts(self) -> list[ReplyPart]:
        """Return the text and reasoning.  Items of kinds that a message cannot hold are left out."""
        try:
            return [part for item in self.items() for part in _parts(item)]
        except BAD_SHAPE as error:
            raise self._malformed("malformed_response", error) from None

    def calls(self) -> list[PartialCall]:
        """Return the calls to the agent's tools."""
        try:
            return [_call(item) for item in self.items() if item.get("type") == "function_call"]
        except BAD_SHAPE as error:
            raise self._malformed("malformed_response", error) from None

    def usage(self) -> Usage:
        """Return the tokens used.  Raises InvalidResponseError for counts that are not numbers."""
        try:
            return _usage(self._usage or {})
        except BAD_SHAPE as error:  # pydantic's ValidationError is a ValueError
            raise self._malformed("malformed_stream", error) from None

    def _apply(self, kind: str, content: dict[str, Any]) -> None:
        if self.first_token_ns is None and kind in _TOKENS:
            self.first_token_ns = int(self._transport.clock() * 1e9)
        if kind in _DELTAS:  # first: the hot path
            if kind == "response.output_text.delta":
                self._said.append(string(content["delta"]))
        elif kind in ("response.output_item.added", "response.output_item.done"):
            self._items[content["output_index"]] = dict(content["item"])
        elif kind == "response.function_call_arguments.done":
            self._items.setdefault(content["output_index"], {})["arguments"] = content["arguments"]
        elif kind in _ENDS:
            self._apply_end(content["response"], kind)
        elif kind == "error" or content.get("error"):
            raise self._transport.error_in_reply(content.get("error") or content)
        # The other events announce parts that these hold too, or were added later.

    def _apply_end(self, response: dict[str, Any], kind: str = "response.completed") -> None:
        self._usage = response.get("usage") or self._usage
        status = string(response.get("status") or kind.removeprefix("response."))
        self._word = string((response.get("incomplete_details") or {}).get("reason") or status)
        if status == "failed" or response.get("error"):
            raise self._transport.error_in_reply(response.get("error") or "the response failed")
        if output := response.get("output"):  # some servers send the items only here, others only as events
            self._items = {index: dict(item) for index, item in enumerate(output)}
        self.is_done = True

    def _malformed(self, type: str, error: Exception) -> InvalidResponseError:
        name = self._transport.name
        return InvalidResponseError(type, f"{name}: not a response: {self._transport.clean(str(error))}")


def _parts(item: Item) -> Iterator[ReplyPart]:
    if item.get("type") == "message":
        for part in item.get("content") or ():
            if (field := _TEXT_FIELDS.get(part.get("type"))) and (text := string(part.get(field) or "")):
                yield TextContent(text=text)
    elif item.get("type") == "reasoning":
        yield _reasoning(item)


def _reasoning(item: Item) -> ReplyPart:
    if shown := "".join(string(part.get("text") or "") for part in item.get("content") or ()):
        return ReasoningContent(is_native=True, reasoning=shown)
    paragraphs: Sequence[str] = [string(part.get("text") or "") for part in item.get("summary") or ()]
    if not any(paragraphs):
        return OmittedReasoningContent()
    summary = [SummaryPart(index=index, text=text) for index, text in enumerate(paragraphs)]
    return SummarizedReasoningContent(id=string(item.get("id") or ""), summary=summary)


def _call(item: Item) -> PartialCall:
    arguments = item.get("arguments") or ""
    text = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
    return PartialCall(string(item.get("call_id") or item.get("id") or ""), string(item.get("name") or ""), text)


def _usage(given: Mapping[str, Any]) -> Usage:
    prompt, completion = given.get("input_tokens") or 0, given.get("output_tokens") or 0
    of_prompt, of_completion = given.get("input_tokens_details") or {}, given.get("output_tokens_details") or {}
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=given.get("total_tokens") or prompt + completion,
        cached_input_tokens=of_prompt.get("cached_tokens") or 0,
        cache_write_tokens=of_prompt.get("cache_write_tokens") or 0,
        reasoning_tokens=of_completion.get("reasoning_tokens") or 0,
    )
