"""A JSON parser that refuses duplicate keys and numbers that do not fit into 64 bits.

orjson, which is fast, accepts duplicate keys.  So the keys in its result are counted and compared with the `":` in
the input: a duplicate makes the counts differ, and so can a string that contains `":`.  If they differ, Python's
slow parser, which sees duplicates, decides.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import re
from collections.abc import Iterator
from typing import Any, NoReturn

import orjson

from batchray.errors import BatchFormatError

MAX_DEPTH = 64
"""The deepest nesting of a request: the contract needs 8 levels, a tool's arguments a few more."""

_MAX_INT = 2**64 - 1
_MIN_INT = -(2**63)
# Numbers that the fast parser accepts or reports poorly; the exact parser decides.
_NEEDS_EXACT_PARSER = re.compile(rb"\d{19}|[eE][+-]?\d{3}")
_KEY = re.compile(rb'"\s*:')
# Strings and punctuation of JSON, to find the position of an error in a body.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[][{},:]', re.DOTALL)


def strict_json(raw: bytes) -> Any:
    """Parse JSON by RFC 8259 and I-JSON (RFC 7493): UTF-8, no NaN, no duplicate keys, 64-bit integers.

    Raises BatchFormatError with the reason.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        _raise_reason(raw, error)
    n_keys = _count_keys(value)
    if n_keys != len(_KEY.findall(raw)) or _NEEDS_EXACT_PARSER.search(raw):
        _check_exactly(raw)
    return value


def request_index_at(buffer: mmap.mmap | bytes | memoryview, position: int) -> int | None:
    """Return the index of the request at a byte of a body, or nested too deep before it; None outside `requests`."""
    index, key, inside = None, b"", 2
    for start, depth, token in _tokens(buffer):
        if start >= position or depth > MAX_DEPTH + 2:
            break
        if depth == 0 and token == b"[":  # a body that is only the array of requests
            index, inside = 0, 1
        elif depth == 1 < inside:
            index = 0 if token == b"[" and key == b'"requests"' else None
            key = token if token.startswith(b'"') else key
        elif depth == inside and token == b"," and index is not None:
            index += 1
    return index


def refuse_duplicate_members(buffer: mmap.mmap | bytes | memoryview) -> None:
    """Raise BatchFormatError if a body has two top-level members of one name."""
    seen: set[str] = set()
    last = b""
    for _, depth, token in _tokens(buffer):
        if depth == 1 and token == b":":
            key = orjson.loads(last)  # which may be spelled with escapes
            if key in seen:
                raise BatchFormatError(f"duplicate key {key!r}")
            seen.add(key)
        last = token


def _tokens(buffer: mmap.mmap | bytes | memoryview) -> Iterator[tuple[int, int, bytes]]:
    """Yield the position, nesting depth and text of each string, bracket, colon and comma."""
    depth = 0
    for found in _TOKEN.finditer(buffer):
        depth -= found[0] in (b"]", b"}")
        yield found.start(), depth, found[0]
        depth += found[0] in (b"[", b"{")


def _count_keys(value: Any, depth: int = 1) -> int:
    """Count the keys of all objects in `value`.  Raises BatchFormatError for too deep a nesting."""
    if depth > MAX_DEPTH:
        raise BatchFormatError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        return len(value) + sum(_count_keys(v, depth + 1) for v in value.values() if isinstance(v, (dict, list)))
    if isinstance(value, list):
        return sum(_count_keys(v, depth + 1) for v in value if isinstance(v, (dict, list)))
    return 0


def _check_exactly(raw: bytes) -> None:
    """Raise BatchFormatError for duplicate keys and numbers beyond 64 bits, found with the slow parser."""

    def integer(digits: str) -> int:
        if len(digits) > 20 or not _MIN_INT <= int(digits) <= _MAX_INT:
            raise BatchFormatError(f"a number beyond 64 bits: {digits[:24]}{'...' if len(digits) > 24 else ''}")
        return int(digits)

    def constant(name: str) -> NoReturn:
        raise BatchFormatError(f"{name} is not JSON")

    json.loads(raw, object_pairs_hook=_object_without_duplicates, parse_int=integer, parse_constant=constant)


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BatchFormatError(f"duplicate key {twice!r}")
    return value


def _raise_reason(raw: bytes, error: orjson.JSONDecodeError) -> NoReturn:
    """Raise BatchFormatError with a reason that the caller can act on."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as bad:
        raise BatchFormatError(
            f"not UTF-8: byte 0x{raw[bad.start]:02x} at column {bad.start + 1}; encode it as UTF-8"
        ) from None
    if raw.startswith(b"\xef\xbb\xbf"):
        raise BatchFormatError("starts with a byte order mark; write UTF-8 without one") from None
    if "depth" in error.msg or "recursion" in error.msg:
        raise BatchFormatError(f"nested deeper than {MAX_DEPTH} levels") from None
    with contextlib.suppress(ValueError, RecursionError):  # the exact parser cannot parse it either
        _check_exactly(raw)
    raise BatchFormatError(f"not JSON: {error.msg} at column {error.colno}") from None
