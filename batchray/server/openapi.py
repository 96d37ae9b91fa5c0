"""Generates the OpenAPI document from the routes and their models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from batchray.schema.base import WireModel
from batchray.schema.ids import JOB_ID_PATTERN
from batchray.server.routing import VERSION, Route

_REF = "#/components/schemas/{model}"
# The errors of every route: an unusable request, an invalid query, a server that is stopping or has lost its store.
_COMMON = (400, 422, 503)
_PATH_SCHEMAS = {
    "agent_id": {"type": "string", "minLength": 1},
    "batch_id": {"type": "string", "pattern": f"^{JOB_ID_PATTERN}$"},
}
_STREAM = "text/event-stream"
_EVENT = {
    "description": "One event of the stream.  `data` is JSON, except the final `[DONE]` of a streamed message.",
    "type": "object",
    "properties": {name: {"type": "string"} for name in ("event", "id", "data")},
    "required": ["data"],
}


class ErrorBody(WireModel):
    """An error: `detail` is a sentence for people, `trace_id` finds the error in the server's log."""

    detail: str
    trace_id: str


def document(routes: Sequence[Route], *, needs_key: bool) -> dict[str, Any]:
    """Return the OpenAPI document.  If `needs_key`, the routes that are not open require an API key."""
    models: list[tuple[type[BaseModel], JsonSchemaMode]] = [(ErrorBody, "serialization")]
    for route in routes:
        models += [(route.body, "validation")] if route.body else []
        models += [(route.response, "serialization")] if route.response else []
    refs, definitions = models_json_schema(list(dict.fromkeys(models)), ref_template=_REF)
    schemas = definitions.get("$defs", {})
    for route in routes:
        if route.body is not None and route.has_strict_body:
            _forbid_unknown(refs[route.body, "validation"], schemas)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, refs, needs_key=needs_key)
    return {
        "openapi": "3.1.0",
        "info": {"title": "batchray", "version": VERSION},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _forbid_unknown(schema: Any, schemas: dict[str, Any]) -> None:
    """Allow no other than the described members in an object, and in all objects that it refers to."""
    if isinstance(schema, list):
        for each in schema:
            _forbid_unknown(each, schemas)
    elif isinstance(schema, dict) and "$ref" in schema:
        _forbid_unknown(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    elif isinstance(schema, dict) and "additionalProperties" not in schema:
        if schema.get("type") == "object" and "properties" in schema:
            schema["additionalProperties"] = False
        for each in schema.values():
            _forbid_unknown(each, schemas)


def _operation(route: Route, refs: Any, *, needs_key: bool) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.operation_id,
        "summary": route.summary,
        "tags": [route.tag],
        "parameters": [*_path_parameters(route), *_query_parameters(route), *_header_parameters(route)],
        "responses": {"200": _success(route, refs), **_failures(route, refs)},
    }
    if route.body is not None:
        content = {"application/json": {"schema": refs[route.body, "validation"]}}
        operation["requestBody"] = {"required": True, "content": content}
    if needs_key and not route.is_open:
        operation["security"] = [{"key": []}]
    return operation


def _success(route: Route, refs: Any) -> dict[str, Any]:
    schema = refs[route.response, "serialization"] if route.response else {}
    if route.media_type != "application/json":
        schema = _EVENT if route.media_type == _STREAM else {"type": "string"}
    elif route.is_list:
        schema = {"type": "array", "items": schema}
    streamed = {_STREAM: {"schema": _EVENT}} if route.may_stream else {}
    return {"description": "OK", "content": {route.media_type: {"schema": schema}, **streamed}}


def _failures(route: Route, refs: Any) -> dict[str, Any]:
    content = {"application/json": {"schema": refs[ErrorBody, "serialization"]}}
    statuses = {*_COMMON, *route.errors, *(() if route.is_open else (401, 421))}
    return {str(status): {"description": HTTPStatus(status).phrase, "content": content} for status in sorted(statuses)}


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": _PATH_SCHEMAS[name]}
        for name in re.findall(r"{(\w+)}", route.path)
    ]


def _query_parameters(route: Route) -> list[dict[str, Any]]:
    schema = route.query.model_json_schema(ref_template=_REF)
    return [
        {"name": name, "in": "query", "required": False, "schema": _inlined(field, schema.get("$defs", {}))}
        for name, field in schema.get("properties", {}).items()
    ]


def _header_parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "header", "required": False, "schema": {"type": "string", "pattern": f"^{pattern}$"}}
        for name, pattern in route.headers.items()
    ]


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """Return a parameter's schema without references, and without null, which a query string cannot express."""
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return definitions[schema["$ref"].rpartition("/")[2]]
    kinds = [_inlined(kind, definitions) for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "title", "default")}
    default = {"default": schema["default"]} if schema.get("default") is not None else {}
    if not kinds:
        return {**rest, **default}
    return {**rest, **default, **(kinds[0] if len(kinds) == 1 else {"anyOf": kinds})}
