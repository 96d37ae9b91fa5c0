"""Messages as Anthropic's API speaks them, streamed.

Source: Anthropic's API reference, "Create a Message", and its pages on streaming, stop reasons, extended thinking and
prompt caching; the names and optional fields as in its Python SDK 2.13.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

import orjson

from batchray.errors import InvalidResponseError, InvalidToolCallError
from batchray.models.base import ModelCall, ModelReply, ReplyPart
from batchray.models.client import HttpClient, TransportSettings, report_wasted_usage
from batchray.models.conversation import DEFAULT_IMAGE_TYPE, Capabilities, ToolResult, calls_of, is_answer, used_ids
from batchray.models.http import HttpTransport
from batchray.models.partial_reply import BAD_SHAPE, PartialCall, is_object, string, whole_calls
from batchray.models.sse import Event
from batchray.schema import (
    ContentPart,
    ImageContent,
    Message,
    OmittedReasoningContent,
    ReasoningContent,
    RedactedReasoningContent,
    TextContent,
    ToolCall,
    UrlImage,
    Usage,
)

BASE_URL = "https://api.anthropic.com"
"""Anthropic's own address."""
MAX_TOKENS = 4096
"""The limit of an answer where the agent sets none: the API requires one, and every model takes this."""

_PATH = "/v1/messages"
_VERSION = "2023-06-01"
_MAX_PAUSES = 16  # far above what a turn takes; the request's deadline is the limit that counts
_MIN_THINKING_TOKENS = 1024  # the API refuses a smaller budget, and one that leaves nothing for the answer
_NOT_WITH_THINKING = frozenset({"temperature", "top_k"})  # which the API refuses beside it
_CAPABILITIES = Capabilities(
    "anthropic",
    frozenset({"text", "image", "tool_call", "tool_return", "reasoning", "redacted_reasoning", "omitted_reasoning"}),
)
_FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
}
# The field of a block that each kind of delta continues.  Others (citations) add nothing that a reply holds.
_CONTINUED = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
    "input_json_delta": "partial_json",
}
# The fields of blocks that have to be texts.
_TEXTS = ("data", "id", "name", "signature", "text", "thinking")

Block = dict[str, Any]


def new_tool_call_id() -> str:
    """Return a random id in the form of Anthropic's."""
    return f"toolu_{uuid.uuid4().hex[:24]}"


