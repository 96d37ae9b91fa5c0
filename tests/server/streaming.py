"""Raw readers of streamed responses, which see whether a response was complete or cut."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from tests.server.http_client import BATCHES


class CutError(Exception):
    """A response ended without its last chunk."""


class Stream:
    """The body of one response, while it arrives.  `status` and `headers` are those of the response."""

    def __init__(self, reader: asyncio.StreamReader, status: int, headers: Mapping[str, str]) -> None:
        self._reader, self.status, self.headers = reader, status, headers

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the chunks of the body.  Raises CutError if the connection ends before the last one."""
        assert self.headers.get("transfer-encoding") == "chunked", self.headers
        try:
            while n_bytes := int(await self._reader.readuntil(b"\r\n"), 16):
                chunk = await self._reader.readexactly(n_bytes + 2)
                yield chunk[:-2]
            await self._reader.readexactly(2)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise CutError from error

    async def lines(self) -> AsyncIterator[bytes]:
        """Yield the complete lines of the body.  Raises CutError as `chunks` does."""
        parts = list[bytes]()
        async for chunk in self.chunks():
            first, *others = chunk.split(b"\n")
            parts.append(first)
            for part in others:
                yield b"".join(parts)
                parts = [part]
        assert not b"".join(parts)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield server-sent events: their fields, with `data` parsed.  Raises CutError as `chunks` does."""
        fields: dict[str, Any] = {}
        async for line in self.lines():
            name, _, value = line.decode().partition(": ")
            if name:
                fields[name] = json.loads(value) if name == "data" else value
            elif "data" in fields:
                yield fields
            fields = fields if name else {}


@asynccontextmanager
async def opened(url: str, path: str, *, limit: int = 2**16, **headers: str) -> AsyncIterator[Stream]:
    """Send a GET request and yield its response; `limit` is how many bytes are read ahead."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=limit)
    try:
        named = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\n{named}\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = (line.partition(": ") for line in head[1:] if line)
        yield Stream(reader, int(head[0].split()[1]), {name.lower(): value for name, _, value in fields})
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()


class Follower:
    """Reads a job's results, or its events, and continues where a stream was cut.

    `indices` are those of the results so far.
    """

    def __init__(self, job_id: str, kind: str) -> None:
        self.job_id, self._kind = job_id, kind
        self.indices = list[int]()
        self.n_cuts = 0
        self.end: str | None = None
        self._last_id = "0"

    async def follow(self, url: str) -> None:
        """Follow until the stream ends or is cut."""
        try:
            await (self._events(url) if self._kind == "events" else self._results(url))
        except CutError:
            self.n_cuts += 1

    async def _results(self, url: str) -> None:
        indices = self.indices = []
        async with opened(url, f"{BATCHES}/{self.job_id}/results?follow=true&order=finish") as stream:
            async for line in stream.lines():
                indices += [json.loads(line)["index"]]
        self.end = "complete"

    async def _events(self, url: str) -> None:
        async with opened(url, f"{BATCHES}/{self.job_id}/events", Last_Event_ID=self._last_id) as stream:
            async for event in stream.events():
                if event["event"] == "outcome":
                    self.indices.append(event["data"]["index"])
                    self._last_id = event["id"]
                self.end = event["data"]["status"] if event["event"] == "end" else self.end
