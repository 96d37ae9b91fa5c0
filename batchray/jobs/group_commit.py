"""Group commits: attempts, checkpoints and outcomes of a job's items go to disk together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress

from batchray.jobs.deadlines import PausableDeadlines
from batchray.store import AheadCounts, LedJob, NewAttempt, NewOutcome, NewStep, RetryingStore, Store

# After a commit of n writes the next one gathers for n times this, up to the interval.  So a lone write waits for
# nothing, and under load, when each commit has many, there are not more of them than the interval allows.
_GATHER_S_PER_WRITE = 0.0005
_AWAITED_GATHER_S = 0.02
"""The longest that a write gathers if something waits for it."""


Commit = asyncio.Future[AbstractSet[int]]
"""A commit that may not have begun; its result is the indexes of the outcomes that the store accepted."""


class GroupCommitter:
    """Writes for all items of a job in common transactions.

    A write that finds no commit on its way starts one.  The next commit gathers meanwhile, and for up to `interval_s`
    after it: for less if something waits for it, and if few writes came together.

    While the store is unavailable, outcomes wait here, as many as their window lets in; no attempt begins, and
    `deadlines` are paused.
    """

    def __init__(
        self, store: RetryingStore, job: LedJob, deadlines: PausableDeadlines, interval_s: float = 0.05
    ) -> None:
        self.store, self.deadlines = store, deadlines
        self._job, self._interval_s = job, interval_s
        self._next = _Write(store.sync, job)
        self._commit: Commit | None = None
        self._last: Commit | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._is_awaited = asyncio.Event()

    async def begin(self, attempt: NewAttempt) -> None:
        """Count an attempt; on disk when this returns."""
        await self.store.wait_for_space()
        self._next.attempts.append(attempt)
        await self.committed(self._hand_in())

    def count_ahead(self, index: int) -> Commit | None:
        """Count the first attempt at an item, which begins later with `begin_counted`; None if the disk is full."""
        if not self.store.sync.has_room():
            return None
        self._next.counted_ahead.append(index)
        return self._hand_in()

    async def begin_counted(self, index: int, counted: Commit) -> None:
        """Begin an attempt that is counted ahead; its row is on disk when this returns."""
        await self.store.wait_for_space()
        await self.committed(counted)
        self._next.begun.append(index)
        self._hand_in()

    def uncount(self, indexes: Iterable[int]) -> None:
        """Take back attempts that were counted ahead and will not begin."""
        self._next.uncounted += indexes
        self._hand_in()

    async def save_steps(self, steps: Sequence[NewStep]) -> None:
        """Save checkpoints of attempts; on disk when this returns."""
        self._next.steps += steps
        await self.committed(self._hand_in())

    def record(self, outcome: NewOutcome) -> Commit:
        """Hand in an outcome.  Its commit may gather for long, unless something waits for it by `committed`."""
        self._next.outcomes.append(outcome)
        return self._hand_in()

    async def committed(self, commit: Commit) -> AbstractSet[int]:
        """Wait for a commit, and have it begin soon."""
        if not commit.done():
            self._is_awaited.set()
        return await asyncio.shield(commit)

    async def drain(self) -> None:
        """Wait until everything that was handed in is on disk."""
        if self._last is not None:
            self._is_awaited.set()
            await asyncio.wait([self._last])

    def _hand_in(self) -> Commit:
        """Return the next commit, which takes what has been added to `_next`."""
        if self._commit is None:
            self._commit = self._last = asyncio.get_running_loop().create_future()
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())
        return self._commit

    async def _flush(self) -> None:
        """Commit until nothing is left.  While one commit is on its way to disk the next one gathers."""
        while self._commit is not None:
            write, commit = self._next, self._commit
            self._next, self._commit = _Write(self.store.sync, self._job), None
            self._is_awaited.clear()
            try:
                with self.deadlines.commit():
                    accepted = await self.store.call(write)
            except Exception as error:  # noqa: BLE001  # raised to every waiter, and ends the job
                commit.set_exception(error)
                commit.exception()  # marks it as retrieved: there may be no waiter, or all were cancelled
            else:
                commit.set_result({outcome.index for outcome in accepted})
            await self._gather(write.n_rows)

    async def _gather(self, n_written: int) -> None:
        """Wait until the next commit is due, after one of `n_written` writes."""
        end = asyncio.get_running_loop().time() + self._interval_s
        await asyncio.sleep(min(n_written * _GATHER_S_PER_WRITE, _AWAITED_GATHER_S, self._interval_s))
        with suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                await self._is_awaited.wait()


class _Write:
    """One group commit, which may be called until it succeeds and knows whether it was called before."""

    def __init__(self, store: Store, job: LedJob) -> None:
        self._store, self._job = store, job
        self.attempts: list[NewAttempt] = []
        self.outcomes: list[NewOutcome] = []
        self.steps: list[NewStep] = []
        self.counted_ahead: list[int] = []
        self.begun: list[int] = []
        self.uncounted: list[int] = []
        self._is_retry = False

    @property
    def n_rows(self) -> int:
        """How many rows it writes."""
        n_ahead = len(self.counted_ahead) + len(self.begun) + len(self.uncounted)
        return len(self.attempts) + len(self.outcomes) + len(self.steps) + n_ahead

    def __call__(self) -> list[NewOutcome]:
        is_retry, self._is_retry = self._is_retry, True
        ahead = AheadCounts(self.counted_ahead, self.begun, self.uncounted)
        return self._store.outcomes.write(self._job, self.attempts, self.outcomes, is_retry, self.steps, ahead)
