"""Chat completions as OpenAI and its many compatible servers speak them, streamed.

Source: OpenAI's API reference, "Create chat completion" and "The chat completion chunk object"; `reasoning_content` and
`reasoning` as vLLM, DeepSeek and OpenRouter send them.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any

import aiohttp
import orjson

from batchray.errors import InvalidResponseError, InvalidToolCallError, ModelAPIError
from batchray.models.base import ModelCall, ModelReply
from batchray.models.http import MAX_ANSWER_BYTES, Transport
from batchray.models.retry import RetryPolicy, Timeouts
from batchray.models.sse import EventParser
from batchray.schema import (
    ImageContent,
    Message,
    MessageToolReturn,
    ReasoningContent,
    TextContent,
    ToolCall,
    ToolCallContent,
    ToolReturnContent,
    UrlImage,
    Usage,
)

_PATH = "/chat/completions"
# How long the bytes that end a finished answer may take; longer, and the connection is given up instead of kept.
_END_GRACE_S = 0.1
_SECRET_HEADERS = re.compile("auth|cookie|key|secret|token", re.IGNORECASE)
_USABLE_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
# What code that takes decoded JSON apart raises where its shape is not the protocol's.
_BAD_SHAPE = (AttributeError, IndexError, KeyError, TypeError, ValueError)


def new_tool_call_id() -> str:
    """Return a random id in the form of OpenAI's."""
    return f"call_{uuid.uuid4().hex[:24]}"


class OpenAIClient:
    """Asks an OpenAI-compatible server; one a provider and event loop, shared by all requests that run there.

    `base_url` ends where `/chat/completions` begins.  `name` is the provider's, for errors and logs; `headers` are sent
    besides.  The key is in no error, log or repr.  Retries have one gate for all calls, see `Gate`.  Give the clocks,
    `sleep`, `rng` and `ids` (of tool calls that come without a usable one) to make it deterministic.
    Raises ConfigError for an address or a key that HTTP cannot carry.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        name: str = "openai",
        timeouts: Timeouts | None = None,
        retry: RetryPolicy | None = None,
        headers: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
        ids: Callable[[], str] = new_tool_call_id,
    ) -> None:
        key, given = (api_key or "").strip(), dict(headers or {})
        sent = {
            "Accept": "text/event-stream, application/json",
            "Accept-Encoding": "identity",  # a compressed stream waits for its compressor
            "Content-Type": "application/json",
            "User-Agent": "batchray",
            **({"Authorization": f"Bearer {key}"} if key else {}),
            **given,
        }
        self._transport = Transport(
            name,
            base_url,
            sent,
            secrets=[key, *(value for header, value in given.items() if _SECRET_HEADERS.search(header))],
            timeouts=timeouts,
            retry=retry,
            clock=clock,
            wall_clock=wall_clock,
            sleep=sleep,
            rng=rng,
        )
        self._clock, self._ids = clock, ids

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._transport!r})"

    async def ask(self, call: ModelCall) -> ModelReply:
        """Return the model's whole answer, after the retries that are due.

        Raises ModelAPIError, InvalidResponseError, InvalidToolCallError or DeadlineExceededError.
        """
        answer = await self._transport.post(_PATH, _encode(request_body(call)), self._read, call.deadline)
        return answer.reply(_used_ids(call.messages), self._ids)

    async def close(self) -> None:
        """Close the connections.  Calls under way fail, and so do later ones."""
        await self._transport.close()

    async def _read(self, response: aiohttp.ClientResponse) -> _Answer:
        answer = _Answer(self._transport, self._clock)
        if response.content_type == "text/event-stream":
            await self._read_stream(response.content, answer)
        elif response.content_type == "application/json":
            answer.add_whole(await self._read_body(response.content))
        else:
            reason = f"{self._transport.name}: the answer is {self._transport.clean(response.content_type)}"
            raise InvalidResponseError("wrong_content_type", f"{reason}, not an event stream or JSON; check base_url")
        answer.check()
        return answer

    async def _read_stream(self, content: aiohttp.StreamReader, answer: _Answer) -> None:
        parser, n_bytes = EventParser(), 0
        while chunk := await content.readany():
            n_bytes += len(chunk)
            self._check_size(n_bytes)
            for name, data in parser.feed(chunk):
                if data == b"[DONE]":
                    answer.is_done = True
                    await _read_to_end(content)
                    return
                if data:  # an empty event only keeps the connection alive
                    answer.add(name, data)

    async def _read_body(self, content: aiohttp.StreamReader) -> bytes:
        body = bytearray()
        while chunk := await content.readany():
            body += chunk
            self._check_size(len(body))
        return bytes(body)

    def _check_size(self, n_bytes: int) -> None:
        if n_bytes > MAX_ANSWER_BYTES:
            reason = f"{self._transport.name}: an answer of more than {MAX_ANSWER_BYTES:,} bytes"
            raise InvalidResponseError("malformed_stream", reason)


def request_body(call: ModelCall) -> dict[str, Any]:
    """Return the body of a call.  What the agent's file gives wins, but for the model, the messages and the tools.

    Raises ModelAPIError (`unsupported_content`) for a part that the protocol has no place for.
    """
    body: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}, **call.body}
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


def _encode(body: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError as error:  # lone surrogates in a text, or a value of the agent's file that JSON cannot hold
        raise ModelAPIError("unsupported_content", f"the call cannot be written as JSON: {error}") from None


def _chat_messages(message: Message) -> Iterator[dict[str, Any]]:
    """One message of ours can be several of OpenAI's: each tool return is one there."""
    _check_parts(message)
    yield from _tool_messages(message)
    if message.role == "assistant" or (message.role == "approval" and message.tool_calls):
        yield _assistant_message(message)
    elif message.role == "system":
        yield {"role": "system", "content": message.text}
    elif message.role in ("user", "summary") and not _is_only_returns(message):
        yield _user_message(message)


