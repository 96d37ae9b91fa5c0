"""What the OpenAPI document cannot say of bodies: loaded by schemathesis, which is told by `test_schemathesis`."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case[Any]) -> bool:
    """Leave out bodies with a number beyond 64 bits.

    They are refused because not all readers of JSON keep such a number as it is (RFC 7493); a schema of free-form
    members cannot say so.
    """
    return all(abs(number) < 2**63 for number in _integers(case.body))


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
