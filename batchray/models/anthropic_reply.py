"""Assembles a reply of Anthropic's Messages API, whole or streamed.

Source: Anthropic's API reference, "Create a Message", and its pages on streaming, stop reasons, extended thinking and
prompt caching; the names and optional fields as in its Python SDK 2.13.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import orjson

from batchray.errors import InvalidResponseError
from batchray.models.anthropic_request import Block
from batchray.models.arguments import joined_surrogates, object_to_send
from batchray.models.base import ReplyPart
from batchray.models.endings import MESSAGE_ENDS, FinishReason, finish_reason, truncated
from batchray.models.http import HttpTransport
from batchray.models.partial_reply import BAD_SHAPE, JsonReply, PartialCall, string
from batchray.models.usage_counts import mapping, merged_counts, token_count
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
# The kinds of block that a delta can belong to.  One for a block that has not begun begins the first, if it is text.
_KINDS_OF = {
    "text_delta": ("text",),
    "citations_delta": ("text",),
    "thinking_delta": ("thinking",),
    "signature_delta": ("thinking",),
    "input_json_delta": ("tool_use", "server_tool_use", "mcp_tool_use"),
}
_REPRESENTED = frozenset({"text", "thinking", "redacted_thinking", "tool_use"})
# Block fields that must be strings.
_TEXTS = ("data", "id", "name", "signature", "text", "thinking")


class _PartialBlock:
    """A block that is still arriving: its first event, and the pieces appended to its fields since."""

    __slots__ = ("citations", "kind", "pieces", "start")

    def __init__(self, start: Block) -> None:
        self.kind, self.start = string(start["type"]), start
        self.pieces: dict[str, list[str]] = {}
        self.citations: list[Any] = []
        for field in _TEXTS:
            string(start.get(field) or "")

    def add(self, delta: Mapping[str, Any]) -> None:
        if field := _CONTINUED.get(delta["type"]):
            if (piece := delta[field]) is not None:
                self.pieces.setdefault(field, []).append(string(piece))
        elif delta["type"] == "citations_delta":
            self.citations.append(delta.get("citation"))

    def text(self, field: str) -> str:
        return joined_surrogates((self.start.get(field) or "") + "".join(self.pieces.get(field, ())))

    def arguments(self) -> str:
        return self.text("partial_json") or orjson.dumps(self.start.get("input") or {}).decode()

    @property
    def has_citations(self) -> bool:
        return bool(self.citations or self.start.get("citations"))

    def whole(self) -> Block:
        """Return the block in the form in which the API accepts it back."""
        block = {**self.start, **{field: self.text(field) for field in self.pieces if field != "partial_json"}}
        if self.citations:
            block["citations"] = [*(block.get("citations") or ()), *self.citations]
        return {**block, "input": orjson.loads(object_to_send(self.arguments()))} if "input" in block else block


class PartialMessage(JsonReply):
    """A reply that is still arriving.  See `PartialReply`."""

    __slots__ = ("_blocks", "_by_index", "_details", "_usage", "finish_reason", "stop_reason")

    what: ClassVar[str] = "a message"

    def __init__(self, transport: HttpTransport) -> None:
        super().__init__(transport)
        self._blocks: list[_PartialBlock] = []  # in the order of their first events
        self._by_index: dict[int | None, _PartialBlock] = {}
        self._usage: Mapping[str, Any] = {}
        self._details: Any = None
        self.stop_reason: str | None = None
        self.finish_reason: FinishReason = "stop"

    def check(self) -> None:
        """Raise TransientError or InvalidResponseError if the reply is incomplete, or a refusal."""
        name = self._transport.name
        if self.stop_reason is None:
            if not self.is_done:
                raise truncated("stop_reason")
            self.stop_reason = "end_turn"  # some servers never give a reason, but say that they are done
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
            return [block.whole() for block in self._blocks]
        except BAD_SHAPE as error:
            reason = f"{self._transport.name}: not a message: {self._transport.clean(str(error))}"
            raise InvalidResponseError("malformed_stream", reason) from None

    @property
    def is_representable(self) -> bool:
        """Whether `parts` and `calls` hold all of the reply; they have no place for the provider's own tools."""
        return all(block.kind in _REPRESENTED and not block.has_citations for block in self._blocks)

    def parts(self) -> list[ReplyPart]:
        """Return the text and reasoning.  Blocks of kinds that a message cannot hold are left out."""
        return [part for block in self._blocks if (part := _part(block)) is not None]

    def calls(self) -> list[PartialCall]:
        """Return the calls to the agent's tools."""
        asked = [block for block in self._blocks if block.kind == "tool_use"]
        return [PartialCall(block.text("id"), block.text("name"), block.arguments()) for block in asked]

    def usage(self) -> Usage:
        """Return the tokens reported so far; counts that cannot be read are 0."""
        return _usage(self._usage)

    def _take(self, content: Any, name: bytes) -> None:
        if name == b"error" or content.get("error"):
            raise self._transport.error_in_reply(content.get("error") or content)
        self._apply(content)

    def _take_whole(self, content: Any) -> None:
        if content.get("error"):
            raise self._transport.error_in_reply(content["error"])
        blocks = content["content"] or ()
        if isinstance(blocks, str):
            blocks = [{"type": "text", "text": blocks}]
        self._blocks = [_PartialBlock(block) for block in blocks]
        self._apply_end(content)
        self._apply_usage(content)

    def _apply(self, event: Mapping[str, Any]) -> None:
        match event.get("type"):
            case "content_block_delta":
                index, delta = event.get("index"), event["delta"]
                if block := self._by_index.get(index) or self._open_block(index, delta["type"]):
                    block.add(delta)
                self._mark_first_token()
            case "content_block_start":
                block = self._begin(event.get("index"), event["content_block"])
                if block.kind not in ("text", "thinking"):  # these start empty
                    self._mark_first_token()
            case "message_start":
                self._apply_usage(event.get("message") or {})
            case "message_delta":
                self._apply_end(event.get("delta") or {})
                self._apply_usage(event)
            case "message_stop":
                self.is_done = True
            case _:
                pass  # pings, ends of blocks, and event types added later

    def _begin(self, index: int | None, start: Block) -> _PartialBlock:
        # A server may give the same index to several blocks: they all count, and deltas go to the newest.
        block = self._by_index[index] = _PartialBlock(start)
        self._blocks.append(block)
        return block

    def _open_block(self, index: int | None, delta_type: str) -> _PartialBlock | None:
        """Return the block for a delta with an index that no block has: the newest, or a new one if that cannot be.

        Returns None for a type of delta that adds nothing to a reply.
        """
        kinds = _KINDS_OF.get(delta_type)
        if kinds is None:
            return None
        if self._blocks and self._blocks[-1].kind in kinds:
            return self._blocks[-1]
        if delta_type == "input_json_delta":
            raise KeyError(f"{delta_type} for block {index!r}, which has not begun")
        return self._begin(index, {"type": kinds[0]})

    def _apply_end(self, given: Mapping[str, Any]) -> None:
        if reason := given.get("stop_reason"):
            self.stop_reason, self._details = string(reason), given.get("stop_details")

    def _apply_usage(self, given: Mapping[str, Any]) -> None:
        # Counts are cumulative, and a later event may omit counts that have not changed.
        self._usage = merged_counts(self._usage, given.get("usage"))


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
    read = token_count(given.get("cache_read_input_tokens"))
    written = token_count(given.get("cache_creation_input_tokens"))
    prompt = token_count(given.get("input_tokens")) + read + written
    completion = token_count(given.get("output_tokens"))
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        cached_input_tokens=read,
        cache_write_tokens=written,
        reasoning_tokens=token_count(mapping(given.get("output_tokens_details")).get("thinking_tokens")),
    )
