"""Lists of any size as responses: read and encoded on threads, a part at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel

from batchray.server.pagination import Cursor, Page
from batchray.server.routing import encode
from batchray.server.stream import StreamedResponse
from batchray.store import AsyncStore, SortOrder

T = TypeVar("T")

_PART_BYTES = 256 * 1024


async def json_list(
    request: web.Request, store: AsyncStore, elements: Iterable[BaseModel], opening: bytes = b"[", closing: bytes = b"]"
) -> web.StreamResponse:
    """Send a JSON array.  `store` calls what reads and encodes the elements.

    A list that fits into one part is sent with its length.  An error in a later part cuts the response.
    """
    parts = _parts(elements, opening, closing)
    part: bytes | None = await store.call(next, parts)
    following = await store.call(next, parts, None)
    if following is None:
        return web.Response(body=part, content_type="application/json")
    response = StreamedResponse(request, {"Content-Type": "application/json"})
    while part is not None:
        await response.write(part)
        part, following = following or await store.call(next, parts, None), None
    return await response.end()


def _parts(elements: Iterable[BaseModel], opening: bytes, closing: bytes) -> Iterator[bytes]:
    """Yield the text of an array in parts of about `_PART_BYTES`; a longer element makes a longer part."""
    part, separator = bytearray(opening), b""
    for element in elements:
        part += separator + encode(element)
        separator = b","
        if len(part) >= _PART_BYTES:
            yield bytes(part)
            part.clear()
    yield bytes(part + closing)


def between_cursors(
    query: Page,
    cursor_of: Callable[[str | None], Cursor | None],
    read: Callable[[SortOrder, Cursor | None, Cursor | None], Iterator[tuple[Cursor, T]]],
) -> Iterator[T]:
    """Yield the page after `query.after`; if only `before` is given, the page that ends before it.

    `read` yields what lies after one cursor and before another in an order.  For a page that ends before a cursor it is
    read twice: in the opposite order, only to find where the page begins.
    """
    after, before = cursor_of(query.after), cursor_of(query.before)
    if before is not None and after is None:
        opposite: SortOrder = "asc" if query.order == "desc" else "desc"
        first = None
        for cursor, _ in islice(read(opposite, before, None), query.limit):
            first = cursor
        if first is None:
            return
        after = Cursor(first.seq, first.ordinal + (1 if query.order == "desc" else -1))
    for _, element in islice(read(query.order, after, before), query.limit):
        yield element
