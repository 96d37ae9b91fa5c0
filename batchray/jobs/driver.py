"""Run a job: read its items, keep the window full, record each outcome once, end the job."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from batchray.config import AgentSet, BoundAgent, Settings
from batchray.errors import JobInterruptedError, JobPausedError, LeaseLostError, StoreError
from batchray.executors import ControlChannel, Executor, ProviderBoard
from batchray.jobs.control import renewing_lease
from batchray.jobs.deadlines import PausableDeadlines
from batchray.jobs.endings import CANCELED
from batchray.jobs.group_commit import GroupCommitter
from batchray.jobs.item_runner import ItemRunner
from batchray.jobs.provider_gates import GROWTH_S, ProviderGates
from batchray.jobs.running import ItemWindow, RunningJob
from batchray.jobs.slots import Slot, Slots, Wanted
from batchray.jobs.steering import close_channel, sync_control
from batchray.jobs.timing import JobTiming
from batchray.jobs.window import Window
from batchray.store import TALLY_EVERY, JobRecord, PendingItem, RetryingStore, Store
from batchray.support.interpreter import trim_heap
from batchray.support.threads import on_own_thread

logger = logging.getLogger(__name__)

_WATCH_S = 1.0
_TRIM_EVERY = 100_000
"""After how many outcomes the heap is trimmed, which may stop this process for tens of milliseconds."""
# Of items read ahead that wait for a slot of their provider or agent; an item takes `_ITEM_BYTES` besides its request.
_MAX_WAITING_BYTES = 64 * 1024 * 1024
_ITEM_BYTES = 512


async def run_job(
    job: RunningJob,
    executor: Executor,
    channels: Sequence[ControlChannel] = (),
    providers: ProviderBoard | None = None,
    *,
    stays_when_paused: bool = False,
) -> JobRecord:
    """Run every item that has no outcome yet, record each outcome once, then end the job.

    `providers` has what holds back the executor's calls to model providers.  A job that pauses itself stops, or with
    `stays_when_paused` waits here until it is unpaused.

    Returns the ended job.  Raises JobPausedError if it has paused itself, JobInterruptedError if it was stopped before
    its end, and ClusterError or StoreError if it cannot continue; recorded outcomes stay, and a later run continues
    from them.
    """
    runner = ItemRunner(job, executor)
    async with _in_background(job, channels, providers or ProviderBoard()):
        while True:
            await _run_items(job, runner)
            if job.is_interrupted:
                raise JobInterruptedError(job.record.id)
            if job.paused_because is None or job.ending is not None or job.progress.done >= job.record.total:
                return await _end(job)
            await job.store.jobs.pause(job.record, job.paused_because)
            if not stays_when_paused:
                raise JobPausedError(job.record.id, job.paused_because)
            logger.warning("job %s has paused itself: %s", job.record.id, job.paused_because)
            await job.until_continued()
            if job.ending is None and not job.is_interrupted:
                await job.store.jobs.pause(job.record, None)


async def _run_items(job: RunningJob, runner: ItemRunner) -> None:
    """Run the items without an outcome, until all have one or the job has paused itself or is stopped."""
    try:
        async with aclosing(job.window.run(_pending_items(job), runner.run, runner.prepare)) as finished:
            async for several in finished:
                job.count([outcome for outcomes in several for outcome in outcomes])  # committed before counted
    finally:
        runner.forget_prepared()
    if job.paused_because is None and not job.is_interrupted and len(job.held):
        job.count(await runner.record(job.held.take_all()))
    await job.committer.drain()
    if job.paused_because is not None and not job.is_interrupted:
        await _recount(job)


async def _recount(job: RunningJob) -> None:
    """Count all outcomes that are committed, those of which a stopped window told nothing included."""
    tally = await job.store.call_chunked(job.store.sync.tallies.catch_up, job.record)
    job.progress = tally.progress(job.record.total)


async def start_job(
    job_id: str,
    agents: AgentSet,
    store: Store,
    settings: Settings,
    slots: Slots | None = None,
    deadlines: PausableDeadlines | None = None,
    answered: set[str] | None = None,
) -> RunningJob:
    """Mark a job as running here, with its progress so far read from the store.

    `slots`, `deadlines` and the endpoints of providers that have `answered` are those that all jobs of this process
    share.  Raises LeaseLostError while another process leads the job, and JobEndedError if it has ended.
    """
    waiting = RetryingStore(store, f"job {job_id}")
    record = await waiting.jobs.start(job_id)
    async with renewing_lease(store, record):  # to read the outcomes that an older version left may take long
        first_cleared = await waiting.reopenings.clear_part(record, -1)
        tally = await waiting.call_chunked(store.tallies.catch_up, record)
        opened_at = await waiting.jobs.opened_at(record)
        asked = await waiting.leases.requested(record)
    slots, progress = slots or Slots(), tally.progress(record.total)
    gates = ProviderGates(job_id, agents, slots, answered)
    window = _window(agents, settings, slots, gates, store.data_dir, record.user_id)
    committer = GroupCommitter(waiting, record, deadlines or PausableDeadlines())
    timing = JobTiming(record, opened_at, settings.job_deadline_s, is_resumed=progress.done > 0)
    job = RunningJob(record, agents, settings, progress, timing, window, committer, gates, first_cleared)
    if asked.get("is_canceled"):  # an earlier run died before it was canceled
        job.cancel()
    return job


def _window(
    agents: AgentSet, settings: Settings, slots: Slots, gates: ProviderGates, data_dir: Path, user_id: str
) -> ItemWindow:
    wanted = {
        agent_id: (*_slots_of(bound, data_dir, user_id), *((gate.slot,) if (gate := gates.of_agent(agent_id)) else ()))
        for agent_id, bound in agents.agents.items()
    }
    return Window(
        settings.max_in_flight,
        wanted=lambda item: wanted.get(item.agent_id, ()),
        slots=slots,
        weight=lambda item: len(item.request) + _ITEM_BYTES,
        max_waiting=_MAX_WAITING_BYTES,
    )


def _slots_of(bound: BoundAgent, data_dir: Path, user_id: str) -> Wanted:
    """Return the slots that a request to an agent of this user needs: of the agent if it is stateful, of its provider.

    A provider is told apart by its address and its limit, because jobs may have been created with different settings.
    """
    agent, provider = bound.agent, bound.provider
    slots = [Slot(("agent", data_dir, user_id, agent.id), 1)] if agent.stateful else []
    if provider is not None and provider.max_in_flight is not None:
        limit = provider.max_in_flight
        slots.append(Slot(("provider", agent.provider_name, provider.protocol, provider.base_url, limit), limit))
    return tuple(slots)


@asynccontextmanager
async def _in_background(
    job: RunningJob, channels: Sequence[ControlChannel], providers: ProviderBoard
) -> AsyncIterator[None]:
    """Watch deadline and providers and exchange control in this block; then write what is left, close the channels."""

    def on_change() -> None:
        job.set_provider_states(providers.states())

    work = (
        _watch(job),
        _every(TALLY_EVERY, job, partial(_store_tally, job)),
        _every(_TRIM_EVERY, job, _trim),
        *(sync_control(job, channel) for channel in channels),
    )
    tasks = [asyncio.create_task(each) for each in work]
    on_change()
    job.clearing.start()
    try:
        with providers.listening(on_change):
            yield
    finally:
        job.gates.close()
        job.store.end()
        await job.committer.drain()
        await job.clearing.stop()
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        await asyncio.gather(*(close_channel(job, channel) for channel in channels))


async def _pending_items(job: RunningJob) -> AsyncIterator[PendingItem]:
    """Read the items without an outcome, a page at a time; in a retry, those whose failed outcomes are deleted."""
    last = -1
    while True:
        until = job.clearing.until
        page = await job.window.unless_stopped(job.store.items.unfinished(job.record, last, until=until))
        for item in page or ():
            yield item
        if page:
            last = page[-1].index
        elif page is None or until >= job.record.total - 1:
            return
        else:
            await job.window.unless_stopped(job.clearing.beyond(until))


async def _watch(job: RunningJob) -> None:
    """End the job at its deadline, or a single request whose turn does not come; log items that have stalled."""
    stopwatch, began_s = job.committer.deadlines.stopwatch(), time.monotonic()
    while (left_s := job.timing.left_s()) > 0:
        for flight in job.in_flight.newly_stalled():
            facts = {"job_id": job.record.id, "index": flight.index}
            logger.warning(
                "job %s: item %d makes no progress (agent %r, attempt %d)",
                *(job.record.id, flight.index, flight.agent_id, flight.attempt),
                extra=facts,
            )
        job.check_providers(left_s)
        job.check_turn(stopwatch.without_pauses(time.monotonic() - began_s))
        await asyncio.sleep(min(left_s, GROWTH_S if job.gates.grow(time.monotonic()) else _WATCH_S))
    job.expire()


async def _every(n_outcomes: int, job: RunningJob, act: Callable[[], Awaitable[None]]) -> None:
    """Call `act` each time that about `n_outcomes` more are counted, until cancelled."""
    n_done = job.progress.done
    while True:
        await asyncio.sleep(_WATCH_S)
        if job.progress.done - n_done >= n_outcomes:
            n_done = job.progress.done
            await act()


async def _store_tally(job: RunningJob) -> None:
    """Store the tally of the outcomes, so that a resume and other processes read few of them."""
    with suppress(StoreError, LeaseLostError):  # which the job itself meets too
        await job.store.call_chunked(job.store.sync.tallies.catch_up, job.record)


async def _trim() -> None:
    """Return memory to the system: the size of this process must not depend on the number of requests."""
    await on_own_thread("batchray-trim", trim_heap)


async def _end(job: RunningJob) -> JobRecord:
    """Write the job's end: its status, its counts and its durations."""
    if (ending := job.ending) is not None:
        await job.clearing.finish()
        await job.store.outcomes.end_unfinished(job.record, *ending.of_items)
        await _recount(job)
    status, stop_reason = _final_status(job)
    logger.info("job %s: %s", job.record.id, status, extra={"job_id": job.record.id})
    return await job.store.jobs.end(job.record, status, stop_reason, job.progress, *job.timing.durations())


def _final_status(job: RunningJob) -> tuple[str, str]:
    """Return a job's status and stop reason, from the outcomes of all of its items."""
    ending, counts = job.ending, job.progress.counts
    # All items with the ending's status count: an earlier call, which failed after its commit, may have ended some.
    if ending is not None and (ending is CANCELED or counts[ending.of_items[0]]):
        return ending.status, ending.stop_reason
    if (left := job.record.total - job.progress.done) > 0:
        raise StoreError(f"job {job.record.id} came to its end with {left} items without an outcome")
    return ("completed", "end_turn") if counts["succeeded"] else ("failed", "error")
