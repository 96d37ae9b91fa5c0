"""The body of a call to OpenAI's Responses API, without state on the server.

Source: OpenAI's API reference, "Create a model response", and its guides on reasoning, function calling and
conversation state; the names and optional fields as in its Python SDK 3.57.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from batchray.models.arguments import object_to_send
from batchray.models.base import ModelCall
from batchray.models.conversation import DEFAULT_IMAGE_TYPE, Capabilities, is_from_model, tool_calls_of, usable_name
from batchray.models.refused_fields import ENCRYPTED
from batchray.models.responses_fields import Fields, translate
from batchray.models.thinking import with_reasoning
from batchray.schema import ImageContent, Message, SummarizedReasoningContent, TextContent, ToolReturnContent, UrlImage

# Other kinds of reasoning are accepted but not sent: conversations work without them.
_CAPABILITIES = Capabilities(
    "responses",
    frozenset(
        {"text", "image", "tool_call", "tool_return", "reasoning", "summarized_reasoning", "omitted_reasoning"},
    ),
)

Item = dict[str, Any]
"""An item of the conversation, in the API's JSON."""


def request_body(call: ModelCall, *, keeps_reasoning: bool = True) -> Fields:
    """Return the body of a call.  Fields of the agent's file win, except the model, the conversation and the tools.

    Fields in chat completions' spelling are translated; those without a counterpart are left out.  Tools in the agent's
    file are the provider's own; they come before the agent's tools.  `keeps_reasoning` is False to leave out the
    reasoning of earlier steps.
    Raises ModelAPIError (`unsupported_content`) for a part that the protocol cannot express.
    """
    given = translate(call.body)
    body: Fields = {
        "stream": True,
        "store": False,
        **with_reasoning(given, call.model, call.thinking),
    }
    body.pop("include", None)
    if include := _include(given):
        body["include"] = include
    if body["stream"] is not True:
        body.pop("stream_options", None)
    body["model"] = call.model
    if call.system:
        body["instructions"] = call.system
    body["input"] = [item for message in call.messages for item in _items(message, keeps_reasoning)]
    if call.tools:
        body["tools"] = [*(body.get("tools") or ()), *_tools(call)]
    if not body.get("tools"):
        body.pop("parallel_tool_calls", None)  # the API refuses it without tools
    return body


def _include(given: Fields) -> list[str]:
    """Return what the reply shall hold besides its text; an empty list in the agent's file asks for nothing."""
    asked = given.get("include", [ENCRYPTED])
    return list(dict.fromkeys([ENCRYPTED, *asked])) if asked else []


def _tools(call: ModelCall) -> list[Item]:
    # Without `strict: false` the API rewrites each schema to its strict form, in which every parameter is required.
    return [
        {
            "type": "function",
            "name": tool.name,
            "description": tool.description,
            "parameters": dict(tool.parameters),
            "strict": False,
        }
        for tool in call.tools
    ]


def _items(message: Message, keeps_reasoning: bool) -> Iterator[Item]:
    """Yield a message in the API's form; tool calls and tool returns are items of their own."""
    _CAPABILITIES.check(message)
    for result in _CAPABILITIES.results(message):
        yield {"type": "function_call_output", "call_id": result.call_id, "output": result.text}
    if is_from_model(message):
        yield from _reply_items(message, keeps_reasoning)
    elif message.role == "system":
        yield {"role": "system", "content": message.text}
    elif message.role in ("user", "summary") and not _is_only_returns(message):
        yield {"role": "user", "content": _user_content(message)}


def _reply_items(message: Message, keeps_reasoning: bool) -> Iterator[Item]:
    """Yield a reply as it came if it can go back like that, or else from its parts.

    The API refuses an item that refers to reasoning which is not there, and reasoning without its content.
    """
    items = [item for item in message.provider_items if "type" in item]  # the others are of another protocol
    if not keeps_reasoning or not all(map(_is_whole, items)):
        items = []
    yield from ({name: value for name, value in item.items() if value is not None} for item in items)
    if not items:
        yield from _parts(message, keeps_reasoning)
    sent = {item.get("call_id") for item in items}
    for call in tool_calls_of(message):
        if call.id not in sent:
            yield {
                "type": "function_call",
                "call_id": call.id,
                "name": usable_name(call.name),
                "arguments": object_to_send(call.arguments),
            }


def _is_whole(item: Item) -> bool:
    if item.get("type") in ("text", "tool_use"):  # a block that the Messages client keeps
        return False
    return item.get("type") != "reasoning" or bool(item.get("encrypted_content") or item.get("content"))


def _parts(message: Message, keeps_reasoning: bool) -> Iterator[Item]:
    for part in message.content or ():
        if isinstance(part, SummarizedReasoningContent) and part.encrypted_content and keeps_reasoning:
            summary = [{"type": "summary_text", "text": each.text} for each in part.summary]
            yield {
                "type": "reasoning",
                "id": part.id,
                "summary": summary,
                "encrypted_content": part.encrypted_content,
            }
    if message.text:
        yield {"role": "assistant", "content": message.text}


def _is_only_returns(message: Message) -> bool:
    return bool(message.content) and all(isinstance(part, ToolReturnContent) for part in message.content or ())


def _user_content(message: Message) -> str | Sequence[Item]:
    parts: list[Item] = []
    for part in message.content or ():
        if isinstance(part, TextContent):
            parts.append({"type": "input_text", "text": part.text})
        elif isinstance(part, ImageContent):
            parts.append(_image(part))
    # A single text stays a string: small servers do not accept a list of parts.
    return message.text if all(part["type"] == "input_text" for part in parts) and len(parts) < 2 else parts


def _image(part: ImageContent) -> Item:
    source = part.source
    if isinstance(source, UrlImage):
        return {"type": "input_image", "image_url": source.url, "detail": "auto"}
    url = f"data:{source.media_type or DEFAULT_IMAGE_TYPE};base64,{source.data}"
    return {"type": "input_image", "image_url": url, "detail": source.detail or "auto"}
