"""Hooks of schemathesis for constraints that OpenAPI cannot express; `test_schemathesis` loads them."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import schemathesis


@schemathesis.hook
def before_load_schema(context: schemathesis.HookContext, raw_schema: dict[str, Any]) -> None:
    """Describe each event of a stream as an object.

    In OpenAPI 3.1 schemathesis reads a stream's schema as that of one event; generators of clients, as that of its
    text.
    """
    for methods in raw_schema["paths"].values():
        for operation in methods.values():
            for response in operation["responses"].values():
                if (stream := response["content"].get("text/event-stream")) is not None:
                    names = {"enum": [*stream["x-events"]]}
                    members = {"event": names, "id": {"type": "string"}, "data": {"type": "string"}}
                    stream["schema"] = {"type": "object", "properties": members, "required": ["data"]}


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case[Any]) -> bool:
    """Leave out some cases whose rule OpenAPI cannot express.

    A number beyond 64 bits is refused because not all JSON parsers preserve it (RFC 7493).  A parameter of a query and
    its older name may not contradict each other.  A message without a `type`, which is what null means there, is one
    of the type `message`.
    """
    query: Any = case.query or {}
    has_older_names = bool(query.keys() & {"ascending", "sort_by"}) and bool(query.keys() & {"order", "order_by"})
    return not has_older_names and not _has_null_type(case.body) and all(abs(n) < 2**63 for n in _integers(case.body))


@schemathesis.hook
def map_case(context: schemathesis.HookContext, case: schemathesis.Case[Any]) -> schemathesis.Case[Any]:
    """Replace a valid idempotency key by one that is unique to the request.

    A key that is reused with another body is refused, and a schema cannot express that.
    """
    headers: Any = case.headers or {}
    key = headers.get("Idempotency-Key")
    if isinstance(key, str) and re.fullmatch("[ -~]{1,255}", key):
        headers["Idempotency-Key"] = hashlib.sha256(repr((case.formatted_path, case.body)).encode()).hexdigest()
    return case


def _has_null_type(value: Any) -> bool:
    if isinstance(value, dict):
        return value.get("type", "") is None or any(map(_has_null_type, value.values()))
    return isinstance(value, list) and any(map(_has_null_type, value))


def _integers(value: Any) -> list[int]:
    match value:
        case bool():
            return []
        case int():
            return [value]
        case dict():
            return [number for child in value.values() for number in _integers(child)]
        case list():
            return [number for child in value for number in _integers(child)]
    return []
