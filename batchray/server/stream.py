"""Streamed responses: JSON Lines, and server-sent events.

A reader may be slow, stall or leave.  A stream holds one slice for it, and a page while the reader takes it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from batchray.server.clients import has_left
from batchray.server.shared_pages import SharedPage

# Below the size from which a transport makes its writer wait: an empty transport takes a slice at once.
_SLICE_BYTES = 32 * 1024
# How long a slow reader keeps a page of its own in memory.
_HOLD_S = 1.0
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class ReaderLeftError(ConnectionError):
    """The reader of a response has disconnected, or was disconnected."""


class StreamCutError(ConnectionError):
    """A stream ends before its end, for a reason of the server's.  It then looks incomplete to its reader."""


class StreamedResponse:
    """A response whose length is not known when it begins.

    The status is sent with the first write, so that an error before it still gets its own status.  Everything that
    writes raises ReaderLeftError if the reader has disconnected.  `turns` is shared by responses that would otherwise
    all write at the same moment, and make other requests wait.
    """

    def __init__(
        self, request: web.Request, headers: Mapping[str, str], turns: asyncio.Semaphore | None = None
    ) -> None:
        self._request, self._turns = request, turns or asyncio.Semaphore()
        self._response = web.StreamResponse(headers=headers)
        self._loop = asyncio.get_running_loop()
        self._held: SharedPage | None = None

    async def begin(self) -> None:
        """Send the status and the headers, if they have not been sent yet."""
        self.check_reader()
        if not self._response.prepared:
            await self._response.prepare(self._request)

    def check_reader(self) -> None:
        """Raise ReaderLeftError if the reader has disconnected."""
        if has_left(self._request):
            raise ReaderLeftError("the reader has disconnected")

    async def write(self, data: bytes) -> None:
        """Send some data."""
        for start in range(0, len(data), _SLICE_BYTES):
            await self._write_slice(data[start : start + _SLICE_BYTES])

    async def write_page(self, read: Callable[[], Awaitable[SharedPage]]) -> SharedPage:
        """Send the page that `read` returns; return it without its text.

        A page of one result, which may be large, is released while its reader stalls, and read again later.
        """
        page = await read()
        sent, size = page.without_text(), len(page.text)
        self._held = page
        del page
        try:
            for start in range(0, size, _SLICE_BYTES):
                await self._write_slice(await self._slice_of_page(read, start, sent, size))
        finally:
            self._held = None
        return sent

    async def idle(self) -> None:
        """Notice a reader that has disconnected while there is nothing to send."""
        self.check_reader()

    async def end(self) -> web.StreamResponse:
        """End the response, so that the reader knows that it is complete."""
        await self.begin()
        await self._response.write_eof()
        return self._response

    async def _slice_of_page(
        self, read: Callable[[], Awaitable[SharedPage]], start: int, sent: SharedPage, size: int
    ) -> bytes:
        """Return a slice of the page that is sent; read the page again if it was released."""
        if self._held is None:
            self._held = await read()
            if len(self._held.text) != size or self._held.without_text() != sent:  # a retry has removed the result
                raise StreamCutError("the page has changed while it was sent")
        return self._held.text[start : start + _SLICE_BYTES]

    async def _write_slice(self, data: bytes) -> None:
        await self.begin()
        transport = self._request.transport
        if transport is not None and not transport.get_write_buffer_size():
            async with self._turns:
                await self._response.write(data)
                await asyncio.sleep(0)  # the write did not wait
            return
        releasing = self._loop.call_later(_HOLD_S, self._release_page)
        try:
            await self._response.write(data)
        except ConnectionError as error:
            # The transport keeps this error in a future, and the frames of its traceback refer to the future.
            error.__traceback__ = None
            raise ReaderLeftError("the reader has disconnected") from None
        finally:
            releasing.cancel()

    def _release_page(self) -> None:
        if self._held is not None and self._held.n_results == 1:
            self._held = None


class JsonLines(StreamedResponse):
    """A response of JSON objects, one a line."""

    def __init__(self, request: web.Request, turns: asyncio.Semaphore | None = None) -> None:
        media_type = "text/plain; charset=utf-8" if _wants_text(request) else "application/jsonl"
        super().__init__(request, {"Content-Type": media_type}, turns)


def _wants_text(request: web.Request) -> bool:
    """Return whether a client accepts text only."""
    accepted = {part.partition(";")[0].strip().lower() for part in request.headers.get("Accept", "").split(",")}
    return not accepted.isdisjoint({"text/plain", "text/*"}) and accepted.isdisjoint(
        {"application/jsonl", "application/*", "*/*"}
    )


class Events(StreamedResponse):
    """A response of server-sent events.  Source: WHATWG HTML, 9.2 "Server-sent events"."""

    def __init__(
        self,
        request: web.Request,
        headers: Mapping[str, str] | None = None,
        ping_s: float = 15.0,
        turns: asyncio.Semaphore | None = None,
    ) -> None:
        own = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(request, {**own, **(headers or {})}, turns)
        self._ping_s, self._sent_at = ping_s, self._loop.time()

    async def send(self, name: str, data: bytes, event_id: str = "") -> None:
        """Send one event."""
        await self.write(event(name, data, event_id))

    async def idle(self) -> None:
        """Send a ping comment if nothing was sent for `ping_s` seconds."""
        self.check_reader()
        if self._loop.time() - self._sent_at >= self._ping_s:
            await self.write(b": ping\n\n")

    async def _write_slice(self, data: bytes) -> None:
        await super()._write_slice(data)
        self._sent_at = self._loop.time()


def event(name: str, data: bytes, event_id: str = "") -> bytes:
    """Return a server-sent event; without a name it is of type `message`.  `data` must be one line."""
    lines = [f"event: {name}\n".encode()] if name else []
    lines += [f"id: {event_id}\n".encode()] if event_id else []
    return b"".join([*lines, b"data: ", data, b"\n\n"])


def cut_off(request: web.Request) -> None:
    """Disconnect the reader of a response so that it looks incomplete.

    Without its last chunk a response does.  An HTTP/1.0 response has no chunks: there the connection is reset.
    """
    if (transport := request.transport) is None:
        return
    if request.version < (1, 1):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
    transport.abort()
