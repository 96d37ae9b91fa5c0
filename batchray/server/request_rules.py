"""Rules for the requests of all routes: their version, the framing of their body, and the header `Expect`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.http import HttpVersion10, HttpVersion11, RawRequestMessage
from aiohttp.typedefs import Handler
from multidict import CIMultiDict, CIMultiDictProxy

from batchray.schema import new_id
from batchray.server.connections import ClientConnection
from batchray.server.errors import AmbiguousRequestError, HttpError, error_response, unavailable
from batchray.server.refusals import VERSION_SENTENCE
from batchray.server.routing import route_of
from batchray.server.upload import WAITS_FOR_CONTINUE

_SPOKEN = (HttpVersion10, HttpVersion11)
_HAS_FOREIGN_VERSION = web.RequestKey("has_foreign_version", bool)
_EXPECTATIONS = web.RequestKey("expectations", frozenset)

RequestFactory = Callable[..., web.BaseRequest]
"""aiohttp's: takes the message, its payload, the connection, the writer and the task."""
RequestHandler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
"""aiohttp's: routes a request, and returns the response."""


def noticed(make_request: RequestFactory) -> RequestFactory:
    """Return a factory of requests that tells each one to its connection, and has all answered in HTTP/1.0 or 1.1.

    It hides the header `Expect`: aiohttp would ask for the body of a request that has no route.
    """

    def make(message: RawRequestMessage, payload: Any, connection: ClientConnection, *rest: Any) -> web.BaseRequest:
        is_unknown = message.method == "UNKNOWN"  # aiohttp's request in place of one that cannot be parsed
        is_spoken = message.version in _SPOKEN and not is_unknown
        own = message if is_spoken else message._replace(version=HttpVersion11)
        expectations = _expectations_in(message) if "Expect" in message.headers else None
        if expectations is not None:
            own = own._replace(headers=_without_expect(message))
        request = make_request(own, payload, connection, *rest)
        if expectations is not None:
            request[_EXPECTATIONS] = expectations
        if not is_spoken and not is_unknown:
            request[_HAS_FOREIGN_VERSION] = True
        connection.begin_request(request)
        return request

    return make


def guarded(handle: RequestHandler) -> RequestHandler:
    """Return a handler that refuses requests which break a rule, before aiohttp looks for their route."""

    async def guard(request: web.BaseRequest) -> web.StreamResponse:
        try:
            if request.get(_HAS_FOREIGN_VERSION, False):
                raise AmbiguousRequestError(400, VERSION_SENTENCE)
            if "Transfer-Encoding" in request.headers:
                _check_transfer_encoding(request)
            if _EXPECTATIONS in request:
                _check_expectations(request)
        except HttpError as error:
            return error_response(error, new_id("trace"), request.path)
        return await handle(request)

    return guard


@web.middleware
async def only_health_checks(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse everything except health checks on a connection of the reserve."""
    if isinstance(request.protocol, ClientConnection) and request.protocol.is_reserve:
        route = route_of(request)
        if route is None or not route.is_health_check:
            raise unavailable(5, "too many connections are open; try again in a moment")
    return await handler(request)


def _check_transfer_encoding(request: web.BaseRequest) -> None:
    """Raise AmbiguousRequestError if a proxy could see another end of the body than this server.  RFC 9112, 6.1."""
    is_chunked = request.headers["Transfer-Encoding"].lower() == "chunked"
    if not is_chunked or request.version < HttpVersion11 or "Content-Length" in request.headers:
        raise AmbiguousRequestError(
            400,
            "Transfer-Encoding must be chunked, in HTTP/1.1 and without Content-Length; send plain JSON, or chunked",
        )


def _expectations_in(message: RawRequestMessage) -> frozenset[str]:
    return frozenset(value.lower() for value in message.headers.getall("Expect"))


def _without_expect(message: RawRequestMessage) -> CIMultiDictProxy[str]:
    headers = CIMultiDict(message.headers)
    headers.popall("Expect")
    return CIMultiDictProxy(headers)


def _check_expectations(request: web.BaseRequest) -> None:
    """Note that a client waits for 100 Continue.  Raises HttpError 417 for another expectation.

    In HTTP/1.0 there are none.  RFC 9110, 10.1.1.
    """
    if request.version < HttpVersion11:
        return
    if request[_EXPECTATIONS] != {"100-continue"}:
        raise HttpError(417, "the only expectation that can be met is 100-continue")
    if not request.content.is_eof():
        request[WAITS_FOR_CONTINUE] = True
