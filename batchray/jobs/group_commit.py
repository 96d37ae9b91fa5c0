"""Group commits: attempts, checkpoints and outcomes of a job's items go to disk together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from batchray.jobs.deadlines import PausableDeadlines
from batchray.store import LedJob, NewAttempt, NewOutcome, NewStep, RetryingStore, Store

# After a commit of n writes the next one gathers for n times this, up to the interval.  So a lone write waits for
# nothing, and under load, when each commit has many, there are not more of them than the interval allows.
_GATHER_S_PER_WRITE = 0.0005


class GroupCommitter:
    """Writes for all items of a job in common transactions.

    A write that finds no commit on its way starts one.  The next commit gathers meanwhile, and for up to `interval_s`
    after it: for less if something waits for it, and if few writes came together.

    While the store is unavailable, outcomes wait here, at most one for each item in flight; no attempt begins, and
    `deadlines` are paused.
    """

    def __init__(
        self, store: RetryingStore, job: LedJob, deadlines: PausableDeadlines, interval_s: float = 0.02
    ) -> None:
        self.store, self.deadlines = store, deadlines
        self._job, self._interval_s = job, interval_s
        self._attempts: list[NewAttempt] = []
        self._outcomes: list[NewOutcome] = []
        self._steps: list[NewStep] = []
        self._waiting: asyncio.Future[set[int]] | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._is_awaited = asyncio.Event()

    async def begin(self, attempt: NewAttempt) -> None:
        """Count an attempt; on disk when this returns."""
        await self.store.wait_for_space()
        self._attempts.append(attempt)
        await self._committed()

    async def save_steps(self, steps: Sequence[NewStep]) -> None:
        """Save checkpoints of attempts; on disk when this returns."""
        self._steps += steps
        await self._committed()

    async def record(self, outcome: NewOutcome) -> bool:
        """Record an outcome and return whether the store accepted it; on disk when this returns."""
        self._outcomes.append(outcome)
        return outcome.index in await self._committed()

    async def drain(self) -> None:
        """Wait until everything that was handed in is on disk."""
        self._is_awaited.set()
        if self._flushing is not None:
            await self._flushing

    async def _committed(self) -> set[int]:
        """Wait for the next commit; return the indexes of the outcomes that it accepted."""
        self._is_awaited.set()
        if self._waiting is None:
            self._waiting = asyncio.get_running_loop().create_future()
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())
        return await asyncio.shield(self._waiting)

    async def _flush(self) -> None:
        """Commit until nothing is left.  While one commit is on its way to disk the next one gathers."""
        while self._waiting is not None:
            write = _Write(self.store.sync, self._job, self._attempts, self._outcomes, self._steps)
            waiting = self._waiting
            self._attempts, self._outcomes, self._steps, self._waiting = [], [], [], None
            self._is_awaited.clear()
            try:
                with self.deadlines.commit():
                    accepted = await self.store.call(write)
            except Exception as error:  # noqa: BLE001  # raised to every waiter, and ends the job
                waiting.set_exception(error)
                waiting.exception()  # marks it as retrieved: all waiters may have been cancelled
            else:
                waiting.set_result({outcome.index for outcome in accepted})
            await self._gather(write.n_rows)

    async def _gather(self, n_written: int) -> None:
        """Wait until the next commit is due, after one of `n_written` writes."""
        end = asyncio.get_running_loop().time() + self._interval_s
        await asyncio.sleep(min(n_written * _GATHER_S_PER_WRITE, self._interval_s))
        with suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                await self._is_awaited.wait()


class _Write:
    """One group commit, which may be called until it succeeds and knows whether it was called before."""

    def __init__(
        self,
        store: Store,
        job: LedJob,
        attempts: list[NewAttempt],
        outcomes: list[NewOutcome],
        steps: list[NewStep],
    ) -> None:
        self._store, self._job, self._attempts, self._outcomes, self._steps = store, job, attempts, outcomes, steps
        self._is_retry = False
        self.n_rows = len(attempts) + len(outcomes) + len(steps)

    def __call__(self) -> list[NewOutcome]:
        is_retry, self._is_retry = self._is_retry, True
        return self._store.outcomes.write(self._job, self._attempts, self._outcomes, is_retry, self._steps)
