"""pyarrow, imported when the first table is read."""

from __future__ import annotations

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
