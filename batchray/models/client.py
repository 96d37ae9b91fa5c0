"""The base class of the HTTP clients: one transport per client, and replies read from its responses."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import aiohttp
import orjson

from batchray.errors import InvalidResponseError, ModelAPIError
from batchray.models.base import ModelCall
from batchray.models.connection import Auth, Connection, ConnectionOptions, auth_header, merged_headers
from batchray.models.gate import ProviderGate
from batchray.models.http import MAX_REPLY_BYTES, HttpTransport
from batchray.models.partial_reply import PartialReply
from batchray.models.provider_errors import TransientError
from batchray.models.reply_cache import Chunks, KeptChunks, RecordedChunks
from batchray.models.retry import CallTimeouts, RetryPolicy
from batchray.models.sse import EventParser

A = TypeVar("A", bound=PartialReply)

_BLANKS = b"\xef\xbb\xbf \t\r\n"
_JSON_STARTS = frozenset((b"{", b"["))
_EVENT_STARTS = frozenset((b":", b"d", b"e", b"i", b"r"))  # comment, data, event, id, retry
_MAX_QUOTED_BYTES = 200

# How long to wait for the bytes after a complete reply before the connection is closed instead of reused.
_END_GRACE_S = 0.1
_HEADERS = {
    "Accept": "text/event-stream, application/json",
    "Accept-Encoding": "identity",  # a compressed stream is delayed by its compressor
    "Content-Type": "application/json",
    "User-Agent": "batchray",
}


class TransportSettings(ConnectionOptions, total=False):
    """Options that a client passes to its connection and `HttpTransport`.  Tests set the clocks, `sleep` and `rng`."""

    timeouts: CallTimeouts | None
    retry: RetryPolicy | None
    clock: Callable[[], float]
    wall_clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    rng: random.Random | None
    gate: ProviderGate | None


class HttpClient:
    """Sends calls to one provider and reads its responses.

    `name` is the provider's name in errors and logs.  `own` are the protocol's headers, and `auth` says which header
    carries `key`; `given` headers are added and win.  The key, and values in `given` that look like one, never appear
    in an error, log or repr.  All calls share one gate.  Raises ConfigError for an address or a key that
    HTTP cannot carry.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        key: str | None,
        auth: Auth,
        own: Mapping[str, str],
        given: Mapping[str, str] | None,
        settings: TransportSettings,
    ) -> None:
        key, rest = (key or "").strip(), dict[str, Any](settings)
        options = {option: rest.pop(option) for option in ConnectionOptions.__annotations__ if option in rest}
        keyed = auth_header(options.pop("auth", None) or auth, key)
        options["secrets"] = (key, *options.get("secrets", ()))
        connection = Connection(name, base_url, merged_headers(_HEADERS, own, keyed, given or {}), **options)
        self._transport = HttpTransport(name, connection, **rest)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._transport!r})"

    async def close(self) -> None:
        """Close the connections.  Calls in progress and later calls fail."""
        await self._transport.close()

    async def _post(self, path: str, body: Mapping[str, Any], new: Callable[[HttpTransport], A], call: ModelCall) -> A:
        """Return the complete reply to `body`, retrying transient failures; `new` creates a reply for each attempt."""
        encoded, cache = _encode(body), call.cache
        key = cache.key(self._transport.identity(path), encoded) if cache is not None else b""
        if cache is not None and (kept := await cache.find(key)) is not None:
            answer = new(self._transport)
            with contextlib.suppress(TransientError, InvalidResponseError, ModelAPIError):  # asks the model instead
                await self._read(KeptChunks(kept), "", answer)
                answer.check()
                return answer

        async def read(response: aiohttp.ClientResponse) -> A:
            answer = new(self._transport)
            content = response.content if cache is None else RecordedChunks(response.content)
            try:
                await self._read(content, response.content_type, answer)
                answer.check()
            except BaseException:  # the tokens received so far are charged, however the attempt ended
                report_wasted_usage(answer, call)
                raise
            if cache is not None and isinstance(content, RecordedChunks):
                cache.add(key, content.body)
            return answer

        return await self._transport.post(path, encoded, read, call.deadline, call.while_held)

    async def _read(self, content: Chunks, content_type: str, answer: PartialReply) -> None:
        """Read a stream or a body.  Its first character tells which, because servers and gateways mislabel both."""
        start = b""
        while not start.strip(_BLANKS) and (chunk := await content.readany()):
            start += chunk
            self._check_size(len(start))
        first = start.lstrip(_BLANKS)[:1]
        is_labelled = content_type == "text/event-stream" and first not in (b"", b"<")
        if first in _JSON_STARTS:
            answer.add_body(await self._read_body(content, start))
        elif first in _EVENT_STARTS or is_labelled:
            await self._read_stream(content, answer, start)
        else:
            raise await self._other_body(content, content_type, start)

    async def _other_body(self, content: Chunks, content_type: str, start: bytes) -> TransientError:
        """Return the error for neither events nor JSON: a gateway's page, or nothing, while a server starts or ends."""
        text = (await self._read_body(content, start))[:_MAX_QUOTED_BYTES].decode(errors="replace").strip()
        if not text:
            return TransientError("empty_response", "the answer is empty")
        detail = f"the answer is {content_type}, not an event stream or JSON; check base_url; it begins with"
        return TransientError("wrong_content_type", f"{detail} {text}")

    async def _read_stream(self, content: Chunks, answer: PartialReply, start: bytes) -> None:
        parser, n_bytes, chunk = EventParser(), 0, start
        while chunk:
            n_bytes += len(chunk)
            self._check_size(n_bytes)
            while chunk:
                if parser.is_between_events:
                    chunk = answer.take_plain(chunk)
                end = chunk.find(b"\n\n") + 2 if answer.is_learning else 0
                piece, chunk = (chunk[:end], chunk[end:]) if end > 1 else (chunk, b"")
                for event in parser.feed(piece):
                    if event.data:  # an empty event is a keep-alive
                        answer.add(event)
                    if answer.is_done:
                        await _read_to_end(content)
                        return
            chunk = await content.readany()
        with contextlib.suppress(InvalidResponseError):  # data that was cut off; `check` says so
            for event in parser.end():
                answer.add(event)

    async def _read_body(self, content: Chunks, start: bytes) -> bytes:
        body = bytearray(start)
        while chunk := await content.readany():
            body += chunk
            self._check_size(len(body))
        return bytes(body)

    def _check_size(self, n_bytes: int) -> None:
        if n_bytes > MAX_REPLY_BYTES:
            reason = f"{self._transport.name}: an answer of more than {MAX_REPLY_BYTES:,} bytes"
            raise InvalidResponseError("malformed_stream", reason)


def report_wasted_usage(answer: PartialReply, call: ModelCall) -> None:
    """Report the usage of an attempt that led to no reply."""
    with contextlib.suppress(InvalidResponseError):  # its usage is missing or unreadable
        call.on_wasted_usage(answer.usage())


def _encode(body: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError as error:  # lone surrogates in a text, or a value of the agent's file that JSON cannot represent
        raise ModelAPIError("unsupported_content", f"the call cannot be written as JSON: {error}") from None


async def _read_to_end(content: Chunks) -> None:
    """Read and discard the bytes after a complete reply, so that its connection can be reused."""
    if content.at_eof():
        return
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with asyncio.timeout(_END_GRACE_S):
            while await content.readany():
                pass
