"""Run a job: read its items, keep the window full, record each outcome once, end the job."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

from pydantic import ValidationError

from batchray.config import AgentSet, Settings
from batchray.errors import JobInterruptedError, LeaseLostError, StoreError
from batchray.executors import ControlChannel, Executor
from batchray.jobs.control import ControlRequest, LeaseChannel
from batchray.jobs.deadlines import PausableDeadlines
from batchray.jobs.running import CANCELED, Ending, RunningJob, age_ns, expired
from batchray.jobs.slots import KeyedSemaphore
from batchray.schema.progress import Progress
from batchray.store import Chunked, JobRecord, PendingItem, RetryingStore, Store

logger = logging.getLogger(__name__)

_BEAT_S = 0.25
_WATCH_S = 1.0
_LEAVE_S = 2.0
_COUNTED_AT_ONCE = 5000


async def run_job(
    job: RunningJob, store: Store, executor: Executor, channels: Sequence[ControlChannel] = ()
) -> JobRecord:
    """Run every item that has no outcome yet, record each outcome once, then end the job.

    Returns the ended job.  Raises JobInterruptedError when it was stopped before its end, and ClusterError or
    StoreError when it cannot go on; what is recorded stays, and a later run goes on from there.
    """
    background = [
        asyncio.create_task(work)
        for work in (_watch(job), *(_sync_control(job, store, channel) for channel in channels))
    ]
    try:
        async with aclosing(job.window.run(_pending(job, store), job.run_item(store, executor))) as finished:
            async for outcomes in finished:
                job.count(outcomes)
        await job.committer(store).drain()
        if job.is_interrupted:
            raise JobInterruptedError(job.record.id)
        return await _end(job, store)
    finally:
        job.patience.end()
        await job.committer(store).drain()
        for task in background:
            task.cancel()
        for task in background:
            with suppress(asyncio.CancelledError):
                await task
        await asyncio.gather(*(_close_channel(job, channel) for channel in channels))


async def start_job(
    job_id: str,
    agents: AgentSet,
    store: Store,
    settings: Settings,
    turns: KeyedSemaphore | None = None,
    deadlines: PausableDeadlines | None = None,
) -> RunningJob:
    """Mark a job as running here, with its progress so far read from the store.

    `turns` and `deadlines` are those that all jobs of this process share.  Raises LeaseLostError while another process
    leads it.
    """
    patience = RetryingStore(store, f"job {job_id}")
    record = await patience.jobs.start(job_id)
    async with _renewing_lease(store, record):  # to count a million outcomes takes longer than a lease lasts
        progress = await patience.call_chunked(_rebuild_progress, store, record)
        opened_at = await patience.jobs.opened_at(record)
        wishes = {} if record.is_ended else await patience.leases.requested(record)
    job = RunningJob(
        record,
        agents,
        settings,
        progress,
        opened_at,
        patience,
        turns or KeyedSemaphore(),
        deadlines or PausableDeadlines(),
    )
    if wishes.get("is_canceled"):  # which an earlier leader, or this process before it died, has not done
        job.cancel()
    return job


@asynccontextmanager
async def _renewing_lease(store: Store, record: JobRecord) -> AsyncIterator[None]:
    """Renew a job's lease while entered."""

    async def renew() -> None:
        channel = LeaseChannel(store, record)
        while True:
            with suppress(LeaseLostError):  # which the job hears of when it begins
                await channel.update({})
            await asyncio.sleep(_BEAT_S)

    renewing = asyncio.create_task(renew()) if store.is_shared and not record.is_ended else None
    try:
        yield
    finally:
        if renewing is not None:
            renewing.cancel()
            await asyncio.wait([renewing])


async def _pending(job: RunningJob, store: Store) -> AsyncIterator[PendingItem]:
    """Read the items without an outcome, a page at a time."""
    last = -1
    while page := await job.window.unless_stopped(job.patience.items.unfinished(job.record, last)):
        for item in page:
            yield item
        last = page[-1].index


async def _sync_control(job: RunningJob, store: Store, channel: ControlChannel) -> None:
    """Hand out snapshots and take wishes in, a few times a second; each link by itself, as one may be slow."""
    heard: dict[str, Any] = {}
    is_told = False
    while True:
        control = None
        try:
            control = await channel.update(job.snapshot())
            is_told = False
        except LeaseLostError:  # or what is in flight would run here and there until the next outcome is refused
            job.interrupt()
            return
        except Exception as error:  # noqa: BLE001  # whatever it is, the job goes on, and can be steered again later
            if not is_told:
                logger.warning("job %s: nobody can watch or steer it now: %s", job.record.id, error)
            is_told = True
        if control is not None:
            news = {name: wish for name, wish in control.items() if heard.get(name) != wish}
            heard = control
            await _steer(job, store, news)
        await asyncio.sleep(_BEAT_S)


