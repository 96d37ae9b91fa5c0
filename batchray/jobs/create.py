"""Create a job: read a batch, check it, and store it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from batchray.agents.build import protocol_of
from batchray.agents.tools import TOOL_SPECS, specs_of_nameless
from batchray.batch.custom_ids import CustomIdCounts
from batchray.batch.formats.options import NO_OPTIONS, InputOptions
from batchray.batch.formats.recognize import ObjectInput, Table, open_batch
from batchray.batch.parse import Batch
from batchray.batch.places import is_on_disk
from batchray.batch.rules import KnownAgent
from batchray.batch.spool import RawRequest, Spool
from batchray.config import AgentSet
from batchray.jobs.reuse import Reuse, code_of, with_code
from batchray.schema import AgentRequest, new_job_id
from batchray.store import CarriedColumns, NewItem, NewJob, Store
from batchray.support.threads import on_own_thread

logger = logging.getLogger(__name__)

Requests = (
    str
    | Path
    | BinaryIO
    | Iterable[Mapping[str, Any] | AgentRequest]
    | AsyncIterable[Mapping[str, Any] | AgentRequest]
    | Any  # a frame, a dataset or a table, whose types only their own packages can name
)
"""The accepted forms of a batch.  It is read once, and checked whole before anything runs."""


async def create_job(
    store: Store,
    requests: Requests,
    agents: AgentSet,
    callback_url: str | None,
    run_options: Mapping[str, Any] | None = None,
    check: Callable[[AgentSet], None] = lambda used: None,
    options: InputOptions = NO_OPTIONS,
    reuse: str | None = None,
) -> str:
    """Read, check and store a batch; return its job's id.  Raises BatchFormatError and StoreError.

    `run_options` are what a resume of the job takes over.  `check` gets the agents that the batch uses; nothing is
    stored if it raises.  `options` say how the input becomes requests.  `reuse` is the id of a job whose outcomes of
    equal requests to equal agents are taken over.
    """
    code = code_of(agents)
    reused = await asyncio.to_thread(Reuse.of, store, reuse, agents, code) if reuse is not None else None
    if isinstance(requests, AsyncIterable):
        requests = await collect(requests, store.data_dir, agents, options)

    def snapshot(agent_ids: Set[str]) -> Mapping[str, Any]:
        used = agents.only(agent_ids)
        check(used)
        return _with_specs(with_code(used.snapshot(), code), used)

    def take_in() -> None:
        intake = requests if isinstance(requests, Intake) else _taken_in(requests, agents, store.data_dir, options)
        _create(store, replace(new, unused_fields=intake.unused_fields), intake, reused)

    new = NewJob(new_job_id(), snapshot, callback_url, run_options=run_options)
    await on_own_thread("batchray-intake", take_in)
    return new.id


def _with_specs(snapshot: Mapping[str, Any], agents: AgentSet) -> Mapping[str, Any]:
    """Return the snapshot with what it says of tools that cannot be found by name, for exports without their code."""
    specs = {agent_id: _storable(specs_of_nameless(bound.agent)) for agent_id, bound in agents.agents.items()}
    return {key: {**kept, TOOL_SPECS: specs[key]} if specs[key] else kept for key, kept in snapshot.items()}


def _storable(specs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what JSON can hold: all specs, or none if a default value or a docstring has no JSON."""
    try:
        orjson.dumps(specs)
    except orjson.JSONEncodeError:
        return []
    return specs


class Intake:
    """A batch that can be stored: checked requests on disk, or a batch that is read from disk or memory meanwhile."""

    def __init__(
        self, requests: Spool | Batch, callback_url: str | None = None, unused: Set[str] = frozenset()
    ) -> None:
        self._requests, self._unused = requests, unused
        self.callback_url = callback_url
        self._custom_ids = CustomIdCounts()

    def items(self) -> Iterator[NewItem]:
        """Yield the items, once."""
        requests = self._requests if isinstance(self._requests, Spool) else self._requests.requests
        for request in requests:
            self._custom_ids.add(request.custom_id)
            yield NewItem(*request)

    def carried(self) -> Iterator[CarriedColumns]:
        """Yield the rows that the requests were made of."""
        if isinstance(self._requests, Spool):
            yield from itertools.starmap(CarriedColumns, self._requests.carried())

    def unused_fields(self) -> Set[str]:
        """Return the names of fields in the requests that have no effect, once all have been read."""
        return self._unused

    def warn(self) -> None:
        """Log what the caller should know of a batch that was accepted."""
        if self._unused:
            logger.warning("these fields of the batch have no effect: %s", ", ".join(sorted(self._unused)))
        if repeated := self._custom_ids.repeated:
            logger.warning("%s", repeated)

    def close(self) -> None:
        """Delete what is on disk."""
        if isinstance(self._requests, Spool):
            self._requests.close()


def _taken_in(requests: Any, agents: AgentSet, directory: Path, options: InputOptions) -> Intake:
    """Open a batch, and read and check one that can be read only once, or only slowly."""
    batch = open_batch(requests, _known(agents), directory, options)
    if isinstance(batch, Batch):
        is_at_hand = isinstance(requests, list | tuple) or (isinstance(requests, str | Path) and is_on_disk(requests))
        kept = batch if is_at_hand else _spooled(batch.requests, directory)
        return Intake(kept, batch.callback_url, batch.unused)
    return Intake(_carrying(batch, directory))


def _carrying(table: Table, directory: Path) -> Spool:
    spool = Spool(directory)
    with _closing_on_error(spool):
        for part in table.parts:
            spool.add_carried(part.first, len(part.requests), part.data)
            for request in part.requests:
                spool.add(request)
    return spool


def _spooled(requests: Iterable[RawRequest], directory: Path) -> Spool:
    spool = Spool(directory)
    with _closing_on_error(spool):
        for request in requests:
            spool.add(request)
    return spool


@contextlib.contextmanager
def _closing_on_error(spool: Spool) -> Iterator[None]:
    try:
        yield
    except BaseException:
        spool.close()
        raise


def _known(agents: AgentSet) -> dict[str, KnownAgent]:
    return {agent_id: KnownAgent(bound.agent.model, protocol_of(bound)) for agent_id, bound in agents.agents.items()}


def _create(store: Store, new: NewJob, intake: Intake, reuse: Reuse | None) -> None:
    new = replace(new, callback_url=new.callback_url or intake.callback_url)
    items = intake.items()
    if reuse is not None:
        new, items = replace(new, taken_over=reuse.taken_over), reuse.watch(items)
    with contextlib.closing(intake):
        store.jobs.create(new, items, intake.carried())
    intake.warn()


async def collect(
    requests: AsyncIterable[Any], directory: Path, agents: AgentSet, options: InputOptions = NO_OPTIONS
) -> Intake:
    """Read and check an async iterable of requests or rows, on the event loop that it belongs to."""
    given = ObjectInput(_known(agents), directory, options)
    with given:
        async for request in requests:
            given.add(request)
        return await asyncio.to_thread(_finished, given, directory)


def _finished(given: ObjectInput, directory: Path) -> Intake:
    found = given.batch()
    return Intake(_carrying(found, directory) if isinstance(found, Table) else _spooled(found.requests, directory))
