"""pyarrow, imported when the first table is read; arrays of plain values."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from batchray.errors import BatchFormatError

PART_ROWS = 1000
"""Rows of one part: enough that its schema and its insert cost little for each, few enough to decode for one row."""

PART_BYTES = 4 * 1024 * 1024
"""About the size of a part whose rows are large."""


def arrow() -> Any:
    """Return the module pyarrow.  Raises BatchFormatError if it is not installed."""
    try:
        import pyarrow
    except ImportError:
        raise BatchFormatError(
            "tables are read with pyarrow, which is not installed: pip install 'batchray[data]'"
        ) from None
    return pyarrow


def check_names(names: list[str]) -> None:
    """Raise BatchFormatError if two columns have one name, which a row could not hold."""
    if len(names) > len(set(names)):
        twice = next(name for name in names if names.count(name) > 1)
        raise BatchFormatError(f"two columns are named {twice!r}; rename one of them")


def array_of(values: Sequence[Any], kind: Any) -> Any:
    """Return an array of texts, int64 or float64, which `kind` says, or None.

    `pyarrow.array` makes the same one, but imports pandas if it is installed, which takes 50 MB and half a second.
    """
    pa = arrow()
    validity, n_nulls = _validity(values)
    if n_nulls == len(values):
        return pa.nulls(n_nulls, kind)
    if kind == pa.string():
        texts = [value or "" for value in values]
        joined = "".join(texts)
        sizes = map(len, texts) if joined.isascii() else (len(text.encode()) for text in texts)
        buffers = [array("i", accumulate(sizes, initial=0)), joined.encode()]
    else:
        buffers = [array("q" if kind == pa.int64() else "d", [0 if value is None else value for value in values])]
    return pa.Array.from_buffers(kind, len(values), [validity, *map(pa.py_buffer, buffers)], n_nulls)


def _validity(values: Sequence[Any]) -> tuple[Any, int]:
    """Return the bits that say which values are not None, None if all are, and how many are None."""
    n_nulls = values.count(None)
    if n_nulls == 0:
        return None, 0
    bits = "".join("0" if value is None else "1" for value in reversed(values))
    return arrow().py_buffer(int(bits, 2).to_bytes((len(values) + 7) // 8, "little")), n_nulls
