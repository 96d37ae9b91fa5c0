"""One connection of a client: aiohttp's, with JSON for every error, and an end to whatever a client does not finish."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.web_request import BaseRequest

from batchray.schema import new_id
from batchray.server.connection_pool import ConnectionPool
from batchray.server.errors import NO_RETRY, HttpError, error_response
from batchray.server.refusals import refusal_of
from batchray.server.upload import WAITS_FOR_CONTINUE
from batchray.support.rare_log import RareLog

logger = logging.getLogger(__name__)

LINGER_S = 2.0
"""How long the rest of a refused request is read and discarded, so that the client can read the error response."""

_refused = RareLog(logger, logging.INFO, "a request was refused that is not valid HTTP: %s")


class ClientConnection(web.RequestHandler):
    """A connection of a client.  `is_reserve` is whether it may only answer health checks.

    Uses a part of aiohttp that has no public name: `_messages`, the requests that have arrived and wait.
    """

    __slots__ = (
        "_is_dropped",
        "_is_refused",
        "_lost",
        "_pool",
        "_request",
        "_wire",
        "is_reserve",
    )

    def __init__(
        self, server: web.Server, pool: ConnectionPool[Any], loop: asyncio.AbstractEventLoop, **options: Any
    ) -> None:
        super().__init__(server, loop=loop, **options)
        self._pool = pool
        self._wire: asyncio.Transport | None = None
        self._lost: asyncio.Future[None] | None = None
        self._request: BaseRequest | None = None
        self._is_dropped = self._is_refused = False
        self.is_reserve = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a request."""
        assert isinstance(transport, asyncio.Transport)
        self._wire = transport
        super().connection_made(transport)
        if self._is_dropped:
            transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Give the place back."""
        self._pool.remove(self)
        self._request = None
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)
        super().connection_lost(exc)

    def drop(self) -> None:
        """Close the connection now, whatever is still to be sent."""
        self._is_dropped = True
        if self._wire is not None:
            self._wire.abort()

    def force_close(self) -> None:
        """Close the connection; the client gets what is still to be sent only if it takes it soon."""
        wire = self.transport
        super().force_close()
        if wire is not None and wire.get_write_buffer_size():
            self._loop.call_later(LINGER_S, wire.abort)

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived."""
        if self._is_refused:
            return  # the rest of something that is not HTTP
        super().data_received(data)
        if self._messages and not isinstance(self._messages[-1][0], RawRequestMessage):
            self._end_bodies()

    def begin_request(self, request: BaseRequest) -> None:
        """A request is handled from now on; it may not have its whole body yet."""
        self._request = request
        self._pool.begin_request(self)

    def _end_bodies(self) -> None:
        """End the body in which the parser has found an error; aiohttp would let its reader wait."""
        payloads = [payload for _, payload in self._messages]
        if self._request is not None:
            payloads.append(self._request.content)
        for payload in payloads:
            if not payload.is_eof():
                payload.set_exception(web.RequestPayloadError())
                payload.feed_eof()

    def handle_error(
        self, request: BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Return the response to a request that is not HTTP (400), or that failed outside of the routes."""
        trace_id = new_id("trace")
        if status == 400:
            self._is_refused = True
            _refused.log(type(exc).__name__)
            response = error_response(refusal_of(exc), trace_id)
            if exc is not None:
                exc.__traceback__ = None  # its frames would keep what was sent, and this connection
        else:
            if not isinstance(exc, ConnectionError):  # the client has gone
                logger.error("a request failed (%s)", trace_id, exc_info=exc)
            response = error_response(HttpError(status, "An unknown error occurred", NO_RETRY), trace_id)
        if request.writer.output_size > 0:
            raise ConnectionError("another response has begun already")
        response.force_close()
        return response

    async def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the rest of a response."""
        is_unread = request.get(WAITS_FOR_CONTINUE, False)  # so the client may never send its body
        if is_unread or self.is_reserve or request.content.exception() is not None:
            resp.force_close()
        ended = await super().finish_response(request, resp, start_time)
        self._request = None
        if self._is_refused:
            await self._linger()
        else:
            self._pool.end_request(self)
        return ended

    async def _linger(self) -> None:
        """Wait until the client closes.  A close with unread bytes would be a reset, which can destroy the response."""
        if self.transport is None:
            return
        self._lost = self._loop.create_future()
        with suppress(TimeoutError, OSError):
            self.transport.write_eof()
            async with asyncio.timeout(LINGER_S):
                await self._lost
        self._lost = None
