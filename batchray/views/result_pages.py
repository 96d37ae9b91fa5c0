"""Pages of a job's results, in finish order or in index order, while the job runs too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from batchray.store import StoredResult

ResultOrder = Literal["finish", "index"]


class AfterOptions(TypedDict):
    """The arguments of `Items.results` that say where a page begins."""

    after_index: int
    after_seq: int | None


@dataclass(frozen=True, slots=True)
class ResultPosition:
    """The position of a result in index order, and in finish order.  The default is before all results."""

    index: int = -1
    seq: int = 0


START = ResultPosition()


class ResultCursor:
    """A position among the results of a job.  In index order, a result waits for those before it."""

    def __init__(self, order: ResultOrder, position: ResultPosition = START) -> None:
        self._order, self.position = order, position

    @property
    def after(self) -> AfterOptions:
        """Where the next page begins."""
        return {
            "after_index": self.position.index,
            "after_seq": self.position.seq if self._order == "finish" else None,
        }

    def take(self, page: Sequence[StoredResult], *, is_final: bool) -> Sequence[StoredResult]:
        """Return the results of a page that can be shown now, and move behind them.

        `is_final` means that no more results will come, so that none has to wait.
        """
        if self._order == "index" and not is_final:
            page = [stored for index, stored in enumerate(page, self.position.index + 1) if stored.index == index]
        if page:
            self.position = ResultPosition(page[-1].index, page[-1].seq)
        return page


async def result_pages(
    read: Callable[[AfterOptions], Awaitable[Sequence[StoredResult]]],
    is_final: Callable[[], Awaitable[bool]],
    order: ResultOrder,
    poll_s: float,
) -> AsyncIterator[Sequence[StoredResult]]:
    """Yield pages as `read` returns them, every `poll_s` seconds, until `is_final` returns True and all are read."""
    cursor = ResultCursor(order)
    while True:
        is_last = await is_final()  # before the reading: what comes afterwards belongs to the next round
        while page := cursor.take(await read(cursor.after), is_final=is_last):
            yield page
        if is_last:
            return
        await asyncio.sleep(poll_s)
