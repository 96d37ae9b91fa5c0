"""POSTs to one provider: connections, limits, retries, and what its errors mean.  It knows no protocol's bodies."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import aiohttp
import orjson

from batchray.errors import ConfigError, DeadlineExceededError, InvalidResponseError, ModelAPIError
from batchray.models.retry import CallTimeouts, Gate, GateTicket, RetryPolicy
from batchray.support.backoff import retry_after_s

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_ERROR_BYTES = 64 * 1024
"""What is read of an error's body."""
MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""What is read of an answer; a stream without an end stops here."""

_MAX_DETAIL_CHARS = 300
_ERROR_TYPES = {
    400: "bad_request",
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_denied",
    404: "not_found",
    408: "timeout",
    409: "conflict",
    413: "request_too_large",
    422: "bad_request",
    429: "rate_limited",
}
# Error codes of providers that say more than the status they come with.  Waiting does not fill an account, so that
# 429 is final.
_FINAL_CODES = {"context_length_exceeded", "insufficient_quota"}
# How vLLM and then Anthropic say that a conversation is longer than the model's context.
_TOO_LONG = re.compile("maximum context length|prompt is too long|exceed context limit")
# What an error inside a stream, which has no status, is called where asking again may help.
_PASSING_CODES = {
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "server_error": 500,
    "internal_server_error": 500,
    "internal_error": 500,
    "api_error": 500,
    "service_unavailable": 503,
    "overloaded_error": 503,
    "overloaded": 503,
    "timeout": 504,
    "timeout_error": 504,
}


class TransientError(Exception):
    """An attempt failed in a way that the next one may not.  Never leaves this package."""

    def __init__(self, type: str, detail: str, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(type, detail, status, retry_after_s)
        self.type, self.detail, self.status, self.retry_after_s = type, detail, status, retry_after_s

    def __str__(self) -> str:
        return f"status {self.status}" if self.status else self.type.replace("_", " ")


class ProviderError(NamedTuple):
    """What a provider says of an error: `codes` are its `code` and `type`, lower-cased, where it gives them."""

    message: str
    codes: frozenset[str] = frozenset()
    status: int | None = None

    @classmethod
    def read(cls, error: Any) -> ProviderError:
        """Read the value of `error` in a body or a stream: an object, or a string."""
        if not isinstance(error, Mapping):
            return cls(str(error or ""))
        codes = frozenset(str(error[key]).lower() for key in ("code", "type") if error.get(key) is not None)
        status = next((int(code) for code in codes if re.fullmatch(r"[45]\d\d", code)), None)
        status = status or next((_PASSING_CODES[code] for code in sorted(codes) if code in _PASSING_CODES), None)
        return cls(str(error.get("message") or ""), codes, status)

    @classmethod
    def of_body(cls, body: bytes) -> ProviderError:
        """Read an error's body: the JSON of OpenAI, Anthropic, vLLM or FastAPI, or else text."""
        try:
            parsed = orjson.loads(body)
        except orjson.JSONDecodeError:
            return cls(body.decode(errors="replace"))
        return cls.read(parsed.get("error") or parsed.get("detail") or parsed if isinstance(parsed, dict) else parsed)

    @property
    def is_too_long(self) -> bool:
        """Whether the conversation is longer than the model's context; some say so only in words."""
        return "context_length_exceeded" in self.codes or _TOO_LONG.search(self.message) is not None


def is_passing(status: int) -> bool:
    """Whether a request that got this status may do better a moment later."""
    return status in (408, 409, 429) or status >= 500


