"""Routes as data: one description of each endpoint, for the router and for the OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Literal, get_origin

import orjson
from aiohttp import web
from pydantic import BaseModel, ValidationError

from batchray.schema.base import WireModel
from batchray.schema.validation_text import first_problem
from batchray.server.bodies import EventsOf
from batchray.server.errors import SERVER_NAME, HttpError

VERSION = version("batchray")

ResponseBody = BaseModel | Sequence[BaseModel] | Mapping[str, Any] | web.StreamResponse | None
Endpoint = Callable[..., Awaitable[ResponseBody]]


class _HeadersOnly(Exception):
    """Raised inside an endpoint whose stream begins, if the client has asked for nothing but the headers (HEAD)."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        super().__init__(headers)
        self.headers = headers


class NoQuery(WireModel):
    """The query of an endpoint that has no parameters."""


@dataclass(frozen=True)
class Route:
    """One endpoint, with the types that the OpenAPI document gives to generated clients.

    `operation_id` is the name of the function in a generated client, such as `list_batches`: a verb and its object,
    unique.  `tag` is the name of its module there; `openapi.TAGS` describes the tags.

    `query` is the model of the query; a Warning header names unknown parameters.  `body` is that of the
    request body, which may be missing if `is_body_optional`; `body_type` is its media type.  If `has_strict_body`,
    unknown keys are refused, at every level; otherwise they are ignored, as Letta's server does.  `headers` are the
    request headers that the endpoint reads, with the patterns of their values.

    `response` is the type of the body of a 200: a model, `list[AgentState]`, any other type that pydantic writes, None
    for null; or of `bodies`: `PlainText`, `FileContent`, `LinesOf` a type, `EventsOf` types.  If `streams` is set, the
    endpoint sends these events instead of the `response` when the body asks for that.  `errors` are the statuses in
    addition to those of all routes (`openapi.failures`); `error_body` is the type of their bodies, or None for
    `ErrorBody`.  An open route needs no API key, one for the operator that of an operator.  A health check is answered
    even if too many connections are open.
    """

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    endpoint: Endpoint
    operation_id: str
    summary: str
    query: type[BaseModel] = NoQuery
    body: type[BaseModel] | None = None
    body_type: str = "application/json"
    has_strict_body: bool = True
    is_body_optional: bool = False
    response: Any = None
    streams: EventsOf | None = None
    errors: tuple[int, ...] = ()
    error_body: type[BaseModel] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    is_open: bool = False
    is_health_check: bool = False
    is_for_operator: bool = False
    tag: str = field(default="batches")

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Validate the query, call the endpoint, and encode what it returns as JSON."""
        self._check_names(request)
        try:
            query = self.query.model_validate({name: self._parameter(request, name) for name in request.query})
        except ValidationError as error:
            raise HttpError(422, f"query: {first_problem(error, self.query)}") from None
        try:
            body = await self.endpoint(request, query)
        except _HeadersOnly as stream:
            return web.Response(headers=stream.headers)
        if isinstance(body, web.StreamResponse):
            return body
        return web.Response(body=encode(body), content_type="application/json")

    def _check_names(self, request: web.Request) -> None:
        """Note the unknown parameters for a warning, as Letta's server ignores them.

        Raises HttpError 422 for a parameter that is refused, or of which one of two values would be lost.
        """
        refused: Mapping[str, str] = getattr(self.query, "refused", {})
        for name, value in request.query.items():
            if name in refused and value.lower() not in ("", "false", "0"):
                raise HttpError(422, f"query: {name}: {refused[name]}")
        if unknown := [name for name in dict.fromkeys(request.query) if name not in self.query.model_fields]:
            request[_UNKNOWN] = unknown

    def _parameter(self, request: web.Request, name: str) -> str | list[str]:
        field, values = self.query.model_fields.get(name), request.query.getall(name)
        if field is not None and get_origin(field.annotation) is tuple:
            return values
        if field is not None and len(values) > 1:
            raise HttpError(422, f"query: {name}: it takes one value, and has {len(values)}")
        return values[0]


def encode(body: Any) -> bytes:
    """Return a response body as JSON; models with all their keys, nulls included."""
    if isinstance(body, BaseModel):
        return body.model_dump_json().encode()
    if isinstance(body, list):
        return b"[" + b",".join(map(encode, body)) + b"]"
    return orjson.dumps(body)


def with_warning(body: BaseModel, unused_fields: Collection[str]) -> ResponseBody:
    """Return a response that warns of fields of the request without an effect, if there are any."""
    if not unused_fields:
        return body
    return web.Response(body=encode(body), content_type="application/json", headers=warning_of(unused_fields))


def warning_of(unused_fields: Collection[str]) -> dict[str, str]:
    """Return the header that names these fields.  Source: RFC 7234, 5.5; 299 is a persistent warning."""
    if not unused_fields:
        return {}
    return {"Warning": f'299 batchray "no effect here: {", ".join(sorted(unused_fields))}"'}


def add_routes(app: web.Application, routes: Sequence[Route]) -> None:
    """Register routes, each with and without a trailing slash: Letta's clients use both forms.

    A form that is the path of another route belongs to that one: `/v1/models` is OpenAI's, `/v1/models/` Letta's.  What
    can be read with GET has HEAD as well.
    """
    app.on_response_prepare.append(_warn_of_unknown)
    exact = {(route.method, route.path) for route in routes}
    for route in routes:
        bare = route.path.rstrip("/")
        for path in (bare, f"{bare}/"):
            if path != route.path and (route.method, path) in exact:
                continue
            for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
                pattern = path.replace("{block_label}", "{block_label:.+}")  # Letta's clients do not escape its slashes
                app.router.add_route(method, pattern, route.handle, name=None)
                app[ROUTES][method, path] = route


async def prepare_response(request: web.Request, response: web.StreamResponse) -> None:
    """Set what all responses have in common.  Ends a stream that answers HEAD: aiohttp would send its body."""
    response.headers["Server"] = SERVER_NAME
    if request.method == "HEAD" and not isinstance(response, web.Response):
        raise _HeadersOnly(response.headers)


async def _warn_of_unknown(request: web.Request, response: web.StreamResponse) -> None:
    names = (re.sub(r"[^\w.\[\]-]", "?", name[:60], flags=re.ASCII) for name in request.get(_UNKNOWN, ())[:10])
    for header, value in warning_of([*names]).items():
        response.headers.add(header, value)


_UNKNOWN = "unknown_parameters"

ROUTES: web.AppKey[dict[tuple[str, str], Route]] = web.AppKey("routes", dict)
"""All routes of an application, by method and path."""


def route_of(request: web.Request) -> Route | None:
    """Return the route that a request matches, or None."""
    resource = request.match_info.route.resource
    return request.app[ROUTES].get((request.method, resource.canonical)) if resource else None