def _check_parts(message: Message) -> None:
    for part in message.content or ():
        if isinstance(part, ImageContent):
            if message.role != "user":
                raise _unsupported(message, f"an image in a message of role {message.role}")
            if not isinstance(part.source, UrlImage) and not part.source.data:
                raise _unsupported(message, f"an image by file_id ({part.source.type}) without its data")
        elif isinstance(part, ToolCallContent) and message.role not in ("assistant", "approval"):
            raise _unsupported(message, f"a tool_call part in a message of role {message.role}")


def _unsupported(message: Message, what: str) -> ModelAPIError:
    return ModelAPIError("unsupported_content", f"{message.id}: the openai protocol has no place for {what}")


def _is_only_returns(message: Message) -> bool:
    return bool(message.content) and all(isinstance(part, ToolReturnContent) for part in message.content or ())


def _tool_messages(message: Message) -> Iterator[dict[str, Any]]:
    given = [*(message.tool_returns or ()), *(message.approvals or ())]
    returns = [
        (each.tool_call_id or message.tool_call_id, each.func_response or "")
        for each in given
        if isinstance(each, MessageToolReturn)
    ]
    for part in message.content or ():
        if isinstance(part, ToolReturnContent) and all(part.tool_call_id != call_id for call_id, _ in returns):
            returns.append((part.tool_call_id, part.content))
    if message.role in ("tool", "function") and not returns:
        returns.append((message.tool_call_id, message.text))
    for call_id, text in returns:
        if not call_id:
            raise _unsupported(message, "a tool return without a tool_call_id")
        yield {"role": "tool", "tool_call_id": call_id, "content": text}


