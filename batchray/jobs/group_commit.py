"""Group commits: what the items of a job ask to be written goes to disk together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from batchray.jobs.deadlines import PausableDeadlines
from batchray.store import JobRecord, NewAttempt, NewOutcome, NewStep, RetryingStore, Store


class GroupCommitter:
    """Group commits: what all items ask to be written goes to disk together, at most every `interval_s`.

    While the store cannot be used, outcomes are kept here, at most one for each place of the window, no attempt begins,
    and `deadlines` are paused.
    """

    def __init__(
        self,
        store: Store,
        job: JobRecord,
        patience: RetryingStore,
        deadlines: PausableDeadlines,
        interval_s: float = 0.02,
    ) -> None:
        self._store, self._job, self._patience, self._interval_s = store, job, patience, interval_s
        self._deadlines = deadlines
        self._attempts: list[NewAttempt] = []
        self._outcomes: list[NewOutcome] = []
        self._steps: list[NewStep] = []
        self._waiting: asyncio.Future[set[int]] | None = None
        self._flushing: asyncio.Task[None] | None = None

    async def begin(self, attempt: NewAttempt) -> None:
        """Count an attempt; on disk when this returns."""
        await self._patience.wait_for_space()
        self._attempts.append(attempt)
        await self._committed()

    async def keep(self, steps: Sequence[NewStep]) -> None:
        """Keep what attempts have done; on disk when this returns."""
        self._steps += steps
        await self._committed()

    async def record(self, outcome: NewOutcome) -> bool:
        """Record an outcome and tell whether it was taken; on disk when this returns."""
        self._outcomes.append(outcome)
        return outcome.index in await self._committed()

    async def drain(self) -> None:
        """Wait until all that was handed in is on disk."""
        if self._flushing is not None:
            await self._flushing

    async def _committed(self) -> set[int]:
        if self._waiting is None:
            self._waiting = asyncio.get_running_loop().create_future()
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())
        return await asyncio.shield(self._waiting)

    async def _flush(self) -> None:
        """Commit until nothing is left.  While one commit is on its way to disk the next one gathers."""
        while self._waiting is not None:
            write = _Write(self._store, self._job, self._attempts, self._outcomes, self._steps)
            waiting = self._waiting
            self._attempts, self._outcomes, self._steps, self._waiting = [], [], [], None
            try:
                with self._deadlines.commit():
                    taken = await self._patience.call(write)
            except Exception as error:  # noqa: BLE001  # every waiter has to hear of it; the job ends with it
                waiting.set_exception(error)
                waiting.exception()  # a waiter may be gone; that is no fault of its own
            else:
                waiting.set_result({outcome.index for outcome in taken})
            await asyncio.sleep(self._interval_s)


class _Write:
    """One group commit that may be called until it comes through, and that knows whether it was called before."""

    def __init__(
        self,
        store: Store,
        job: JobRecord,
        attempts: list[NewAttempt],
        outcomes: list[NewOutcome],
        steps: list[NewStep],
    ) -> None:
        self._store, self._job, self._attempts, self._outcomes, self._steps = store, job, attempts, outcomes, steps
        self._is_again = False

    def __call__(self) -> list[NewOutcome]:
        is_again, self._is_again = self._is_again, True
        return self._store.outcomes.write(self._job, self._attempts, self._outcomes, is_again, self._steps)
