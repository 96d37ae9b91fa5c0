"""Receives request bodies within limits of size, time and number; large ones are spooled to disk as they arrive."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import mmap
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from batchray.batch.rules import RequestRules
from batchray.batch.source import BOM
from batchray.batch.split import MAX_REQUEST_BYTES, format_error
from batchray.batch.strict_json import strict_json
from batchray.config import ServerSettings
from batchray.errors import BatchFormatError, StoreFullError
from batchray.server.body_checker import Checker
from batchray.server.errors import HttpError, unavailable
from batchray.server.forms import Buffer, Form, boundary_of, read_form
from batchray.store import StoredFile, is_no_room
from batchray.support.failpoints import failpoint

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 256 * 1024 * 1024
"""The largest body of a batch, and the largest file of one, exactly: Letta's documented 256 MB."""

_FORM_BYTES = 64 * 1024
"""How much a form may have besides its file."""

WAITS_FOR_CONTINUE = web.RequestKey("waits_for_continue", bool)
"""Whether the client waits for 100 Continue before it sends the body, as curl does before a large one."""

_IN_MEMORY_BYTES = 1024 * 1024
_MAX_SMALL = 128

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Body:
    """A complete body: in `data` if it is small, otherwise in a `file`, which a `checker` reads if it is a batch.

    `digest` is the SHA-256 of the body, or None if the caller needs none.
    """

    digest: str | None
    data: bytes
    file: Path | None
    checker: Checker | None


