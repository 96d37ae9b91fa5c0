"""POSTs to one provider: connections, timeouts, retries and error statuses.  Independent of the protocol's bodies."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import aiohttp
import orjson

from batchray.errors import DeadlineExceededError, InvalidResponseError, ModelAPIError
from batchray.models.connection import Connection
from batchray.models.provider_errors import ERROR_TYPES, ProviderError, TransientError, is_transient_status
from batchray.models.retry import CallTimeouts, GateTicket, RateLimitGate, RetryPolicy
from batchray.models.shared_failures import is_shared
from batchray.support.backoff import retry_after_s

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_ERROR_BYTES = 64 * 1024
"""How much of an error's body is read."""
MAX_REPLY_BYTES = 64 * 1024 * 1024
"""How much of a reply is read; an endless stream stops here."""

_MAX_DETAIL_CHARS = 300


class HttpTransport:
    """The connections to one provider, shared by all calls to it on one event loop.

    `name` is the provider's name in errors and logs.  The session is opened on the first call, in its event loop.
    `clock` gives monotonic seconds, `wall_clock` Unix time.
    """

    def __init__(
        self,
        name: str,
        connection: Connection,
        *,
        timeouts: CallTimeouts | None = None,
        retry: RetryPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
        gate: RateLimitGate | None = None,
    ) -> None:
        self.name = name
        self._connection = connection
        self._timeouts, self._retry = timeouts or CallTimeouts(), retry or RetryPolicy()
        self.clock, self._wall_clock, self._sleep = clock, wall_clock, sleep
        self._rng = rng or random.Random()
        self._gate = gate or RateLimitGate(clock, self._rng, self._retry.cap_s)
        self._closed_by: TransientError | None = None
        self._session: aiohttp.ClientSession | None = None
        self._scopes: set[asyncio.Timeout] = set()
        self._is_closed = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self._connection.address!r})"

    async def post(
        self, path: str, body: bytes, read: Callable[[aiohttp.ClientResponse], Awaitable[T]], deadline: float
    ) -> T:
        """Send `body` and return what `read` returns for a 2xx response, retrying transient failures.

        `read` raises TransientError if another attempt may succeed.  Raises ModelAPIError, DeadlineExceededError, and
        whatever else `read` raises.
        """
        scope = asyncio.timeout(None)  # without a time limit; `close` sets one
        try:
            async with scope:
                self._scopes.add(scope)
                return await self._post(path, body, read, deadline)
        except TimeoutError:
            raise self._closed_error() from None
        finally:
            self._scopes.discard(scope)

    async def get_json(self, path: str, limit_s: float) -> Any:
        """Return the JSON that `path` answers within `limit_s` seconds, or None: no call may depend on it."""
        try:
            async with (
                asyncio.timeout(limit_s),
                self._open().get(self._connection.url(path), allow_redirects=False) as response,
            ):
                return orjson.loads(await _read_error(response)) if response.status == 200 else None
        except (aiohttp.ClientError, OSError, ValueError, ModelAPIError):
            return None

    async def close(self) -> None:
        """Close the connections.  Calls in progress and later calls fail."""
        self._is_closed = True
        for scope in self._scopes:  # aiohttp leaves readers of a closed session waiting
            if not scope.expired():
                scope.reschedule(asyncio.get_running_loop().time())
        if self._session is not None:
            await self._session.close()

    def clean(self, text: str) -> str:
        """Return an excerpt of a provider's text, without the provider's keys, complete or partly masked."""
        text = self._connection.masked(" ".join(text.split()))  # before cutting, which could leave half a key
        return text if len(text) <= _MAX_DETAIL_CHARS else f"{text[: _MAX_DETAIL_CHARS - 3]}..."

    def error_in_reply(self, error: Any) -> TransientError | ModelAPIError | InvalidResponseError:
        """Return the exception for an error object inside a reply of status 200."""
        provider_error = ProviderError.read(error)
        if (status := provider_error.passing_status(None)) is not None:
            return TransientError(ERROR_TYPES.get(status, "server_error"), provider_error.message, status)
        message = self.clean(provider_error.message)
        if (final := provider_error.final_code) is not None:
            return ModelAPIError(final, f"{self.name}: {message}")
        return InvalidResponseError("stream_error", f"{self.name}: an error inside the answer: {message}")

    async def _post(
        self, path: str, body: bytes, read: Callable[[aiohttp.ClientResponse], Awaitable[T]], deadline: float
    ) -> T:
        ticket, n_failures = GateTicket(), 0
        while True:
            await self._wait_for(ticket, deadline)
            try:
                return await self._attempt(path, body, read, deadline)
            except TransientError as failure:
                n_failures += 1
                self._plan_retry(failure, n_failures, ticket, deadline)

    async def _wait_for(self, ticket: GateTicket, deadline: float) -> None:
        while (wait_s := self._gate.wait_s(ticket, deadline)) > 0:
            if self.clock() + wait_s >= deadline and self._closed_by is not None:
                raise self._error(self._closed_by, f"{self._closed_by}; asks to wait {wait_s:.1f} s, past the deadline")
            self._gate.n_waiting += 1
            try:
                await self._sleep(wait_s)
            finally:
                self._gate.n_waiting -= 1

    def _plan_retry(self, failure: TransientError, n_failures: int, ticket: GateTicket, deadline: float) -> None:
        """Set when `ticket` may start again, or raise the failure as the caller's error if it may not."""
        if self._is_closed:
            raise self._closed_error() from None
        wait_s = failure.retry_after_s or self._retry.backoff_s(n_failures - 1, self._rng)
        ticket.may_start_at = self.clock() + wait_s
        if (failure.retry_after_s is not None or failure.status == 429) and self._gate.close(
            wait_s, ticket, _with_detail(str(failure), self.clean(failure.detail))
        ):
            self._closed_by = failure
        if n_failures > self._retry.max_retries:
            raise self._error(failure, f"{failure} after {n_failures} attempt{'s' * (n_failures > 1)}") from None
        if self.clock() + wait_s >= deadline:
            reason = (
                f"{failure} at attempt {n_failures}; the next attempt, in {wait_s:.1f} s, would be past the deadline"
            )
            raise self._error(failure, reason) from None
        logger.warning(
            "provider %s: %s; retry %d of %d in %.2f s", self.name, failure, n_failures, self._retry.max_retries, wait_s
        )

    def _closed_error(self) -> ModelAPIError:
        return ModelAPIError("client_closed", f"{self.name}: the client has been closed")

    def _error(self, failure: TransientError, reason: str) -> ModelAPIError:
        return ModelAPIError(failure.type, _with_detail(f"{self.name}: {reason}", self.clean(failure.detail)))

    async def _attempt(
        self, path: str, body: bytes, read: Callable[[aiohttp.ClientResponse], Awaitable[T]], deadline: float
    ) -> T:
        left_s = deadline - self.clock()
        if left_s <= 0:
            raise DeadlineExceededError("deadline_exceeded", f"{self.name}: the request's deadline has passed")
        limits, url = self._timeouts, self._connection.url(path)
        limit = asyncio.timeout(min(left_s, limits.call_s))
        try:
            async with limit, self._open().post(url, data=body, allow_redirects=False) as response:
                if not 200 <= response.status < 300:
                    raise await self._refusal(response)
                self._gate.has_answered = True
                return await read(response)
        except aiohttp.ConnectionTimeoutError:
            raise TransientError("timeout", f"no connection within {limits.connect_s:g} s") from None
        except aiohttp.SocketTimeoutError:
            raise TransientError("timeout", f"no byte for {limits.idle_s:g} s") from None
        except TimeoutError:
            if not limit.expired():
                raise TransientError("connection_error", "the connection timed out") from None
            if left_s <= limits.call_s:
                reason = f"{self.name}: no whole answer before the request's deadline"
                raise DeadlineExceededError("deadline_exceeded", reason) from None
            raise TransientError("timeout", f"no whole answer within {limits.call_s:g} s") from None
        except (
            aiohttp.ClientSSLError,
            aiohttp.ServerFingerprintMismatch,
        ) as error:  # a retry does not repair a certificate
            raise ModelAPIError("connection_error", f"{self.name}: {self.clean(str(error))}") from None
        except aiohttp.ClientHttpProxyError as error:
            raise self._proxy_refusal(error) from None
        except aiohttp.ClientResponseError as error:
            reason = f"{self.name}: the answer is not HTTP: {self.clean(error.message)}"
            raise InvalidResponseError("malformed_response", reason) from None
        except (aiohttp.ClientError, OSError) as error:
            raise TransientError("connection_error", str(error) or type(error).__name__) from None

    def _open(self) -> aiohttp.ClientSession:
        if self._is_closed:
            raise self._closed_error()
        if self._session is None:
            self._session = self._connection.open(self._timeouts)
        return self._session

    def _proxy_refusal(self, error: aiohttp.ClientHttpProxyError) -> TransientError | ModelAPIError:
        """Return the error for a proxy that makes no connection to the provider."""
        reason = f"the proxy answers with status {error.status}"
        if is_transient_status(error.status):
            return TransientError("connection_error", reason)
        return ModelAPIError("connection_error", f"{self.name}: {reason}; check `proxy` or the variable HTTPS_PROXY")

    async def _refusal(self, response: aiohttp.ClientResponse) -> TransientError | ModelAPIError:
        status = response.status
        provider_error = ProviderError.of_body(await _read_error(response))
        if (passing := provider_error.passing_status(status)) is not None:
            wait_s = retry_after_s(response.headers, self._wall_clock())
            return TransientError(ERROR_TYPES.get(passing, "server_error"), provider_error.message, passing, wait_s)
        if 300 <= status < 400:
            provider_error = ProviderError("it redirects elsewhere; check base_url")
        return ModelAPIError(
            provider_error.final_code or ERROR_TYPES.get(status, "refused"),
            _with_detail(f"{self.name}: status {status}", self.clean(provider_error.message)),
            self.name if is_shared(status, provider_error) else "",
        )


async def _read_error(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    try:
        while len(body) < MAX_ERROR_BYTES and (chunk := await response.content.read(MAX_ERROR_BYTES - len(body))):
            body += chunk
    except (aiohttp.ClientError, TimeoutError, OSError):  # the status matters, even if the text cannot be read
        pass
    return bytes(body)


def _with_detail(reason: str, detail: str) -> str:
    return f"{reason}: {detail}" if detail else reason
