"""The routes of files: those of OpenAI's API.  They hold the requests of a batch, or its results."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

from aiohttp import web
from pydantic import Field

from batchray.errors import KeyInUseError
from batchray.jobs.retention import purge_files
from batchray.schema.base import WireModel
from batchray.schema.openai_files import CreateFile, DeletedFile, OpenAIFile, OpenAIFileList
from batchray.server.auth import user_of
from batchray.server.background import BackgroundTasks
from batchray.server.bodies import FileContent
from batchray.server.errors import NO_RETRY, HttpError, stopping, unavailable
from batchray.server.file_uploads import FileUpload, read_upload, refused
from batchray.server.idempotency import KEY_PATTERN, key_of
from batchray.server.openai_errors import OpenAIErrorBody
from batchray.server.openai_views import file_view, result_file_of
from batchray.server.result_files import ResultFiles
from batchray.server.result_streams import ResultStreams
from batchray.server.routing import NoQuery, ResponseBody, Route
from batchray.server.scheduler import JobScheduler
from batchray.server.storage import ServerStorage
from batchray.server.stream import StreamCutError, StreamedResponse
from batchray.server.upload import Uploads
from batchray.store import SortOrder, StoredFile

_BASE = "/v1/files"
_ONE = "/v1/files/{file_id}"
_CONTENT = {"Content-Type": FileContent.media_types[0], "Content-Disposition": "attachment"}


class FilesQuery(WireModel):
    """Query of the list of files.  `after` is the id of a file."""

    purpose: Literal["batch", "batch_output"] | None = None
    limit: Annotated[int, Field(ge=1, le=10_000)] = 10_000
    order: SortOrder = "desc"
    after: str | None = None


class FileRoutes:
    """The endpoints of files."""

    def __init__(
        self,
        storage: ServerStorage,
        uploads: Uploads,
        scheduler: JobScheduler,
        tasks: BackgroundTasks,
        streams: ResultStreams,
    ) -> None:
        self._store, self._reader, self._bulk = storage.store, storage.reader, storage.bulk
        self._uploads, self._scheduler, self._tasks = uploads, scheduler, tasks
        self._results = ResultFiles(storage, streams)

    def routes(self) -> list[Route]:
        """Return the routes."""
        route = partial(Route, tag="files", error_body=OpenAIErrorBody)
        return [
            route(
                "POST",
                _BASE,
                self.create,
                "create_file",
                "Upload a file",
                body=CreateFile,
                body_type="multipart/form-data",
                has_strict_body=True,
                response=OpenAIFile,
                errors=(409,),
                headers={"Idempotency-Key": KEY_PATTERN},
            ),
            route("GET", _BASE, self.index, "list_files", "List files", FilesQuery, response=OpenAIFileList),
            route("GET", _ONE, self.retrieve, "retrieve_file", "Retrieve a file", response=OpenAIFile, errors=(404,)),
            route(
                "GET",
                f"{_ONE}/content",
                self.content,
                "read_file",
                "Read the content of a file",
                response=FileContent(),
                errors=(404,),
            ),
            route("DELETE", _ONE, self.delete, "delete_file", "Delete a file", response=DeletedFile, errors=(404,)),
        ]

    async def create(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Store a file; it is durable before the response is sent."""
        key, user_id = key_of(request), user_of(request)
        if self._scheduler.is_draining:
            raise stopping()
        await asyncio.to_thread(self._store.sync.check_room)  # before a large body is uploaded for nothing
        async with self._uploads.receive_form(request) as (form, body):
            upload = await asyncio.to_thread(read_upload, form, body, key)
            if (known := await self._known(user_id, upload)) is not None:
                return file_view(known)
            try:
                return file_view(await self._store.files.create(user_id, upload.new, upload.parts()))
            except KeyInUseError:  # it came twice at the same time
                if (known := await self._known(user_id, upload)) is not None:
                    return file_view(known)
                raise unavailable(1, "a file with this Idempotency-Key is being stored") from None

    async def index(self, request: web.Request, query: FilesQuery) -> ResponseBody:
        """List a user's uploads, and then the files of results, whose purpose is `batch_output`."""
        user_id, after, n_wanted = user_of(request), query.after, query.limit + 1
        found: list[OpenAIFile] = []
        is_in_results = after is not None and result_file_of(after) is not None and query.purpose is None
        if query.purpose != "batch_output" and not is_in_results:
            found, after = await self._uploaded(user_id, query), None
        if query.purpose != "batch" and len(found) < n_wanted:
            found += await self._results.listed(user_id, query.order, n_wanted - len(found), after)
        return _page(found, query.limit)

    async def _uploaded(self, user_id: str, query: FilesQuery) -> list[OpenAIFile]:
        """Return a page of uploads, and one more if there are more.  Raises HttpError 400 for an unknown cursor."""
        after = None
        if query.after is not None:
            if (last := await self._reader.files.find(query.after, user_id)) is None:
                raise refused(f"No such File object: {query.after[:60]}", "after")
            after = last.file
        found = await self._reader.files.listed(user_id, query.order, query.limit + 1, after, "batch")
        return [file_view(file) for file in found]

    async def retrieve(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Return one file."""
        if (results := await self._results.find(request)) is not None:
            return await self._results.view(results)
        return file_view(await self._file(request))

    async def content(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Stream the content of a file; that of a batch's results is made of them."""
        if (results := await self._results.find(request)) is not None:
            return await self._results.content(request, results, _CONTENT)
        file = await self._file(request)
        response = StreamedResponse(request, {**_CONTENT, "Content-Length": str(file.n_bytes)})
        if request.method == "HEAD":
            return await response.end()
        number = n_sent = 0
        while (part := await self._bulk.files.part(file.file, number)) is not None:
            await response.write(part)
            number, n_sent = number + 1, n_sent + len(part)
        if n_sent < file.n_bytes:
            raise StreamCutError("the file was deleted while it was read")
        return await response.end()

    async def delete(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Delete a file; a batch that was made of it stays, and so do the results in a file of them."""
        if (results := await self._results.find(request)) is not None:
            return await self._results.delete(results)
        file = await self._file(request)
        if not await self._store.files.forget(file.id, file.user_id):
            raise _unknown(file.id)
        self._tasks.spawn(purge_files(self._store))
        return DeletedFile(id=file.id)

    async def _known(self, user_id: str, upload: FileUpload) -> StoredFile | None:
        """Return the file that an earlier request with the same idempotency key stored.  Raises HttpError 400."""
        key = upload.new.idempotency_key
        if key is None or (known := await self._reader.files.find_by_idempotency_key(user_id, key)) is None:
            return None
        if known.digest != upload.new.digest:
            raise HttpError(422, "this Idempotency-Key came with another file before", NO_RETRY)
        return known

    async def _file(self, request: web.Request) -> StoredFile:
        """Return the file of the path.  Raises HttpError 404."""
        file_id = request.match_info["file_id"]
        file = await self._reader.files.find(file_id, user_of(request))
        if file is None:
            raise _unknown(file_id)
        return file


def _page(found: Sequence[OpenAIFile], limit: int) -> OpenAIFileList:
    """Return a page of at most `limit` files; `found` has one more if there are more."""
    data = list(found[:limit])
    return OpenAIFileList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(found) > limit,
    )


def _unknown(file_id: str) -> HttpError:
    return HttpError(404, f"No such File object: {file_id[:60]}", NO_RETRY, {"param": "id"})