class HttpTransport:
    """The connections to one provider, shared by all its calls on one event loop.

    `name` is the provider's, for errors and logs.  The session is opened on the first call, in its event loop.  The
    number of connections has no limit, because the window already bounds the calls.  `clock` gives monotonic seconds,
    `wall_clock` Unix time.  Raises ConfigError for an address or headers that HTTP cannot carry.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        headers: Mapping[str, str],
        *,
        secrets: Iterable[str] = (),
        timeouts: CallTimeouts | None = None,
        retry: RetryPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self.name = name
        self._base_url = _checked_url(base_url, name)
        self._headers = _checked_headers(headers, name)
        self._secrets = _secret_pattern(secrets)
        self._timeouts, self._retry = timeouts or CallTimeouts(), retry or RetryPolicy()
        self.clock, self._wall_clock, self._sleep = clock, wall_clock, sleep
        self._rng = rng or random.Random()
        self._gate = Gate(clock, self._rng, self._retry.cap_s)
        self._closed_by: TransientError | None = None
        self._session: aiohttp.ClientSession | None = None
        self._scopes: set[asyncio.Timeout] = set()
        self._is_closed = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self._base_url!r})"

    async def post(
        self, path: str, body: bytes, read: Callable[[aiohttp.ClientResponse], Awaitable[T]], deadline: float
    ) -> T:
        """Send `body` and return what `read` makes of a 2xx response, after the retries that are due.

        `read` raises Fault where another attempt may help.  Raises ModelAPIError, DeadlineExceededError, and what else
        `read` raises.
        """
        scope = asyncio.timeout(None)  # without an end of its own; `close` gives it one
        try:
            async with scope:
                self._scopes.add(scope)
                return await self._post(path, body, read, deadline)
        except TimeoutError:
            raise self._closed_error() from None
        finally:
            self._scopes.discard(scope)

    async def close(self) -> None:
        """Close the connections.  Calls under way fail, and so do later ones."""
        self._is_closed = True
        for scope in self._scopes:  # aiohttp leaves those who read from a closed session waiting
            if not scope.expired():
                scope.reschedule(asyncio.get_running_loop().time())
        if self._session is not None:
            await self._session.close()

    def clean(self, text: str) -> str:
        """Return a short cut of foreign text, without the provider's keys, whole or masked in the middle."""
        text = " ".join(text.split())
        text = self._secrets.sub("***", text) if self._secrets else text  # first, or the cut could leave half a key
        return text if len(text) <= _MAX_DETAIL_CHARS else f"{text[: _MAX_DETAIL_CHARS - 3]}..."

    def error_in_answer(self, error: Any) -> TransientError | ModelAPIError | InvalidResponseError:
        """Return what to raise for an error object that came inside an answer of status 200."""
        said = ProviderError.read(error)
        if said.is_too_long:
            return ModelAPIError("context_length_exceeded", f"{self.name}: {self.clean(said.message)}")
        if said.status is not None and is_passing(said.status) and not said.codes & _FINAL_CODES:
            return TransientError(_ERROR_TYPES.get(said.status, "server_error"), said.message, said.status)
        return InvalidResponseError(
            "stream_error", f"{self.name}: an error inside the answer: {self.clean(said.message)}"
        )

    async def _post(
        self, path: str, body: bytes, read: Callable[[aiohttp.ClientResponse], Awaitable[T]], deadline: float
    ) -> T:
        turn, n_faults = GateTicket(), 0
        while True:
            await self._wait_for(turn, deadline)
            try:
                return await self._attempt(path, body, read, deadline)
            except TransientError as fault:
                n_faults += 1
                self._plan_retry(fault, n_faults, turn, deadline)

    async def _wait_for(self, turn: GateTicket, deadline: float) -> None:
        while (wait_s := self._gate.wait_s(turn, deadline)) > 0:
            if self.clock() + wait_s >= deadline and self._closed_by is not None:
                raise self._error(self._closed_by, f"{self._closed_by}; asks to wait {wait_s:.1f} s, past the deadline")
            await self._sleep(wait_s)

    def _plan_retry(self, fault: TransientError, n_faults: int, turn: GateTicket, deadline: float) -> None:
        """Set when `turn` goes again.  Raises the fault as what the caller sees where it does not."""
        if self._is_closed:
            raise self._closed_error() from None
        wait_s = fault.retry_after_s or self._retry.backoff_s(n_faults - 1, self._rng)
        turn.goes_at = self.clock() + wait_s
        if (fault.retry_after_s is not None or fault.status == 429) and self._gate.close(wait_s, turn):
            self._closed_by = fault
        if n_faults > self._retry.max_retries:
            raise self._error(fault, f"{fault} after {n_faults} attempt{'s' * (n_faults > 1)}") from None
        if self.clock() + wait_s >= deadline:
            reason = f"{fault} at attempt {n_faults}; the next, in {wait_s:.1f} s, would be past the deadline"
            raise self._error(fault, reason) from None
        logger.warning(
            "provider %s: %s; retry %d of %d in %.2f s", self.name, fault, n_faults, self._retry.max_retries, wait_s
        )

    def _closed_error(self) -> ModelAPIError:
        return ModelAPIError("client_closed", f"{self.name}: the client has been closed")

    def _error(self, fault: TransientError, reason: str) -> ModelAPIError:
        return ModelAPIError(fault.type, _joined(f"{self.name}: {reason}", self.clean(fault.detail)))

    async def _attempt(
        self, path: str, body: bytes, read: Callable[[aiohttp.ClientResponse], Awaitable[T]], deadline: float
    ) -> T:
        left_s = deadline - self.clock()
        if left_s <= 0:
            raise DeadlineExceededError("deadline_exceeded", f"{self.name}: the request's deadline has passed")
        limits = self._timeouts
        limit = asyncio.timeout(min(left_s, limits.call_s))
        try:
            async with limit, self._open().post(self._base_url + path, data=body, allow_redirects=False) as response:
                if not 200 <= response.status < 300:
                    raise await self._refusal(response)
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
        except (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch) as error:  # waiting mends no certificate
            raise ModelAPIError("connection_error", f"{self.name}: {self.clean(str(error))}") from None
        except aiohttp.ClientResponseError as error:
            reason = f"{self.name}: the answer is not HTTP: {self.clean(error.message)}"
            raise InvalidResponseError("malformed_response", reason) from None
        except (aiohttp.ClientError, OSError) as error:
            raise TransientError("connection_error", str(error) or type(error).__name__) from None

    def _open(self) -> aiohttp.ClientSession:
        if self._is_closed:
            raise self._closed_error()
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
                timeout=aiohttp.ClientTimeout(connect=self._timeouts.connect_s, sock_read=self._timeouts.idle_s),
                headers=self._headers,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    async def _refusal(self, response: aiohttp.ClientResponse) -> TransientError | ModelAPIError:
        status = response.status
        wait_s = retry_after_s(response.headers, self._wall_clock()) if is_passing(status) else None
        said = ProviderError.of_body(await _read_error(response))
        final = sorted(said.codes & _FINAL_CODES)
        if is_passing(status) and not final:
            return TransientError(_ERROR_TYPES.get(status, "server_error"), said.message, status, wait_s)
        if 300 <= status < 400:
            said = ProviderError("it redirects elsewhere; check base_url")
        kind = "context_length_exceeded" if said.is_too_long else next(iter(final), _ERROR_TYPES.get(status, "refused"))
        return ModelAPIError(kind, _joined(f"{self.name}: status {status}", self.clean(said.message)))


