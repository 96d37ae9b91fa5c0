"""What the OpenAPI document cannot say: loaded by schemathesis, which is told so by `test_schemathesis`."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import schemathesis


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case[Any]) -> bool:
    """Leave out bodies with a number beyond 64 bits.

    They are refused because not all readers of JSON keep such a number as it is (RFC 7493); a schema of free-form
    members cannot say so.
    """
    return all(abs(number) < 2**63 for number in _integers(case.body))


@schemathesis.hook
def map_case(context: schemathesis.HookContext, case: schemathesis.Case[Any]) -> schemathesis.Case[Any]:
    """Give each body an idempotency key of its own, where there is a good one: a key that comes again with another
    body is refused, and no schema can say so.
    """
    headers: Any = case.headers or {}
    key = headers.get("Idempotency-Key")
    if isinstance(key, str) and re.fullmatch("[!-~]{1,255}", key):
        headers["Idempotency-Key"] = hashlib.sha256(repr(case.body).encode()).hexdigest()
    return case


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