class AnthropicClient(HttpClient):
    """Asks Anthropic, or a server that speaks its Messages API; one a provider and event loop, shared by all requests.

    `base_url` ends where `/v1/messages` begins.  `name` is the provider's, for errors and logs; `headers` are sent
    besides.  `ids` makes the ids of tool calls that come without a usable one.
    Raises ConfigError for an address or a key that HTTP cannot carry.
    """

    def __init__(
        self,
        base_url: str = BASE_URL,
        api_key: str | None = None,
        *,
        name: str = "anthropic",
        headers: Mapping[str, str] | None = None,
        ids: Callable[[], str] = new_tool_call_id,
        **settings: Unpack[TransportSettings],
    ) -> None:
        key = (api_key or "").strip()
        own = {"anthropic-version": _VERSION, **({"x-api-key": key} if key else {})}
        super().__init__(name, base_url, key, own, headers, settings)
        self._ids = ids

    async def ask(self, call: ModelCall) -> ModelReply:
        """Return the model's whole answer, after the retries that are due.

        A turn that the API pauses, as it does when tools of its own take long, is gone on with here: its blocks are
        sent back, and the reply holds what was said before and after.
        Raises ModelAPIError, InvalidResponseError, InvalidToolCallError or DeadlineExceededError.
        """
        body, answers = request_body(call), list[PartialMessage]()
        while len(answers) <= _MAX_PAUSES:
            answer = await self._ask_once(body, call, answers)
            answers.append(answer)
            if answer.stop_reason != "pause_turn":
                return self._reply_of(call, answers)
            body = {**body, "messages": [*body["messages"], {"role": "assistant", "content": answer.blocks()}]}
        _report_wasted(answers, call)
        raise InvalidResponseError("turn_paused", f"{self._transport.name}: still not done after {_MAX_PAUSES} pauses")

    async def _ask_once(
        self, body: Mapping[str, Any], call: ModelCall, before: Sequence[PartialMessage]
    ) -> PartialMessage:
        try:
            return await self._post(_PATH, body, PartialMessage, call)
        except BaseException:
            _report_wasted(before, call)
            raise

    def _reply_of(self, call: ModelCall, answers: Sequence[PartialMessage]) -> ModelReply:
        try:
            return self._reply(call, answers)
        except (InvalidResponseError, InvalidToolCallError):
            _report_wasted(answers, call)
            raise

    def _reply(self, call: ModelCall, answers: Sequence[PartialMessage]) -> ModelReply:
        stop_reason = answers[-1].stop_reason or ""
        finish_reason = _FINISH_REASONS.get(stop_reason, stop_reason)
        content = [part for answer in answers for part in answer.parts()]
        asked = [each for answer in answers for each in answer.calls()]
        is_after_tools = bool(call.messages) and call.messages[-1].role in ("tool", "approval")
        # After its tools have returned, a model may have nothing more to say.
        if not content and not asked and finish_reason == "stop" and not is_after_tools:
            raise InvalidResponseError("no_content", f"{self._transport.name}: an answer without content")
        calls: Sequence[ToolCall] = ()
        if asked:
            is_cut, used = finish_reason == "length", used_ids(call.messages)
            calls = whole_calls(asked, self._transport.name, is_cut=is_cut, used=used, ids=self._ids)
        usage = sum((answer.usage() for answer in answers), Usage())
        return ModelReply(content, calls, finish_reason, usage, answers[0].first_token_ns)


def request_body(call: ModelCall) -> dict[str, Any]:
    """Return the body of a call.  What the agent's file gives wins, but for the model, the messages and the system.

    Tools of the agent's file, which are the provider's own, come before the agent's.  What all of an agent's requests
    begin with is marked for the prompt cache, and so is the end of a conversation that tools will continue; a
    `cache_control` in the agent's file is sent instead of the marks, and with null nothing is.  Thinking that a request
    asks for, and the agent's file does not set, has half of the answer's tokens.
    Raises ModelAPIError (`unsupported_content`) for a part that the protocol has no place for.
    """
    marked = {} if "cache_control" in call.body else {"cache_control": {"type": "ephemeral"}}
    body: dict[str, Any] = _with_thinking({"max_tokens": MAX_TOKENS, "stream": True, **call.body}, call.thinking)
    if body.get("cache_control", marked) is None:
        del body["cache_control"]
    body["model"], body["messages"] = call.model, _wire_messages(call.messages)
    if system := _system(call, marked):
        body["system"] = system
    if call.tools:
        body["tools"] = [*body.get("tools", ()), *_tools(call, {} if call.system else marked)]
        _mark_last(body["messages"], marked)
    return body


