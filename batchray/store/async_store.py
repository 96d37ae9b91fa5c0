"""The store for async code: the same repositories with awaitable methods."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from batchray.store.agents import Agents
from batchray.store.blocks import Blocks
from batchray.store.callbacks import Callbacks
from batchray.store.conversations import Conversations
from batchray.store.database import Chunked, run_all
from batchray.store.files import Files
from batchray.store.items import Items
from batchray.store.jobs import Jobs
from batchray.store.leases import Leases
from batchray.store.openai_batches import OpenAIBatches
from batchray.store.outcomes import Outcomes
from batchray.store.reopenings import Reopenings
from batchray.store.retention import Retention
from batchray.store.runs import Runs
from batchray.store.store import Store
from batchray.support.threads import on_own_thread

P = ParamSpec("P")
T = TypeVar("T")


class AsyncStore:
    """A store's repositories with awaitable methods, which run one after another on the store's writer thread.

    A method takes the same arguments as the repository's own: `await store.jobs.get(job_id)` runs
    `store.sync.jobs.get(job_id)`.  Subclasses choose another way to call.
    """

    def __init__(self, store: Store) -> None:
        self.sync = store
        self.jobs = AsyncJobs(self, store.jobs)
        self.items = AsyncItems(self, store.items)
        self.outcomes = AsyncOutcomes(self, store.outcomes)
        self.leases = AsyncLeases(self, store.leases)
        self.conversations = AsyncConversations(self, store.conversations)
        self.callbacks = AsyncCallbacks(self, store.callbacks)
        self.agents = AsyncAgents(self, store.agents)
        self.blocks = AsyncBlocks(self, store.blocks)
        self.files = AsyncFiles(self, store.files)
        self.openai_batches = AsyncOpenAIBatches(self, store.openai_batches)
        self.runs = AsyncRuns(self, store.runs)
        self.reopenings = AsyncReopenings(self, store.reopenings)
        self.retention = AsyncRetention(self, store.retention)

    @property
    def is_shared(self) -> bool:
        """See `Store.is_shared`."""
        return self.sync.is_shared

    @property
    def data_dir(self) -> Path:
        """See `Store.data_dir`."""
        return self.sync.data_dir

    async def call(self, method: Callable[P, T], /, *args: P.args, **keywords: P.kwargs) -> T:
        """Run a blocking function that uses the store.  Cancelling the wait does not stop the function."""
        return await self.sync.database.call(method, *args, **keywords)

    async def call_chunked(self, work: Callable[P, Chunked[T]], /, *args: P.args, **keywords: P.kwargs) -> T:
        """Run long work; other calls run between its chunks."""
        return await self.sync.database.call_chunked(work(*args, **keywords))

    def on(self, method: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
        """Return an awaitable version of a blocking method, with the same signature."""

        async def call(*args: P.args, **keywords: P.kwargs) -> T:
            return await self.call(method, *args, **keywords)

        return call

    def apart(self, method: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
        """Return an awaitable version of a method whose transactions run between the calls of others."""

        async def call(*args: P.args, **keywords: P.kwargs) -> T:
            return await on_own_thread("batchray-intake", method, *args, **keywords)

        return call

    def on_chunked(self, work: Callable[P, Chunked[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        """Return an awaitable version of a method that works in chunks, with the same arguments."""

        async def call(*args: P.args, **keywords: P.kwargs) -> T:
            return await self.call_chunked(work, *args, **keywords)

        return call


class ThreadedStore(AsyncStore):
    """Runs calls side by side on threads, not on the writer thread.

    For queries of a store opened for reading, and for short transactions on a shared database.
    """

    async def call(self, method: Callable[P, T], /, *args: P.args, **keywords: P.kwargs) -> T:
        """Run a blocking function on a thread of asyncio's pool."""
        return await asyncio.to_thread(method, *args, **keywords)

    async def call_chunked(self, work: Callable[P, Chunked[T]], /, *args: P.args, **keywords: P.kwargs) -> T:
        """Run long work on a thread of asyncio's pool."""
        return await asyncio.to_thread(lambda: run_all(work(*args, **keywords)))


class AsyncJobs:
    """`Jobs` for async code."""

    def __init__(self, store: AsyncStore, jobs: Jobs) -> None:
        self.create = store.on(jobs.create)
        self.create_paged = store.on(jobs.create_paged)
        self.start = store.on(jobs.start)
        self.pause = store.on(jobs.pause)
        self.take_over = store.on(jobs.take_over)
        self.end = store.on(jobs.end)
        self.reopen = store.on(jobs.reopen)
        self.get = store.on(jobs.get)
        self.find = store.on(jobs.find)
        self.find_by_idempotency_key = store.on(jobs.find_by_idempotency_key)
        self.find_by_id_prefix = store.on(jobs.find_by_id_prefix)
        self.unended = store.on(jobs.unended)
        self.opened_at = store.on(jobs.opened_at)
        self.agent_snapshot = store.on(jobs.agent_snapshot)
        self.count_by_status = store.on(jobs.count_by_status)


