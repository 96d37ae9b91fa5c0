"""OpenAI's chat completions protocol of the loopback provider."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from tests.provider_replies import Directives, Ending, Reply, chunk, head, split_words, text_of, whole

CREATED = 1_700_000_000
_DONE = b"data: [DONE]\n\n"


class ChatReply(Reply):
    """OpenAI's chat completions."""

    def _render(self) -> tuple[Sequence[bytes], Ending]:
        if not self._asked and self._request.get("stream"):
            is_counted = bool((self._request.get("stream_options") or {}).get("include_usage"))
            return [_plain(self._request["model"], self._n_tokens, self._n_prompt, is_counted)], "keep"
        return super()._render()

    def _refusal(self) -> bytes | None:
        problem = unsupported(self._request, self._asked)
        return whole(400, chat_error(problem, "unsupported_parameter")) if problem else super()._refusal()

    def _error(self, status: int, message: str, code: str | None) -> dict[str, Any]:
        return chat_error(message, code)

    def _error_event(self, code: str) -> bytes:
        return b"data: " + orjson.dumps(chat_error(f"broke off with {code}", code)) + b"\n\n"

    def _too_long(self) -> dict[str, Any]:
        return chat_error("This model's maximum context length is 8 tokens.", "context_length_exceeded")

    def _broken_event(self) -> bytes:
        return b'data: {"id": "chatcmpl-1", "choices": [{"ind\n\n'

    def _events(self) -> list[bytes]:
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"reasoning_content": word} for word in split_words(self._get("reasoning"))]
        tools = self._tools()
        if not tools:
            deltas += [{"content": word} for word in self._said()]
        return [self._event(delta) for delta in (*deltas, *self._tool_deltas(tools))]

    def _results(self) -> list[str]:
        newest = itertools.takewhile(lambda message: message["role"] == "tool", reversed(self._request["messages"]))
        return [text_of(message["content"]) for message in newest][::-1]

    def _tool_deltas(self, tools: list[tuple[str, str, str]]) -> Iterator[dict[str, Any]]:
        """The calls' arguments in pieces of five characters, all calls mixed; the id and name with the first piece."""
        is_late = "lateids" in self._asked
        heads = [
            {"index": i, **({"id": call_id} if call_id else {}), "type": "function", "function": {"name": name}}
            for i, (call_id, name, _) in enumerate(tools)
        ]
        yield from ({"tool_calls": [head]} for head in heads if not is_late)
        longest = max((len(arguments) for _, _, arguments in tools), default=0)
        for start in range(0, longest, 5):
            pieces = [(i, arguments[start : start + 5]) for i, (_, _, arguments) in enumerate(tools)]
            yield {"tool_calls": [{"index": i, "function": {"arguments": piece}} for i, piece in pieces if piece]}
        yield from ({"tool_calls": [head]} for head in heads if is_late)

    def _last_events(self) -> list[bytes]:
        reason = self._get("finish", "tool_calls" if self._tools() else "stop")
        events = [self._event({}, finish_reason=reason)]
        if (self._request.get("stream_options") or {}).get("include_usage"):
            events.append(self._event({}, choices=[], usage=self._usage()))
        return [*events, _DONE]

    def _empty_events(self) -> list[bytes]:
        return [self._event({}, choices=[]), _DONE]

    def _usage(self) -> dict[str, Any]:
        n_reasoning = len(split_words(self._get("reasoning")))
        n_completion = n_reasoning + len(self._said())
        return _usage(self._n_prompt, n_completion, int(self._get("cached", "0")), n_reasoning)

    def _event(
        self,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        choices: list[Any] | None = None,
        usage: dict[str, Any] | None = None,
    ) -> bytes:
        return _event(self._request["model"], delta, finish_reason, choices, usage)

    def _whole_answer(self) -> dict[str, Any]:
        tools = [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for call_id, name, arguments in self._tools()
        ]
        message: dict[str, Any] = {"role": "assistant", "content": None if tools else "".join(self._said())}
        message |= {"tool_calls": tools} if tools else {}
        message |= {"reasoning_content": self._get("reasoning")} if "reasoning" in self._asked else {}
        reason = self._get("finish", "tool_calls" if tools else "stop")
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": CREATED,
            "model": self._request["model"],
            "choices": [] if "nochoices" in self._asked else [choice],
            "usage": self._usage(),
        }


def chat_error(message: str, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}


def unsupported(request: dict[str, Any], asked: Directives) -> str | None:
    """What OpenAI's API refuses of a request to a model that does not take a field (`refuses:FIELD` or FIELD=OTHER)."""
    for name, _, other in (each.partition("=") for each in asked.get("refuses", ())):
        field, _, part = name.partition(".")
        if field in request and (not part or part in request[field]):
            instead = f" Use '{other}' instead." if other else ""
            return f"Unsupported parameter: '{name}' is not supported with this model.{instead}"
    return None


def _event(
    model: str,
    delta: dict[str, Any],
    finish_reason: str | None = None,
    choices: list[Any] | None = None,
    usage: dict[str, Any] | None = None,
) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    chunk = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": model,
        "choices": [choice] if choices is None else choices,
        "usage": usage,
    }
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def _usage(n_prompt: int, n_completion: int, n_cached: int = 0, n_reasoning: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_completion,
        "total_tokens": n_prompt + n_completion,
        "prompt_tokens_details": {"cached_tokens": n_cached},
        "completion_tokens_details": {"reasoning_tokens": n_reasoning},
    }


@functools.lru_cache(maxsize=256)
def _plain(model: str, n_tokens: int, n_prompt: int, is_counted: bool) -> bytes:
    """A whole plain answer."""
    deltas = [{"role": "assistant", "content": ""}, *({"content": f"tok{i} "} for i in range(n_tokens))]
    events = [*(_event(model, delta) for delta in deltas), _event(model, {}, "stop")]
    events += [_event(model, {}, choices=[], usage=_usage(n_prompt, n_tokens))] if is_counted else []
    return head(200) + b"".join(map(chunk, [*events, _DONE])) + b"0\r\n\r\n"
