"""Answers that go on for as long as there is something to say: JSON Lines, and server-sent events."""

from __future__ import annotations

import asyncio

from aiohttp import web

_BUFFER_BYTES = 64 * 1024


class JsonLines:
    """JSON objects, one a line.  The status is sent with the first of them, so that errors before it have their own."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._response = web.StreamResponse(headers={"Content-Type": "application/jsonl"})
        self._pending = bytearray()

    async def send(self, line: bytes) -> None:
        """Send one line, together with others where there are many."""
        self._pending += line + b"\n"
        if len(self._pending) >= _BUFFER_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Send what is waiting."""
        if not self._response.prepared:
            await self._response.prepare(self._request)
        if self._pending:
            await self._response.write(bytes(self._pending))
            self._pending.clear()

    async def end(self) -> web.StreamResponse:
        """Send the rest, and end the answer."""
        await self.flush()
        await self._response.write_eof()
        return self._response


class Events:
    """Server-sent events.  Source: WHATWG HTML, 9.2 "Server-sent events"."""

    def __init__(self, request: web.Request, ping_s: float = 15.0) -> None:
        self._request, self._ping_s = request, ping_s
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        self._response = web.StreamResponse(headers=headers)
        self._loop = asyncio.get_running_loop()
        self._sent_at = self._loop.time()

    async def send(self, name: str, data: bytes, event_id: str = "") -> None:
        """Send one event; without a name it is a plain message.  `data` is one line."""
        lines = [f"event: {name}\n".encode()] if name else []
        lines += [f"id: {event_id}\n".encode()] if event_id else []
        await self._write(b"".join([*lines, b"data: ", data, b"\n\n"]))

    async def rest(self, seconds: float) -> None:
        """Wait, and let the client know now and then that the line is not dead."""
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
