"""Python values that JSON has no type for, as JSON values: in the rows that results carry."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from datetime import date, time, timedelta
from typing import Any


def json_value(value: Any) -> Any:
    """Return a value as JSON can write it.

    Bytes become base64; dates and times ISO 8601; durations seconds; numbers that JSON has not, null; decimals and
    anything else texts.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(name): json_value(each) for name, each in value.items()}
        case list() | tuple():
            return [json_value(each) for each in value]
        case bytes():
            return base64.b64encode(value).decode()
        case date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
    return json_value(value.tolist()) if hasattr(value, "tolist") else str(value)