def _assistant_message(message: Message) -> dict[str, Any]:
    calls = [(call.id, call.name, call.arguments) for call in message.tool_calls or ()]
    for part in message.content or ():
        if isinstance(part, ToolCallContent) and all(part.id != call_id for call_id, _, _ in calls):
            calls.append((part.id, part.name, orjson.dumps(part.input).decode()))
    if not calls:
        return {"role": "assistant", "content": message.text}
    return {
        "role": "assistant",
        "content": message.text or None,
        "tool_calls": [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for call_id, name, arguments in calls
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
    url = f"data:{source.media_type or 'image/png'};base64,{source.data}"
    return {"url": url, **({"detail": source.detail} if source.detail else {})}


def _used_ids(messages: Iterable[Message]) -> Callable[[], set[str]]:
    # A function, because only answers with tool calls need them.
    return lambda: {call.id for message in messages for call in message.tool_calls or ()}


async def _read_to_end(content: aiohttp.StreamReader) -> None:
    """Read the bytes behind a finished answer, so that its connection can be used again; they no longer matter."""
    if content.at_eof():
        return
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with asyncio.timeout(_END_GRACE_S):
            while await content.readany():
                pass


class _PartialCall:
    """A tool call that is still arriving."""

    __slots__ = ("arguments", "id", "name")

    def __init__(self) -> None:
        self.id, self.name = "", ""
        self.arguments: list[str] = []


class _Answer:
    """An answer that is still arriving."""

    __slots__ = (
        "_at",
        "_calls",
        "_clock",
        "_has_choice",
        "_reasoning",
        "_text",
        "_transport",
        "_usage",
        "finish_reason",
        "first_token_ns",
        "is_done",
    )

    def __init__(self, transport: Transport, clock: Callable[[], float]) -> None:
        self._transport, self._clock = transport, clock
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[_PartialCall] = []
        self._at: dict[int, _PartialCall] = {}
        self._usage: Any = None
        self._has_choice = self.is_done = False
        self.finish_reason: str | None = None
        self.first_token_ns: int | None = None

    def add(self, event_name: bytes, data: bytes) -> None:
        """Take in one event of the stream."""
        try:
            chunk = orjson.loads(data)
            if event_name == b"error" or chunk.get("error"):
                raise self._transport.error_in_answer(chunk.get("error") or chunk)
            if choices := chunk.get("choices"):
                choice = choices[0]
                if not choice.get("index"):
                    self._take(choice, choice.get("delta") or {})
            self._usage = chunk.get("usage") or self._usage
        except _BAD_SHAPE as error:
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
        except _BAD_SHAPE as error:
            raise self._malformed("malformed_response", error) from None
        self.first_token_ns, self.is_done = None, True

    def check(self) -> None:
        """Raise InvalidResponseError where this is not a whole answer."""
        if self.finish_reason is not None:
            return
        if self.is_done and not self._has_choice:
            raise InvalidResponseError("no_choices", f"{self._transport.name}: an answer without choices")
        reason = f"{self._transport.name}: the answer ended without a finish_reason"
        raise InvalidResponseError("stream_truncated", reason)

    def reply(self, used_ids: Callable[[], set[str]], ids: Callable[[], str]) -> ModelReply:
        """Return the whole answer.  Raises InvalidToolCallError or InvalidResponseError."""
        reasoning = "".join(self._reasoning)
        return ModelReply(
            text="".join(self._text),
            reasoning=[ReasoningContent(is_native=True, reasoning=reasoning)] if reasoning else (),
            tool_calls=self._tool_calls(used_ids(), ids) if self._calls else (),
            finish_reason=self.finish_reason or "stop",
            usage=self._read_usage(),
            first_token_ns=self.first_token_ns,
        )

    def _take(self, choice: dict[str, Any], delta: dict[str, Any]) -> None:
        self._has_choice = True
        text = delta.get("content") or delta.get("refusal")
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        pieces = delta.get("tool_calls")
        if text:
            self._text.append(_string(text))
        if reasoning:
            self._reasoning.append(_string(reasoning))
        for piece in pieces or ():
            self._take_call(piece)
        if self.first_token_ns is None and (text or reasoning or pieces):
            self.first_token_ns = int(self._clock() * 1e9)
        if reason := choice.get("finish_reason"):
            self.finish_reason = _string(reason)

    def _take_call(self, piece: dict[str, Any]) -> None:
        function = piece.get("function") or {}
        call_id, name, index = piece.get("id"), function.get("name"), piece.get("index")
        if index is None:  # servers without indices send whole calls
            index = max(self._at, default=-1) + (1 if name or not self._at else 0)
        call = self._at.get(index)
        # Some servers give all parallel calls one index; a new id with a name then begins the next call.
        if call is None or (call_id and name and call.id and call_id != call.id):
            call = self._at[index] = _PartialCall()
            self._calls.append(call)
        call.id = call.id or _string(call_id or "")
        call.name = call.name or _string(name or "")
        arguments = function.get("arguments")
        if arguments:
            text = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
            call.arguments.append(text)

    def _tool_calls(self, used: set[str], ids: Callable[[], str]) -> list[ToolCall]:
        calls = []
        for call in self._calls:
            arguments = "".join(call.arguments) or "{}"
            if not _is_object(arguments):
                if self.finish_reason == "length":  # cut in the middle of its arguments
                    continue
                reason = f"{self._transport.name}: the arguments of {call.name!r} are not a JSON object"
                raise InvalidToolCallError("invalid_arguments", reason)
            if not call.name:
                reason = f"{self._transport.name}: a tool call without a name"
                raise InvalidResponseError("malformed_stream", reason)
            call_id = call.id
            while not call_id or call_id in used:
                call_id = ids()
            used.add(call_id)
            calls.append(ToolCall.of(call_id, call.name, arguments))
        return calls

    def _read_usage(self) -> Usage:
        try:
            return _usage(self._usage or {})
        except _BAD_SHAPE as error:  # pydantic's ValidationError is a ValueError
            raise self._malformed("malformed_stream", error) from None

    def _malformed(self, type: str, error: Exception) -> InvalidResponseError:
        name = self._transport.name
        return InvalidResponseError(type, f"{name}: not a chat completion: {self._transport.clean(str(error))}")


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is not a string")
    return value


def _is_object(text: str) -> bool:
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False


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
