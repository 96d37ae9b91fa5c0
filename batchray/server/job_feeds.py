"""Jobs that are followed: the record of each is read once per poll for all its followers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import NamedTuple

from batchray.errors import BatchrayError
from batchray.server.errors import stopping
from batchray.server.stream import StreamCutError
from batchray.server.views import batch_job
from batchray.store import JobRecord, ThreadedStore

logger = logging.getLogger(__name__)

_POLL_S = 0.5


class JobSnapshot(NamedTuple):
    """A job at one time, also as JSON."""

    record: JobRecord
    text: bytes

    @classmethod
    def of(cls, record: JobRecord) -> JobSnapshot:
        """Return the snapshot of a job."""
        return cls(record, batch_job(record).model_dump_json().encode())

    @property
    def version(self) -> Hashable:
        """Equal for two snapshots of a job between which it has not changed for its followers."""
        record = self.record
        return record.status, record.completed_at, record.paused_because, tuple(record.counts.values())


class JobFeed:
    """The snapshots of one job, for its followers."""

    def __init__(self, state: JobSnapshot) -> None:
        self.state, self.n_followers = state, 0
        self.polling: asyncio.Task[None] | None = None
        self._is_cut = False
        self._changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def next(self, seen: JobSnapshot, timeout_s: float) -> JobSnapshot:
        """Return the state that follows `seen`, or `seen` itself if there is none within the time.

        Raises StreamCutError if there will be none.
        """
        if not self._is_cut and self.state is seen:
            await asyncio.wait({self._changed}, timeout=timeout_s)
        if self._is_cut:
            raise StreamCutError("the job cannot be followed any more")
        return self.state

    def update(self, record: JobRecord) -> None:
        """Tell the followers of a new state."""
        state = JobSnapshot.of(record)
        if state.version != self.state.version:
            self.state = state
            self._wake()

    def cut(self) -> None:
        """End the feed, although the job has not ended."""
        self._is_cut = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set_result(None)
        self._changed = self._changed.get_loop().create_future()


class JobFeeds:
    """The feeds of the jobs that are followed now.  `poll_s` is the time between two looks at a job."""

    def __init__(self, reader: ThreadedStore, poll_s: float = _POLL_S) -> None:
        self._reader, self._poll_s = reader, poll_s
        self._feeds: dict[str, JobFeed] = {}
        self._is_cut = False

    @asynccontextmanager
    async def follow(self, job: JobRecord) -> AsyncIterator[JobFeed]:
        """Follow a job inside the block.  Raises HttpError 503 if the server is about to exit."""
        if self._is_cut:
            raise stopping()
        feed = self._feeds.get(job.id)
        if feed is None:
            feed = self._feeds[job.id] = JobFeed(JobSnapshot.of(job))
            feed.polling = asyncio.create_task(self._poll(job.id, feed))
        assert feed.polling is not None
        feed.n_followers += 1
        try:
            yield feed
        finally:
            feed.n_followers -= 1
            if not feed.n_followers:
                self._remove(job.id, feed)
                feed.polling.cancel()

    def cut(self) -> None:
        """End all feeds because the server exits.  The responses of their followers end without a last chunk."""
        self._is_cut = True
        for feed in self._feeds.values():
            feed.cut()
        self._feeds.clear()

    async def _poll(self, job_id: str, feed: JobFeed) -> None:
        try:
            while not feed.state.record.is_ended:
                await asyncio.sleep(self._poll_s)
                feed.update(await self._reader.jobs.get(job_id))
        except BatchrayError as error:  # the store cannot be used, or the job was deleted
            logger.warning("job %s cannot be followed any more: %s", job_id, error)
            feed.cut()
        finally:
            self._remove(job_id, feed)

    def _remove(self, job_id: str, feed: JobFeed) -> None:
        """Remove a feed, so that the next follower gets a new one."""
        if self._feeds.get(job_id) is feed:
            del self._feeds[job_id]