class AsyncItems:
    """`Items` for async code."""

    def __init__(self, store: AsyncStore, items: Items) -> None:
        self.unfinished = store.on(items.unfinished)
        self.checkpoints = store.on(items.checkpoints)
        self.find = store.on(items.find)
        self.result = store.on(items.result)
        self.results = store.on(items.results)
        self.finished = store.on(items.finished)
        self.count_by_status = store.on(items.count_by_status)


class AsyncOutcomes:
    """`Outcomes` for async code."""

    def __init__(self, store: AsyncStore, outcomes: Outcomes) -> None:
        self.write = store.on(outcomes.write)
        self.end_unfinished = store.on_chunked(outcomes.end_unfinished)


class AsyncLeases:
    """`Leases` for async code."""

    def __init__(self, store: AsyncStore, leases: Leases) -> None:
        self.renew = store.on(leases.renew)
        self.release = store.on(leases.release)
        self.request = store.on(leases.request)
        self.requested = store.on(leases.requested)
        self.offer = store.on(leases.offer)
        self.running_job_ids = store.on(leases.running_job_ids)


class AsyncConversations:
    """`Conversations` for async code."""

    def __init__(self, store: AsyncStore, conversations: Conversations) -> None:
        self.load = store.on(conversations.load)
        self.delete = store.on(conversations.delete)
        self.history = store.on(conversations.history)
        self.memory = store.on(conversations.memory)
        self.edit_memory = store.on(conversations.edit_memory)


class AsyncCallbacks:
    """`Callbacks` for async code."""

    def __init__(self, store: AsyncStore, callbacks: Callbacks) -> None:
        self.due = store.on(callbacks.due)
        self.claim = store.on(callbacks.claim)
        self.record = store.on(callbacks.record)
        self.next_due_at = store.on(callbacks.next_due_at)
        self.count = store.on(callbacks.count)


class AsyncAgents:
    """`Agents` for async code."""

    def __init__(self, store: AsyncStore, agents: Agents) -> None:
        self.create = store.on(agents.create)
        self.update = store.on(agents.update)
        self.delete = store.on(agents.delete)
        self.find = store.on(agents.find)
        self.find_of_any_user = store.on(agents.find_of_any_user)
        self.ids = store.on(agents.ids)
        self.creation_times = store.on(agents.creation_times)


class AsyncBlocks:
    """`Blocks` for async code."""

    def __init__(self, store: AsyncStore, blocks: Blocks) -> None:
        self.create = store.on(blocks.create)
        self.change = store.on(blocks.change)
        self.delete = store.on(blocks.delete)
        self.attach = store.on(blocks.attach)
        self.detach = store.on(blocks.detach)


class AsyncFiles:
    """`Files` for async code."""

    def __init__(self, store: AsyncStore, files: Files) -> None:
        self.create = store.apart(files.create)
        self.find = store.on(files.find)
        self.find_by_idempotency_key = store.on(files.find_by_idempotency_key)
        self.listed = store.on(files.listed)
        self.part = store.on(files.part)
        self.forget = store.on(files.forget)
        self.purge = store.on(files.purge)


class AsyncOpenAIBatches:
    """`OpenAIBatches` for async code."""

    def __init__(self, store: AsyncStore, batches: OpenAIBatches) -> None:
        self.spec = store.on(batches.spec)
        self.specs = store.on(batches.specs)
        self.change = store.on(batches.change)


class AsyncRuns:
    """`Runs` for async code."""

    def __init__(self, store: AsyncStore, runs: Runs) -> None:
        self.get = store.on(runs.get)
        self.set_feedback = store.on(runs.set_feedback)


class AsyncReopenings:
    """`Reopenings` for async code."""

    def __init__(self, store: AsyncStore, reopenings: Reopenings) -> None:
        self.clear_part = store.on(reopenings.clear_part)


class AsyncRetention:
    """`Retention` for async code."""

    def __init__(self, store: AsyncStore, retention: Retention) -> None:
        self.prune = store.on(retention.prune)
        self.forget = store.on(retention.forget)
        self.purge = store.on(retention.purge)
        self.shrink = store.on(retention.shrink)
