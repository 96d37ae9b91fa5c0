"""JSON that refuses duplicate keys and numbers that cannot be kept exactly."""

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
"""The deepest nesting of a request: the contract needs 8, a tool's arguments some more."""


_MAX_INT = 2**64 - 1


_MIN_INT = -(2**63)


# What the fast parser lets through or reports poorly; the exact parser then tells for sure.
_SUSPECT = re.compile(rb"\d{19}|[eE][+-]?\d{3}")


_KEY = re.compile(rb'"\s*:')


# What gives JSON its shape, for the places of errors in a body.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[][{},:]', re.DOTALL)


def strict_json(raw: bytes) -> Any:
    """Parse JSON as RFC 8259 and I-JSON (RFC 7493) have it: UTF-8, no NaN, no duplicate keys, 64-bit integers.

    Raises BatchFormatError naming what is wrong.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        _explain(raw, error)
    n_keys = _count_keys(value)
    if n_keys != len(_KEY.findall(raw)) or _SUSPECT.search(raw):
        _check_exactly(raw)
    return value


def _index_at(buffer: mmap.mmap | bytes, position: int) -> int | None:
    """Return which request of a body holds a byte, or else nests too deep before it; None outside of `requests`."""
    index, key = None, b""
    for start, depth, token in _tokens(buffer):
        if start >= position or depth > MAX_DEPTH + 2:
            break
        if depth == 1:
            index = 0 if token == b"[" and key == b'"requests"' else None
            key = token if token.startswith(b'"') else key
        elif depth == 2 and token == b"," and index is not None:
            index += 1
    return index


def _refuse_duplicates(buffer: mmap.mmap | bytes) -> None:
    """Raise where a body has two members of one name."""
    seen: set[bytes] = set()
    last = b""
    for _, depth, token in _tokens(buffer):
        if depth == 1 and token == b":":
            if last in seen:
                raise BatchFormatError(f"duplicate key {orjson.loads(last)!r}")
            seen.add(last)
        last = token


def _tokens(buffer: mmap.mmap | bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield where the strings, brackets, colons and commas of JSON stand, and how deep."""
    depth = 0
    for found in _TOKEN.finditer(buffer):
        depth -= found[0] in (b"]", b"}")
        yield found.start(), depth, found[0]
        depth += found[0] in (b"[", b"{")


def _count_keys(value: Any, depth: int = 1) -> int:
    """Count the keys of all objects in `value`; an early stop for what nests too deep."""
    if depth > MAX_DEPTH:
        raise BatchFormatError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        return len(value) + sum(_count_keys(v, depth + 1) for v in value.values() if isinstance(v, (dict, list)))
    if isinstance(value, list):
        return sum(_count_keys(v, depth + 1) for v in value if isinstance(v, (dict, list)))
    return 0


def _check_exactly(raw: bytes) -> None:
    """Look for duplicate keys and numbers beyond 64 bits with the slow parser, which can see them."""

    def integer(digits: str) -> int:
        if len(digits) > 20 or not _MIN_INT <= int(digits) <= _MAX_INT:
            raise BatchFormatError(f"a number beyond 64 bits: {digits[:24]}{'...' if len(digits) > 24 else ''}")
        return int(digits)

    def constant(name: str) -> NoReturn:
        raise BatchFormatError(f"{name} is not JSON")

    json.loads(raw, object_pairs_hook=_refuse_duplicate, parse_int=integer, parse_constant=constant)


def _refuse_duplicate(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BatchFormatError(f"duplicate key {twice!r}")
    return value


def _explain(raw: bytes, error: orjson.JSONDecodeError) -> NoReturn:
    """Raise with a reason that a person can act on."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as bad:
        raise BatchFormatError(f"not UTF-8: byte 0x{raw[bad.start]:02x} at column {bad.start + 1}") from None
    if raw.startswith(b"\xef\xbb\xbf"):
        raise BatchFormatError("starts with a byte order mark; write UTF-8 without one") from None
    if "depth" in error.msg or "recursion" in error.msg:
        raise BatchFormatError(f"nested deeper than {MAX_DEPTH} levels") from None
    with contextlib.suppress(ValueError, RecursionError):  # not JSON for the exact parser either
        _check_exactly(raw)
    raise BatchFormatError(f"not JSON: {error.msg} at column {error.colno}") from None
