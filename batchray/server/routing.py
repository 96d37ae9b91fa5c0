"""Routes as data: what an endpoint takes and gives, for the router and for OpenAPI alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Literal, get_origin

import orjson
from aiohttp import web
from pydantic import BaseModel, ValidationError

from batchray.schema.base import WireModel
from batchray.schema.validation_text import first_problem
from batchray.server.errors import HttpError

VERSION = version("batchray")

Answer = BaseModel | Sequence[BaseModel] | Mapping[str, Any] | web.StreamResponse | None
Endpoint = Callable[..., Awaitable[Answer]]


class NoQuery(WireModel):
    """No parameters."""


@dataclass(frozen=True)
class Route:
    """One endpoint.  `answer` is the model of its body; a list of it where `is_list`.

    `errors` are the statuses that it has beside those that all routes have, `headers` those that it reads, with the
    patterns of their values.  With `may_stream` the answer comes as server-sent events where the body asks for them.
    An open one needs no API key.
    """

    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str
    endpoint: Endpoint
    summary: str
    query: type[BaseModel] = NoQuery
    body: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    is_list: bool = False
    media_type: str = "application/json"
    may_stream: bool = False
    errors: tuple[int, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    is_open: bool = False
    tag: str = field(default="batches")

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Read the query, call the endpoint, and write what it answers as JSON."""
        try:
            query = self.query.model_validate({name: self._parameter(request, name) for name in request.query})
        except ValidationError as error:
            raise HttpError(422, f"query: {first_problem(error, self.query)}") from None
        answer = await self.endpoint(request, query)
        if isinstance(answer, web.StreamResponse):
            return answer
        return web.Response(body=encode(answer), content_type="application/json")

    def _parameter(self, request: web.Request, name: str) -> str | list[str]:
        field = self.query.model_fields.get(name)
        is_repeated = field is not None and get_origin(field.annotation) is tuple
        return request.query.getall(name) if is_repeated else request.query[name]


def encode(answer: Any) -> bytes:
    """Return an answer as JSON, all keys of models included."""
    if isinstance(answer, BaseModel):
        return answer.model_dump_json().encode()
    if isinstance(answer, list):
        return b"[" + b",".join(map(encode, answer)) + b"]"
    return orjson.dumps(answer)


def add_routes(app: web.Application, routes: Sequence[Route]) -> None:
    """Add routes, each with and without a slash at its end: Letta's clients know some with and some without."""
    for route in routes:
        bare = route.path.rstrip("/")
        for path in (bare, f"{bare}/"):
            app.router.add_route(route.method, path, route.handle, name=None, expect_handler=_wait_and_see)
            app[ROUTES][route.method, path] = route


async def _wait_and_see(request: web.Request) -> None:
    """Promise nothing to `Expect: 100-continue`: whoever reads the body says so, when all else is known to be right."""


ROUTES: web.AppKey[dict[tuple[str, str], Route]] = web.AppKey("routes", dict)
"""All routes by method and path."""


def route_of(request: web.Request) -> Route | None:
    """Return the route that answers a request."""
    resource = request.match_info.route.resource
    return request.app[ROUTES].get((request.method, resource.canonical)) if resource else None
