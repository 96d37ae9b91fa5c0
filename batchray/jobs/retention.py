"""Ended jobs go after the days that they are kept, while the server does everything else."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta

from batchray.errors import StoreError, StoreFullError
from batchray.store import AsyncStore

logger = logging.getLogger(__name__)

_EVERY_S = 600.0
# Between two steps, so that what others write comes first.
_REST_S = 0.02


async def run_retention(store: AsyncStore, days: float) -> None:
    """Delete the jobs that ended more than `days` ago, now and then, until cancelled."""
    while True:
        try:
            await prune(store, days)
        except StoreError as error:
            logger.warning("ended jobs cannot be deleted at the moment: %s", error)
        await asyncio.sleep(_EVERY_S)


async def prune(store: AsyncStore, days: float) -> None:
    """Delete the jobs that ended more than `days` ago, and give their room back to the disk."""
    ended_before = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="microseconds")
    has_more = True
    while has_more:
        has_more = await _step(store, ended_before)
        await asyncio.sleep(_REST_S)
    has_more = True  # also where nothing was deleted now: an earlier server may not have come to it
    while has_more:
        has_more = await store.retention.shrink()
        await asyncio.sleep(_REST_S)


async def _step(store: AsyncStore, ended_before: str) -> bool:
    try:
        return await store.retention.prune(ended_before)
    except StoreFullError:  # the reserve is released now, and it is for this
        return await store.retention.prune(ended_before)
