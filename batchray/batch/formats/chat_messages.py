"""Messages of OpenAI's and Anthropic's APIs as messages of our requests.

Source: the API references, "Create chat completion", "Create a model response" and "Create a Message".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from batchray.errors import BatchFormatError

Part = dict[str, Any]
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


# The keys of messages and of their parts that have a counterpart here.
_MESSAGE = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "type", "id", "status"})
_PART = frozenset(
    {
        *("type", "text", "refusal", "image_url", "detail", "source", "id", "name", "input", "tool_use_id", "content"),
        *("is_error", "thinking", "signature", "data", "call_id", "arguments", "output", "function"),
    }
)


def asks_for_something(value: Any) -> bool:
    """Whether the value of a field is not one that asks for nothing: null, false, or empty."""
    return value not in (None, False, "", [], {})


def unknown_keys(messages: Any) -> set[str]:
    """Return the keys of messages and of their parts that have no counterpart here, and so get lost."""
    given = [message for message in messages if isinstance(message, dict)] if isinstance(messages, list) else []
    contents = [message["content"] for message in given if isinstance(message.get("content"), list)]
    parts = [part for content in contents for part in content if isinstance(part, dict)]
    lost = {name for each in given for name in each.keys() - _MESSAGE - _PART if asks_for_something(each[name])}
    lost |= {name for each in parts for name in each.keys() - _PART if asks_for_something(each[name])}
    return {f"messages.{name}" for name in lost}


def optional_object(given: Mapping[str, Any], name: str, path: str) -> dict[str, Any]:
    """Return the object in a field that may be absent or null.  Raises BatchFormatError if it is anything else."""
    return {} if given.get(name) is None else _object(given[name], f"{path}.{name}")


def optional_list(given: Mapping[str, Any], name: str, path: str) -> list[Any]:
    """Return the list in a field that may be absent or null.  Raises BatchFormatError if it is anything else."""
    if given.get(name) is not None and not isinstance(given[name], list):
        raise _refused(f"{path}.{name}", "is not a list")
    return given.get(name) or []


def openai_message(message: Any, path: str) -> dict[str, Any]:
    """Return a message of chat completions.  Raises BatchFormatError with the path of what has no counterpart."""
    given = _object(message, path)
    if given.get("role") == "tool":
        text = _text_of(given.get("content"), f"{path}.content")
        return {"role": "user", "content": [_tool_return(given.get("tool_call_id"), text)]}
    role = _ROLES.get(str(given.get("role")))
    if role is None:
        raise _refused(f"{path}.role", f"{given.get('role')!r} is not one of system, developer, user, assistant, tool")
    content = _content(given.get("content"), f"{path}.content", _openai_part)
    calls = [
        _openai_call(call, f"{path}.tool_calls[{i}]") for i, call in enumerate(optional_list(given, "tool_calls", path))
    ]
    if calls:
        texts = [{"type": "text", "text": content}] if isinstance(content, str) and content else content
        content = [*(texts or ()), *calls]
    name = {"name": given["name"]} if given.get("name") is not None else {}
    return {"role": role, "content": content if content is not None else "", **name}


def anthropic_message(message: Any, path: str) -> dict[str, Any]:
    """Return a message of Anthropic's Messages API; otherwise as `openai_message`."""
    given = _object(message, path)
    if given.get("role") not in ("user", "assistant", "system"):
        raise _refused(f"{path}.role", f"{given.get('role')!r} is not one of user, assistant")
    return {"role": given["role"], "content": _content(given.get("content"), f"{path}.content", _anthropic_block)}


def responses_messages(items: Any, path: str) -> Iterator[dict[str, Any]]:
    """Yield the messages in the `input` of OpenAI's Responses API; otherwise as `openai_message`."""
    if isinstance(items, str):
        yield {"role": "user", "content": items}
        return
    for position, item in enumerate(_list(items, path)):
        where = f"{path}[{position}]"
        given = _object(item, where)
        match given.get("type", "message"):
            case "message":
                yield openai_message({**given, "content": given.get("content")}, where)
            case "function_call":
                yield {"role": "assistant", "content": [_call(given.get("call_id"), given, f"{where}.arguments")]}
            case "function_call_output":
                text = _text_of(given.get("output"), f"{where}.output")
                yield {"role": "user", "content": [_tool_return(given.get("call_id"), text)]}
            case kind:
                raise _refused(f"{where}.type", f"{kind!r} has no counterpart here")


