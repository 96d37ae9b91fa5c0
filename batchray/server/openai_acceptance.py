"""Makes jobs of uploaded files: batches of OpenAI's API."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Set
from dataclasses import replace
from functools import partial
from typing import Any

import orjson

from batchray.batch.formats.openai_files import LineProblem, OpenAIFile
from batchray.batch.rules import KnownAgent
from batchray.batch.split import MAX_REQUEST_BYTES
from batchray.errors import RefusedLinesError
from batchray.schema.openai_batches import CreateOpenAIBatch
from batchray.server.acceptance import BatchAcceptance
from batchray.server.agent_catalog import AgentLookup
from batchray.server.storage import ServerStorage
from batchray.server.upload import Body, Uploads
from batchray.store import ItemPage, JobRecord, NewItem, NewJob, Store


class OpenAIAcceptance:
    """Creates the jobs of files.  One of a file that cannot be run is a job too, which has failed."""

    def __init__(
        self, storage: ServerStorage, agents: AgentLookup, uploads: Uploads, acceptance: BatchAcceptance
    ) -> None:
        self._reader, self._agents = storage.reader, agents
        self._uploads, self._acceptance = uploads, acceptance

    async def accept(self, user_id: str, given: CreateOpenAIBatch, key: str | None) -> JobRecord:
        """Store a batch and queue its job; durability, errors and idempotency as in `BatchAcceptance.accept`."""
        asked = given.model_dump_json()
        digest = hashlib.sha256(asked.encode()).hexdigest() if key is not None else None
        file = await self._reader.files.find(given.input_file_id, user_id)
        spec = _spec(given)
        if file is None:
            message = f"Cannot find file {given.input_file_id[:60]}, or you do not have access to it."
            problem = LineProblem("invalid_request", message, param="file_id")
            create = partial(_create_failed, spec=spec, error=RefusedLinesError((problem._asdict(),)))
            return await self._acceptance.accept_with(user_id, key, digest, create)
        agents = await self._reader.call(self._agents.known, user_id)
        async with self._uploads.copy(file, self._reader.sync.files.content(file)) as body:
            create = partial(_create, body=body, given=given, spec=spec, agents=agents, acceptance=self._acceptance)
            return await self._acceptance.accept_with(user_id, key, digest, create)


def _create(
    store: Store,
    new: NewJob,
    body: Body,
    given: CreateOpenAIBatch,
    spec: Mapping[str, Any],
    agents: Mapping[str, KnownAgent],
    acceptance: BatchAcceptance,
) -> None:
    """Store the batch of a file.  A small file is checked before it is stored, a large one at the same time."""
    spec = {**spec, "model": _first_model(body)}
    known_only = partial(_snapshot, new.snapshot, agents)
    new = replace(new, snapshot=known_only, openai_batch=lambda: spec)
    try:
        if body.checker is None:
            file = OpenAIFile(io.BytesIO(body.data), given.endpoint, agents)
            items = [NewItem(*request) for request in file.requests()]
            store.jobs.create(replace(new, unused_fields=lambda: file.unused), items)
            return
        known = {agent_id: list(agent) for agent_id, agent in agents.items()}
        with body.checker.check({"endpoint": given.endpoint, "agents": known}) as large:
            pages = (ItemPage(*page) for page in acceptance.until_drain(large.pages))
            store.jobs.create_paged(replace(new, unused_fields=lambda: large.unused), pages)
    except RefusedLinesError as error:
        _create_failed(store, new, spec, error)


def _snapshot(
    snapshot: Callable[[Set[str]], Mapping[str, Any]], agents: Mapping[str, KnownAgent], ids: Set[str]
) -> Mapping[str, Any]:
    """Return the settings of agents; a line may name one that does not exist, which has none."""
    return snapshot(ids & agents.keys())


def _create_failed(store: Store, new: NewJob, spec: Mapping[str, Any], error: RefusedLinesError) -> None:
    """Store a job that has failed."""
    failed = replace(new, has_failed=True, openai_batch=lambda: {**spec, "errors": error.problems})
    store.jobs.create_paged(failed, ())


def _spec(given: CreateOpenAIBatch) -> dict[str, Any]:
    expiry = given.output_expires_after
    return {
        "endpoint": given.endpoint,
        "input_file_id": given.input_file_id,
        "metadata": given.metadata,
        "output_expires_after_s": expiry.seconds if expiry is not None else None,
    }


def _first_model(body: Body) -> str | None:
    """Return the model of the first line, if that can be read."""
    with io.BytesIO(body.data) if body.file is None else body.file.open("rb") as stream:
        line = stream.readline(MAX_REQUEST_BYTES)
    try:
        model = orjson.loads(line)["body"]["model"]
    except (orjson.JSONDecodeError, KeyError, TypeError):  # which the check of the file reports
        return None
    return model[:255] if isinstance(model, str) else None
