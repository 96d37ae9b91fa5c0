"""A client of OpenAI's chat completions API and of compatible servers, streamed.

Source: OpenAI's API reference, "Create chat completion" and "The chat completion chunk object"; `reasoning_content` and
`reasoning` as vLLM, DeepSeek and OpenRouter send them.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Unpack

import orjson

from batchray.errors import InvalidResponseError, InvalidToolCallError
from batchray.models.base import ModelCall, ModelReply, reply_parts
from batchray.models.client import HttpClient, TransportSettings, report_wasted_usage
from batchray.models.conversation import DEFAULT_IMAGE_TYPE, Capabilities, is_from_model, tool_calls_of, used_ids
from batchray.models.http import HttpTransport
from batchray.models.partial_reply import BAD_SHAPE, PartialCall, complete_calls, string
from batchray.models.sse import Event
from batchray.schema import ImageContent, Message, TextContent, ToolCall, ToolReturnContent, UrlImage, Usage

_PATH = "/chat/completions"
# Body fields by which OpenAI and OpenRouter request reasoning.  No single value switches it off for all models.
_EFFORT = frozenset({"reasoning_effort", "reasoning"})
_USABLE_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
# Reasoning is accepted but not sent: conversations work without it, and many servers refuse it in a request.
_CAPABILITIES = Capabilities("openai", frozenset({"text", "image", "tool_call", "tool_return", "reasoning"}))


def new_tool_call_id() -> str:
    """Return a random id of the form that OpenAI uses."""
    return f"call_{uuid.uuid4().hex[:24]}"


class OpenAIClient(HttpClient):
    """Calls an OpenAI-compatible server; one per provider and event loop, shared by all requests.

    `base_url` is the part before `/chat/completions`.  `name` is the provider's name in errors and logs; `headers`
    are sent with each request.  `ids` makes ids for tool calls that arrive without a usable one.
    Raises ConfigError for an address or a key that HTTP cannot carry.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        name: str = "openai",
        headers: Mapping[str, str] | None = None,
        ids: Callable[[], str] = new_tool_call_id,
        **settings: Unpack[TransportSettings],
    ) -> None:
        super().__init__(name, base_url, api_key, "bearer", {}, headers, settings)
        self._ids = ids

    async def ask(self, call: ModelCall) -> ModelReply:
        """Return the model's complete reply, retrying transient failures.

        Raises ModelAPIError, InvalidResponseError, InvalidToolCallError or DeadlineExceededError.
        """
        answer = await self._post(_PATH, request_body(call), PartialCompletion, call)
        try:
            return answer.reply(call, self._ids)
        except (InvalidResponseError, InvalidToolCallError):
            report_wasted_usage(answer, call)
            raise


def request_body(call: ModelCall) -> dict[str, Any]:
    """Return the body of a call.  Fields of the agent's file win, except the model, the messages and the tools.

    Thinking is set by `reasoning_effort`, or by `enable_thinking` in `chat_template_kwargs` if the agent's file has
    those.  Raises ModelAPIError (`unsupported_content`) for a part that the protocol cannot express.
    """
    body: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}, **_body_fields(call)}
    if body["stream"] is not True:
        body.pop("stream_options")  # servers refuse it for a reply that is not streamed
    body["model"] = call.model
    body["messages"] = [{"role": "system", "content": call.system}] if call.system else []
    for message in call.messages:
        body["messages"].extend(_chat_messages(message))
    if call.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)},
            }
            for tool in call.tools
        ]
    return body


def _body_fields(call: ModelCall) -> Mapping[str, Any]:
    """Return the body fields of the agent's file, with reasoning switched as the request asks."""
    if call.thinking is None:
        return call.body
    if "chat_template_kwargs" in call.body:
        kwargs = {**(call.body["chat_template_kwargs"] or {}), "enable_thinking": call.thinking}
        return {**call.body, "chat_template_kwargs": kwargs}
    if call.thinking:
        return call.body if _EFFORT & call.body.keys() else {**call.body, "reasoning_effort": "medium"}
    return {name: value for name, value in call.body.items() if name not in _EFFORT}


