"""Assembles a reply of Anthropic's Messages API, whole or streamed.

Source: Anthropic's API reference, "Create a Message", and its pages on streaming, stop reasons, extended thinking and
prompt caching; the names and optional fields as in its Python SDK 2.13.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from batchray.errors import InvalidResponseError
from batchray.models.anthropic_request import Block
from batchray.models.base import ReplyPart
from batchray.models.endings import MESSAGE_ENDS, FinishReason, finish_reason, truncated
from batchray.models.http import HttpTransport
from batchray.models.partial_reply import BAD_SHAPE, PartialCall, string
from batchray.models.sse import Event
from batchray.schema import (
    OmittedReasoningContent,
    ReasoningContent,
    RedactedReasoningContent,
    TextContent,
    Usage,
)

# The block field that each kind of delta appends to.  Other kinds (citations) carry nothing that a reply keeps.
_CONTINUED = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
    "input_json_delta": "partial_json",
}
# Block fields that must be strings.
_TEXTS = ("data", "id", "name", "signature", "text", "thinking")


class _PartialBlock:
    """A block that is still arriving: its first event, and the pieces appended to its fields since."""

    __slots__ = ("kind", "pieces", "start")

    def __init__(self, start: Block) -> None:
        self.kind, self.start = string(start["type"]), start
        self.pieces: dict[str, list[str]] = {}
        for field in _TEXTS:
            string(start.get(field) or "")

    def add(self, delta: Mapping[str, Any]) -> None:
        if field := _CONTINUED.get(delta["type"]):
            self.pieces.setdefault(field, []).append(string(delta[field]))

    def text(self, field: str) -> str:
        return (self.start.get(field) or "") + "".join(self.pieces.get(field, ()))

    def arguments(self) -> str:
        return self.text("partial_json") or orjson.dumps(self.start.get("input") or {}).decode()

    def whole(self) -> Block:
        """Return the block in the form in which the API accepts it back."""
        block = {**self.start, **{field: self.text(field) for field in self.pieces if field != "partial_json"}}
        return {**block, "input": orjson.loads(self.arguments())} if "input" in block else block


class PartialMessage:
    """A reply that is still arriving.  See `PartialReply`."""

    __slots__ = (
        "_blocks",
        "_details",
        "_transport",
        "_usage",
        "finish_reason",
        "first_token_ns",
        "is_done",
        "stop_reason",
    )

    def __init__(self, transport: HttpTransport) -> None:
        self._transport = transport
        self._blocks: dict[int, _PartialBlock] = {}  # by index, in the order of their first events
        self._usage: dict[str, Any] = {}
        self._details: Any = None
        self.is_done = False
        self.stop_reason: str | None = None
        self.finish_reason: FinishReason = "stop"
        self.first_token_ns: int | None = None

    def add(self, event: Event) -> None:
        """Process one event of the stream."""
        try:
            content = orjson.loads(event.data)
            if event.name == b"error" or content.get("error"):
                raise self._transport.error_in_reply(content.get("error") or content)
            self._apply(content)
        except BAD_SHAPE as error:
            raise self._malformed("malformed_stream", error) from None

    def add_body(self, body: bytes) -> None:
        """Process a reply that arrived whole, not streamed."""
        try:
            message = orjson.loads(body)
            if message.get("error"):
                raise self._transport.error_in_reply(message["error"])
            self._blocks = {i: _PartialBlock(block) for i, block in enumerate(message["content"])}
            self._apply_end(message)
            self._apply_usage(message)
        except BAD_SHAPE as error:
            raise self._malformed("malformed_response", error) from None
        self.is_done = True

    def check(self) -> None:
        """Raise TransientError or InvalidResponseError if the reply is incomplete, or a refusal."""
        name = self._transport.name
        if self.stop_reason is None:
            raise truncated("stop_reason")
        if self.stop_reason == "refusal":
            explanation = self._details.get("explanation") if isinstance(self._details, dict) else None
            reason = f"{name}: the model refused to answer"
            raise InvalidResponseError(
                "refusal", f"{reason}: {self._transport.clean(str(explanation))}" if explanation else reason
            )
        if self.stop_reason != "pause_turn":
            self.finish_reason = finish_reason(MESSAGE_ENDS, self.stop_reason, name)

    def blocks(self) -> list[Block]:
        """Return the blocks in the form in which the API accepts them back."""
        try:
            return [block.whole() for block in self._blocks.values()]
        except BAD_SHAPE as error:
            raise self._malformed("malformed_stream", error) from None

    def parts(self) -> list[ReplyPart]:
        """Return the text and reasoning.  Blocks of kinds that a message cannot hold are left out."""
        return [part for block in self._blocks.values() if (part := _part(block)) is not None]

    def calls(self) -> list[PartialCall]:
        """Return the calls to the agent's tools."""
        asked = [block for block in self._blocks.values() if block.kind == "tool_use"]
        return [PartialCall(block.text("id"), block.text("name"), block.arguments()) for block in asked]

    def usage(self) -> Usage:
        """Return the tokens used.  Raises InvalidResponseError for counts that are not numbers."""
        try:
            return _usage(self._usage)
        except BAD_SHAPE as error:  # pydantic's ValidationError is a ValueError
            raise self._malformed("malformed_stream", error) from None

    def _apply(self, event: Mapping[str, Any]) -> None:
        match event["type"]:
            case "content_block_delta":
                self._blocks[event["index"]].add(event["delta"])
                self._mark_first_token()
            case "content_block_start":
                block = self._blocks[event["index"]] = _PartialBlock(event["content_block"])
                if block.kind not in ("text", "thinking"):  # these start empty
                    self._mark_first_token()
            case "message_start":
                self._apply_usage(event["message"])
            case "message_delta":
                self._apply_end(event["delta"])
                self._apply_usage(event)
            case "message_stop":
                self.is_done = True
            case _:
                pass  # pings, ends of blocks, and event types added later

    def _mark_first_token(self) -> None:
        if self.first_token_ns is None:
            self.first_token_ns = int(self._transport.clock() * 1e9)

    def _apply_end(self, given: Mapping[str, Any]) -> None:
        if reason := given.get("stop_reason"):
            self.stop_reason, self._details = string(reason), given.get("stop_details")

    def _apply_usage(self, given: Mapping[str, Any]) -> None:
        # Counts are cumulative, and a later event may omit counts that have not changed.
        self._usage.update((name, count) for name, count in (given.get("usage") or {}).items() if count is not None)

    def _malformed(self, type: str, error: Exception) -> InvalidResponseError:
        name = self._transport.name
        return InvalidResponseError(type, f"{name}: not a message: {self._transport.clean(str(error))}")


def _part(block: _PartialBlock) -> ReplyPart | None:
    match block.kind:
        case "text" if text := block.text("text"):
            return TextContent(text=text)
        case "thinking":
            # A server that does not sign reasoning gets it back with an empty signature.
            text, signature = block.text("thinking"), block.text("signature")
            if not text:
                return OmittedReasoningContent(signature=signature)
            return ReasoningContent(is_native=True, reasoning=text, signature=signature)
        case "redacted_thinking":
            return RedactedReasoningContent(data=block.text("data"))
        case _:
            return None


def _usage(given: Mapping[str, Any]) -> Usage:
    read, written = given.get("cache_read_input_tokens") or 0, given.get("cache_creation_input_tokens") or 0
    prompt, completion = (given.get("input_tokens") or 0) + read + written, given.get("output_tokens") or 0
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        cached_input_tokens=read,
        cache_write_tokens=written,
        reasoning_tokens=(given.get("output_tokens_details") or {}).get("thinking_tokens") or 0,
    )
