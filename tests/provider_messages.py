"""Anthropic's Messages protocol of the loopback provider, with the checks that its API makes on conversations."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, ClassVar

import orjson

from tests.provider_replies import Reply, split_words, text_of, whole

Block = dict[str, Any]
GrowingBlock = tuple[Block, list[Block]]
"""The start of a content block, and the deltas that complete it."""


class MessagesReply(Reply):
    """Anthropic's Messages."""

    _STOP_REASONS: ClassVar = {
        "stop": "end_turn",
        "length": "max_tokens",
        "tool_calls": "tool_use",
        "content_filter": "refusal",
    }
    _ERROR_TYPES: ClassVar = {
        400: "invalid_request_error",
        401: "authentication_error",
        402: "billing_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        504: "timeout_error",
        529: "overloaded_error",
    }

    def _refusal(self) -> bytes | None:
        problem = _problem(self._request)
        return whole(400, self._error(400, problem, None)) if problem else super()._refusal()

    def _error(self, status: int, message: str, code: str | None) -> Block:
        error = {"type": code or self._ERROR_TYPES.get(status, "api_error"), "message": message}
        return {"type": "error", "error": error, "request_id": "req_1"}

    def _error_event(self, code: str) -> bytes:
        return _named_event(self._error(200, f"broke off with {code}", code))

    def _too_long(self) -> Block:
        return self._error(400, "prompt is too long: 9 tokens > 8 maximum", None)

    def _broken_event(self) -> bytes:
        return b'event: content_block_delta\ndata: {"type": "content_block_delta", "ind\n\n'

    def _events(self) -> list[bytes]:
        events: list[Block] = [
            {"type": "message_start", "message": self._message([], None, self._usage(1))},
            {"type": "ping"},
        ]
        for index, (block, deltas) in enumerate(self._blocks()):
            events.append({"type": "content_block_start", "index": index, "content_block": block})
            events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
            events.append({"type": "content_block_stop", "index": index})
        return [_named_event(event) for event in events]

    def _last_events(self) -> list[bytes]:
        n_completion = len(split_words(self._get("reasoning"))) + len(self._said())
        end = {"stop_reason": self._stop_reason(), "stop_sequence": None, "stop_details": self._details()}
        delta = {"type": "message_delta", "delta": end, "usage": self._usage(n_completion)}
        return [_named_event(delta), _named_event({"type": "message_stop"})]

    def _empty_events(self) -> list[bytes]:
        start = {"type": "message_start", "message": self._message([], None, self._usage(1))}
        return [_named_event(start), *self._last_events()]

    def _whole_answer(self) -> Block:
        content = [] if "nochoices" in self._asked else [_whole_block(*block) for block in self._blocks()]
        n_completion = len(split_words(self._get("reasoning"))) + len(self._said())
        return self._message(content, self._stop_reason(), self._usage(n_completion))

    def _results(self) -> list[str]:
        content = self._request["messages"][-1]["content"]
        blocks = [] if isinstance(content, str) else content
        return [text_of(block.get("content", "")) for block in blocks if block["type"] == "tool_result"]

    def _is_pausing(self) -> bool:
        return "pause" in self._asked and self._request["messages"][-1]["role"] == "user"

    def _stop_reason(self) -> str:
        reason = self._get("finish", "tool_calls" if self._tools() else "stop")
        return "pause_turn" if self._is_pausing() else self._STOP_REASONS.get(reason, reason)

    def _details(self) -> Block | None:
        is_refusal = self._stop_reason() == "refusal"
        return {"type": "refusal", "category": None, "explanation": "it was asked for"} if is_refusal else None

    def _blocks(self) -> list[GrowingBlock]:
        if self._is_pausing():
            return [*self._thought(), *_searched()]
        if tools := self._tools():
            return [*self._thought(), *(_used(*tool) for tool in tools)]
        spoken = [{"type": "text_delta", "text": word} for word in self._said()]
        return [*self._thought(), ({"type": "text", "text": ""}, spoken)]

    def _thought(self) -> Iterator[GrowingBlock]:
        if text := self._get("reasoning"):
            shown = [] if "omitted" in self._asked else split_words(text)
            deltas = [{"type": "thinking_delta", "thinking": word} for word in shown]
            deltas.append({"type": "signature_delta", "signature": signature("".join(shown))})
            yield {"type": "thinking", "thinking": "", "signature": ""}, deltas
        if data := self._get("redacted"):
            yield {"type": "redacted_thinking", "data": data}, []

    def _usage(self, n_completion: int) -> Block:
        cached, written = int(self._get("cached", "0")), int(self._get("written", "0"))
        return {
            "input_tokens": self._n_prompt - cached - written,
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": cached,
            "output_tokens": n_completion,
            "output_tokens_details": {"thinking_tokens": len(split_words(self._get("reasoning")))},
        }

    def _message(self, content: list[Any], stop_reason: str | None, usage: Block) -> Block:
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": self._request["model"],
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": None,
            "stop_details": self._details() if stop_reason else None,
            "usage": usage,
        }


