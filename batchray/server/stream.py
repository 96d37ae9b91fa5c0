"""Streamed responses: JSON Lines, and server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from aiohttp import web

_BUFFER_BYTES = 64 * 1024


class JsonLines:
    """A response of JSON objects, one a line.

    The status is sent with the first write, so that an error before it still gets its own status.
    """

    def __init__(self, request: web.Request) -> None:
        self._request = request
        media_type = "text/plain; charset=utf-8" if _wants_text(request) else "application/jsonl"
        self._response = web.StreamResponse(headers={"Content-Type": media_type})
        self._pending = bytearray()

    async def send(self, line: bytes) -> None:
        """Buffer one line; a full buffer is sent."""
        self._pending += line + b"\n"
        if len(self._pending) >= _BUFFER_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Send the buffered lines, and the headers if they have not been sent yet."""
        if not self._response.prepared:
            await self._response.prepare(self._request)
        if self._pending:
            await self._response.write(bytes(self._pending))
            self._pending.clear()

    async def end(self) -> web.StreamResponse:
        """Send the rest, and end the response."""
        await self.flush()
        await self._response.write_eof()
        return self._response


def _wants_text(request: web.Request) -> bool:
    """Return whether a client accepts text only."""
    accepted = {part.partition(";")[0].strip().lower() for part in request.headers.get("Accept", "").split(",")}
    return not accepted.isdisjoint({"text/plain", "text/*"}) and accepted.isdisjoint(
        {"application/jsonl", "application/*", "*/*"}
    )


class Events:
    """A response of server-sent events.  Source: WHATWG HTML, 9.2 "Server-sent events"."""

    def __init__(self, request: web.Request, headers: Mapping[str, str] | None = None, ping_s: float = 15.0) -> None:
        self._request, self._ping_s = request, ping_s
        own = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        self._response = web.StreamResponse(headers={**own, **(headers or {})})
        self._loop = asyncio.get_running_loop()
        self._sent_at = self._loop.time()

    async def send(self, name: str, data: bytes, event_id: str = "") -> None:
        """Send one event; without a name it is of type `message`.  `data` must be one line."""
        lines = [f"event: {name}\n".encode()] if name else []
        lines += [f"id: {event_id}\n".encode()] if event_id else []
        await self._write(b"".join([*lines, b"data: ", data, b"\n\n"]))

    async def sleep(self, seconds: float) -> None:
        """Sleep; sends a ping comment first if nothing was sent for `ping_s` seconds."""
        if self._loop.time() - self._sent_at >= self._ping_s:
            await self._write(b": ping\n\n")
        await asyncio.sleep(seconds)

    async def end(self) -> web.StreamResponse:
        """End the stream."""
        await self._response.write_eof()
        return self._response

    async def _write(self, text: bytes) -> None:
        if not self._response.prepared:
            await self._response.prepare(self._request)
        await self._response.write(text)
        self._sent_at = self._loop.time()
