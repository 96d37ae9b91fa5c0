"""The body of a call to Anthropic's Messages API.

Source: Anthropic's API reference, "Create a Message", and its pages on streaming, stop reasons, extended thinking and
prompt caching; the names and optional fields as in its Python SDK 2.13.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from batchray.models.anthropic_models import MAX_TOKENS, NOTHING_KNOWN, ModelRules, fitted
from batchray.models.arguments import object_to_send
from batchray.models.base import ModelCall
from batchray.models.conversation import (
    DEFAULT_IMAGE_TYPE,
    Capabilities,
    ToolResult,
    is_from_model,
    tool_calls_of,
    usable_name,
)
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
)

_CAPABILITIES = Capabilities(
    "anthropic",
    frozenset({"text", "image", "tool_call", "tool_return", "reasoning", "redacted_reasoning", "omitted_reasoning"}),
)

_RESPONSES_TYPES = frozenset({"function_call", "message", "reasoning"})  # items that another protocol keeps

Block = dict[str, Any]
"""A content block, or a message, in the API's JSON."""


def request_body(call: ModelCall, rules: ModelRules = NOTHING_KNOWN) -> dict[str, Any]:
    """Return the body of a call.  Fields of the agent's file win, except the model, the messages and the system prompt.

    Tools in the agent's file are the provider's own; they come before the agent's tools.  The prefix that all requests
    of an agent share is marked for the prompt cache, and so is the end of a conversation that tools will continue.
    A `cache_control` in the agent's file replaces these marks; null turns them off.  `rules` say what the model
    accepts, and how it thinks if the request asks for that.
    Raises ModelAPIError (`unsupported_content`) for a part that the protocol cannot express.
    """
    marked = {} if "cache_control" in call.body else {"cache_control": {"type": "ephemeral"}}
    fields = _with_output_format(fitted(call.body, call.thinking, rules))
    body: dict[str, Any] = {"max_tokens": MAX_TOKENS, "stream": True, **fields}
    if body.get("cache_control", marked) is None:
        del body["cache_control"]
    body["model"], body["messages"] = call.model, _wire_messages(call.messages)
    if system := _system(call, marked):
        body["system"] = system
    if call.tools:
        body["tools"] = [*body.get("tools", ()), *_tools(call, {} if call.system else marked)]
        _mark_last(body["messages"], marked)
    if not body.get("tools"):
        body.pop("tool_choice", None)  # the API refuses it without tools
    return body


def _with_output_format(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields with OpenAI's `response_format`, if it is a schema, in this API's words."""
    wanted = fields.get("response_format")
    if not isinstance(wanted, dict) or wanted.get("type") not in ("json_schema", "text"):
        return fields
    rest = {name: value for name, value in fields.items() if name != "response_format"}
    if wanted["type"] == "text":
        return rest
    schema = (wanted.get("json_schema") or {}).get("schema")
    return {
        **rest,
        "output_config": {"format": {"type": "json_schema", "schema": schema}, **rest.get("output_config", {})},
    }


def _system(call: ModelCall, marked: Block) -> list[Block]:
    """Return the agent's prompt, then the conversation's system messages: older models accept them only here."""
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
    if turns and not turns[-1]["content"][-1]["type"].endswith("thinking"):  # thinking blocks cannot carry a cache mark
        turns[-1]["content"][-1].update(marked)


def _wire_messages(messages: Sequence[Message]) -> list[Block]:
    """Return the conversation in the API's form, which joins consecutive messages of one role."""
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
    if is_from_model(message):
        if blocks := _blocks_as_they_came(message):
            return "assistant", blocks
        return "assistant", [*_content(message), *(_tool_use(call) for call in tool_calls_of(message))]
    results = [_tool_result(result) for result in _CAPABILITIES.results(message)]
    # The API requires tool results to come first.
    return "user", results + _content(message) if message.role in ("user", "summary") else results


def _blocks_as_they_came(message: Message) -> list[Block]:
    """Return a reply's own blocks, or none if it is not kept, of another protocol, or has other calls than the message.

    The API refuses empty text.
    """
    kept = message.provider_items
    asked = [block.get("id") for block in kept if block.get("type") == "tool_use"]
    if any(block.get("type") in _RESPONSES_TYPES for block in kept) or asked != [c.id for c in tool_calls_of(message)]:
        return []
    return [dict(block) for block in kept if block.get("type") != "text" or str(block.get("text")).strip()]


def _content(message: Message) -> list[Block]:
    return [block for part in message.content or () if (block := _block(message, part)) is not None]


def _block(message: Message, part: ContentPart) -> Block | None:
    match part:
        case TextContent():
            return {"type": "text", "text": part.text} if part.text.strip() else None  # the API refuses empty text
        case ImageContent():
            return {"type": "image", "source": _image_source(part)}
        case ReasoningContent():
            return _thinking(message, part, part.reasoning)
        case OmittedReasoningContent():
            return _thinking(message, part, "")
        case RedactedReasoningContent():
            return {"type": "redacted_thinking", "data": part.data}
        case _:
            return None  # tool calls and tool returns become blocks elsewhere


def _thinking(message: Message, part: ReasoningContent | OmittedReasoningContent, text: str) -> Block:
    if part.signature is None:
        raise _CAPABILITIES.refusal(message, f"a part of type {part.type} without the signature that Anthropic gave it")
    return {"type": "thinking", "thinking": text, "signature": part.signature}


def _image_source(part: ImageContent) -> Block:
    source = part.source
    if isinstance(source, UrlImage):
        return {"type": "url", "url": source.url}
    return {"type": "base64", "media_type": source.media_type or DEFAULT_IMAGE_TYPE, "data": source.data}


def _tool_use(call: ToolCall) -> Block:
    return {
        "type": "tool_use",
        "id": call.id,
        "name": usable_name(call.name),
        "input": orjson.loads(object_to_send(call.arguments)),
    }


def _tool_result(result: ToolResult) -> Block:
    block: Block = {"type": "tool_result", "tool_use_id": result.call_id}
    if result.text:
        block["content"] = result.text
    return {**block, "is_error": True} if result.is_error else block