async def _steer(job: RunningJob, store: Store, asked: dict[str, Any]) -> None:
    try:
        wishes = ControlRequest.model_validate(asked)
    except ValidationError as error:
        logger.warning("job %s: a wish is ignored: %s", job.record.id, error)
        return
    job.steer(wishes)
    if wishes.is_canceled:  # or whoever goes on, should this process die before the job's end, would not know
        with suppress(StoreError):  # the job is over
            await job.patience.leases.request(job.record, is_canceled=True)


async def _close_channel(job: RunningJob, channel: ControlChannel) -> None:
    """Hand out the last snapshot, and close a link.  The job has ended, whether that can be shown or not."""
    try:
        with suppress(Exception):
            async with asyncio.timeout(_LEAVE_S):
                await channel.update(job.snapshot())
    finally:
        channel.close()


async def _watch(job: RunningJob) -> None:
    """End the job at its deadline; until then, name items that make no progress."""
    expires = time.monotonic() + job.left_s
    while (left_s := expires - time.monotonic()) > 0:
        for flight in job.in_flight.newly_stalled():
            facts = {"job_id": job.record.id, "index": flight.index}
            logger.warning(
                "job %s: item %d makes no progress (agent %r, attempt %d)",
                *(job.record.id, flight.index, flight.agent_id, flight.attempt),
                extra=facts,
            )
        await asyncio.sleep(min(left_s, _WATCH_S))
    job.expire()


async def _end(job: RunningJob, store: Store) -> JobRecord:
    """Write the job's end: how it ended, how long it took."""
    if job.ending is not None:
        await job.patience.outcomes.end_unfinished(job.record, *job.ending.of_items)
        job.progress = await job.patience.call_chunked(_rebuild_progress, store, job.record)
    # Not by how many items were ended just now: an earlier try, of which nobody knows, may have ended them.
    if job.ending is not None and (job.ending is CANCELED or job.progress.counts[job.ending.of_items[0]]):
        status, stop_reason = job.ending.status, job.ending.stop_reason
    elif (left := job.record.total - job.progress.done) > 0:
        raise StoreError(f"job {job.record.id} came to its end with {left} items without an outcome")
    elif job.progress.counts["succeeded"]:
        status, stop_reason = "completed", "end_turn"
    else:
        status, stop_reason = "failed", "error"
    logger.info("job %s: %s", job.record.id, status, extra={"job_id": job.record.id})
    ended = (status, stop_reason, job.progress, *job.durations())
    return await job.patience.jobs.end(job.record, *ended)


def end_idle_job(store: Store, job_id: str, ending: Ending) -> Chunked[None]:
    """End a job that no process runs.  One that has ended stays as it is.

    Raises LeaseLostError where another process runs it.
    """
    record = store.jobs.take_over(job_id)
    if not record.is_ended:
        yield from store.outcomes.end_unfinished(record, *ending.of_items)
        progress = yield from _rebuild_progress(store, record)
        store.jobs.end(record, ending.status, ending.stop_reason, progress, None, 0)


def cancel_idle_job(store: Store, job_id: str) -> Chunked[None]:
    """Cancel a job that this process does not run.  One that has ended stays as it is.

    One that another process leads is left to that to cancel: also where it takes the job over in the middle of this.
    """
    record = store.jobs.get(job_id)
    if not record.is_ended:
        store.leases.request(record, is_canceled=True)
        with suppress(LeaseLostError):
            yield from end_idle_job(store, job_id, CANCELED)


def expire_idle_job(store: Store, record: JobRecord, settings: Settings) -> Chunked[bool]:
    """End a job that no process runs where its deadline has passed; tells whether it has."""
    if record.is_ended or age_ns(store.jobs.opened_at(record)) / 1e9 < settings.job_deadline_s:
        return False
    yield from end_idle_job(store, record.id, expired(settings))
    return True


def _rebuild_progress(store: Store, record: JobRecord) -> Chunked[Progress]:
    progress = Progress(total=record.total)
    for n, (status, timing, usage) in enumerate(store.items.timings(record), start=1):
        progress.record(status, timing, usage)
        if n % _COUNTED_AT_ONCE == 0:
            yield
    return progress