def _content(content: Any, path: str, part_of: Any) -> str | list[Part] | None:
    if content is None or isinstance(content, str):
        return content
    return [part_of(_object(part, f"{path}[{i}]"), f"{path}[{i}]") for i, part in enumerate(_list(content, path))]


def _openai_part(part: Mapping[str, Any], path: str) -> Part:
    match part.get("type"):
        case "text" | "input_text" | "output_text":
            return {"type": "text", "text": part.get("text")}
        case "refusal":
            return {"type": "text", "text": part.get("refusal")}
        case "image_url":
            image = part.get("image_url")
            given = image if isinstance(image, dict) else {"url": image}
            return {"type": "image", "source": _image(given.get("url"), given.get("detail"), f"{path}.image_url")}
        case "input_image":
            return {"type": "image", "source": _image(part.get("image_url"), part.get("detail"), f"{path}.image_url")}
        case kind:
            raise _refused(f"{path}.type", f"{kind!r} has no counterpart here; there are text and image_url")


def _image(url: Any, detail: Any, path: str) -> Part:
    if not isinstance(url, str):
        raise _refused(path, "an image is given by its url")
    head, comma, data = url.partition(",")
    if not head.startswith("data:") or not comma:
        return {"type": "url", "url": url}
    media_type = head.removeprefix("data:").removesuffix(";base64")
    return {"type": "base64", "media_type": media_type, "data": data, **({"detail": detail} if detail else {})}


def _openai_call(call: Any, path: str) -> Part:
    given = _object(call, path)
    return _call(given.get("id"), _object(given.get("function"), f"{path}.function"), f"{path}.function.arguments")


def _call(call_id: Any, function: Mapping[str, Any], path: str) -> Part:
    try:
        arguments = orjson.loads(function.get("arguments") or "{}")
    except (orjson.JSONDecodeError, TypeError):
        arguments = None
    if not isinstance(arguments, dict):
        raise _refused(path, "arguments are the text of a JSON object")
    return {"type": "tool_call", "id": call_id, "name": function.get("name"), "input": arguments}


def _tool_return(call_id: Any, text: str, *, is_error: bool = False) -> Part:
    return {"type": "tool_return", "tool_call_id": call_id, "content": text, "is_error": is_error}


def _anthropic_block(block: Mapping[str, Any], path: str) -> Part:
    match block.get("type"):
        case "text":
            return {"type": "text", "text": block.get("text")}
        case "image":
            source = _object(block.get("source"), f"{path}.source")
            kinds = {"url": ("type", "url"), "base64": ("type", "media_type", "data")}
            if not isinstance(source.get("type"), str) or source["type"] not in kinds:
                raise _refused(f"{path}.source.type", f"{source.get('type')!r} has no counterpart here")
            return {"type": "image", "source": {name: source.get(name) for name in kinds[source["type"]]}}
        case "tool_use":
            return {"type": "tool_call", "id": block.get("id"), "name": block.get("name"), "input": block.get("input")}
        case "tool_result":
            text = _text_of(block.get("content"), f"{path}.content")
            return _tool_return(block.get("tool_use_id"), text, is_error=bool(block.get("is_error")))
        case "thinking":
            thought = {"reasoning": block.get("thinking"), "signature": block.get("signature")}
            return {"type": "reasoning", "is_native": True, **thought}
        case "redacted_thinking":
            return {"type": "redacted_reasoning", "data": block.get("data")}
        case kind:
            raise _refused(f"{path}.type", f"{kind!r} has no counterpart here")


def _text_of(content: Any, path: str) -> str:
    """Return the text of a tool's return, which may come in parts."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for position, part in enumerate(_list(content, path)):
        given = _object(part, f"{path}[{position}]")
        if not isinstance(given.get("text"), str):
            raise _refused(f"{path}[{position}]", "a tool's return is text here")
        texts.append(given["text"])
    return "".join(texts)


def _object(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _refused(path, "is not an object")
    return value


def _list(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise _refused(path, "is neither a text nor a list")
    return value


def _refused(path: str, reason: str) -> BatchFormatError:
    return BatchFormatError(reason, path=path)
