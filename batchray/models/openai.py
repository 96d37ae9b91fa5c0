"""Chat completions as OpenAI and its many compatible servers speak them, streamed.

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
from batchray.models.base import ModelCall, ModelReply, said
from batchray.models.client import HttpClient, TransportSettings, report_wasted_usage
from batchray.models.conversation import DEFAULT_IMAGE_TYPE, Capabilities, calls_of, is_answer, used_ids
from batchray.models.http import HttpTransport
from batchray.models.partial_reply import BAD_SHAPE, PartialCall, string, whole_calls
from batchray.models.sse import Event
from batchray.schema import ImageContent, Message, TextContent, ToolCall, ToolReturnContent, UrlImage, Usage

_PATH = "/chat/completions"
# What asks for reasoning in the bodies of OpenAI and OpenRouter.  No one value switches it off for all models.
_EFFORT = frozenset({"reasoning_effort", "reasoning"})
_USABLE_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
# Reasoning is taken and left out: the conversation goes on without it, and many servers refuse to be given it back.
_CAPABILITIES = Capabilities("openai", frozenset({"text", "image", "tool_call", "tool_return", "reasoning"}))


def new_tool_call_id() -> str:
    """Return a random id in the form of OpenAI's."""
    return f"call_{uuid.uuid4().hex[:24]}"


class OpenAIClient(HttpClient):
    """Asks an OpenAI-compatible server; one a provider and event loop, shared by all requests that run there.

    `base_url` ends where `/chat/completions` begins.  `name` is the provider's, for errors and logs; `headers` are sent
    besides.  `ids` makes the ids of tool calls that come without a usable one.
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
        key = (api_key or "").strip()
        super().__init__(name, base_url, key, {"Authorization": f"Bearer {key}"} if key else {}, headers, settings)
        self._ids = ids

    async def ask(self, call: ModelCall) -> ModelReply:
        """Return the model's whole answer, after the retries that are due.

        Raises ModelAPIError, InvalidResponseError, InvalidToolCallError or DeadlineExceededError.
        """
        answer = await self._post(_PATH, request_body(call), PartialCompletion, call)
        try:
            return answer.reply(call, self._ids)
        except (InvalidResponseError, InvalidToolCallError):
            report_wasted_usage(answer, call)
            raise


def request_body(call: ModelCall) -> dict[str, Any]:
    """Return the body of a call.  What the agent's file gives wins, but for the model, the messages and the tools.

    Thinking is `reasoning_effort`, or `enable_thinking` of the `chat_template_kwargs` where the agent's file has those.
    Raises ModelAPIError (`unsupported_content`) for a part that the protocol has no place for.
    """
    body: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}, **_given(call)}
    if body["stream"] is not True:
        body.pop("stream_options")  # an error where nothing is streamed
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


def _given(call: ModelCall) -> Mapping[str, Any]:
    """The fields of the agent's file, with the model's reasoning switched as the request wishes."""
    if call.thinking is None:
        return call.body
    if "chat_template_kwargs" in call.body:
        kwargs = {**(call.body["chat_template_kwargs"] or {}), "enable_thinking": call.thinking}
        return {**call.body, "chat_template_kwargs": kwargs}
    if call.thinking:
        return call.body if _EFFORT & call.body.keys() else {**call.body, "reasoning_effort": "medium"}
    return {name: value for name, value in call.body.items() if name not in _EFFORT}


def _chat_messages(message: Message) -> Iterator[dict[str, Any]]:
    """One message of ours can be several of OpenAI's: each tool return is one there."""
    _CAPABILITIES.check(message)
    for result in _CAPABILITIES.results(message):
        yield {"role": "tool", "tool_call_id": result.call_id, "content": result.text}
    if is_answer(message):
        yield _assistant_message(message)
    elif message.role == "system":
        yield {"role": "system", "content": message.text}
    elif message.role in ("user", "summary") and not _is_only_returns(message):
        yield _user_message(message)


def _is_only_returns(message: Message) -> bool:
    return bool(message.content) and all(isinstance(part, ToolReturnContent) for part in message.content or ())


