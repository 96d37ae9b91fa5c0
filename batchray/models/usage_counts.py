"""Token counts as providers report them.  A count that cannot be read is 0: a good answer is not lost over its bill."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MAX_COUNT = 2**53


def token_count(value: Any) -> int:
    """Return a count: a number that is not negative, or its text; 0 for anything else.  A fraction is cut off."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return 0
    if not isinstance(value, int | float) or not 0 <= value <= _MAX_COUNT:  # NaN compares as False
        return 0
    return int(value)


def mapping(value: Any) -> Mapping[str, Any]:
    """Return `value` if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def merged_counts(kept: Mapping[str, Any], new: Any) -> Mapping[str, Any]:
    """Return the counts of two reports about one reply: of each count the largest.

    Counts are cumulative.  Some servers report them in each chunk, and some report zeros or a part of them at the end.
    """
    if not isinstance(new, dict):
        return kept
    return {**kept, **new, **{name: _larger(kept[name], new[name]) for name in kept.keys() & new.keys()}}


def _larger(kept: Any, new: Any) -> Any:
    if isinstance(kept, dict) or isinstance(new, dict):
        return merged_counts(mapping(kept), new)
    return new if token_count(new) >= token_count(kept) else kept
