"""Three-way merge of a text that two writers have edited at the same time, line by line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class _Edit(NamedTuple):
    """The lines of the base from `start` to `end` were replaced by `lines`."""

    start: int
    end: int
    lines: Sequence[str]


def merge_texts(base: str, present: str, late: str) -> str:
    """Return a text with both edits of `base`: the one that is `present` already, and a `late` one.

    Each edit counts as one block of lines, from its first change to its last.  If the two blocks do not touch, both
    apply.  If they do, `present` stays, and the lines that `late` adds follow its block: no line that either has added
    is lost, but deletions of the late edit are.  O(n) in the number of lines.
    """
    if present in (base, late):
        return late
    if late == base:
        return present
    lines = _lines(base)
    first, second = _edit(lines, _lines(present)), _edit(lines, _lines(late))
    if second.end < first.start:
        first, second = second, first
    if first.end < second.start:
        merged = [*lines[: first.start], *first.lines, *lines[first.end : second.start], *second.lines]
        return "\n".join([*merged, *lines[second.end :]])
    return _with_added(_lines(present), _edit(lines, _lines(present)), _edit(lines, _lines(late)), lines)


def _with_added(present: list[str], kept: _Edit, late: _Edit, base: Sequence[str]) -> str:
    """Return the present lines, and behind those of its edit the lines that only the late edit adds."""
    there = {*kept.lines, *base[late.start : late.end]}
    added = [line for line in late.lines if line not in there]
    end = kept.start + len(kept.lines)
    return "\n".join([*present[:end], *added, *present[end:]])


def _lines(text: str) -> list[str]:
    return text.split("\n") if text else []


def _edit(base: Sequence[str], edited: Sequence[str]) -> _Edit:
    """Return what differs between their common first and last lines."""
    shorter = min(len(base), len(edited))
    start = 0
    while start < shorter and base[start] == edited[start]:
        start += 1
    n_last = 0
    while n_last < shorter - start and base[-1 - n_last] == edited[-1 - n_last]:
        n_last += 1
    return _Edit(start, len(base) - n_last, edited[start : len(edited) - n_last])