def _assistant_message(message: Message) -> dict[str, Any]:
    calls = calls_of(message)
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
    # Plain text stays a string: small servers know no parts.
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
    """An answer that is still arriving."""

    __slots__ = (
        "_at",
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
        self._at: dict[int, PartialCall] = {}
        self._usage: Any = None
        self._has_choice = self.is_done = False
        self.finish_reason: str | None = None
        self.first_token_ns: int | None = None

    def add(self, event: Event) -> None:
        """Take in one event of the stream."""
        if event.data == b"[DONE]":
            self.is_done = True
            return
        try:
            chunk = orjson.loads(event.data)
            if event.name == b"error" or chunk.get("error"):
                raise self._transport.error_in_answer(chunk.get("error") or chunk)
            if choices := chunk.get("choices"):
                choice = choices[0]
                if not choice.get("index"):
                    self._take(choice, choice.get("delta") or {})
            self._usage = chunk.get("usage") or self._usage
        except BAD_SHAPE as error:
            raise self._malformed("malformed_stream", error) from None

    def add_whole(self, body: bytes) -> None:
        """Take in an answer that came in one piece."""
        try:
            answer = orjson.loads(body)
            if answer.get("error"):
                raise self._transport.error_in_answer(answer["error"])
            if choices := answer.get("choices"):
                message = choices[0]["message"]
                numbered = [{**piece, "index": i} for i, piece in enumerate(message.get("tool_calls") or ())]
                self._take(choices[0], {**message, "tool_calls": numbered})
                self.finish_reason = self.finish_reason or ("tool_calls" if self._calls else "stop")
            self._usage = answer.get("usage")
        except BAD_SHAPE as error:
            raise self._malformed("malformed_response", error) from None
        self.first_token_ns, self.is_done = None, True

    def check(self) -> None:
        """Raise InvalidResponseError where this is not a whole answer, or one that a filter cut."""
        if self.finish_reason == "content_filter":
            raise InvalidResponseError("refusal", f"{self._transport.name}: a content filter cut the answer")
        if self.finish_reason is not None:
            return
        if self.is_done and not self._has_choice:
            raise InvalidResponseError("no_choices", f"{self._transport.name}: an answer without choices")
        reason = f"{self._transport.name}: the answer ended without a finish_reason"
        raise InvalidResponseError("stream_truncated", reason)

    def reply(self, call: ModelCall, ids: Callable[[], str]) -> ModelReply:
        """Return the whole answer.  Raises InvalidToolCallError or InvalidResponseError."""
        return ModelReply(
            content=said("".join(self._text), "".join(self._reasoning)),
            tool_calls=self._tool_calls(call, ids) if self._calls else (),
            finish_reason=self.finish_reason or "stop",
            usage=self.usage(),
            first_token_ns=self.first_token_ns,
        )

    def _take(self, choice: dict[str, Any], delta: dict[str, Any]) -> None:
        self._has_choice = True
        text = delta.get("content") or delta.get("refusal")
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        pieces = delta.get("tool_calls")
        if text:
            self._text.append(string(text))
        if reasoning:
            self._reasoning.append(string(reasoning))
        for piece in pieces or ():
            self._take_call(piece)
        if self.first_token_ns is None and (text or reasoning or pieces):
            self.first_token_ns = int(self._transport.clock() * 1e9)
        if reason := choice.get("finish_reason"):
            self.finish_reason = string(reason)

    def _take_call(self, piece: dict[str, Any]) -> None:
        function = piece.get("function") or {}
        call_id, name, index = piece.get("id"), function.get("name"), piece.get("index")
        if index is None:  # servers without indices send whole calls
            index = max(self._at, default=-1) + (1 if name or not self._at else 0)
        call = self._at.get(index)
        # Some servers give all parallel calls one index; a new id with a name then begins the next call.
        if call is None or (call_id and name and call.id and call_id != call.id):
            call = self._at[index] = PartialCall()
            self._calls.append(call)
        call.id = call.id or string(call_id or "")
        call.name = call.name or string(name or "")
        arguments = function.get("arguments")
        if arguments:
            text = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
            call.arguments.append(text)

    def _tool_calls(self, call: ModelCall, ids: Callable[[], str]) -> list[ToolCall]:
        is_cut = self.finish_reason == "length"
        return whole_calls(self._calls, self._transport.name, is_cut=is_cut, used=used_ids(call.messages), ids=ids)

    def usage(self) -> Usage:
        """Return what the answer cost.  Raises InvalidResponseError."""
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
