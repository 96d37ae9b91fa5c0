"""Values of columns without one type, as texts of JSON, and the reason if a value has none."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from batchray.batch.formats.arrow import arrow
from batchray.errors import BatchFormatError

_MISSING = ("NAType", "NaTType")
_SHOWN_BITS = 256
_MAX_DEPTH = 50


def is_missing(value: Any) -> bool:
    """Whether a value is None, or what frames have for it: NaN, NA or NaT."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or type(value).__name__ in _MISSING


def json_text(value: Any, column: str, what: str = "among values of other types") -> str | None:
    """Return a value of a column as a text of JSON; None for a missing value of a frame.

    Raises BatchFormatError without a row.  `what` says in which company Arrow cannot keep a value that has no JSON.
    """
    try:
        return _as_json(value)
    except TypeError:
        raise BatchFormatError(f"{_unkept(value, what)} cannot be kept", path=f"column {column!r}") from None


def _as_json(value: Any) -> str | None:
    if is_missing(value):
        return None
    if isinstance(value, float) and math.isinf(value):
        raise TypeError("JSON has no infinity")
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    return orjson.dumps(value, default=_json_of, option=options).decode()


def _json_of(value: Any) -> Any:
    """Return a value of a subclass or of pandas as one that JSON has.  Raises TypeError."""
    if is_missing(value):
        return None
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    raise TypeError


def _unkept(value: Any, what: str, depth: int = 0) -> str:
    """Return what a value is that neither JSON nor Arrow can keep here, or the first such value inside it."""
    name = f"a value of type {type(value).__name__}"
    if isinstance(value, str):
        return f"{name} with half of a surrogate pair"
    if isinstance(value, int):
        shown = str(value) if value.bit_length() <= _SHOWN_BITS else f"of {value.bit_length():,} bits"
        return f"the integer {shown} is beyond 64 bits; give it as a text, because it"
    if _has_arrow_type(value):
        return f"{name} {what}"
    for each in _values_inside(value):
        try:
            _as_json(each)
        except TypeError:
            return _unkept(each, what, depth + 1) if depth < _MAX_DEPTH else name
    return name


def _values_inside(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _has_arrow_type(value: Any) -> bool:
    """Whether Arrow keeps a value that is alone in its column."""
    pa = arrow()
    try:
        return bool(pa.array([value]).to_pylist() == [value])
    except (pa.ArrowException, TypeError, ValueError, OverflowError, RecursionError):
        return False
