"""The output and error files of OpenAI batches: views of the results of jobs, of which no copy is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from aiohttp import web

from batchray.errors import UnknownJobError
from batchray.schema.openai_files import DeletedFile, OpenAIFile
from batchray.server.auth import user_of
from batchray.server.errors import NO_RETRY, HttpError
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
from batchray.store import JobRecord, SortOrder


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
        if (job := await self._job(named.job_id, user_of(request))) is None:
            return None
        spec = await self._reader.openai_batches.spec(job)
        shown = result_file_view(job, named.kind, spec, 0)
        return ResultsOf(job, named.kind, spec) if shown is not None else None

    async def listed(self, user_id: str, order: SortOrder, limit: int, after: str | None) -> list[OpenAIFile]:
        """Return the files of a user's batches, in the order of the batches; their sizes are 0, because none is read.

        Raises HttpError 400 for an unknown cursor.
        """
        found: list[OpenAIFile] = []
        key = None
        if after is not None:
            last = result_file_of(after)
            job = await self._job(last.job_id, user_id) if last is not None else None
            if last is None or job is None:
                raise HttpError(400, f"No such File object: {after[:60]}", NO_RETRY, {"param": "after"})
            found, key = [file for file in await self._of([job], order) if _is_after(file.id, after, order)], job.key
        while len(found) < limit:
            jobs = await self._reader.jobs.find(user_id=user_id, kind="batch", order=order, after=key, limit=limit)
            if not jobs:
                break
            found += await self._of(jobs, order)
            key = jobs[-1].key
        return found[:limit]

    async def _of(self, jobs: Sequence[JobRecord], order: SortOrder) -> list[OpenAIFile]:
        specs = await self._reader.openai_batches.specs(jobs)
        kinds: tuple[ResultKind, ...] = ("output", "error") if order == "desc" else ("error", "output")
        files = (result_file_view(job, kind, specs.get(job.key), 0) for job in jobs for kind in kinds)
        return [file for file in files if file is not None]

    async def _job(self, job_id: str, user_id: str) -> JobRecord | None:
        try:
            return await self._reader.jobs.get(job_id, user_id)
        except UnknownJobError:
            return None

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


def _is_after(file_id: str, other: str, order: SortOrder) -> bool:
    """Return whether a file of a batch follows another one of it: `error` comes before `output`, or after it."""
    return file_id > other if order == "asc" else file_id < other
