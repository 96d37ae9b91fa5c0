"""Clients that leave before they get a response.

aiohttp tells a handler only when it writes.  A handler that waits for a model may write nothing for minutes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from aiohttp import web

T = TypeVar("T")

_CHECK_S = 0.25
"""How often the connections of all waiting clients are checked."""


def has_left(request: web.Request) -> bool:
    """Return whether the client of a request has closed its connection."""
    return request.transport is None or request.transport.is_closing()


class ClientWatch:
    """Stops the work for clients that have left.  One timer checks all of them.  Not thread-safe."""

    def __init__(self, check_s: float = _CHECK_S) -> None:
        self._check_s = check_s
        self._waiting: dict[asyncio.Task[Any], web.Request] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def while_connected(self, request: web.Request, work: Coroutine[Any, Any, T]) -> T:
        """Return the result of `work`; cancel it if the client leaves first, and raise ConnectionResetError."""
        task = asyncio.create_task(work)
        self._waiting[task] = request
        self._schedule()
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.done():  # this handler was cancelled, not its work
                task.cancel()
                await asyncio.wait([task])
                raise
            raise ConnectionResetError("the client has left") from None
        finally:
            del self._waiting[task]

    def _schedule(self) -> None:
        if self._timer is None and self._waiting:
            self._timer = asyncio.get_running_loop().call_later(self._check_s, self._check)

    def _check(self) -> None:
        self._timer = None
        for task, request in self._waiting.items():
            if has_left(request):
                task.cancel()
        self._schedule()
