"""A bare loop: one aiohttp session, replies streamed, tools called by hand; no store, no retries, no agents."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import aiohttp
import orjson

from tests.benchmarks.peers.contender import Answer, in_window, serve
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


async def _stream(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> tuple[str, dict[int, Any]]:
    """Return the text and the tool calls of a reply."""
    text, calls, rest = list[str](), dict[int, Any](), b""
    async with session.post(url, data=orjson.dumps(body)) as response:
        async for chunk in response.content.iter_any():
            *events, rest = (rest + chunk).split(b"\n\n")
            for event in events:
                choices = [] if event == b"data: [DONE]" else orjson.loads(event[6:])["choices"]
                for delta in (choice["delta"] for choice in choices):
                    text.append(delta.get("content") or "")
                    for part in delta.get("tool_calls", ()):
                        call = calls.setdefault(part["index"], {"id": "", "name": "", "arguments": ""})
                        call["id"] = part.get("id", call["id"])
                        call["name"] = part["function"].get("name", call["name"])
                        call["arguments"] += part["function"].get("arguments", "")
    return "".join(text), calls


async def _all(work: Work) -> list[Answer]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        url = f"{work.base_url}/chat/completions"

        async def ask(prompt: str) -> str:
            messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
            body = {"model": "m", "stream": True, "messages": messages} | (
                {"tools": [TOOL]} if work.n_tool_steps else {}
            )
            while True:
                text, calls = await _stream(session, url, body)
                if not calls:
                    return text
                asked = [
                    {"id": call["id"], "type": "function", "function": {k: call[k] for k in ("name", "arguments")}}
                    for call in calls.values()
                ]
                messages.append({"role": "assistant", "content": text, "tool_calls": asked})
                for call in calls.values():
                    returned = await add(**json.loads(call["arguments"]))
                    messages.append({"role": "tool", "tool_call_id": call["id"], "content": returned})

        return await in_window(work, ask)


def run(work: Work) -> Callable[[], list[Answer]]:
    answers = asyncio.run(_all(work))
    return lambda: answers


if __name__ == "__main__":
    serve(run)
