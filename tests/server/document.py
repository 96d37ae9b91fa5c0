"""The OpenAPI document of a server, and what in a response does not agree with it."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jsonschema_rs

METHODS = ("get", "post", "put", "patch", "delete")


class Operation(NamedTuple):
    """One operation of a document: its id, how it is reached (`path` has names in braces), and its description."""

    id: str
    method: str
    path: str
    described: Mapping[str, Any]

    @property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(self.path.rstrip("/"))) + "/?")


class Document:
    """A document.  `answered` collects the ids of the operations whose success was compared with it."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._components = document["components"]
        self._validator = functools.cache(self._new_validator)
        self.operations = list(_operations(document))
        self.answered = set[str]()

    def problems(self, method: str, path: str, status: int, media_type: str, body: bytes) -> list[str]:
        """Return what in a response does not agree with the document."""
        operation = self.operation(method, path)
        if operation is None:
            return [f"{method} {path} is not described"]
        responses = operation.described["responses"]
        media_type = media_type.partition(";")[0]
        content = responses.get(str(status), {}).get("content", {}).get(media_type)
        if content is None:
            return [f"{operation.id}: {status} {media_type} is not described"]
        if status == 200:
            self.answered.add(operation.id)
        return [f"{operation.id} {status}: {problem}" for problem in self._problems(content, media_type, body)]

    def operation(self, method: str, path: str) -> Operation | None:
        """Return the operation that a request calls, or None.  The most specific path wins, as in the server."""
        found = [each for each in self.operations if each.method == method.lower() and each.pattern.fullmatch(path)]
        return min(found, key=lambda each: (each.path.count("{"), each.path != path), default=None)

    def parameters(self, operation: Operation) -> dict[str, str]:
        """Return the description of each parameter of an operation: of its query, and of the members of its body."""
        queried = {each["name"]: each["schema"] for each in operation.described["parameters"] if each["in"] == "query"}
        body = operation.described.get("requestBody", {"content": {"application/json": {"schema": {}}}})
        [media] = body["content"].values()
        schema = media["schema"]
        model = self._components["schemas"].get(schema.get("$ref", "").rpartition("/")[2], schema)
        return {name: each.get("description", "") for name, each in (queried | model.get("properties", {})).items()}

    def _problems(self, content: Mapping[str, Any], media_type: str, body: bytes) -> Iterator[str]:
        if media_type == "application/json":
            yield from self._of_value(content["schema"], body)
        elif "x-line" in content:
            for line in body.splitlines():
                yield from self._of_value(content["x-line"], line)
        elif "x-events" in content:
            for name, data in events_in(body):
                if name not in content["x-events"]:
                    yield f"the event {name!r} is not described"
                elif data != b"[DONE]":
                    yield from self._of_value(content["x-events"][name], data)
        else:
            body.decode()

    def _of_value(self, schema: Mapping[str, Any], text: bytes) -> Iterator[str]:
        for error in self._validator(json.dumps(schema)).iter_errors(json.loads(text)):
            yield f"{'/'.join(map(str, error.instance_path))}: {error.message[:300]}"

    def _new_validator(self, schema: str) -> Any:
        return jsonschema_rs.Draft202012Validator({**json.loads(schema), "components": self._components})


def events_in(stream: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the data of each event of a stream."""
    for block in stream.split(b"\n\n"):
        fields = dict(line.split(b": ", 1) for line in block.splitlines() if not line.startswith(b":"))
        if b"data" in fields:
            yield fields.get(b"event", b"message").decode(), fields[b"data"]


def _operations(document: Mapping[str, Any]) -> Iterator[Operation]:
    for path, methods in document["paths"].items():
        for method in (each for each in METHODS if each in methods):
            yield Operation(methods[method]["operationId"], method, path, methods[method])
