"""The server's access to the store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchray.server.storage import BulkReader
from batchray.store import Store
from batchray.support.interpreter import return_free_memory


@pytest.fixture
def bulk(tmp_path: Path) -> Iterator[BulkReader]:
    Store.open(tmp_path).close()
    reader = BulkReader(Store.open_for_reading(tmp_path))
    yield reader
    reader.close()


async def test_two_large_reads_run_at_once(bulk: BulkReader) -> None:
    may_end, began = threading.Event(), threading.Semaphore(0)

    def read() -> bool:
        began.release()
        return may_end.wait(60)

    reads = [asyncio.create_task(bulk.call(read)) for _ in range(5)]
    for _ in range(2):
        await asyncio.to_thread(began.acquire)
    assert not began.acquire(blocking=False)
    may_end.set()
    assert all(await asyncio.gather(*reads))


async def test_memory_is_returned_once_after_each_time_of_reads(bulk: BulkReader) -> None:
    assert not bulk.has_become_quiet()
    for _ in range(2):
        await bulk.call(return_free_memory)
        assert not bulk.has_become_quiet()
        await bulk.call(return_free_memory)
        assert [bulk.has_become_quiet() for _ in range(4)] == [False, True, False, False]
