"""Bodies of requests, received within limits of size, time and number; large ones go to disk as they arrive."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from batchray.config import ServerSettings
from batchray.crash import crash_at
from batchray.errors import BatchFormatError, StoreFullError
from batchray.intake import MAX_REQUEST_BYTES, one_sentence, strict_json
from batchray.server.errors import HttpError, later
from batchray.store import is_no_room

MAX_BODY_BYTES = 256 * 1024 * 1024
"""The largest body of a batch, exactly: Letta's documented 256 MB."""

_IN_MEMORY_BYTES = 1024 * 1024

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Body:
    """A body that has come in whole: in memory where it is small, or else in a file that is gone after its use."""

    digest: str
    data: bytes | None
    file: Path | None


class Uploads:
    """Receives the bodies of batches, at most `max_uploads` at once until they are checked and stored."""

    def __init__(self, directory: Path, settings: ServerSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory, self._settings, self._clock = directory, settings, clock
        self.n_open = 0

    @asynccontextmanager
    async def receive(self, request: web.Request) -> AsyncIterator[Body]:
        """Yield a request's whole body.

        Raises HttpError: 408, 411 where it has none, 413, 415, 503; and StoreFullError.
        """
        check_type(request)
        _check_length(request, MAX_BODY_BYTES)
        if self.n_open >= self._settings.max_uploads:
            raise later(5, f"{self.n_open} batches are being uploaded; come again in a moment")
        self.n_open += 1
        try:
            with (
                _room(self._directory),
                tempfile.TemporaryDirectory(dir=self._directory, prefix="upload-") as directory,
            ):
                crash_at("before-spool")
                body = await self._spooled(request, Path(directory) / "body.json")
                crash_at("after-spool")
                yield body
        finally:
            self.n_open -= 1

    async def _spooled(self, request: web.Request, file: Path) -> Body:
        digest, pieces, n_pending = hashlib.sha256(), list[bytes](), 0
        spool: IO[bytes] | None = None
        try:
            async for piece in _pieces(request, MAX_BODY_BYTES, self._settings, self._clock):
                pieces.append(piece)
                n_pending += len(piece)
                if n_pending >= _IN_MEMORY_BYTES:
                    spool = spool or file.open("wb")
                    await asyncio.to_thread(_write, spool, pieces, digest)
                    pieces, n_pending = [], 0
            if spool is None:
                data = b"".join(pieces)
                digest.update(data)
                return Body(digest.hexdigest(), data, None)
            await asyncio.to_thread(_write, spool, pieces, digest)
        finally:
            if spool is not None:
                spool.close()
        return Body(digest.hexdigest(), None, file)


@contextmanager
def _room(directory: Path) -> Iterator[None]:
    """Say in our words that a disk is full."""
    try:
        yield
    except OSError as error:
        if not is_no_room(error):
            raise
        raise StoreFullError(f"the disk of {directory} is full; make room there") from None


def _write(spool: IO[bytes], pieces: list[bytes], digest: Any) -> None:
    for piece in pieces:
        spool.write(piece)
        digest.update(piece)


async def read_json(request: web.Request, model: type[M], settings: ServerSettings) -> M:
    """Return a request's body as a model.  Raises HttpError: 408, 413, 415, or 422 with the reason."""
    check_type(request)
    _check_length(request, MAX_REQUEST_BYTES)
    body = b"".join([piece async for piece in _pieces(request, MAX_REQUEST_BYTES, settings, time.monotonic)])
    try:
        return model.model_validate(strict_json(body))
    except BatchFormatError as error:
        raise HttpError(422, error.reason) from None
    except ValidationError as error:
        raise HttpError(422, one_sentence(error)) from None


def check_type(request: web.Request) -> None:
    """Raise HttpError 415 for what is not plain JSON."""
    if encoding := request.headers.get("Content-Encoding"):
        raise HttpError(415, f"Content-Encoding {encoding!r} is not supported; send the JSON as it is")
    if request.content_type != "application/json" or (request.charset or "utf-8").lower() != "utf-8":
        raise HttpError(415, "the body has to be of Content-Type application/json, in UTF-8")


def _check_length(request: web.Request, max_bytes: int) -> None:
    if request.content_length is not None and request.content_length > max_bytes:
        raise _too_large(max_bytes)


async def _pieces(
    request: web.Request, max_bytes: int, settings: ServerSettings, clock: Callable[[], float]
) -> AsyncIterator[bytes]:
    """Yield a body as it arrives, and stop reading where it passes a limit."""
    started, n_bytes = clock(), 0
    while True:
        try:
            async with asyncio.timeout(settings.upload_idle_s):
                piece = await request.content.readany()
        except TimeoutError:
            raise HttpError(408, f"the sender was silent for {settings.upload_idle_s:g} s") from None
        except web.RequestPayloadError as error:
            raise HttpError(400, f"the body is not HTTP: {error}") from None
        if not piece:
            return
        n_bytes += len(piece)
        if n_bytes > max_bytes:
            raise _too_large(max_bytes)
        if clock() - started > settings.upload_idle_s + n_bytes / settings.min_upload_bytes_per_s:
            raise HttpError(408, f"the sender is slower than {settings.min_upload_bytes_per_s} bytes a second")
        yield piece


def _too_large(max_bytes: int) -> HttpError:
    return HttpError(413, f"Request too large. Max is {max_bytes} bytes.")
