"""What a client is told when something is wrong, always in one shape: `{"detail": ..., "trace_id": ...}`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from batchray.errors import (
    BatchFormatError,
    ConfigError,
    EmptyBatchError,
    JobNotEndedError,
    StoreError,
    StoreFullError,
    UnknownAgentError,
    UnknownJobError,
    UsageError,
)
from batchray.schema import new_id

logger = logging.getLogger(__name__)


class HttpError(Exception):
    """A request cannot be answered.  `detail` is a sentence for people; `more` stands beside it in the body."""

    def __init__(
        self, status: int, detail: str, headers: Mapping[str, str] | None = None, more: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(status, detail, headers, more)
        self.status, self.detail, self.headers, self.more = status, detail, dict(headers or {}), dict(more or {})


FINAL = {"x-should-retry": "false"}
"""Tells Letta's clients not to repeat a request whose status they would repeat it for."""


def later(seconds: int, detail: str) -> HttpError:
    """Return the answer to a client that should come again."""
    return HttpError(503, detail, {"Retry-After": str(seconds)})


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer whatever goes wrong in the one shape.  What nobody expected is logged with its trace id."""
    trace_id = new_id("trace")
    try:
        return await _answered(request, handler)
    except HttpError as error:
        told = error
    except web.HTTPException as error:
        if error.status < 400:
            raise
        allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        told = HttpError(error.status, error.reason, allow)
    except (UsageError, StoreError) as error:
        told = _told(error)
    except ConnectionError:  # nobody is there to be told
        raise
    except Exception:  # a defect of ours: the client hears only that there was one
        logger.exception("%s %s failed (%s)", request.method, request.path, trace_id)
        told = HttpError(500, "An unknown error occurred", FINAL)
    return _response(told, trace_id)


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Call the handler.  An answer that fails after it has begun is cut off: it has its status already."""
    try:
        return await handler(request)
    except ConnectionError:
        raise
    except Exception as error:
        if request.writer.output_size == 0:
            raise
        logger.exception("%s: an answer was cut off", request.path)
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("an answer was cut off") from error


def _told(error: UsageError | StoreError) -> HttpError:
    match error:
        case UnknownJobError():
            return HttpError(404, f"Job with id {error.job_id} not found")
        case JobNotEndedError():
            return HttpError(409, str(error), FINAL)
        case EmptyBatchError():
            return HttpError(400, "Empty list of batch_requests passed in!")
        case UnknownAgentError():
            return HttpError(404, str(error))
        case BatchFormatError():
            return HttpError(422, str(error))
        case ConfigError():
            return HttpError(400, str(error))
        case StoreFullError():
            return HttpError(507, str(error), FINAL)
        case StoreError():
            logger.error("%s", error)
            return later(5, "the store cannot be used at the moment")
        case _:
            return HttpError(400, str(error))


def _response(error: HttpError, trace_id: str) -> web.Response:
    body = orjson.dumps({"detail": error.detail, "trace_id": trace_id, **error.more})
    response = web.Response(body=body, status=error.status, content_type="application/json", headers=error.headers)
    if error.status in (408, 413):  # what is left of the body is not read
        response.force_close()
    return response
