"""Delete ended jobs after their retention period, expired files, and incomplete jobs, in the background of a server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from batchray.errors import StoreError, StoreFullError
from batchray.store import AsyncStore

logger = logging.getLogger(__name__)

_INTERVAL_S = 600.0
# Between two steps, so that other writes come first.
_PAUSE_S = 0.02


async def run_retention(store: AsyncStore, days: float) -> None:
    """Delete the jobs that ended more than `days` ago, every ten minutes, until cancelled."""
    while True:
        try:
            await prune(store, days)
        except StoreError as error:
            logger.warning("ended jobs cannot be deleted at the moment: %s", error)
        await asyncio.sleep(_INTERVAL_S)


async def prune(store: AsyncStore, days: float) -> None:
    """Delete the jobs that ended more than `days` ago, and return their space to the file system."""
    ended_before = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="microseconds")
    has_more = True
    while has_more:
        has_more = await _step(store, ended_before)
        await asyncio.sleep(_PAUSE_S)
    has_more = True  # even if nothing was deleted now: an earlier server may have stopped before it
    while has_more:
        has_more = await store.retention.shrink()
        await asyncio.sleep(_PAUSE_S)


async def purge(store: AsyncStore, key: int) -> None:
    """Delete the rows of a job that was forgotten."""
    has_more = True
    while has_more:
        has_more = await store.retention.purge(key)
        await asyncio.sleep(_PAUSE_S)


async def run_purge(store: AsyncStore) -> None:
    """Delete expired files, and what is left of jobs that were not stored or deleted completely, every ten minutes."""
    while True:
        await purge_files(store)
        await _purge_all(store.retention.purge)
        await asyncio.sleep(_INTERVAL_S)


async def purge_files(store: AsyncStore) -> None:
    """Delete the files that were forgotten or have expired."""
    await _purge_all(store.files.purge)


async def _purge_all(purge_part: Callable[[], Awaitable[bool]]) -> None:
    try:
        has_more = True
        while has_more:
            has_more = await purge_part()
            await asyncio.sleep(_PAUSE_S)
    except StoreError as error:  # a full disk or a locked database; what is left is unknown already
        logger.warning("deleted files and jobs cannot be removed at the moment: %s", error)


async def _step(store: AsyncStore, ended_before: str) -> bool:
    try:
        return await store.retention.prune(ended_before)
    except StoreFullError:  # which has released the disk reserve, so that deletes have space
        return await store.retention.prune(ended_before)
