"""Create a job: read a batch, check it, and store it in one transaction."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from batchray.batch.parse import Batch, read_batch
from batchray.batch.spool import Spool
from batchray.config import AgentSet
from batchray.errors import BatchFormatError
from batchray.schema import AgentRequest, new_job_id
from batchray.store import NewItem, NewJob, Store
from batchray.support.threads import DaemonThread

Requests = (
    str
    | Path
    | BinaryIO
    | Iterable[Mapping[str, Any] | AgentRequest]
    | AsyncIterable[Mapping[str, Any] | AgentRequest]
    | Any  # a Ray Dataset, whose type only Ray's own package can name
)
"""The accepted forms of a batch.  It is read once, and checked whole before anything runs."""


async def create_job(
    store: Store,
    requests: Requests,
    agents: AgentSet,
    callback_url: str | None,
    run_options: Mapping[str, Any] | None = None,
    check: Callable[[AgentSet], None] = lambda used: None,
) -> str:
    """Read, check and store a batch; return its job's id.  Raises BatchFormatError and StoreError.

    `run_options` are what a resume of the job takes over.  `check` gets the agents that the batch uses; nothing is
    stored if it raises.
    """
    if isinstance(requests, AsyncIterable):
        requests = await collect(requests, store.data_dir, agents)
    if not isinstance(requests, str | Path | list | tuple | Spool):
        # Not in a transaction on the writer's thread: the iterable may be slow, or wait for another of our jobs.
        reader = DaemonThread("batchray-intake")
        spooling = asyncio.get_running_loop().run_in_executor(reader, _spooled, requests, agents, store.data_dir)
        try:
            requests, found_url = await spooling
        finally:
            reader.shutdown(wait=False)
        callback_url = callback_url or found_url

    def snapshot(agent_ids: Set[str]) -> Mapping[str, Any]:
        used = agents.only(agent_ids)
        check(used)
        return used.snapshot()

    new = NewJob(new_job_id(), snapshot, callback_url, run_options=run_options)
    await store.database.call(_create, store, new, requests, agents)
    return new.id


def _spooled(requests: Any, agents: AgentSet, directory: Path) -> tuple[Spool, str | None]:
    """Read and check a batch that can be read only once, or only slowly."""
    if hasattr(requests, "iter_rows"):  # a Ray Dataset
        requests = requests.iter_rows()
    batch = read_batch(requests, agents.agents)
    spool = Spool(directory)
    try:
        for request in batch.requests:
            spool.add(request)
    except BaseException:
        spool.close()
        raise
    return spool, batch.callback_url


def _create(store: Store, new: NewJob, requests: Requests, agents: AgentSet) -> None:
    with contextlib.ExitStack() as spools:
        if isinstance(requests, Spool):
            batch = Batch(iter(spools.enter_context(requests)))
        else:
            source: Any = Path(requests) if isinstance(requests, str) else requests
            batch = read_batch(source, agents.agents)
        items = (NewItem(*request) for request in batch.requests)
        store.jobs.create(replace(new, callback_url=new.callback_url or batch.callback_url), items)


async def collect(requests: AsyncIterable[Any], directory: Path, agents: AgentSet) -> Spool:
    """Read and check an async iterable of requests, on the event loop that it belongs to."""
    spool, n_requests = Spool(directory), 0
    try:
        async for request in requests:
            try:
                [raw] = read_batch([request], agents.agents).requests
            except BatchFormatError as error:
                raise error.at(index=n_requests) from None
            spool.add(raw)
            n_requests += 1
        if n_requests == 0:
            raise BatchFormatError("the batch is empty")
    except BaseException:
        spool.close()
        raise
    return spool
