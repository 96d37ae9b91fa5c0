"""POSTs to one provider: connections, timeouts, retries and error statuses.  Independent of the protocol's bodies."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any, TypeVar

import aiohttp
import orjson

from batchray.errors import DeadlineExceededError, InvalidResponseError, ModelAPIError
from batchray.models.asked_waits import asked_wait_s
from batchray.models.attempts import Attempt, Attempts, Held
from batchray.models.connection import Connection
from batchray.models.gate import ProviderGate
from batchray.models.provider_errors import (
    ERROR_TYPES,
    ProviderError,
    TransientError,
    UnreachableError,
    is_transient_status,
    with_detail,
)
from batchray.models.retry import CallTimeouts, RetryPolicy
from batchray.models.shared_failures import exceeds_quota_alone, is_shared

T = TypeVar("T")

MAX_ERROR_BYTES = 64 * 1024
"""How much of an error's body is read."""
MAX_REPLY_BYTES = 64 * 1024 * 1024
"""How much of a reply is read; an endless stream stops here."""

_TRUST = "; the provider's `ca_file` or SSL_CERT_FILE names the certificates to trust"
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
        gate: ProviderGate | None = None,
    ) -> None:
        self.name = name
        self._connection = connection
        self._timeouts = timeouts or CallTimeouts()
        self.clock, self._wall_clock, rng = clock, wall_clock, rng or random.Random()
        self._gate = gate or ProviderGate(clock=clock, sleep=sleep, rng=rng)
        self._attempts = Attempts(
            name, self._gate, retry or RetryPolicy(), self.clean, clock=clock, sleep=sleep, rng=rng
        )
        self._session: aiohttp.ClientSession | None = None
        self._scopes: set[asyncio.Timeout] = set()
        self._is_closed = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self._connection.address!r})"

    async def post(
        self,
        path: str,
        body: bytes,
        read: Callable[[aiohttp.ClientResponse], Awaitable[T]],
        deadline: float,
        held: Held = nullcontext,
    ) -> T:
        """Send `body` and return what `read` returns for a 2xx response, retrying transient failures.

        `read` raises TransientError if another attempt may succeed; `held` is entered while the call waits for its
        provider.  Raises ModelAPIError, DeadlineExceededError, and whatever else `read` raises.
        """

        def attempt(started: Attempt) -> Awaitable[T]:
            return self._attempt(path, body, read, started)

        scope = asyncio.timeout(None)  # without a time limit; `close` sets one
        try:
            async with scope:
                self._scopes.add(scope)
                return await self._attempts.run(attempt, deadline, held)
        except TimeoutError:
            raise self._closed_error() from None
        finally:
            self._scopes.discard(scope)

    def identity(self, path: str) -> str:
        """Return what tells calls to `path` from those to other providers.  It may hold a key, so it is not shown."""
        return f"{self.name} {self._connection.url(path)}"

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
        self._gate.close()
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

    def _closed_error(self) -> ModelAPIError:
        return ModelAPIError("client_closed", f"{self.name}: the client has been closed")

    async def _attempt(
        self, path: str, body: bytes, read: Callable[[aiohttp.ClientResponse], Awaitable[T]], started: Attempt
    ) -> T:
        left_s = started.deadline - self.clock()
        if left_s <= 0:
            raise DeadlineExceededError("deadline_exceeded", f"{self.name}: the request's deadline has passed")
        limits, url = self._timeouts, self._connection.url(path)
        limit = asyncio.timeout(min(left_s, limits.call_s))
        try:
            async with limit, self._open().post(url, data=body, allow_redirects=False) as response:
                if not 200 <= response.status < 300:
                    raise await self._refusal(response)
                started.answered()
                return await read(response)
        except aiohttp.ConnectionTimeoutError:
            raise UnreachableError("timeout", f"no connection within {limits.connect_s:g} s") from None
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
            raise ModelAPIError(
                "connection_error", f"{self.name}: {self.clean(str(error))}{_TRUST}", self.name
            ) from None
        except aiohttp.ClientHttpProxyError as error:
            raise self._proxy_refusal(error) from None
        except aiohttp.ClientResponseError as error:
            reason = f"{self.name}: the answer is not HTTP: {self.clean(error.message)}"
            raise InvalidResponseError("malformed_response", reason) from None
        except aiohttp.ClientConnectorError as error:
            reason = f"no connection to {error.host}:{error.port}: {_words(error.os_error)}"
            raise UnreachableError("connection_error", reason) from None
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
            return UnreachableError("connection_error", reason)
        reason = f"{self.name}: {reason}; check `proxy` or the variable HTTPS_PROXY"
        return ModelAPIError("connection_error", reason, self.name)

    async def _refusal(self, response: aiohttp.ClientResponse) -> TransientError | ModelAPIError:
        status = response.status
        body = await _read_error(response)
        provider_error = ProviderError.of_body(body)
        if exceeds_quota_alone(status, provider_error):
            return ModelAPIError(
                "request_too_large", with_detail(f"{self.name}: status {status}", self.clean(provider_error.message))
            )
        if (passing := provider_error.passing_status(status)) is not None:
            wait_s = asked_wait_s(passing, response.headers, body.decode(errors="replace"), self._wall_clock())
            return TransientError(ERROR_TYPES.get(passing, "server_error"), provider_error.message, passing, wait_s)
        if 300 <= status < 400:
            provider_error = ProviderError("it redirects elsewhere; check base_url")
        return ModelAPIError(
            provider_error.final_code or ERROR_TYPES.get(status, "refused"),
            with_detail(f"{self.name}: status {status}", self.clean(provider_error.message)),
            self.name if is_shared(status, provider_error) else "",
        )


def _words(error: OSError) -> str:
    """Return the words of a failed connection: asyncio's repeat the address, and the errors of names have their own."""
    number = error.errno or 0
    return os.strerror(number) if number > 0 else error.strerror or str(error)


async def _read_error(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    try:
        while len(body) < MAX_ERROR_BYTES and (chunk := await response.content.read(MAX_ERROR_BYTES - len(body))):
            body += chunk
    except (aiohttp.ClientError, TimeoutError, OSError):  # the status matters, even if the text cannot be read
        pass
    return bytes(body)
