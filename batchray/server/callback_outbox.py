"""The callback sender's outbox in the store."""

from __future__ import annotations

from datetime import datetime

from batchray.callbacks import Delivery, DeliveryAttempt, payload_of
from batchray.schema import run_id
from batchray.server.storage import ServerStorage
from batchray.server.views import batch_job
from batchray.store import DueCallback, ThreadedStore
from batchray.support.failpoints import failpoint


class StoredOutbox:
    """Reads due callbacks, and records the attempts to deliver them.  See `callbacks.Outbox`."""

    def __init__(self, storage: ServerStorage) -> None:
        self._store, self._reader = storage.store, storage.reader
        # Not on the writer thread, which may be busy with a large batch.
        self._due = (
            ThreadedStore(self._store.sync).callbacks.claim if self._store.is_shared else self._reader.callbacks.due
        )

    async def due(self, now: float, limit: int) -> list[Delivery]:
        """Return at most `limit` callbacks that are due at `now`."""
        return [_delivery(due) for due in await self._due(now, limit)]

    async def record(self, delivery: Delivery, attempt: DeliveryAttempt) -> None:
        """Record an attempt to deliver a callback."""
        failpoint("callback-sent")
        await self._store.callbacks.record(
            delivery.job_id,
            delivery.completed_at,
            sent_at=attempt.sent_at.isoformat(timespec="microseconds"),
            status_code=attempt.status_code,
            error=attempt.error,
            next_at=attempt.next_at,
        )

    async def next_due_at(self) -> float | None:
        """Return when the next callback is due, or None."""
        return await self._reader.callbacks.next_due_at()


def _delivery(due: DueCallback) -> Delivery:
    job = due.job
    assert job.completed_at is not None, "a callback is due once its job has ended"
    assert job.callback_url is not None, "a job without a callback URL has no callback"
    completed_at = datetime.fromisoformat(job.completed_at)
    own_run = run_id(job.id, 0) if job.is_single else None
    payload = payload_of(job.id, job.status, completed_at, batch_job(job).metadata, own_run)
    webhook_id = f"{job.id}-{int(completed_at.timestamp())}{completed_at:%f}"  # in microseconds, as a job may end twice
    return Delivery(job.id, job.completed_at, webhook_id, job.callback_url, payload, due.n_attempts)
