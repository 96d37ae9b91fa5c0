"""Pages of results that the readers at the same place share: one read and one serialisation for all of them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

from batchray.views.result_pages import ResultPosition

_RECENT_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, weakref_slot=True)
class SharedPage:
    """Results as they are sent.  `position` is that of the last one; `n_results` is 0 if there are none yet."""

    text: bytes
    n_results: int
    position: ResultPosition

    def without_text(self) -> SharedPage:
        """Return the page without its text."""
        return replace(self, text=b"")


class SharedPages:
    """The pages that readers have in use, and the last ones of `recent_bytes` together.

    Pages of one key are equal, whenever they are made.
    """

    def __init__(self, recent_bytes: int = _RECENT_BYTES) -> None:
        self._recent_bytes = recent_bytes
        self._in_use: WeakValueDictionary[Hashable, SharedPage] = WeakValueDictionary()
        self._recent: OrderedDict[Hashable, SharedPage] = OrderedDict()
        self._n_recent_bytes = 0
        self._locks: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()

    async def get(self, key: Hashable, make: Callable[[], Awaitable[SharedPage]]) -> SharedPage:
        """Return the page of this key; `make` makes it unless there is one already."""
        async with self._locks.setdefault(key, asyncio.Lock()):
            if (page := self._in_use.get(key)) is None:
                page = self._in_use[key] = await make()
        self._keep(key, page)
        return page

    def forget(self) -> None:
        """Forget the pages that no reader has in use."""
        self._recent.clear()
        self._n_recent_bytes = 0

    def _keep(self, key: Hashable, page: SharedPage) -> None:
        if len(page.text) > self._recent_bytes:
            return
        if key not in self._recent:
            self._recent[key] = page
            self._n_recent_bytes += len(page.text)
        self._recent.move_to_end(key)
        while self._n_recent_bytes > self._recent_bytes:
            self._n_recent_bytes -= len(self._recent.popitem(last=False)[1].text)
