"""Assembles a reply of OpenAI's Responses API, whole or streamed.

Source: OpenAI's API reference, "The response object" and "Streaming events"; the names and optional fields as in its
Python SDK 3.57.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import orjson

from batchray.models.arguments import joined_surrogates, with_whole_texts
from batchray.models.base import ReplyPart
from batchray.models.endings import RESPONSE_ENDS, FinishReason, check_not_empty, finish_reason, truncated
from batchray.models.http import HttpTransport
from batchray.models.partial_reply import JsonReply, PartialCall, string
from batchray.models.provider_errors import error_in
from batchray.models.usage_counts import mapping, merged_counts, token_count
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


class PartialResponse(JsonReply):
    """A reply that is still arriving.  See `PartialReply`."""

    __slots__ = ("_arguments", "_items", "_said", "_usage", "_word", "finish_reason")

    what: ClassVar[str] = "a response"

    def __init__(self, transport: HttpTransport) -> None:
        super().__init__(transport)
        self._items: dict[int, dict[str, Any]] = {}  # by their index in the output
        self._arguments: dict[int, list[str]] = {}  # pieces of a call's arguments, by the same index
        self._said: list[str] = []
        self._usage: Mapping[str, Any] = {}
        self._word: str | None = None  # the status, or why the response is incomplete
        self.finish_reason: FinishReason = "stop"

    def check(self) -> None:
        """Raise TransientError or InvalidResponseError if the reply is incomplete, empty, or cut by a filter."""
        if self._word is None:
            if not self.is_done:
                raise truncated("response.completed")
            self._word = "completed"  # some servers say only that they are done
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
            part = {"type": "output_text", "text": joined_surrogates("".join(self._said)), "annotations": []}
            return [{"type": "message", "role": "assistant", "content": [part]}]
        return [self._whole(index) for index in sorted(self._items)]

    def _whole(self, index: int) -> dict[str, Any]:
        """Return an item; if it has no arguments, with those that came in pieces, which some servers send only so."""
        item = self._items[index]
        if item.get("arguments") or not (pieces := self._arguments.get(index)):
            return item
        return {**item, "arguments": joined_surrogates("".join(pieces))}

    def parts(self) -> list[ReplyPart]:
        """Return the text and reasoning.  Items of kinds that a message cannot hold are left out."""
        return [part for item in self.items() for part in _parts(item)]

    def calls(self) -> list[PartialCall]:
        """Return the calls to the agent's tools."""
        return [_call(item) for item in self.items() if item.get("type") == "function_call"]

    def usage(self) -> Usage:
        """Return the tokens reported so far; counts that cannot be read are 0."""
        return _usage(self._usage)

    def _take(self, content: Any, name: bytes) -> None:
        kind = content.get("type") or name.decode(errors="replace")
        if self.first_token_ns is None and kind in _TOKENS:
            self._mark_first_token()
        if kind in _DELTAS:  # first: the hot path
            if kind == "response.output_text.delta":
                self._said.append(string(content["delta"]))
            elif kind == "response.function_call_arguments.delta":
                index = self._index_of(content, content.get("item_id"))
                self._arguments.setdefault(index, []).append(string(content["delta"]))
        elif kind in ("response.output_item.added", "response.output_item.done"):
            item = _item(content["item"])
            self._items[self._index_of(content, item.get("id"))] = item
        elif kind == "response.function_call_arguments.done":
            index = self._index_of(content, content.get("item_id"))
            self._items.setdefault(index, {})["arguments"] = content["arguments"]
        elif kind in _ENDS:
            self._end(content["response"], kind)
        elif kind == "error" or content.get("error"):
            raise self._transport.error_in_reply(content.get("error") or content)
        elif not kind and (error := error_in(content)) is not None:
            raise self._transport.error_in_reply(error)
        # The other events announce parts that these hold too, or were added later.

    def _index_of(self, content: Mapping[str, Any], item_id: Any) -> int:
        """Return the index that an event names, or without one that of the item with this id, or the next."""
        if (index := content.get("output_index")) is not None:
            return int(index)
        known = (index for index, item in self._items.items() if item_id and item.get("id") == item_id)
        return next(known, max(self._items, default=-1) + 1)

    def _take_whole(self, content: Any) -> None:
        if content.get("error") and "output" not in content:
            raise self._transport.error_in_reply(content["error"])
        if not isinstance(content.get("output"), list):
            raise TypeError("it has no output")
        self._end(content, "response.completed")

    def _end(self, response: Any, kind: str) -> None:
        self._usage = merged_counts(self._usage, response.get("usage"))
        status = string(response.get("status") or kind.removeprefix("response."))
        self._word = string(mapping(response.get("incomplete_details")).get("reason") or status)
        if status == "failed" or response.get("error"):
            raise self._transport.error_in_reply(response.get("error") or "the response failed")
        if output := response.get("output"):  # some servers send the items only here, others only as events
            self._items = {index: _item(item) for index, item in enumerate(output)}
        self.is_done = True


def _item(given: Any) -> dict[str, Any]:
    """Return an item that can be stored and sent back.  Raises one of `BAD_SHAPE` for one of another shape."""
    item = with_whole_texts({"type": "message", **given} if given.get("role") == "assistant" else dict(given))
    _call(item) if item.get("type") == "function_call" else list(_parts(item))
    return item


def _parts(item: Item) -> Iterator[ReplyPart]:
    if item.get("type") == "reasoning":
        yield _reasoning(item)
    elif item.get("type", "message") == "message" and (text := "".join(_texts(item.get("content")))):
        yield TextContent(text=text)


def _reasoning(item: Item) -> ReplyPart:
    if shown := "".join(_texts(item.get("content"))):
        return ReasoningContent(is_native=True, reasoning=shown)
    paragraphs = _texts(item.get("summary"))
    if not any(paragraphs):
        return OmittedReasoningContent()
    summary = [SummaryPart(index=index, text=text) for index, text in enumerate(paragraphs)]
    return SummarizedReasoningContent(id=str(item.get("id") or ""), summary=summary)


def _texts(content: Any) -> list[str]:
    """Return the texts of content: parts, or as some servers send it, one part or a string."""
    parts = content if isinstance(content, list) else [content] if content else []
    return [part if isinstance(part, str) else string(part.get("text") or part.get("refusal") or "") for part in parts]


def _call(item: Item) -> PartialCall:
    arguments = item.get("arguments") or ""
    text = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
    return PartialCall(string(item.get("call_id") or item.get("id") or ""), string(item.get("name") or ""), text)


def _usage(given: Mapping[str, Any]) -> Usage:
    prompt, completion = token_count(given.get("input_tokens")), token_count(given.get("output_tokens"))
    of_prompt, of_completion = mapping(given.get("input_tokens_details")), mapping(given.get("output_tokens_details"))
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=max(token_count(given.get("total_tokens")), prompt + completion),
        cached_input_tokens=token_count(of_prompt.get("cached_tokens")),
        cache_write_tokens=token_count(of_prompt.get("cache_write_tokens")),
        reasoning_tokens=token_count(of_completion.get("reasoning_tokens")),
    )
