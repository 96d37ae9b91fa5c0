"""A bare loop over the OpenAI SDK, on the aiohttp transport that its documentation recommends for many calls at once.

Replies are streamed, or with the argument `whole` not.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable
from typing import Any

import openai

from tests.benchmarks.peers.contender import Answer, in_window, serve
from tests.benchmarks.peers.hand_loop import Joined, answer, body_of
from tests.benchmarks.peers.works import Work


async def _stream(client: openai.AsyncOpenAI, work: Work, messages: list[dict[str, Any]]) -> dict[str, Any]:
    joined = Joined()
    async for chunk in await client.chat.completions.create(**body_of(work, messages, stream=True)):
        for choice in chunk.choices:
            calls = choice.delta.tool_calls or ()
            joined.add(
                choice.delta.content,
                ((each.index, each.id, each.function.name, each.function.arguments) for each in calls),
            )
    return joined.message()


async def _whole(client: openai.AsyncOpenAI, work: Work, messages: list[dict[str, Any]]) -> dict[str, Any]:
    completion = await client.chat.completions.create(**body_of(work, messages))
    message: dict[str, Any] = completion.choices[0].message.model_dump(exclude_none=True)
    return {"content": None, **message}


async def _all(work: Work, is_streamed: bool) -> list[Answer]:
    limits = openai.DEFAULT_CONNECTION_LIMITS.__class__(
        max_connections=work.concurrency, max_keepalive_connections=work.concurrency
    )
    transport = openai.DefaultAioHttpClient(limits=limits)
    async with openai.AsyncOpenAI(api_key="none", base_url=work.base_url, http_client=transport) as client:
        reply = functools.partial(_stream if is_streamed else _whole, client, work)
        return await in_window(work, lambda prompt: answer(prompt, reply))


def run(work: Work, *, is_streamed: bool) -> Callable[[], list[Answer]]:
    answers = asyncio.run(_all(work, is_streamed))
    return lambda: answers


if __name__ == "__main__":
    serve(functools.partial(run, is_streamed=sys.argv[1:] != ["whole"]))
