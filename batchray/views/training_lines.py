"""Conversations as lines of a file for supervised fine-tuning: chat messages with tools.

Source: OpenAI's guide "Supervised fine-tuning", which other trainers (TRL, Axolotl, Unsloth) read too.
"""

from __future__ import annotations

from typing import Any

import orjson

from batchray.agents.approvals import has_answers, model_view
from batchray.errors import ModelAPIError
from batchray.models.base import ModelCall
from batchray.models.openai_request import request_body
from batchray.schema import Message, StopReason
from batchray.store import StoredResult
from batchray.views.conversations import Conversation

_UNFINISHED = frozenset({StopReason.MAX_STEPS})
_REASONING = frozenset({"reasoning", "redacted_reasoning", "omitted_reasoning", "summarized_reasoning"})


def training_line(stored: StoredResult, conversation: Conversation) -> bytes | None:
    """Return the line of a request, without a line break; None for one that shows no good answer.

    These are requests that did not succeed or were cut by the limit of steps, those that answer a tool call of an
    earlier request, and those with content that chat messages cannot express.  Reasoning is left out.
    """
    if stored.status != "succeeded" or StopReason(stored.stop_reason) in _UNFINISHED:
        return None
    if has_answers(conversation.request):
        return None
    view = model_view(map(_without_reasoning, [*conversation.inputs, *conversation.outputs]))
    try:
        body = request_body(ModelCall(model="", messages=view, system=conversation.system, tools=conversation.tools))
    except ModelAPIError:
        return None
    messages = _up_to_the_answer(body["messages"])
    if not messages:
        return None
    return orjson.dumps({"messages": messages, **({"tools": body["tools"]} if body.get("tools") else {})})


def _without_reasoning(message: Message) -> Message:
    if not any(part.type in _REASONING for part in message.content or ()):
        return message
    content = [part for part in message.content or () if part.type not in _REASONING]
    return message.model_copy(update={"content": content})


def _up_to_the_answer(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages up to the last one of the assistant, which has to say or to ask for something."""
    while messages and messages[-1]["role"] == "tool":
        messages.pop()
    last = messages[-1] if messages else {}
    says = last.get("role") == "assistant" and (last.get("content") or last.get("tool_calls"))
    return messages if says else []
