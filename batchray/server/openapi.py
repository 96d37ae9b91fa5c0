"""Generates the OpenAPI document from the routes and the types that they declare.

`routing.Route` says how a route declares its types; `schemas` fits their schemas to generators of clients.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from aiohttp import web
from pydantic.json_schema import JsonSchemaMode

from batchray.schema.ids import JOB_ID_PATTERN, RUN_ID_PATTERN, STEP_ID_PATTERN
from batchray.server import schemas
from batchray.server.bodies import EventsOf, FileContent, LinesOf, PlainText
from batchray.server.errors import ErrorBody
from batchray.server.openai_errors import openai_status
from batchray.server.routing import VERSION, NoQuery, ResponseBody, Route, encode
from batchray.server.schemas import Schema

TAGS = {
    "batches": "Batches of requests to agents: Letta's batch API, and batchray's additions.",
    "agents": "Agents, and single requests to them.",
    "blocks": "Memory blocks of agents: texts that people and models read and edit.",
    "runs": "Runs: the items of batches, and single requests.",
    "steps": "Steps of runs: model calls with the tool calls that they asked for.",
    "jobs": "Batches as Letta's jobs.",
    "tools": "Tools: those that the operator has configured, and those of memory.",
    "models": "The models that agents may use.",
    "files": "Files of OpenAI's API: the requests of a batch, or its results.",
    "openai": "Batches as OpenAI's batch API has them.",
    "server": "The state of this server.",
}
"""Each tag of a route, and what its routes are about."""

_INFO = {
    "title": "batchray",
    "version": VERSION,
    "summary": "Runs large batches of LLM agent requests.",
    "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
}
_KEY = "key"
_PATH_SCHEMAS = {
    "batch_id": {"type": "string", "pattern": f"^{JOB_ID_PATTERN}$"},
    "job_id": {"type": "string", "pattern": f"^{JOB_ID_PATTERN}$"},
    "run_id": {"type": "string", "pattern": f"^{RUN_ID_PATTERN}$"},
    "step_id": {"type": "string", "pattern": f"^{STEP_ID_PATTERN}$"},
}
_PATH_SCHEMA = {"type": "string", "minLength": 1}
_ERROR_HEADERS = {
    401: ("WWW-Authenticate", "The scheme of the key: `Bearer`."),
    503: ("Retry-After", "After how many seconds to try again."),
}
_WARNING = ("Warning", "Names fields of the request that have no effect here.")
_TEXT = {"type": "string"}

# Where a type is used: the id of an operation, and the part of it (`_parts`).
_Place = tuple[str, str]
_ERROR = ("", "error")


def openapi_route(routes: Sequence[Route], needs_key: Callable[[], bool]) -> Route:
    """Return the route of the document, which describes the given routes and itself."""

    @functools.cache
    def encoded(*, needs_key: bool) -> bytes:
        return encode(document([*routes, route], needs_key=needs_key))

    async def openapi(request: web.Request, query: NoQuery) -> ResponseBody:
        return web.Response(body=encoded(needs_key=needs_key()), content_type="application/json")

    summary = "Return this document"
    route = Route(
        "GET", "/openapi.json", openapi, "read_openapi", summary, response=dict[str, Any], is_open=True, tag="server"
    )
    return route


def document(routes: Sequence[Route], *, needs_key: bool) -> dict[str, Any]:
    """Return the OpenAPI document.  If `needs_key`, the routes that are not open require an API key."""
    at, models = _schemas(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        parameters = [*_path_parameters(route), *_query_parameters(route, models), *_header_parameters(route)]
        operation = _operation(route, parameters, at, needs_key=needs_key)
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    tags = {route.tag for route in routes}
    return {
        "openapi": "3.1.0",
        "info": _INFO,
        "tags": [{"name": name, "description": text} for name, text in TAGS.items() if name in tags],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(models.items())),
            "securitySchemes": {
                _KEY: {"type": "http", "scheme": "bearer", "description": "A key of `batchray keys add`."}
            },
        },
    }


def failures(route: Route) -> list[int]:
    """Return the statuses of the errors of a route: those that it names, and those of its kind.

    Every route can get an unusable request (400), have a bug (500), and be unavailable (503).  A route that is not open
    also refuses a key (401) or a foreign host name (421); one with a query or body, an invalid one (422); one with a
    body, a slow or large one, or one that is not JSON (408, 413, 415).  What changes something may find the disk full
    (507).
    """
    statuses = {400, 500, 503, *route.errors}
    if not route.is_open:
        statuses |= {401, 421}
    if route.query.model_fields:
        statuses |= {422}
    if route.body is not None:
        statuses |= {408, 413, 415, 422}
    if route.error_body is not None:
        statuses = {*map(openai_status, statuses)}
    if route.method != "GET":
        statuses |= {507}
    return sorted(statuses)


def _schemas(routes: Sequence[Route]) -> tuple[Mapping[_Place, Schema], dict[str, Schema]]:
    """Return the schema at each place, and that of each model by its name."""
    types: dict[tuple[_Place, JsonSchemaMode], Any] = {(_ERROR, "serialization"): ErrorBody}
    for route in routes:
        types |= {((route.operation_id, part), mode): kind for part, mode, kind in _parts(route)}
    at, models = schemas.of_types(types)
    bodies = [(at[route.operation_id, "body"], route) for route in routes if route.body is not None]
    for body, route in bodies:
        if route.has_strict_body:
            schemas.forbid_unknown(body, models)
    are_read = schemas.names_in([body for body, _ in bodies], models)
    schemas.describe_defaults(models, are_read)
    schemas.require_members(models, are_read)
    return at, models


def _parts(route: Route) -> Iterator[tuple[str, JsonSchemaMode, Any]]:
    """Yield the types of a route: the part that has it, whether that is read or written, and the type."""
    if route.body is not None:
        yield "body", "validation", route.body
    if route.error_body is not None:
        yield "error", "serialization", route.error_body
    for part, body in (("response", route.response), ("streams", route.streams)):
        match body:
            case EventsOf():
                for name, kind in body.events.items():
                    yield f"{part}.{name}", "serialization", kind
            case LinesOf():
                yield part, "serialization", body.line
            case PlainText() | FileContent():
                pass
            case _:
                yield part, "serialization", body


def _operation(
    route: Route, parameters: Sequence[Schema], at: Mapping[_Place, Schema], *, needs_key: bool
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.operation_id,
        "summary": route.summary,
        "tags": [route.tag],
        "parameters": parameters,
        "responses": {"200": _success(route, at), **{str(each): _failure(each, route, at) for each in failures(route)}},
    }
    if route.body is not None:
        content = {route.body_type: {"schema": at[route.operation_id, "body"]}}
        operation["requestBody"] = {"required": not route.is_body_optional, "content": content}
    if needs_key and not route.is_open:
        operation["security"] = [{_KEY: []}]
    return operation


def _success(route: Route, at: Mapping[_Place, Schema]) -> dict[str, Any]:
    content = _content(route, "response", at) | (_content(route, "streams", at) if route.streams else {})
    return {"description": "OK", "content": content, **(_header(*_WARNING) if route.body is not None else {})}


def _failure(status: int, route: Route, at: Mapping[_Place, Schema]) -> dict[str, Any]:
    headers = _header(*_ERROR_HEADERS[status]) if status in _ERROR_HEADERS else {}
    content = {"application/json": {"schema": at[(route.operation_id, "error") if route.error_body else _ERROR]}}
    return {"description": HTTPStatus(status).phrase, "content": content, **headers}


def _header(name: str, description: str) -> dict[str, Any]:
    return {"headers": {name: {"description": description, "schema": _TEXT}}}


def _content(route: Route, part: str, at: Mapping[_Place, Schema]) -> dict[str, Any]:
    """Return the contents of a response by media type.

    Streams are texts, because no generator reads them as anything else; `x-line` and `x-events` have the types inside.
    """
    body = getattr(route, part)
    match body:
        case EventsOf():
            events = {name: at[route.operation_id, f"{part}.{name}"] for name in body.events}
            end = "  The data of the last one is `[DONE]`." if body.ends_with_done else ""
            text = f"Server-sent events of the names {', '.join(events)}, with JSON in `data`.{end}"
            media = {"schema": {**_TEXT, "description": text}, "x-events": events}
        case LinesOf():
            text = "JSON Lines: one JSON object a line."
            media = {"schema": {**_TEXT, "description": text}, "x-line": at[route.operation_id, part]}
        case PlainText():
            media = {"schema": _TEXT}
        case FileContent():
            media = {"schema": {**_TEXT, "format": "binary"}}
        case _:
            return {"application/json": {"schema": at[route.operation_id, part]}}
    return dict.fromkeys(body.media_types, media)


def _path_parameters(route: Route) -> list[Schema]:
    return [
        {"name": name, "in": "path", "required": True, "schema": _PATH_SCHEMAS.get(name, _PATH_SCHEMA)}
        for name in re.findall(r"{(\w+)}", route.path)
    ]


def _query_parameters(route: Route, models: dict[str, Schema]) -> list[Schema]:
    """Return the parameters of a query; adds the models in them."""
    schema = route.query.model_json_schema(ref_template=schemas.REF, schema_generator=schemas.Untitled)
    models |= schema.get("$defs", {})
    fields = {name: schemas.without_null(field) for name, field in schema.get("properties", {}).items()}
    for field in fields.values():
        schemas.describe_default(field)
    return [{"name": name, "in": "query", "required": False, "schema": field} for name, field in fields.items()]


def _header_parameters(route: Route) -> list[Schema]:
    return [
        {"name": name, "in": "header", "required": False, "schema": {"type": "string", "pattern": f"^{pattern}$"}}
        for name, pattern in route.headers.items()
    ]