def _chat_messages(message: Message) -> Iterator[dict[str, Any]]:
    """Yield a message in OpenAI's form; each tool return becomes a message of its own."""
    _CAPABILITIES.check(message)
    for result in _CAPABILITIES.results(message):
        yield {"role": "tool", "tool_call_id": result.call_id, "content": result.text}
    if is_from_model(message):
        yield _assistant_message(message)
    elif message.role == "system":
        yield {"role": "system", "content": message.text}
    elif message.role in ("user", "summary") and not _is_only_returns(message):
        yield _user_message(message)


def _is_only_returns(message: Message) -> bool:
    return bool(message.content) and all(isinstance(part, ToolReturnContent) for part in message.content or ())


def _assistant_message(message: Message) -> dict[str, Any]:
    calls = tool_calls_of(message)
    if not calls:
        return {"role": "assistant", "content": message.text}
    return {
        "role": "assistant",
        "content": message.text or None,
        "tool_calls": [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ],
    }


def _user_message(message: Message) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    for part in message.content or ():
        if isinstance(part, TextContent):
            parts.append({"type": "text", "text": part.text})
        elif isinstance(part, ImageContent):
            parts.append({"type": "image_url", "image_url": _image_url(part)})
    # A single text stays a string: small servers do not accept a list of parts.
    content = message.text if all(part["type"] == "text" for part in parts) and len(parts) < 2 else parts
    name = message.name if message.name and _USABLE_NAME.fullmatch(message.name) else None
    return {"role": "user", "content": content, **({"name": name} if name else {})}


def _image_url(part: ImageContent) -> dict[str, str]:
    source = part.source
    if isinstance(source, UrlImage):
        return {"url": source.url}
    url = f"data:{source.media_type or DEFAULT_IMAGE_TYPE};base64,{source.data}"
    return {"url": url, **({"detail": source.detail} if source.detail else {})}


class PartialCompletion:
    """A reply that is still arriving.  See `PartialReply`."""

    __slots__ = (
        "_by_index",
        "_calls",
        "_has_choice",
        "_reasoning",
        "_text",
        "_transport",
        "_usage",
        "finish_reason",
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
        self.finish_reason: str | None = None
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
                self.finish_reason = self.finish_reason or ("tool_calls" if self._calls else "stop")
            self._usage = answer.get("usage")
        except BAD_SHAPE as error:
            raise self._malformed("malformed_response", error) from None
        self.first_token_ns, self.is_done = None, True

    def check(self) -> None:
        """Raise InvalidResponseError if the reply is incomplete, or cut by a content filter."""
        if self.finish_reason == "content_filter":
            raise InvalidResponseError("refusal", f"{self._transport.name}: a content filter cut the answer")
        if self.finish_reason is not None:
            return
        if self.is_done and not self._has_choice:
            raise InvalidResponseError("no_choices", f"{self._transport.name}: an answer without choices")
        reason = f"{self._transport.name}: the answer ended without a finish_reason"
        raise InvalidResponseError("stream_truncated", reason)

    def reply(self, call: ModelCall, ids: Callable[[], str]) -> ModelReply:
        """Return the complete reply.  Raises InvalidToolCallError or InvalidResponseError."""
        return ModelReply(
            content=reply_parts("".join(self._text), "".join(self._reasoning)),
            tool_calls=self._tool_calls(call, ids) if self._calls else (),
            finish_reason=self.finish_reason or "stop",
            usage=self.usage(),
            first_token_ns=self.first_token_ns,
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
            self.finish_reason = string(reason)

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
        is_cut = self.finish_reason == "length"
        return complete_calls(self._calls, self._transport.name, is_cut=is_cut, used=used_ids(call.messages), ids=ids)

    def usage(self) -> Usage:
        """Return the tokens used.  Raises InvalidResponseError for counts that are not numbers."""
        try:
            return _usage(self._usage or {})
        except BAD_SHAPE as error:  # pydantic's ValidationError is a ValueError
            raise self._malformed("malformed_stream", error) from None

    def _malformed(self, type: str, error: Exception) -> InvalidResponseError:
        name = self._transport.name
        return InvalidResponseError(type, f"{name}: not a chat completion: {self._transport.clean(str(error))}")


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
