"""Error responses: `{"detail": ..., "trace_id": ...}`; on the routes of OpenAI's API, in its shape."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any

from aiohttp import web
from aiohttp.typedefs import Handler
from pydantic import Field

from batchray.errors import (
    BatchFormatError,
    BatchrayError,
    BlockConflictError,
    ConfigError,
    EmptyBatchError,
    JobNotEndedError,
    StoreError,
    StoreFullError,
    UnknownAgentError,
    UnknownBlockError,
    UnknownJobError,
    UsageError,
)
from batchray.schema import new_id
from batchray.schema.base import MAY_BE_ABSENT, WireModel
from batchray.server.absent import absence_of
from batchray.server.openai_errors import is_of_openai, openai_error, openai_status
from batchray.server.stream import StreamCutError, cut_off

logger = logging.getLogger(__name__)

SERVER_NAME = "batchray"
"""The header `Server` of every response; aiohttp's has the versions of Python and aiohttp."""

_MAX_DETAIL_CHARS = 2000

# The status, in the metrics, of a response that has no reader any more.  Source: nginx.
_CLIENT_LEFT = 499


class RunFailure(WireModel):
    """Why a single request to an agent failed.  `type` is the word of Letta's server, `detail` that of batchray."""

    type: str
    message: str
    detail: str


class ErrorBody(WireModel):
    """An error: `detail` is a sentence for people, `trace_id` finds the error in the server's log."""

    detail: str
    trace_id: str
    error: Annotated[RunFailure | None, Field(json_schema_extra={MAY_BE_ABSENT: True})] = None


class HttpError(Exception):
    """An error response: raise it in a handler, and `errors_as_json` sends it.

    `detail` is a sentence for people.  `more` holds further keys of the body.
    """

    def __init__(
        self, status: int, detail: str, headers: Mapping[str, str] | None = None, more: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(status, detail, headers, more)
        self.status, self.detail, self.headers, self.more = status, detail, dict(headers or {}), dict(more or {})


class AmbiguousRequestError(HttpError):
    """The error response to a request after which the connection ends: another could read it as two."""


NO_RETRY = {"x-should-retry": "false"}
"""Headers of an error that a repeated request would get again.

Letta's clients repeat requests on 408, 409, 429 and 5xx unless this header forbids it.
"""


def unavailable(retry_after_s: int, detail: str) -> HttpError:
    """Return a 503 that asks the client to repeat the request after `retry_after_s` seconds."""
    return HttpError(503, detail, {"Retry-After": str(retry_after_s)})


def stopping() -> HttpError:
    """Return the 503 of a server that is stopping and accepts nothing more."""
    return unavailable(10, "the server is stopping; try again in a moment")


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every exception into an error response.  An unexpected one is logged with its trace id."""
    trace_id = new_id("trace")
    try:
        return await _handle(request, handler)
    except HttpError as error:
        failure = error.with_traceback(None)  # its frames, which hold the body, would refer to it in turn
    except web.HTTPException as error:
        if error.status < 400:
            raise
        allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        failure = HttpError(error.status, error.reason, allow)
        if error.status in (404, 405) and (absence := absence_of(request.path)) is not None:
            failure = HttpError(404, absence)
    except (UsageError, StoreError) as error:
        failure = _http_error(error)
    except ConnectionError:  # the client has disconnected, or was disconnected; aiohttp would log it as an error
        cut_off(request)
        return web.Response(status=_CLIENT_LEFT)
    except Exception:  # a bug; its text may hold the client's data, so the response does not show it
        logger.exception("%s %s failed (%s)", request.method, request.path, trace_id)
        failure = HttpError(500, "An unknown error occurred", NO_RETRY)
    return error_response(failure, trace_id, request.path)


async def _handle(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Call the handler.  If it fails after its response has begun, cut the response: the status is already sent."""
    try:
        return await handler(request)
    except BaseException as error:
        if request.writer.output_size == 0:
            raise
        cut_off(request)
        if isinstance(error, ConnectionError) or not isinstance(error, Exception):  # the reader left, or we are exiting
            raise
        if isinstance(error, (HttpError, BatchrayError)):
            logger.warning("%s: the response was cut: %s", request.path, error)
        else:
            logger.exception("%s: the response was cut", request.path)
        raise StreamCutError("the response was cut") from None


def _http_error(error: UsageError | StoreError) -> HttpError:
    match error:
        case UnknownJobError():
            return HttpError(404, f"Job with id {error.job_id} not found")
        case UnknownBlockError():
            return HttpError(404, str(error))
        case JobNotEndedError() | BlockConflictError():
            return HttpError(409, str(error), NO_RETRY)
        case EmptyBatchError():
            return HttpError(400, "Empty list of batch_requests passed in!")
        case UnknownAgentError():
            return HttpError(404, str(error))
        case BatchFormatError():
            return HttpError(422, str(error))
        case ConfigError():
            return HttpError(400, str(error))
        case StoreFullError():
            return HttpError(507, str(error), NO_RETRY)
        case StoreError():
            logger.error("%s", error)
            return unavailable(5, "the store cannot be used at the moment")
        case _:
            return HttpError(400, str(error))


def error_response(error: HttpError, trace_id: str, path: str = "") -> web.Response:
    """Return the response for an error of a request to a path."""
    status, headers, detail = error.status, error.headers, _shortened(error.detail)
    body: WireModel = ErrorBody(detail=detail, trace_id=trace_id, **error.more)
    if is_of_openai(path):
        status, headers = openai_status(status), {**headers, "x-request-id": trace_id}
        body = openai_error(status, detail, error.more)
    encoded = body.model_dump_json(exclude_none=isinstance(body, ErrorBody)).encode()
    response = web.Response(body=encoded, status=status, content_type="application/json", headers=headers)
    response.headers["Server"] = SERVER_NAME
    if error.status in (408, 413) or isinstance(error, AmbiguousRequestError):  # the rest is not read
        response.force_close()
    return response


def _shortened(detail: str) -> str:
    """Return a sentence without its middle if it is long: it may name something of the request, of any length."""
    if len(detail) <= _MAX_DETAIL_CHARS:
        return detail
    half = _MAX_DETAIL_CHARS // 2
    return f"{detail[:half]} ... {detail[-half:]}"
