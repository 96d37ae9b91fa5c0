"""The arguments of tool calls: JSON objects, as models write them and as providers take them back.

Models write raw line feeds inside strings, trailing commas, a fence of Markdown around the object, the object inside
a JSON string, or `null` for no arguments.  Text that still is not an object stays as it is, so that the model gets an
error.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

# A string, or a comma before the end of an object or a list.
_TRAILING_COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[}\]])', re.DOTALL)
_FENCED = re.compile(r"```\w*\s*\n(.*?)\n?\s*```", re.DOTALL)
_UNREADABLE = "INVALID_JSON"


def is_object(text: str) -> bool:
    """Whether `text` is a JSON object."""
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False


def as_object(text: str) -> str | None:
    """Return arguments as the JSON text of an object, or None if they are none, however leniently read.

    A valid object is returned unchanged.  Integers keep all their digits.
    """
    if is_object(text):
        return text
    value = _read(text)
    if isinstance(value, str):  # an object inside a JSON string
        value = _read(value)
    if value is None:
        return "{}"
    return _written(value) if isinstance(value, dict) else None


def object_to_send(text: str) -> str:
    """Return arguments for a request: some servers refuse a conversation whose arguments are not a JSON object.

    Unreadable ones are sent as a string inside an object.
    """
    if not text or is_object(text):
        return text or "{}"
    return as_object(text) or orjson.dumps({_UNREADABLE: joined_surrogates(text)}).decode()


def joined_surrogates(text: str) -> str:
    """Return text that can be encoded: pairs of surrogates become one character, single ones U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def with_whole_texts(value: dict[str, Any]) -> dict[str, Any]:
    """Return an object that can be written as JSON: in all its texts, surrogates as `joined_surrogates` makes them."""
    try:
        orjson.dumps(value)
    except TypeError:
        return {joined_surrogates(name): _with_whole_texts(each) for name, each in value.items()}
    return value


def _with_whole_texts(value: Any) -> Any:
    match value:
        case str():
            return joined_surrogates(value)
        case dict():
            return {joined_surrogates(name): _with_whole_texts(each) for name, each in value.items()}
        case list():
            return [_with_whole_texts(each) for each in value]
    return value


def _read(text: str) -> Any:
    """Return the value of JSON text, or the text itself if it cannot be read; None for empty text."""
    text = text.strip()
    if fenced := _FENCED.fullmatch(text):
        text = fenced[1].strip()
    if not text:
        return None
    for candidate in (text, _TRAILING_COMMA.sub(lambda match: match[1] or "", text)):
        try:
            return json.loads(candidate, strict=False)
        except (ValueError, RecursionError):
            continue
    return text


def _written(value: dict[str, Any]) -> str | None:
    try:
        return joined_surrogates(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (ValueError, RecursionError):  # NaN and Infinity are not JSON
        return None
