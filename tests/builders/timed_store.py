"""A store whose commits take a time of the loop's clock, which may be virtual."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from batchray.store import RetryingStore, Store

P = ParamSpec("P")
T = TypeVar("T")


class TimedStore(RetryingStore):
    """A store each call of which takes `call_s` seconds; `starts` has when each began."""

    def __init__(self, store: Store, call_s: float) -> None:
        super().__init__(store, "test")
        self.call_s = call_s
        self.starts: list[float] = []

    async def call(self, method: Callable[P, T], /, *args: P.args, **keywords: P.kwargs) -> T:
        """Run a method on this thread, after the time that it takes."""
        self.starts.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.call_s)
        return method(*args, **keywords)
