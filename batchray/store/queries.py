"""Conditions that several queries share."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from batchray.store.records import SortOrder


def starts_with(column: sa.ColumnElement[Any], stem: str) -> sa.ColumnElement[bool]:
    """Select ids that begin with `stem`, through the index.  Not BETWEEN: PostgreSQL allows no collation in it."""
    return sa.and_(column >= stem, column <= f"{stem}~")


def between(
    query: sa.Select[Any], column: sa.ColumnElement[Any], order: SortOrder, after: int | None, before: int | None
) -> sa.Select[Any]:
    """Restrict a query to what comes after one value and before another in this order."""
    if order == "desc":
        after, before = before, after
    query = query if after is None else query.where(column > after)
    return query if before is None else query.where(column < before)
