"""Arguments of a tool call as values for its tool, in which no number of the model is changed silently.

How leniently their JSON text is read is decided in `models.arguments`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

import orjson
from pydantic import BaseModel

from batchray.agents.user_code import encodable
from batchray.models.arguments import as_object

_MAX_QUOTED_CHARS = 300
# Floats hold all integers up to 2**53, of 16 digits.
_MAX_EXACT = 2**53
_LARGE_NUMBER = re.compile(r"\d{16}|\d[eE]")
_NAMES = {str: "text", list: "a list", bool: "a boolean", int: "a number", float: "a number"}


class BadArgumentsError(ValueError):
    """The arguments are not a JSON object; the message says what they are instead, after "the arguments of NAME"."""


class Arguments(NamedTuple):
    """The object that a model wrote.

    `rounded` has the numbers that a float, or an integer made from a float, cannot hold: the type and value that such a
    number would become, and its text.
    """

    values: dict[str, Any]
    rounded: Mapping[tuple[type, int | float], str] = {}


def read_arguments(text: str) -> Arguments:
    """Read the arguments of a tool call.  Nothing, null and an empty list are no arguments.

    Integers of any length are exact.  Raises BadArgumentsError.
    """
    if (plain := _plain_object(text)) is not None:
        return Arguments(plain)
    numbers = _Numbers()
    try:
        values = numbers.read(as_object(text) or text)
    except RecursionError:
        raise BadArgumentsError(f"are nested too deeply: {_quoted(text)}") from None
    return Arguments(_object(values, text), numbers.rounded())


def _plain_object(text: str) -> dict[str, Any] | None:
    """Read what nearly all models write: an object without large numbers; None for anything else."""
    if _LARGE_NUMBER.search(text):
        return None
    try:
        values = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return values if isinstance(values, dict) else None


def check_exact(values: Any, rounded: Mapping[tuple[type, int | float], str]) -> str | None:
    """Return what is wrong if a number in the checked arguments is not the one that the model wrote; None if nothing.

    `rounded` is that of the `Arguments`.
    """
    waiting = [values] if rounded else []
    while waiting:
        value = waiting.pop()
        if isinstance(value, float | int | Decimal):
            kind = float if isinstance(value, float) else int
            if (written := rounded.get((kind, value))) is not None:  # type: ignore[arg-type]
                return f"the number {written} cannot be passed exactly: it would become {value!r}"
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += value
        elif isinstance(value, BaseModel) or dataclasses.is_dataclass(value):
            waiting += vars(value).values() if hasattr(value, "__dict__") else ()
    return None


class _Numbers:
    """Reads JSON, and notes the numbers that a float cannot hold."""

    def __init__(self) -> None:
        self._rounded: dict[tuple[type, int | float], str] = {}
        self._exact: set[tuple[type, int | float]] = set()

    def read(self, text: str) -> Any:
        """Parse JSON.  Raises BadArgumentsError."""
        try:
            return json.loads(text, parse_int=self._integer, parse_float=self._float, parse_constant=self._constant)
        except ValueError as error:
            raise BadArgumentsError(f"are not JSON: {error}: {_quoted(text)}") from None

    def rounded(self) -> dict[tuple[type, int | float], str]:
        """Return what to look for: numbers that were written as such are right."""
        return {number: text for number, text in self._rounded.items() if number not in self._exact}

    def _integer(self, text: str) -> int:
        value = int(text)
        self._exact.add((int, value))
        if abs(value) > _MAX_EXACT:
            try:
                nearest = float(value)
            except OverflowError:  # no float parameter takes it
                return value
            if nearest != value:
                self._rounded[float, nearest] = text
        return value

    def _float(self, text: str) -> float:
        value = float(text)
        if math.isinf(value):
            raise ValueError(f"the number {text[:80]} is too large")
        self._exact.add((float, value))
        if abs(value) >= _MAX_EXACT and Decimal(text) != int(value):
            self._rounded[int, int(value)] = text
        return value

    def _constant(self, text: str) -> float:
        raise ValueError(f"{text} is not a number of JSON")


def _object(values: Any, text: str) -> dict[str, Any]:
    if isinstance(values, dict):
        return values
    if values == []:
        return {}
    raise BadArgumentsError(f"are {_NAMES.get(type(values), 'JSON')}, not a JSON object: {_quoted(text)}")


def _quoted(text: str) -> str:
    shown = text if len(text) <= _MAX_QUOTED_CHARS else f"{text[: _MAX_QUOTED_CHARS - 3]}..."
    return encodable(repr(shown))
