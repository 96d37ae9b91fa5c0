"""The database behind the store: its transactions, and the thread that writes."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import sqlalchemy as sa

from batchray.errors import StoreError, StoreFullError
from batchray.store.backend import Backend
from batchray.store.disk_reserve import DiskRoom, Reserve
from batchray.support.threads import DaemonThread

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

Chunked = Generator[None, None, T]
"""Long work in short transactions.  It yields where other work may run, and returns its result."""

CHUNK = 500
"""Rows read or written at a time."""
PAGE_BYTES = 8 * 1024 * 1024
"""About how many bytes of requests and messages are read or written at a time."""


class Database:
    """One database: its connections, its transactions, and its one writer thread.

    Methods block; `call` runs a blocking function on the writer thread.  `reserve` is for `room`.
    """

    def __init__(self, data_dir: Path, backend: Backend, reserve: Reserve | None = None) -> None:
        self.data_dir, self.backend = data_dir, backend
        self.room = DiskRoom(backend.name, reserve)
        self._writer: DaemonThread | None = None
        self._writer_lock, self._piece_lock = threading.Lock(), threading.Lock()

    @property
    def is_shared(self) -> bool:
        """Whether several processes may write, so that leases decide which one runs a job."""
        return self.backend.is_shared

    async def call(self, method: Callable[P, T], /, *args: P.args, **keywords: P.kwargs) -> T:
        """Run a blocking function on the writer thread.  Cancelling the wait does not stop it."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._writer_thread(), lambda: method(*args, **keywords))

    async def call_chunked(self, work: Chunked[T]) -> T:
        """Run long work on the writer thread; other calls run between its chunks."""
        while True:
            result = await self.call(_next_chunk, work)
            if result is not _MORE:
                return result  # type: ignore[return-value]

    def call_soon(self, method: Callable[P, T], /, *args: P.args, **keywords: P.kwargs) -> Future[T]:
        """Run a blocking method on the writer thread without waiting for it.  A failure is logged."""
        work = self._writer_thread().submit(method, *args, **keywords)
        work.add_done_callback(_log_failure)
        return work

    def repeat_soon(self, step: Callable[[], bool]) -> None:
        """Call on the writer thread until it returns False, between other calls; not after the database is closed.

        A failure is logged, and ends it.
        """

        def run_step() -> None:
            if step():
                self.repeat_soon(step)

        if (work := self._writer_thread().submit_if_open(run_step)) is not None:
            work.add_done_callback(_log_failure)

    def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Run a transaction on the writer thread, between the calls of others, and wait for it."""
        return self.run(self._transact, work)

    def write_piece_soon(self, work: Callable[[sa.Connection], T]) -> Future[T]:
        """Run one of many transactions that count only when a later `write` has completed them.

        Until then a power cut may undo them.  Of several callers one has a piece in the queue of the writer thread, and
        the others wait here, so that other calls wait for one piece at most.  Raises StoreError if the database is
        closed, here or in the future.
        """
        writer = self._writer_thread()
        if writer.is_current:  # it must not wait for a caller whose piece is in its queue
            done: Future[T] = Future()
            done.set_result(self._transact_relaxed(work))
            return done
        self._piece_lock.acquire()
        try:
            if (piece := writer.submit_if_open(self._transact_relaxed, work)) is None:
                raise self._closed()
        except BaseException:
            self._piece_lock.release()
            raise
        piece.add_done_callback(lambda _: self._piece_lock.release())
        return piece

    def run(self, method: Callable[P, T], /, *args: P.args, **keywords: P.kwargs) -> T:
        """Run a blocking function on the writer thread and wait for it; it may be the caller's.

        Raises StoreError if the database is closed.
        """
        writer = self._writer_thread()
        if writer.is_current:
            return method(*args, **keywords)
        if (work := writer.submit_if_open(method, *args, **keywords)) is None:
            raise self._closed()
        return work.result()

    def _closed(self) -> StoreError:
        return StoreError(f"{self.backend.name} is closed")

    def _transact(self, work: Callable[[sa.Connection], T]) -> T:
        with self.transaction() as connection:
            return work(connection)

    def _transact_relaxed(self, work: Callable[[sa.Connection], T]) -> T:
        with self.translate_errors(), self.backend.relaxed():
            return self._transact(work)

    def _writer_thread(self) -> DaemonThread:
        """Return the thread that writes, started on first use: a reader needs none."""
        if self._writer is None:
            with self._writer_lock:
                self._writer = self._writer or DaemonThread("batchray-store")
        return self._writer

    def close(self) -> None:
        """Finish pending writes, then close."""
        if self._writer is not None:
            self._writer.shutdown()
        self.backend.close()

    def _make_room(self) -> None:
        """Release the reserve because the disk is full, and truncate the log of the failed transaction."""
        if not self.room.release():
            return
        try:
            self.backend.shrink()
        except self.backend.errors as error:
            logger.debug("no disk space was returned: %s", error)

    def checkpoint(self) -> None:
        """Move the contents of the log into the database, as far as readers allow."""
        with self.translate_errors():
            self.backend.checkpoint()

    def page(
        self,
        query: sa.Select[Any],
        build: Callable[..., T],
        n_bytes: sa.ColumnElement[int],
        max_bytes: int = PAGE_BYTES,
    ) -> list[T]:
        """Return the first rows of a query that have `max_bytes` together; the first one whatever its size.

        `n_bytes` is the size of a row.  The database returns the sizes first, so that it never returns the contents of
        rows that do not fit.
        """
        sizes = query.with_only_columns(n_bytes, maintain_column_froms=True)
        with self.reading() as connection:
            n_rows = n_that_fit(connection.execute(sizes).scalars(), max_bytes)
            return [build(*row) for row in connection.execute(query.limit(n_rows)).all()] if n_rows else []

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Open a transaction: committed at the end of the block, rolled back if it raises."""
        try:
            with self.translate_errors(), self.backend.alone, self.backend.engine.begin() as connection:
                yield connection
        except StoreFullError:
            self._make_room()
            raise

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Open a connection for queries."""
        with self.translate_errors(), self.backend.alone, self.backend.engine.connect() as connection:
            yield connection

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Raise the driver's errors as the store's own (see `Backend.failure`)."""
        try:
            yield
        except self.backend.errors as error:
            raise self.backend.failure(error) from error


