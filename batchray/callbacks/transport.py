"""POSTs to untrusted receivers: limits, no redirects, and failures as one sentence."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from http import HTTPStatus

import aiohttp
from aiohttp.abc import AbstractResolver

from batchray.callbacks.base import CallbackResponse
from batchray.callbacks.guard import NO_ADDRESS, AddressGuard, BlockedAddressError
from batchray.support.backoff import retry_after_s

MAX_RESPONSE_BYTES = 64 * 1024
"""How much of a response is read, so that receivers can finish it.  Only its status and `retry-after` are used."""

_HEADERS = {
    "User-Agent": "batchray",
    "Content-Type": "application/json",
    "Accept-Encoding": "identity",  # the body is discarded
}


class WebhookTransport:
    """Sends POSTs, each on a new connection, so that the guard checks each address.

    `limit_s` limits an attempt as a whole: 15 s is the minimum that the Standard Webhooks specification recommends.
    `clock` gives Unix time.  The session is opened on the first POST, in its event loop.
    """

    def __init__(
        self,
        guard: AddressGuard,
        *,
        limit_s: float = 15.0,
        clock: Callable[[], float] = time.time,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._guard, self._limit_s, self._clock, self._resolver = guard, limit_s, clock, resolver
        self._session: aiohttp.ClientSession | None = None

    async def post(self, url: str, payload: bytes, headers: dict[str, str]) -> CallbackResponse:
        """Send, and return the result; no behaviour of the receiver or the network raises."""
        result = None
        request = self._open().post(url, data=payload, headers=headers, allow_redirects=False)
        try:
            async with asyncio.timeout(self._limit_s), request as response:
                asked_s = retry_after_s(response.headers, self._clock())
                result = CallbackResponse(response.status, _status_error(response.status), asked_s)
                await _drain(response)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # The status decides, even if the body cannot be read.
            return result or CallbackResponse(None, self._error_text(error))
        return result

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                limit=0,  # the sender limits them
                force_close=True,
                # Each attempt resolves its name.  The cache stays on, because all look-ups of one name then share the
                # one in progress: a name server that hangs blocks one thread, not all of them.
                ttl_dns_cache=0,
                resolver=self._resolver,
                socket_factory=self._guard.open_socket,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(),
                headers=_HEADERS,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,  # a proxy would connect without the guard
            )
        return self._session

    def _error_text(self, error: Exception) -> str:
        """Return why there was no response, in our own words: aiohttp's contain the URL, which may hold a password."""
        match error:
            case TimeoutError():
                return f"the receiver gave no answer within {self._limit_s:g} s"
            case aiohttp.ClientConnectorDNSError():
                return NO_ADDRESS
            case aiohttp.ClientSSLError():
                return f"no secure connection to the receiver: {_ssl_reason(error)}"
            case aiohttp.ClientConnectorError(os_error=BlockedAddressError() as blocked):
                return str(blocked)
            case aiohttp.ClientConnectorError():
                number = error.os_error.errno
                return f"no connection to the receiver: {os.strerror(number) if number else 'no address took it'}"
            case aiohttp.ClientResponseError():
                return "the receiver's answer is not HTTP"
            case ValueError():  # includes aiohttp's errors for a URL
                return "the callback URL cannot be used"
        return "the receiver ended the connection without an answer"


def _status_error(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    if status == HTTPStatus.GONE:
        return "the receiver answered with status 410: it wants no callbacks any more"
    if 300 <= status < 400:
        return f"the receiver answered with status {status}, and redirects are not followed"
    return f"the receiver answered with status {status}"


def _ssl_reason(error: aiohttp.ClientSSLError) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = getattr(error.certificate_error, "verify_message", "")
        return f"its certificate is not valid: {reason}" if reason else "its certificate is not valid"
    return getattr(error.os_error, "reason", None) or "the handshake failed"


async def _drain(response: aiohttp.ClientResponse) -> None:
    left = MAX_RESPONSE_BYTES
    while left and (chunk := await response.content.read(left)):
        left -= len(chunk)
