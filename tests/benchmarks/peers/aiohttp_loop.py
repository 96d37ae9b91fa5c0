"""A bare loop: one aiohttp session, replies streamed, tools called by hand; no store, no retries, no agents."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
import orjson

from tests.benchmarks.peers.contender import Answer, in_window, serve
from tests.benchmarks.peers.hand_loop import Joined, answer, body_of
from tests.benchmarks.peers.works import Work


async def stream(session: aiohttp.ClientSession, work: Work, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the model's message."""
    joined, rest = Joined(), b""
    body = orjson.dumps(body_of(work, messages, stream=True))
    async with session.post(f"{work.base_url}/chat/completions", data=body) as response:
        response.raise_for_status()
        async for chunk in response.content.iter_any():
            *events, rest = (rest + chunk).split(b"\n\n")
            for event in events:
                if event != b"data: [DONE]":
                    for choice in orjson.loads(event[6:])["choices"]:
                        _take(joined, choice["delta"])
    return joined.message()


def _take(joined: Joined, delta: dict[str, Any]) -> None:
    calls = delta.get("tool_calls", ())
    pieces = ((each["index"], each.get("id"), each["function"]) for each in calls)
    joined.add(
        delta.get("content"),
        ((index, call_id, piece.get("name"), piece.get("arguments")) for index, call_id, piece in pieces),
    )


def new_session() -> aiohttp.ClientSession:
    """Return a session with as many connections as are asked for."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


async def _all(work: Work) -> list[Answer]:
    async with new_session() as session:
        return await in_window(work, lambda prompt: answer(prompt, lambda messages: stream(session, work, messages)))


def run(work: Work) -> Callable[[], list[Answer]]:
    answers = asyncio.run(_all(work))
    return lambda: answers


if __name__ == "__main__":
    serve(run)
