"""Assembles a reply of OpenAI's chat completions API, whole or streamed.

Source: OpenAI's API reference, "The chat completion chunk object"; `reasoning_content` and `reasoning` as vLLM,
DeepSeek and OpenRouter send them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from batchray.errors import InvalidResponseError
from batchray.models.base import ModelCall, ModelReply, reply_parts
from batchray.models.endings import CHAT_ENDS, FinishReason, check_not_empty, finish_reason, truncated
from batchray.models.http import HttpTransport
from batchray.models.partial_reply import BAD_SHAPE, PartialCall, complete_calls, string
from batchray.models.sse import Event
from batchray.schema import ToolCall, Usage


class PartialCompletion:
    """A reply that is still arriving.  See `PartialReply`."""

    __slots__ = (
        "_by_index",
        "_calls",
        "_finish_reason",
        "_has_choice",
        "_reasoning",
        "_text",
        "_transport",
        "_usage",
        "_word",
        "first_token_ns",
        "is_done",
    )

    def __init__(self, transport: HttpTransport) -> None:
        self._transport = transport
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[PartialCall] = []
        self._by_index: dict[int, PartialCall] = {}
        self._usage: Any = None
        self._has_choice = self.is_done = False
        self._word: str | None = None  # the provider's finish_reason
        self._finish_reason: FinishReason = "stop"
        self.first_token_ns: int | None = None

    def add(self, event: Event) -> None:
        """Process one event of the stream."""
        if event.data == b"[DONE]":
            self.is_done = True
            return
        try:
            chunk = orjson.loads(event.data)
            if event.name == b"error" or chunk.get("error"):
                raise self._transport.error_in_reply(chunk.get("error") or chunk)
            if choices := chunk.get("choices"):
                choice = choices[0]
                if not choice.get("index"):
                    self._apply(choice, choice.get("delta") or {})
            self._usage = chunk.get("usage") or self._usage
        except BAD_SHAPE as error:
            raise self._malformed("malformed_stream", error) from None

    def add_body(self, body: bytes) -> None:
        """Process a reply that arrived whole, not streamed."""
        try:
            answer = orjson.loads(body)
            if answer.get("error"):
                raise self._transport.error_in_reply(answer["error"])
            if choices := answer.get("choices"):
                message = choices[0]["message"]
                numbered = [{**piece, "index": i} for i, piece in enumerate(message.get("tool_calls") or ())]
                self._apply(choices[0], {**message, "tool_calls": numbered})
                self._word = self._word or "stop"
            self._usage = answer.get("usage")
        except BAD_SHAPE as error:
            raise self._malformed("malformed_response", error) from None
        self.first_token_ns, self.is_done = None, True

    def check(self) -> None:
        """Raise TransientError or InvalidResponseError unless the reply is complete and says something."""
        name = self._transport.name
        if self._word is None:
            if not self.is_done:
                raise truncated()
            if not self._has_choice:
                raise InvalidResponseError("no_choices", f"{name}: an answer without choices")
            self._word = "stop"  # some servers never give a reason, but say that they are done
        self._finish_reason = finish_reason(CHAT_ENDS, self._word, name)
        has_text = any(map(str.strip, self._text))
        check_not_empty(
            self._finish_reason,
            name,
            has_text=has_text,
            has_calls=bool(self._calls),
            has_reasoning=bool(self._reasoning),
        )

    def reply(self, call: ModelCall, ids: Callable[[], str]) -> ModelReply:
        """Return the complete reply.  Raises InvalidResponseError."""
        return ModelReply(
            content=reply_parts("".join(self._text), "".join(self._reasoning)),
            tool_calls=self._tool_calls(call, ids) if self._calls else (),
            finish_reason=self._finish_reason,
            usage=self.usage(),
            first_token_ns=self.first_token_ns,
            max_tokens=_max_tokens(call.body),
        )

    def _apply(self, choice: dict[str, Any], delta: dict[str, Any]) -> None:
        self._has_choice = True
        text = delta.get("content") or delta.get("refusal")
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        pieces = delta.get("tool_calls")
        if text:
            self._text.append(string(text))
        if reasoning:
            self._reasoning.append(string(reasoning))
        for piece in pieces or ():
            self._apply_call(piece)
        if self.first_token_ns is None and (text or reasoning or pieces):
            self.first_token_ns = int(self._transport.clock() * 1e9)
        if reason := choice.get("finish_reason"):
            self._word = string(reason)

    def _apply_call(self, piece: dict[str, Any]) -> None:
        function = piece.get("function") or {}
        call_id, name = piece.get("id"), function.get("name")
        call = self._call_of(piece.get("index"), call_id, name)
        call.id = call.id or string(call_id or "")
        call.name = call.name or string(name or "")
        if arguments := function.get("arguments"):
            call.arguments.append(arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode())

    def _call_of(self, index: int | None, call_id: Any, name: Any) -> PartialCall:
        """Return the call that a piece belongs to; a piece that continues no call starts one."""
        if index is None:  # servers without indices send each call in one piece
            index = max(self._by_index, default=-1) + (1 if name or not self._by_index else 0)
        call = self._by_index.get(index)
        # Some servers give all parallel calls the same index; a new id with a name then starts the next call.
        if call is None or (call_id and name and call.id and call_id != call.id):
            call = self._by_index[index] = PartialCall()
            self._calls.append(call)
        return call

    def _tool_calls(self, call: ModelCall, ids: Callable[[], str]) -> list[ToolCall]:
        is_cut = self._finish_reason in ("length", "context_length")
        return complete_calls(self._calls, self._transport.name, is_cut=is_cut, used=set(), ids=ids)

    def usage(self) -> Usage:
        """Return the tokens used.  Raises InvalidResponseError for counts that are not numbers."""
        try:
            return _usage(self._usage or {})
        except BAD_SHAPE as error:  # pydantic's ValidationError is a ValueError
            raise self._malformed("malformed_stream", error) from None

    def _malformed(self, type: str, error: Exception) -> InvalidResponseError:
        name = self._transport.name
        return InvalidResponseError(type, f"{name}: not a chat completion: {self._transport.clean(str(error))}")


def _max_tokens(body: Mapping[str, Any]) -> int | None:
    """Return the limit of the reply's tokens that a call asks for."""
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    return limit if isinstance(limit, int) else None


def _usage(given: Mapping[str, Any]) -> Usage:
    prompt, completion = given.get("prompt_tokens") or 0, given.get("completion_tokens") or 0
    of_prompt, of_completion = given.get("prompt_tokens_details") or {}, given.get("completion_tokens_details") or {}
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=given.get("total_tokens") or prompt + completion,
        cached_input_tokens=of_prompt.get("cached_tokens") or 0,
        cache_write_tokens=of_prompt.get("cache_write_tokens") or 0,
        reasoning_tokens=of_completion.get("reasoning_tokens") or 0,
    )
