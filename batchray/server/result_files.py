"""The output and error files of OpenAI batches: views of the results of jobs, of which no copy is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from aiohttp import web

from batchray.errors import UnknownJobError
from batchray.schema.openai_files import DeletedFile, OpenAIFile
from batchray.server.auth import user_of
from batchray.server.openai_views import (
    ResultKind,
    Spec,
    endpoint_of,
    result_file_id,
    result_file_of,
    result_file_view,
)
from batchray.server.result_streams import ResultForm, ResultStreams
from batchray.server.storage import ServerStorage
from batchray.store import JobRecord


class ResultsOf(NamedTuple):
    """An output or error file that exists."""

    job: JobRecord
    kind: ResultKind
    spec: Spec | None

    @property
    def form(self) -> ResultForm:
        """How the results are shown."""
        return ResultForm("openai", "index", failed=self.kind == "error", endpoint=endpoint_of(self.spec))


class ResultFiles:
    """Finds, shows, sends and deletes the files of results."""

    def __init__(self, storage: ServerStorage, streams: ResultStreams) -> None:
        self._store, self._reader, self._streams = storage.store, storage.reader, streams

    async def find(self, request: web.Request) -> ResultsOf | None:
        """Return the file of results that the path names; None if there is none."""
        if (named := result_file_of(request.match_info["file_id"])) is None:
            return None
        try:
            job = await self._reader.jobs.get(named.job_id, user_of(request))
        except UnknownJobError:
            return None
        spec = await self._reader.openai_batches.spec(job)
        shown = result_file_view(job, named.kind, spec, 0)
        return ResultsOf(job, named.kind, spec) if shown is not None else None

    async def view(self, results: ResultsOf) -> OpenAIFile:
        """Return a file as clients see it.  Its size is known once all results have been read."""
        n_bytes = await self._streams.size(results.job, results.form)
        shown = result_file_view(results.job, results.kind, results.spec, n_bytes)
        assert shown is not None, "it was found a moment ago"
        return shown

    async def content(self, request: web.Request, results: ResultsOf, headers: Mapping[str, str]) -> web.StreamResponse:
        """Stream a file."""
        return await self._streams.openai_file(request, results.job, results.form, headers)

    async def delete(self, results: ResultsOf) -> DeletedFile:
        """Make a file unknown; the results of its job stay."""

        def change(spec: Spec) -> Spec:
            return {**spec, "deleted": sorted({*spec.get("deleted", ()), results.kind})}

        await self._store.openai_batches.change(results.job, change)
        return DeletedFile(id=result_file_id(results.job.id, results.kind))
