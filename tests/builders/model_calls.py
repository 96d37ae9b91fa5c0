"""Builders for tests of the model clients: calls, a clock without real time, and a server with one fixed response."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import aiohttp.web
import pytest

from batchray.errors import RequestError
from batchray.models import CallTimeouts, ModelCall, RetryPolicy
from batchray.schema import Message, TextContent

KEY = "sk-proj-0123456789abcdefABCDEF"
PATIENT = CallTimeouts(connect_s=30, idle_s=30, call_s=30)


class FakeTime:
    """A clock that only `sleep` advances.  Other tasks run meanwhile, as they do during a real sleep."""

    def __init__(self) -> None:
        self.now, self.slept = 1000.0, list[float]()

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


class HeldTime(FakeTime):
    """A clock whose sleepers all wait until the test releases them."""

    def __init__(self) -> None:
        super().__init__()
        self._is_released = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        """Wait for `release`; after it, advance the clock."""
        if self._is_released.is_set():
            await super().sleep(seconds)
        else:
            self.slept.append(seconds)
            await self._is_released.wait()

    def release(self) -> None:
        """Advance the clock by the longest sleep, and wake all sleepers."""
        self.now += max(self.slept)
        self._is_released.set()


def eager() -> dict[str, Any]:
    """Return settings of a client that gives up after two retries, with a seeded jitter."""
    return {"name": "local", "timeouts": PATIENT, "retry": RetryPolicy(max_retries=2), "rng": random.Random(1)}


def message(role: Any, *content: Any, **fields: Any) -> Message:
    """Return a message; a string in `content` becomes a text part."""
    parts = [TextContent(text=part) if isinstance(part, str) else part for part in content]
    return Message(id="message-1", role=role, content=parts, created_at=datetime.now(UTC), **fields)


def call(text: str = "hi", **fields: Any) -> ModelCall:
    """Return a model call with one user message."""
    return ModelCall(**{"model": "m", "messages": [message("user", text)], **fields})


async def failure(answer: Awaitable[object], kind: type[RequestError]) -> RequestError:
    """Await a call that must fail with exactly `kind`, and return the error; it must not contain the API key."""
    with pytest.raises(kind) as raised:
        await answer
    assert type(raised.value) is kind
    assert KEY not in "".join(map(str, (raised.value, raised.value.__cause__, raised.value.__context__)))
    return raised.value


@asynccontextmanager
async def scripted(*bodies: bytes | int, asked: list[Any], refusal: str = "") -> AsyncIterator[str]:
    """Yield the URL of a server that gives these streams one after the other; `asked` receives what it is asked.

    A number is the status of a refusal.
    """

    async def handle(request: aiohttp.web.BaseRequest) -> aiohttp.web.StreamResponse:
        asked.append(await request.json())
        body = bodies[len(asked) - 1]
        if isinstance(body, int):
            return aiohttp.web.json_response({"error": {"message": refusal}}, status=body)
        return aiohttp.web.Response(body=body, content_type="text/event-stream")

    async with _served(handle) as address:
        yield address


@asynccontextmanager
async def always(body: bytes, content_type: str) -> AsyncIterator[str]:
    """Yield the URL of an aiohttp server that responds to every call with this body."""

    async def handle(request: aiohttp.web.BaseRequest) -> aiohttp.web.StreamResponse:
        await request.read()
        return aiohttp.web.Response(body=body, content_type=content_type)

    async with _served(handle) as address:
        yield address


@asynccontextmanager
async def _served(
    handle: Callable[[aiohttp.web.BaseRequest], Awaitable[aiohttp.web.StreamResponse]],
) -> AsyncIterator[str]:
    runner = aiohttp.web.ServerRunner(aiohttp.web.Server(handle))
    await runner.setup()
    await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
