"""Cancel, expire or end a job that no process runs."""

from __future__ import annotations

from contextlib import suppress

from batchray.config import Settings
from batchray.errors import JobEndedError, LeaseLostError
from batchray.jobs.endings import CANCELED, Ending, expired
from batchray.jobs.timing import age_ns
from batchray.store import Chunked, JobRecord, Store


def end_idle_job(store: Store, job_id: str, ending: Ending) -> Chunked[None]:
    """End a job that no process runs; a job that has ended stays as it is.

    Raises LeaseLostError if another process runs it.
    """
    try:
        job = store.jobs.take_over(job_id)
    except JobEndedError:
        return
    yield from store.reopenings.clear(job)
    yield from store.outcomes.end_unfinished(job, *ending.of_items)
    tally = yield from store.tallies.tally(job)
    duration_ns = age_ns(job.started_at) if job.started_at is not None else 0
    store.jobs.end(job, ending.status, ending.stop_reason, tally.progress(job.total), None, duration_ns)


def cancel_idle_job(store: Store, job_id: str) -> Chunked[None]:
    """Cancel a job that this process does not run; a job that has ended stays as it is.

    If another process leads the job, or takes it over during this call, that process cancels it.
    """
    record = store.jobs.get(job_id)
    if not record.is_ended:
        store.leases.request(record, is_canceled=True)
        with suppress(LeaseLostError):
            yield from end_idle_job(store, job_id, CANCELED)


def expire_idle_job(store: Store, record: JobRecord, settings: Settings) -> Chunked[bool]:
    """End a job that no process runs if its deadline has passed; return whether it was ended."""
    if record.is_ended or age_ns(store.jobs.opened_at(record)) / 1e9 < settings.job_deadline_s:
        return False
    yield from end_idle_job(store, record.id, expired(settings))
    return True
