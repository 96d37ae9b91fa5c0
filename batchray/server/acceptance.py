"""Accepts batches: checks them, stores them durably, and queues them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

from batchray.batch.parse import read_body
from batchray.errors import KeyInUseError
from batchray.schema import new_job_id
from batchray.server.agent_catalog import AgentLookup
from batchray.server.errors import HttpError, stopping, unavailable
from batchray.server.idempotency import known_job
from batchray.server.scheduler import JobScheduler
from batchray.server.storage import ServerStorage
from batchray.server.upload import Body
from batchray.store import ItemPage, JobRecord, NewItem, NewJob, Store
from batchray.support.threads import on_own_thread

T = TypeVar("T")


class BatchAcceptance:
    """Creates the jobs of batches.  An idempotency key that comes again yields the job that it created first."""

    def __init__(self, storage: ServerStorage, agents: AgentLookup, scheduler: JobScheduler) -> None:
        self._store, self._reader = storage.store, storage.reader
        self._agents, self._scheduler = agents, scheduler
        self._keys_in_use: set[tuple[str, str]] = set()

    async def accept(self, user_id: str, body: Body, key: str | None) -> JobRecord:
        """Store a batch and queue its job; errors as in `accept_with`, and BatchFormatError."""
        agent_ids = await self._agents.ids(user_id)
        return await self.accept_with(user_id, key, body.digest, partial(self._create, body=body, agent_ids=agent_ids))

    async def accept_with(
        self, user_id: str, key: str | None, digest: str | None, create: Callable[[Store, NewJob], None]
    ) -> JobRecord:
        """Call `create`, which stores a job, and queue that.  The job is durable when this returns.

        If the user has used the idempotency key before, returns the job of that request.  Raises what `create` raises,
        and HttpError 409 while a batch with the same key is being accepted, 422 if the key came with another body
        before, 503 while the server is stopping.
        """
        if self._scheduler.is_draining:
            raise stopping()
        with self._reserve_key(user_id, key):
            if (known := await known_job(self._reader, user_id, key, digest)) is not None:
                return known
            job_id = new_job_id()
            new = NewJob(job_id, self._agents.snapshot, user_id=user_id, idempotency_key=key, body_digest=digest)
            try:
                await on_own_thread("batchray-intake", create, self._store.sync, new)
            except KeyInUseError:  # another server accepted it at the same time
                if (known := await known_job(self._reader, user_id, key, digest)) is not None:
                    return known
                raise unavailable(1, "a batch with this Idempotency-Key is being accepted") from None
        job = await self._reader.jobs.get(job_id)
        if not job.is_ended:
            self._scheduler.enqueue(job_id)
            job = await self._reader.jobs.get(job_id)
        return job

    def _create(self, store: Store, new: NewJob, body: Body, agent_ids: Set[str]) -> None:
        """Store the batch of a body.  A small body is checked before it is stored, a large one at the same time."""
        jobs = store.jobs
        if body.checker is None:
            small = read_body(body.data, agent_ids)
            items = [NewItem(*request) for request in small.requests]
            jobs.create(replace(new, callback_url=small.callback_url, unused_fields=lambda: small.unused), items)
        else:
            with body.checker.check(agent_ids) as large:
                pages = (ItemPage(*page) for page in self.until_drain(large.pages))
                complete = replace(new, callback_url=large.callback_url, unused_fields=lambda: large.unused)
                jobs.create_paged(complete, pages)

    def until_drain(self, pages: Iterable[T]) -> Iterator[T]:
        """Yield the pages.  Raises HttpError 503 when the server stops, so that nothing of the batch is stored."""
        for page in pages:
            if self._scheduler.is_draining:
                raise stopping()
            yield page

    @contextmanager
    def _reserve_key(self, user_id: str, key: str | None) -> Iterator[None]:
        """Reserve an idempotency key inside this block.  Raises HttpError 409 if it is reserved already."""
        if key is None:
            yield
            return
        reserved = (user_id, key)
        if reserved in self._keys_in_use:
            raise HttpError(409, "a batch with this Idempotency-Key is being accepted", {"Retry-After": "1"})
        self._keys_in_use.add(reserved)
        try:
            yield
        finally:
            self._keys_in_use.discard(reserved)