def _with_thinking(body: dict[str, Any], thinking: bool | None) -> dict[str, Any]:
    """Return the body with the model's thinking switched on or off; None leaves it as it is."""
    if thinking is False:
        return {name: value for name, value in body.items() if name != "thinking"}
    if thinking is None or "thinking" in body:
        return body
    budget = max(_MIN_THINKING_TOKENS, body["max_tokens"] // 2)
    body = {name: value for name, value in body.items() if name not in _NOT_WITH_THINKING}
    max_tokens = max(body["max_tokens"], budget + _MIN_THINKING_TOKENS)
    return {**body, "max_tokens": max_tokens, "thinking": {"type": "enabled", "budget_tokens": budget}}


def _system(call: ModelCall, marked: Block) -> list[Block]:
    """The agent's prompt, then the system messages of the conversation: older models take them nowhere else."""
    own = [{"type": "text", "text": call.system, **marked}] if call.system else []
    given = [message.text for message in call.messages if message.role == "system"]
    return own + [{"type": "text", "text": text} for text in given if text.strip()]


def _tools(call: ModelCall, marked: Block) -> list[Block]:
    tools: list[Block] = [
        {"name": tool.name, "description": tool.description, "input_schema": dict(tool.parameters)}
        for tool in call.tools
    ]
    return [*tools[:-1], {**tools[-1], **marked}]


def _mark_last(turns: Sequence[Block], marked: Block) -> None:
    if turns and not turns[-1]["content"][-1]["type"].endswith("thinking"):  # which the cache takes no mark on
        turns[-1]["content"][-1].update(marked)


def _wire_messages(messages: Sequence[Message]) -> list[Block]:
    """The conversation in turns: what one side says in a row is one message there."""
    turns: list[Block] = []
    for message in messages:
        _CAPABILITIES.check(message)
        role, blocks = _role_and_blocks(message)
        if blocks and turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    return turns


def _role_and_blocks(message: Message) -> tuple[str, list[Block]]:
    if is_answer(message):
        return "assistant", [*_content(message), *(_tool_use(message, call) for call in calls_of(message))]
    results = [_tool_result(result) for result in _CAPABILITIES.results(message)]
    # Results come first, or the API refuses them.
    return "user", results + _content(message) if message.role in ("user", "summary") else results


def _content(message: Message) -> list[Block]:
    return [block for part in message.content or () if (block := _block(message, part)) is not None]


def _block(message: Message, part: ContentPart) -> Block | None:
    match part:
        case TextContent():
            return {"type": "text", "text": part.text} if part.text.strip() else None  # the API refuses empty ones
        case ImageContent():
            return {"type": "image", "source": _image_source(part)}
        case ReasoningContent():
            return _thinking(message, part, part.reasoning)
        case OmittedReasoningContent():
            return _thinking(message, part, "")
        case RedactedReasoningContent():
            return {"type": "redacted_thinking", "data": part.data}
        case _:
            return None  # tool calls and tool returns have blocks of their own


def _thinking(message: Message, part: ReasoningContent | OmittedReasoningContent, text: str) -> Block:
    if part.signature is None:
        raise _CAPABILITIES.refusal(message, f"a part of type {part.type} without the signature that Anthropic gave it")
    return {"type": "thinking", "thinking": text, "signature": part.signature}


def _image_source(part: ImageContent) -> Block:
    source = part.source
    if isinstance(source, UrlImage):
        return {"type": "url", "url": source.url}
    return {"type": "base64", "media_type": source.media_type or DEFAULT_IMAGE_TYPE, "data": source.data}


def _tool_use(message: Message, call: ToolCall) -> Block:
    if not is_object(call.arguments or "{}"):
        raise _CAPABILITIES.refusal(message, f"arguments of {call.name!r} that are not a JSON object")
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": orjson.loads(call.arguments or "{}")}


def _tool_result(result: ToolResult) -> Block:
    block: Block = {"type": "tool_result", "tool_use_id": result.call_id}
    if result.text:
        block["content"] = result.text
    return {**block, "is_error": True} if result.is_error else block


class _PartialBlock:
    """A block that is still arriving: as it started, and the pieces of the fields that go on."""

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
        """The block as the API takes it back."""
        block = {**self.start, **{field: self.text(field) for field in self.pieces if field != "partial_json"}}
        return {**block, "input": orjson.loads(self.arguments())} if "input" in block else block


class PartialMessage:
    """An answer that is still arriving."""

    __slots__ = ("_blocks", "_details", "_transport", "_usage", "first_token_ns", "is_done", "stop_reason")

    def __init__(self, transport: HttpTransport) -> None:
        self._transport = transport
        self._blocks: dict[int, _PartialBlock] = {}  # by index, in the order in which they start
        self._usage: dict[str, Any] = {}
        self._details: Any = None
        self.is_done = False
        self.stop_reason: str | None = None
        self.first_token_ns: int | None = None

    def add(self, event: Event) -> None:
        """Take in one event of the stream."""
        try:
            content = orjson.loads(event.data)
            if event.name == b"error" or content.get("error"):
                raise self._transport.error_in_answer(content.get("error") or content)
            self._take(content)
        except BAD_SHAPE as error:
            raise self._malformed("malformed_stream", error) from None

    def add_whole(self, body: bytes) -> None:
        """Take in an answer that came in one piece."""
        try:
            message = orjson.loads(body)
            if message.get("error"):
                raise self._transport.error_in_answer(message["error"])
            self._blocks = {i: _PartialBlock(block) for i, block in enumerate(message["content"])}
            self._take_end(message)
            self._take_usage(message)
        except BAD_SHAPE as error:
            raise self._malformed("malformed_response", error) from None
        self.is_done = True

    def check(self) -> None:
        """Raise InvalidResponseError where this is not a whole answer, or a refusal."""
        name = self._transport.name
        if self.stop_reason is None:
            raise InvalidResponseError("stream_truncated", f"{name}: the answer ended without a stop_reason")
        if self.stop_reason == "refusal":
            said = self._details.get("explanation") if isinstance(self._details, dict) else None
            reason = f"{name}: the model refused to answer"
            raise InvalidResponseError("refusal", f"{reason}: {self._transport.clean(str(said))}" if said else reason)

    def blocks(self) -> list[Block]:
        """Return the blocks as the API takes them back."""
        try:
            return [block.whole() for block in self._blocks.values()]
        except BAD_SHAPE as error:
            raise self._malformed("malformed_stream", error) from None

    def parts(self) -> list[ReplyPart]:
        """Return what was said and thought.  Blocks of kinds that a message has no part for are left out."""
        return [part for block in self._blocks.values() if (part := _part(block)) is not None]

    def calls(self) -> list[PartialCall]:
        """Return the calls of the agent's tools."""
        asked = [block for block in self._blocks.values() if block.kind == "tool_use"]
        return [PartialCall(block.text("id"), block.text("name"), block.arguments()) for block in asked]

    def usage(self) -> Usage:
        """Return what the answer cost."""
        try:
            return _usage(self._usage)
        except BAD_SHAPE as error:  # pydantic's ValidationError is a ValueError
            raise self._malformed("malformed_stream", error) from None

    def _take(self, event: Mapping[str, Any]) -> None:
        match event["type"]:
            case "content_block_delta":
                self._blocks[event["index"]].add(event["delta"])
                self._note_token()
            case "content_block_start":
                block = self._blocks[event["index"]] = _PartialBlock(event["content_block"])
                if block.kind not in ("text", "thinking"):  # these begin empty
                    self._note_token()
            case "message_start":
                self._take_usage(event["message"])
            case "message_delta":
                self._take_end(event["delta"])
                self._take_usage(event)
            case "message_stop":
                self.is_done = True
            case _:
                pass  # pings, ends of blocks, and what the API adds one day

    def _note_token(self) -> None:
        if self.first_token_ns is None:
            self.first_token_ns = int(self._transport.clock() * 1e9)

    def _take_end(self, given: Mapping[str, Any]) -> None:
        if reason := given.get("stop_reason"):
            self.stop_reason, self._details = string(reason), given.get("stop_details")

    def _take_usage(self, given: Mapping[str, Any]) -> None:
        # Counts are cumulative, and a later event may leave out what does not change.
        self._usage.update((name, count) for name, count in (given.get("usage") or {}).items() if count is not None)

    def _malformed(self, type: str, error: Exception) -> InvalidResponseError:
        name = self._transport.name
        return InvalidResponseError(type, f"{name}: not a message: {self._transport.clean(str(error))}")


def _report_wasted(answers: Sequence[PartialMessage], call: ModelCall) -> None:
    for answer in answers:
        report_wasted_usage(answer, call)


def _part(block: _PartialBlock) -> ReplyPart | None:
    match block.kind:
        case "text" if text := block.text("text"):
            return TextContent(text=text)
        case "thinking":
            # Servers that sign nothing get their reasoning back signed with nothing.
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
