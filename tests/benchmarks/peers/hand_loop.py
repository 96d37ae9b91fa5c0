"""The agent loop that contenders without one of their own write by hand, and what a streamed reply is joined from."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from tests.benchmarks.peers.works import Work, add

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}


def body_of(work: Work, messages: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """Return the body of a chat completion."""
    return {"model": "m", "messages": messages, **({"tools": [TOOL]} if work.n_tool_steps else {}), **fields}


class Joined:
    """A reply, joined from the deltas of its chunks."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._calls: dict[int, dict[str, str]] = {}

    def add(self, text: str | None, calls: Iterable[tuple[int, str | None, str | None, str | None]]) -> None:
        """Take a delta: its text, and index, id, name and arguments of each piece of a tool call."""
        self._text.append(text or "")
        for index, call_id, name, arguments in calls:
            call = self._calls.setdefault(index, {"id": "", "name": "", "arguments": ""})
            call["id"] = call_id or call["id"]
            call["name"] = name or call["name"]
            call["arguments"] += arguments or ""

    def message(self) -> dict[str, Any]:
        """Return the assistant's message."""
        calls = [
            {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
            for call in self._calls.values()
        ]
        return {"role": "assistant", "content": "".join(self._text)} | ({"tool_calls": calls} if calls else {})


async def answer(prompt: str, reply: Callable[[list[dict[str, Any]]], Awaitable[dict[str, Any]]]) -> str:
    """Call the model, and the tools that it asks for, until it asks for none; returns its last text."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
    while True:
        message = await reply(messages)
        if not message.get("tool_calls"):
            return message["content"] or ""
        messages.append(message)
        for call in message["tool_calls"]:
            returned = await add(**json.loads(call["function"]["arguments"]))
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": returned})
