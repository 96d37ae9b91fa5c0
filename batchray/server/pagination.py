"""Pagination: `after` and `before` are cursors in the order of the list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NamedTuple, TypeVar

from pydantic import Field

from batchray.schema.base import WireModel
from batchray.server.errors import HttpError
from batchray.store import SortOrder

T = TypeVar("T")


class Page(WireModel):
    """Query parameters of a list.  `after` and `before` are ids; both are relative to the order of the list."""

    before: str | None = None
    after: str | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    order: SortOrder = "desc"
    order_by: Literal["created_at"] = "created_at"


P = TypeVar("P", bound=Page)


def paged(query: P, page: Callable[[P], list[T]]) -> list[T]:
    """Return the page after `after`; if only `before` is given, return the page that ends before it.

    For that one, `page` is called with the opposite order and `before` as `after`, and its result is reversed.
    """
    if query.before is None or query.after is not None:
        return page(query)
    opposite: SortOrder = "asc" if query.order == "desc" else "desc"
    return page(query.model_copy(update={"order": opposite, "before": None, "after": query.before}))[::-1]


def slice_of(ids: Sequence[str], query: Page, noun: str) -> slice:
    """Return which of these ids lie between the cursors.  Raises HttpError 400, with `noun`, for an unknown cursor."""

    def position(cursor: str) -> int:
        try:
            return ids.index(cursor)
        except ValueError:
            raise HttpError(400, f"{noun} {cursor} not found") from None

    return slice(position(query.after) + 1 if query.after else 0, position(query.before) if query.before else None)


class Cursor(NamedTuple):
    """The position of a message: that of its item or run, then its own position within it."""

    seq: int
    ordinal: int


def is_between(cursor: Cursor, after: Cursor | None, before: Cursor | None, order: SortOrder) -> bool:
    """Return whether a cursor lies after `after` and before `before` in this order."""
    if order == "desc":
        after, before = before, after
    return (after is None or cursor > after) and (before is None or cursor < before)
