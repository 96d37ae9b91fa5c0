"""An agent with an async client at module level, which belongs to the first event loop that uses it."""

from __future__ import annotations

import asyncio
import functools
import os

import aiohttp

from batchray import AgentRequest
from tests.cluster.agents import text_of


@functools.cache
def session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(raise_for_status=True)


async def ask(request: AgentRequest) -> int:
    """Ask the provider whose address is the input, and answer with the id of this process."""
    question = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
    async with session().post(f"{text_of(request)}/chat/completions", json=question) as answer:
        await answer.json()
    return os.getpid()


def ask_sync(request: AgentRequest) -> int:
    """Ask as `agent.run_sync(...)` of agent frameworks does."""
    return asyncio.get_event_loop().run_until_complete(ask(request))