_MORE = object()


def _next_chunk(work: Chunked[T]) -> T | object:
    """Run work to its next yield; return its result, or `_MORE`."""
    try:
        next(work)
    except StopIteration as stop:
        result: T = stop.value
        return result
    return _MORE


def run_all(work: Chunked[T]) -> T:
    """Run all chunks of some work at once, and return its result."""
    while (result := _next_chunk(work)) is _MORE:
        pass
    return result  # type: ignore[return-value]


def n_that_fit(sizes: Iterable[int], max_bytes: int) -> int:
    """Return how many of the first sizes have `max_bytes` together; at least 1, unless there are none."""
    n_fit = n_bytes = 0
    for size in sizes:
        n_bytes += size
        if n_fit and n_bytes > max_bytes:
            break
        n_fit += 1
    return n_fit


def _log_failure(done: Future[Any]) -> None:
    if error := done.exception():
        logger.warning("%s", error)


def chunks(
    rows: Iterable[T], size: Callable[[T], int] = lambda row: 0, max_bytes: int = PAGE_BYTES
) -> Iterator[list[T]]:
    """Cut `rows` into lists of at most `CHUNK` rows and about `max_bytes`."""
    chunk: list[T] = []
    n_bytes = 0
    for row in rows:
        chunk.append(row)
        n_bytes += size(row)
        if len(chunk) == CHUNK or n_bytes >= max_bytes:
            yield chunk
            chunk, n_bytes = [], 0
    if chunk:
        yield chunk
