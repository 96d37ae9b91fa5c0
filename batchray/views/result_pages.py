"""Pages of a job's results, in finish order or in index order, while the job runs too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from batchray.store import StoredResult

ResultOrder = Literal["finish", "index"]


class PageQuery(TypedDict):
    """The arguments of `Items.results` for the page after a position."""

    after_index: int
    after_seq: int | None
    is_failed: bool
    omits_succeeded: bool


ReadPage = Callable[[PageQuery], Sequence[StoredResult]]
"""Reads a page from the store."""


@dataclass(frozen=True, slots=True)
class ResultPosition:
    """The position of a result in index order, and in finish order.  The default is before all results."""

    index: int = -1
    seq: int = 0


START = ResultPosition()


class ResultCursor:
    """A position among the results of a job.  In index order, a result waits for those before it.

    `failed` is for readers that leave out the results of succeeded items; a page may still hold some.
    """

    def __init__(self, order: ResultOrder, position: ResultPosition = START, *, failed: bool = False) -> None:
        self._order, self._failed, self.position = order, failed, position

    def query(self, *, is_final: bool) -> PageQuery:
        """Return what to read for the next page.

        `is_final` means that no more results will come.  Until then succeeded items are read too, without messages:
        the position is among all results.
        """
        return {
            "after_index": self.position.index,
            "after_seq": self.position.seq if self._order == "finish" else None,
            "is_failed": self._failed and is_final,
            "omits_succeeded": self._failed and not is_final,
        }

    def take(self, page: Sequence[StoredResult], *, is_final: bool) -> Sequence[StoredResult]:
        """Return the results of a page that can be shown now, and move behind them.

        If it is final, none has to wait.
        """
        if self._order == "index" and not is_final:
            page = [stored for index, stored in enumerate(page, self.position.index + 1) if stored.index == index]
        if page:
            self.position = ResultPosition(page[-1].index, page[-1].seq)
        return page

    def pages(self, read: ReadPage, *, is_final: bool = True) -> Iterator[Sequence[StoredResult]]:
        """Yield the pages that can be shown now, and move behind each."""
        while page := self.take(read(self.query(is_final=is_final)), is_final=is_final):
            yield page

    def follow(self, read: ReadPage, is_final: Callable[[], bool]) -> Iterator[Sequence[StoredResult] | None]:
        """Yield pages until `is_final` returns True and all are read.

        It yields None whenever all results so far are read, for its caller to wait a moment.
        """
        while True:
            is_last = is_final()  # before the reading: later results belong to the next round
            yield from self.pages(read, is_final=is_last)
            if is_last:
                return
            yield None
