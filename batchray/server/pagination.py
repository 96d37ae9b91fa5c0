"""Pages of lists, with cursors in the order of the list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple, TypeVar

from pydantic import Field

from batchray.schema.base import WireModel
from batchray.store import SortOrder

T = TypeVar("T")


class Page(WireModel):
    """Where a page of a list begins, and how long it is; `after` and `before` are ids, in the order of the list."""

    before: str | None = None
    after: str | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    order: SortOrder = "desc"
    order_by: Literal["created_at"] = "created_at"


P = TypeVar("P", bound=Page)


def paged(query: P, page: Callable[[P], list[T]]) -> list[T]:
    """Return the page that begins behind `after`, or else the one that ends in front of `before`.

    For the latter `page` is asked for the one behind, in the other order.
    """
    if query.before is None or query.after is not None:
        return page(query)
    other: SortOrder = "asc" if query.order == "desc" else "desc"
    return page(query.model_copy(update={"order": other, "before": None, "after": query.before}))[::-1]


class Place(NamedTuple):
    """Where a message stands among others: the place of its item or run, its own in that."""

    seq: int
    ordinal: int


def is_between(place: Place, after: Place | None, before: Place | None, order: SortOrder) -> bool:
    """Tell whether a place lies behind one and in front of another in this order."""
    if order == "desc":
        after, before = before, after
    return (after is None or place > after) and (before is None or place < before)
