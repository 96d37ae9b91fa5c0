"""The body of a call to OpenAI's chat completions API.

Source: OpenAI's API reference, "Create chat completion".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from batchray.models.arguments import object_to_send
from batchray.models.base import ModelCall
from batchray.models.conversation import DEFAULT_IMAGE_TYPE, Capabilities, is_from_model, tool_calls_of, usable_name
from batchray.models.reply_extras import ReasoningBack, call_fields
from batchray.models.thinking import with_reasoning_effort
from batchray.schema import ImageContent, Message, TextContent, ToolCall, ToolReturnContent, UrlImage

_USABLE_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_DEFAULT = ReasoningBack()
# Reasoning is accepted from any provider, and goes back only to the one that it came from.
_CAPABILITIES = Capabilities(
    "openai",
    frozenset({"text", "image", "tool_call", "tool_return", "reasoning", "summarized_reasoning", "omitted_reasoning"}),
)


def request_body(call: ModelCall, reasoning: ReasoningBack | None = None, switch: str | None = None) -> dict[str, Any]:
    """Return the body of a call.  Fields of the agent's file win, except the model, the messages and the tools.

    `reasoning` says whether the provider wants its reasoning back; `switch` is its field that switches reasoning, see
    `thinking_switch`.  Raises ModelAPIError (`unsupported_content`) for a part that the protocol cannot express.
    """
    fields = with_reasoning_effort(call.body, call.model, call.thinking, switch)
    body: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}, **fields}
    if body["stream"] is not True or body["stream_options"] is None:
        body.pop("stream_options")  # servers refuse it for a reply that is not streamed, and some in any case
    body["model"] = call.model
    system = [{"role": "system", "content": call.system}] if call.system else []
    written = call.written.of(call.messages, lambda each: _chat_messages(each, call.model, reasoning or _DEFAULT))
    body["messages"] = system + written
    if call.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)},
            }
            for tool in call.tools
        ]
    if not body.get("tools"):
        body.pop("parallel_tool_calls", None)  # the API refuses it without tools
    return body


def _chat_messages(message: Message, model: str, reasoning: ReasoningBack) -> Iterator[dict[str, Any]]:
    """Yield a message in OpenAI's form; each tool return becomes a message of its own."""
    _CAPABILITIES.check(message)
    for result in _CAPABILITIES.results(message):
        yield {"role": "tool", "tool_call_id": result.call_id, "content": result.text}
    if is_from_model(message):
        yield {**_assistant_message(message), **reasoning.fields(message, model)}
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
    extras = call_fields(message) if message.provider_items else {}
    sent = [_tool_call(call, extras.get(call.id) or {}) for call in calls]
    return {"role": "assistant", "content": message.text or None, "tool_calls": sent}


def _tool_call(call: ToolCall, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call in OpenAI's form, with the further fields that its provider gave it."""
    function = {"name": usable_name(call.name), "arguments": object_to_send(call.arguments)}
    if not extra:
        return {"id": call.id, "type": "function", "function": function}
    return {**extra, "id": call.id, "type": "function", "function": {**extra.get("function", {}), **function}}


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
