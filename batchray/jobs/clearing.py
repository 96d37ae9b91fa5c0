"""The deletion of the outcomes that a retry runs again, while the first of its items run already."""

from __future__ import annotations

import asyncio

from batchray.store import LedJob, RetryingStore


class Clearing:
    """Deletes the failed outcomes of a job's earlier runs, in index order; items whose outcomes are gone may run.

    `until` is the index of the last such item; `first` is what the first part of the deletion has returned.
    """

    def __init__(self, store: RetryingStore, job: LedJob, first: int | None) -> None:
        self._store, self._job = store, job
        self.until = job.total - 1 if first is None else first
        self._moved = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_over(self) -> bool:
        """Whether all items may run."""
        return self.until >= self._job.total - 1

    def start(self) -> None:
        """Delete the rest in the background."""
        if not self.is_over:
            self._task = asyncio.create_task(self._run())

    async def beyond(self, until: int) -> None:
        """Wait until items behind the one with this index may run.  Raises the error that has ended the deletion."""
        while self.until <= until and self._task is not None:
            self._moved.clear()
            moving = asyncio.ensure_future(self._moved.wait())
            try:
                await asyncio.wait((moving, self._task), return_when=asyncio.FIRST_COMPLETED)
            finally:
                moving.cancel()
            if self._task.done():
                self._task.result()

    async def finish(self) -> None:
        """Wait until all is deleted."""
        if self._task is not None:
            await self._task

    async def stop(self) -> None:
        """Leave the rest to the job's next leader."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)  # an error is raised to those that wait

    async def _run(self) -> None:
        while (until := await self._store.reopenings.clear_part(self._job, self.until)) is not None:
            self.until = until
            self._moved.set()
        self.until = self._job.total - 1