def _used(call_id: str, name: str, arguments: str) -> GrowingBlock:
    pieces = ["", *(arguments[start : start + 5] for start in range(0, len(arguments), 5))]
    deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
    return {"type": "tool_use", "id": call_id, "name": name, "input": {}}, deltas


def _searched() -> list[GrowingBlock]:
    """The blocks of a search that the API made by itself."""
    query = [{"type": "input_json_delta", "partial_json": piece} for piece in ('{"query"', ': "a"}')]
    found = {"type": "web_search_result", "title": "A", "url": "http://h/a", "encrypted_content": "QUJD"}
    return [
        ({"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}, query),
        ({"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [found]}, []),
    ]


def _whole_block(start: Block, deltas: list[Block]) -> Block:
    block = dict(start)
    for delta in deltas:
        for name, value in delta.items():
            if name != "type":
                block[name] = block.get(name, "") + value
    arguments = block.pop("partial_json", None)
    return block if arguments is None else {**block, "input": orjson.loads(arguments or "{}")}


def signature(thinking: str) -> str:
    """The signature of a thinking block; one that comes back with another text does not match it."""
    return f"sig-{hashlib.sha256(thinking.encode()).hexdigest()[:16]}"


def _problem(request: Block) -> str | None:
    """What Anthropic's API refuses of a request's form, in words close to its own."""
    if not isinstance(request.get("max_tokens"), int):
        return "max_tokens: Field required"
    if not request["messages"]:
        return "messages: at least one message is required"
    open_ids: list[str] = []
    for i, turn in enumerate(request["messages"]):
        if turn["role"] not in ("user", "assistant"):
            return f"messages.{i}.role: unexpected role {turn['role']!r}"
        blocks = [{"type": "text", "text": turn["content"]}] if isinstance(turn["content"], str) else turn["content"]
        results = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
        come_first = all(block["type"] == "tool_result" for block in blocks[: len(results)])
        if sorted(results) != sorted(open_ids) or not come_first:
            return f"messages.{i}: `tool_use` ids were found without `tool_result` blocks immediately after"
        open_ids = [block["id"] for block in blocks if block["type"] == "tool_use"]
        if problem := next(filter(None, map(_problem_of_block, blocks)), None):
            return f"messages.{i}: {problem}"
    return None


def _problem_of_block(block: Block) -> str | None:
    if block["type"] == "text" and not block["text"].strip():
        return "text content blocks must be non-empty"
    if block["type"] == "thinking" and block["signature"] != signature(block["thinking"]):
        return "Invalid `signature` in `thinking` block"
    if block["type"].endswith("thinking") and "cache_control" in block:
        return "cache_control cannot be set for thinking blocks"
    return None


def _named_event(content: Block) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (content["type"].encode(), orjson.dumps(content))
