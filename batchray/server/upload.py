"""Bodies of requests, received within limits of size, time and number; large ones go to disk as they arrive."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from aiohttp import HttpVersion11, web
from pydantic import BaseModel, ValidationError

from batchray.batch.parse import MAX_REQUEST_BYTES
from batchray.batch.strict_json import strict_json
from batchray.config import ServerSettings
from batchray.errors import BatchFormatError, StoreFullError
from batchray.schema.validation_text import request_problem
from batchray.server.body_checker import Checker
from batchray.server.errors import HttpError, later
from batchray.store import is_no_room
from batchray.support.failpoints import failpoint

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 256 * 1024 * 1024
"""The largest body of a batch, exactly: Letta's documented 256 MB."""

_IN_MEMORY_BYTES = 1024 * 1024
_MAX_SMALL = 128

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Body:
    """A body that has come in whole: in memory where it is small, or else in a file that its checker reads.

    `digest` is there where it was asked for.
    """

    digest: str | None
    data: bytes
    checker: Checker | None


class Uploads:
    """Receives the bodies of batches, at most `max_uploads` at once until they are checked and stored.

    Bodies that say that they are small are not counted with the others: they are many, and soon over.
    """

    def __init__(self, directory: Path, settings: ServerSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory, self._settings, self._clock = directory, settings, clock
        self.n_open, self._n_small = 0, 0

    @asynccontextmanager
    async def receive(self, request: web.Request, *, needs_digest: bool) -> AsyncIterator[Body]:
        """Yield a request's whole body.  Raises HttpError: 408, 413, 415, 503; and StoreFullError."""
        check_type(request)
        _check_length(request, MAX_BODY_BYTES)
        spool = _Spool(self._directory, hashlib.sha256() if needs_digest else None)
        with self._place(is_small=0 <= (request.content_length or -1) <= _IN_MEMORY_BYTES):
            try:
                failpoint("before-spool")
                body = await self._received(request, spool)
                failpoint("after-spool")
                yield body
            finally:
                await asyncio.to_thread(spool.close)

    @contextmanager
    def _place(self, *, is_small: bool) -> Iterator[None]:
        """Take a place among the bodies that are under way.  Raises HttpError 503 where there is none."""
        if self._n_small >= _MAX_SMALL if is_small else self.n_open >= self._settings.max_uploads:
            raise later(5, "too many batches are being uploaded; come again in a moment")
        self._n_small += is_small
        self.n_open += not is_small
        try:
            yield
        finally:
            self._n_small -= is_small
            self.n_open -= not is_small

    async def _received(self, request: web.Request, spool: _Spool) -> Body:
        pieces, n_pending = list[bytes](), 0
        async for piece in _pieces(request, MAX_BODY_BYTES, self._settings, self._clock):
            pieces.append(piece)
            n_pending += len(piece)
            if n_pending >= _IN_MEMORY_BYTES:
                await asyncio.to_thread(spool.write, pieces)
                pieces, n_pending = [], 0
        return await asyncio.to_thread(spool.end, pieces)


class _Spool:
    """A body on its way: a file once it is large, and with it the process that will check it.  Blocking.

    A wait for a thread may be cancelled, but not the thread: so `close` may come while `write` is still at work.
    """

    def __init__(self, directory: Path, digest: hashlib._Hash | None) -> None:
        self._directory, self._digest = directory, digest
        self._file: IO[bytes] | None = None
        self._checker: Checker | None = None
        self._lock, self._is_closed = threading.Lock(), False

    def write(self, pieces: Sequence[bytes]) -> None:
        """Add to the file.  Raises StoreFullError, and HttpError 503 where it, or its checker, cannot be had."""
        with self._lock:
            if not self._is_closed:
                self._write(pieces)

    def end(self, pieces: Sequence[bytes]) -> Body:
        """Return the body, of which these are the last pieces."""
        data = b""
        if self._file is None:
            data = b"".join(self._digested(pieces))
        else:
            self.write(pieces)
        return Body(self._digest.hexdigest() if self._digest else None, data, self._checker)

    def close(self) -> None:
        """Remove the file, and end its checker."""
        with self._lock:
            self._is_closed = True
            if self._checker is not None:
                self._checker.close()
            if self._file is not None:
                with suppress(OSError):  # what is left to be written, as where there was no room, nobody needs
                    self._file.close()

    def _write(self, pieces: Sequence[bytes]) -> None:
        try:
            if self._file is None:
                self._file = tempfile.NamedTemporaryFile(dir=self._directory, prefix="upload-")  # noqa: SIM115
                self._checker = Checker(Path(self._file.name))
            self._file.writelines(self._digested(pieces))
            self._file.flush()
        except OSError as error:
            if is_no_room(error):
                raise StoreFullError(f"the disk of {self._directory} is full; make room there") from None
            logger.error("a body cannot be kept: %s", error)
            raise later(5, "the body cannot be kept at the moment") from None

    def _digested(self, pieces: Sequence[bytes]) -> Sequence[bytes]:
        if self._digest is not None:
            for piece in pieces:
                self._digest.update(piece)
        return pieces


async def read_json(request: web.Request, model: type[M], settings: ServerSettings) -> M:
    """Return a request's body as a model.  Raises HttpError: 408, 413, 415, or 422 with the reason."""
    check_type(request)
    _check_length(request, MAX_REQUEST_BYTES)
    body = b"".join([piece async for piece in _pieces(request, MAX_REQUEST_BYTES, settings, time.monotonic)])
    return await asyncio.to_thread(_parsed, body, model)


def _parsed(body: bytes, model: type[M]) -> M:
    try:
        strict_json(body)
        return model.model_validate_json(body, strict=True)
    except BatchFormatError as error:
        raise HttpError(422, error.reason) from None
    except ValidationError as error:
        raise HttpError(422, request_problem(error)) from None


def check_type(request: web.Request) -> None:
    """Raise HttpError 400 or 415 for what is not plain JSON."""
    transfer = request.headers.get("Transfer-Encoding", "")
    if transfer and (transfer.lower() != "chunked" or request.version < HttpVersion11):
        raise HttpError(400, f"Transfer-Encoding {transfer!r} is not supported; send the JSON as it is, or in chunks")
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
    _let_come(request)
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


def _let_come(request: web.Request) -> None:
    """Say that the body is welcome to a client that waits for that, as curl does with a large one."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _too_large(max_bytes: int) -> HttpError:
    return HttpError(413, f"Request too large. Max is {max_bytes} bytes.")