class Uploads:
    """Receives the bodies of batches.  At most `max_uploads` of them are received, checked or stored at once.

    Bodies whose Content-Length is small have a limit of their own, because they are frequent and take little time.
    """

    def __init__(self, directory: Path, settings: ServerSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory, self._settings, self._clock = directory, settings, clock
        self.n_open, self._n_small = 0, 0

    @asynccontextmanager
    async def receive(self, request: web.Request, *, needs_digest: bool) -> AsyncIterator[Body]:
        """Yield a request's complete body.  Raises HttpError 408, 413, 415 or 503, and StoreFullError."""
        check_type(request)
        spool = _Spool(self._directory, hashlib.sha256() if needs_digest else None)
        async with self._receive(request, spool, MAX_BODY_BYTES) as body:
            yield body

    @asynccontextmanager
    async def receive_form(self, request: web.Request) -> AsyncIterator[tuple[Form, Buffer]]:
        """Yield a form with at most one large file, and the body that it is in; errors as in `receive`."""
        boundary, spool = boundary_of(request), _Spool(self._directory, None, is_batch=False)
        async with self._receive(request, spool, MAX_BODY_BYTES + _FORM_BYTES) as body:
            with _opened(body) as buffer:
                yield await asyncio.to_thread(read_form, buffer, boundary), buffer

    @asynccontextmanager
    async def copy(self, file: StoredFile, content: Iterator[bytes]) -> AsyncIterator[Body]:
        """Yield the content of a stored file as the body of a batch.  Raises StoreFullError, and HttpError 503."""
        spool, is_small = _Spool(self._directory, None), file.n_bytes <= _IN_MEMORY_BYTES
        with self._upload_slot(is_small=is_small):
            try:
                yield await asyncio.to_thread(spool.fill, content, is_small=is_small)
            finally:
                await asyncio.to_thread(spool.close)

    @asynccontextmanager
    async def _receive(self, request: web.Request, spool: _Spool, max_bytes: int) -> AsyncIterator[Body]:
        _check_length(request, max_bytes)
        with self._upload_slot(is_small=0 <= (request.content_length or -1) <= _IN_MEMORY_BYTES):
            try:
                failpoint("before-spool")
                body = await self._read(request, spool, max_bytes)
                failpoint("after-spool")
                yield body
            finally:
                await asyncio.to_thread(spool.close)

    @contextmanager
    def _upload_slot(self, *, is_small: bool) -> Iterator[None]:
        """Occupy one of the limited upload slots inside this block.  Raises HttpError 503 if all are taken."""
        if self._n_small >= _MAX_SMALL if is_small else self.n_open >= self._settings.max_uploads:
            raise unavailable(5, "too many batches are being uploaded; try again in a moment")
        self._n_small += is_small
        self.n_open += not is_small
        try:
            yield
        finally:
            self._n_small -= is_small
            self.n_open -= not is_small

    async def _read(self, request: web.Request, spool: _Spool, max_bytes: int) -> Body:
        pieces, n_pending = list[bytes](), 0
        async for piece in _pieces(request, max_bytes, self._settings, self._clock):
            pieces.append(piece)
            n_pending += len(piece)
            if n_pending >= _IN_MEMORY_BYTES:
                await asyncio.to_thread(spool.write, pieces)
                pieces, n_pending = [], 0
        return await asyncio.to_thread(spool.end, pieces)


class _Spool:
    """A body that is being received.  Once it is large: a temporary file, and the process that will check a batch.

    Its methods block, so they run on threads.  Cancelling a task does not stop its thread, so `close` may be called
    while `write` is still running; a lock orders the two.
    """

    def __init__(self, directory: Path, digest: hashlib._Hash | None, *, is_batch: bool = True) -> None:
        self._directory, self._digest, self._is_batch = directory, digest, is_batch
        self._file: IO[bytes] | None = None
        self._checker: Checker | None = None
        self._lock, self._is_closed = threading.Lock(), False

    def write(self, pieces: Sequence[bytes]) -> None:
        """Append to the file.  Raises StoreFullError, and HttpError 503 if file or checker cannot be created."""
        with self._lock:
            if not self._is_closed:
                self._write(pieces)

    def end(self, pieces: Sequence[bytes]) -> Body:
        """Add the last pieces and return the body."""
        data = b""
        if self._file is None:
            data = b"".join(self._update_digest(pieces))
        else:
            self.write(pieces)
        file = None if self._file is None else Path(self._file.name)
        return Body(self._digest.hexdigest() if self._digest else None, data, file, self._checker)

    def fill(self, content: Iterator[bytes], *, is_small: bool) -> Body:
        """Add all of some content and return the body."""
        if is_small:
            return self.end(list(content))
        for piece in content:
            self.write([piece])
        return self.end([])

    def close(self) -> None:
        """Remove the file and kill its checker."""
        with self._lock:
            self._is_closed = True
            if self._checker is not None:
                self._checker.close()
            if self._file is not None:
                with suppress(OSError):  # buffered data may not fit on a full disk; it is not needed any more
                    self._file.close()

    def _write(self, pieces: Sequence[bytes]) -> None:
        try:
            if self._file is None:
                self._file = tempfile.NamedTemporaryFile(dir=self._directory, prefix="upload-")  # noqa: SIM115
                self._checker = Checker(Path(self._file.name)) if self._is_batch else None
            self._file.writelines(self._update_digest(pieces))
            self._file.flush()
        except OSError as error:
            if is_no_room(error):
                raise StoreFullError(f"the disk of {self._directory} is full; make room there") from None
            logger.error("a body cannot be spooled: %s", error)
            raise unavailable(5, "the body cannot be stored at the moment") from None

    def _update_digest(self, pieces: Sequence[bytes]) -> Sequence[bytes]:
        if self._digest is not None:
            for piece in pieces:
                self._digest.update(piece)
        return pieces


@contextmanager
def _opened(body: Body) -> Iterator[Buffer]:
    """Yield what a body holds; a file as a mapping of it."""
    if body.file is None:
        yield body.data
        return
    with body.file.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        yield mapped


async def read_json(
    request: web.Request, model: type[M], settings: ServerSettings, rules: RequestRules | None = None
) -> M:
    """Read a request's body and validate it as a model.  Raises HttpError 408, 413, 415, or 422 with the reason.

    With `rules` unknown keys are refused, and those without an effect are collected there.
    """
    check_type(request)
    _check_length(request, MAX_REQUEST_BYTES)
    body = b"".join([piece async for piece in _pieces(request, MAX_REQUEST_BYTES, settings, time.monotonic)])
    return await asyncio.to_thread(_parse, body, model, rules)


def _parse(body: bytes, model: type[M], rules: RequestRules | None) -> M:
    try:
        body = body.removeprefix(BOM)
        value = strict_json(body)
        if rules is not None and isinstance(value, dict):
            rules.check_keys(value, model)
        return model.model_validate_json(body, strict=True)
    except BatchFormatError as error:
        raise HttpError(422, str(error), more={"param": error.path or None}) from None
    except ValidationError as error:
        problem = format_error(error)
        raise HttpError(422, str(problem), more={"param": problem.path or None}) from None


def check_type(request: web.Request) -> None:
    """Raise HttpError 415 if the body is not plain JSON in UTF-8."""
    encodings = ",".join(request.headers.getall("Content-Encoding", ()))
    if encodings.lower() not in ("identity", ""):
        raise HttpError(415, "only the Content-Encoding identity is supported; send uncompressed JSON")
    if request.content_type != "application/json" or (request.charset or "utf-8").lower() != "utf-8":
        raise HttpError(415, "the body must have Content-Type application/json and be in UTF-8")


def _check_length(request: web.Request, max_bytes: int) -> None:
    if request.content_length is not None and request.content_length > max_bytes:
        raise _too_large(max_bytes)


async def _pieces(
    request: web.Request, max_bytes: int, settings: ServerSettings, clock: Callable[[], float]
) -> AsyncIterator[bytes]:
    """Yield a body as it arrives.  Raises HttpError 408 or 413 once it exceeds a limit."""
    _send_continue(request)
    started, n_bytes = clock(), 0
    while True:
        try:
            async with asyncio.timeout(settings.upload_idle_s):
                piece = await request.content.readany()
        except TimeoutError:
            raise HttpError(408, f"the sender was silent for {settings.upload_idle_s:g} s") from None
        except ConnectionError as error:
            error.__traceback__ = None  # the request keeps the error, whose frames would keep the body
            raise ConnectionResetError("the sender has disconnected") from None
        except web.RequestPayloadError as error:
            error.__traceback__ = None
            raise HttpError(400, "the body is not chunked as its Transfer-Encoding says") from None
        if not piece:
            return
        n_bytes += len(piece)
        if n_bytes > max_bytes:
            raise _too_large(max_bytes)
        if clock() - started > settings.upload_idle_s + n_bytes / settings.min_upload_bytes_per_s:
            raise HttpError(408, f"the sender is slower than {settings.min_upload_bytes_per_s} bytes per second")
        yield piece


def _send_continue(request: web.Request) -> None:
    """Send 100 Continue to a client that waits for it."""
    if request.get(WAITS_FOR_CONTINUE, False) and request.transport is not None:
        request[WAITS_FOR_CONTINUE] = False
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _too_large(max_bytes: int) -> HttpError:
    return HttpError(413, f"Request too large. Max is {max_bytes} bytes.")
