"""The exchange of a running job with those that watch and control it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from batchray.errors import LeaseLostError, StoreError
from batchray.executors import ControlChannel
from batchray.jobs.control import POLL_S, ControlFile, ControlRequest, LeaseChannel
from batchray.jobs.running import RunningJob

logger = logging.getLogger(__name__)

_CLOSE_S = 2.0


async def sync_control(job: RunningJob, channel: ControlChannel) -> None:
    """Publish snapshots to a channel and carry out what it asks for, every 0.25 s, until cancelled.

    Each channel has a task of its own, so that a slow one does not delay the others.  A request is carried out once,
    when it changes.
    """
    known: dict[str, Any] = {}
    has_warned = False
    while True:
        asked = None
        try:
            asked = await channel.update(job.snapshot())
            has_warned = False
        except LeaseLostError:  # without this, items would run in two processes until the next commit is refused
            job.interrupt()
            return
        except Exception as error:  # noqa: BLE001  # the job continues, and the channel may work again later
            if not has_warned:
                logger.warning("job %s: it cannot be watched or controlled now: %s", job.record.id, error)
            has_warned = True
        if asked is not None:
            changed = {name: value for name, value in asked.items() if known.get(name) != value}
            known = asked
            await _steer(job, channel, changed)
        await asyncio.sleep(POLL_S)


async def close_channel(job: RunningJob, channel: ControlChannel) -> None:
    """Publish the last snapshot if that is possible, and close the channel."""
    try:
        with suppress(Exception):
            async with asyncio.timeout(_CLOSE_S):
                await channel.update(job.snapshot())
    finally:
        channel.close()


async def _steer(job: RunningJob, channel: ControlChannel, asked: dict[str, Any]) -> None:
    try:
        request = ControlRequest.model_validate(asked)
    except ValidationError as error:
        logger.warning("job %s: a control request is ignored: %s", job.record.id, error)
        return
    job.steer(request)
    if request.is_canceled and not isinstance(channel, ControlFile | LeaseChannel):  # which keep it
        # If this process dies before the job's end, the next one to run the job finds the cancel in the store.
        with suppress(StoreError):  # the job has ended
            await job.store.leases.request(job.record, is_canceled=True)