async def _read_error(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    try:
        while len(body) < MAX_ERROR_BYTES and (chunk := await response.content.read(MAX_ERROR_BYTES - len(body))):
            body += chunk
    except (aiohttp.ClientError, TimeoutError, OSError):  # the status counts, whatever became of the text
        pass
    return bytes(body)


def _joined(reason: str, detail: str) -> str:
    return f"{reason}: {detail}" if detail else reason


def _checked_url(base_url: str, name: str) -> str:
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"provider {name!r}: base_url has to start with http:// or https:// and name a host")
    if parts.username or parts.password:
        raise ConfigError(f"provider {name!r}: give the key in api_key_env, not in base_url")
    return base_url.rstrip("/")


def _checked_headers(headers: Mapping[str, str], name: str) -> dict[str, str]:
    for header, value in headers.items():
        if not value.isprintable():
            raise ConfigError(f"provider {name!r}: header {header!r} holds a character that HTTP cannot send")
    return dict(headers)


def _secret_pattern(secrets: Iterable[str]) -> re.Pattern[str] | None:
    patterns = []
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        patterns.append(re.escape(secret))
        if len(secret) >= 16:  # providers repeat a key as its first and last characters
            patterns.append(re.escape(secret[:6]) + r"[^\s\"',;]*")
    return re.compile("|".join(patterns)) if patterns else None
