"""Results as trajectories in Harbor's Agent Trajectory Interchange Format (ATIF).

Source: Harbor's RFC 0001, version 1.8, and the models in `harbor.models.trajectories` of harbor 0.26.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

import batchray
from batchray.models.conversation import is_from_model, tool_calls_of
from batchray.schema import (
    ApprovalReturn,
    ImageContent,
    Message,
    MessageToolReturn,
    ReasoningContent,
    Result,
    SummarizedReasoningContent,
    TextContent,
    ToolCall,
    ToolReturnContent,
    UrlImage,
)
from batchray.views.conversations import Conversation

VERSION = "ATIF-v1.8"
_IMAGES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_SOURCES = {"system": "system", "user": "user", "summary": "user"}

Step = dict[str, Any]


def trajectory(result: Result, conversation: Conversation) -> bytes:
    """Return the trajectory of a result as JSON.

    The steps are the system prompt, the request's messages, and one for each model call with its tool calls and their
    returns.  `extra` has the rest of the result.  The tokens are those of the whole run.
    """
    steps = _steps(conversation)
    usage = result.usage
    metrics = {
        "total_prompt_tokens": usage.prompt_tokens,
        "total_completion_tokens": usage.completion_tokens,
        "total_cached_tokens": usage.cached_input_tokens,
        "total_cost_usd": result.cost_usd,
        "total_steps": len(steps),
    }
    found = {
        "schema_version": VERSION,
        "session_id": result.batch_item_id.replace("batch_item-", "run-", 1),
        "trajectory_id": result.batch_item_id,
        "agent": _agent(result, conversation),
        "steps": steps,
        "final_metrics": _given(metrics),
        "extra": _extra(result),
    }
    return orjson.dumps(found)


def _agent(result: Result, conversation: Conversation) -> dict[str, Any]:
    tools = [
        {
            "type": "function",
            "function": {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)},
        }
        for tool in conversation.tools
    ]
    agent = {"name": result.agent_id, "version": batchray.__version__, "model_name": result.model}
    return _given({**agent, "tool_definitions": tools or None})


def _extra(result: Result) -> dict[str, Any]:
    shown = result.model_dump(mode="json", exclude={"messages", "usage", "input", "cost_usd", "batch_item_id"})
    return _given(shown)


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _steps(conversation: Conversation) -> list[Step]:
    steps: list[Step] = []
    if conversation.system:
        steps.append({"source": "system", "message": conversation.system})
    for message in conversation.inputs:
        _add(steps, message)
    for message in conversation.outputs:
        _add(steps, message, str(message.created_at.isoformat()))
    return [{"step_id": number, **step} for number, step in enumerate(steps, start=1)]


def _add(steps: list[Step], message: Message, timestamp: str | None = None) -> None:
    """Add a message to the steps: as one of its own, or to that of the model call that it belongs to."""
    when = {"timestamp": timestamp} if timestamp else {}
    extra = {"extra": {"step_id": message.step_id}} if message.step_id else {}
    if is_from_model(message):
        calls = [_call(call) for call in tool_calls_of(message)]
        if message.role == "approval" and steps and extra and steps[-1].get("extra") == extra["extra"]:
            steps[-1].setdefault("tool_calls", []).extend(calls)
            return
        thoughts = _reasoning(message)
        steps.append(
            {
                **when,
                "source": "agent",
                **({"model_name": message.model} if message.model else {}),
                "message": message.text,
                **({"reasoning_content": thoughts} if thoughts else {}),
                **({"tool_calls": calls} if calls else {}),
                **extra,
            }
        )
        return
    content = _content(message)
    if content and message.role in _SOURCES:
        steps.append({**when, "source": _SOURCES[message.role], "message": content})
    if returns := list(_returns(message)):
        _observe(steps, returns, when)


def _call(call: ToolCall) -> dict[str, Any]:
    """Return a tool call; arguments that are not a JSON object are kept as their text."""
    found = {"tool_call_id": call.id, "function_name": call.name}
    try:
        arguments = orjson.loads(call.arguments or "{}")
    except orjson.JSONDecodeError:
        arguments = None
    if isinstance(arguments, dict):
        return {**found, "arguments": arguments}
    return {**found, "arguments": {}, "extra": {"arguments": call.arguments}}


def _returns(message: Message) -> Iterable[tuple[str, str, Mapping[str, Any]]]:
    """Yield the call, the text and further facts of each tool return in a message, and of each answer to a call."""
    for each in [*(message.tool_returns or ()), *(message.approvals or ())]:
        if isinstance(each, MessageToolReturn):
            facts = {"status": each.status, "stdout": each.stdout or None, "stderr": each.stderr or None}
            yield each.tool_call_id or "", each.func_response or "", _given(facts)
        elif isinstance(each, ApprovalReturn):
            word = "approved" if each.approve else "denied"
            yield each.tool_call_id, f"{word}: {each.reason}" if each.reason else word, {}
    for part in message.content or ():
        if isinstance(part, ToolReturnContent):
            yield part.tool_call_id, part.content, {"status": "error" if part.is_error else "success"}


def _observe(steps: list[Step], returns: Sequence[tuple[str, str, Mapping[str, Any]]], when: Step) -> None:
    """Add tool returns to the step that called the tools; those of an earlier request's calls are a system's step."""
    last = next((step for step in reversed(steps) if step["source"] == "agent"), None)
    calls = {call["tool_call_id"] for call in last.get("tool_calls", ())} if last else set()
    others = []
    for call_id, text, facts in returns:
        if last is not None and call_id in calls:
            found = {"source_call_id": call_id, "content": text, **({"extra": facts} if facts else {})}
            last.setdefault("observation", {"results": []})["results"].append(found)
        else:
            others.append({"content": text, "extra": {"tool_call_id": call_id, **facts}})
    if others:
        steps.append({**when, "source": "system", "message": "", "observation": {"results": others}})


def _reasoning(message: Message) -> str:
    texts = []
    for part in message.content or ():
        if isinstance(part, ReasoningContent):
            texts.append(part.reasoning)
        elif isinstance(part, SummarizedReasoningContent):
            texts += [paragraph.text for paragraph in part.summary]
    return "\n\n".join(filter(None, texts))


def _content(message: Message) -> str | list[dict[str, Any]]:
    """Return texts and images; the format has no place for the data of an image, only for its address."""
    parts: list[dict[str, Any]] = []
    for part in message.content or ():
        if isinstance(part, TextContent):
            parts.append({"type": "text", "text": part.text})
        elif isinstance(part, ImageContent):
            parts.append(_image(part))
    if len(parts) == 1 and parts[0]["type"] == "text":
        return str(parts[0]["text"])
    return parts


def _image(part: ImageContent) -> dict[str, Any]:
    source = part.source
    if not isinstance(source, UrlImage):
        return {"type": "text", "text": f"[an image of type {source.media_type}, whose data is left out]"}
    kind, _ = mimetypes.guess_type(source.url.partition("?")[0])
    if kind not in _IMAGES:
        return {"type": "text", "text": source.url}
    return {"type": "image", "source": {"media_type": kind, "path": source.url}}
