"""Answers of remote calls without a cluster."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Awaitable
from typing import Any


class Reference:
    """An answer with the interface of Ray's `ObjectRef`: its future ends as an awaitable of this loop does."""

    def __init__(self, answer: Awaitable[Any]) -> None:
        self._answer = asyncio.ensure_future(answer)

    def future(self) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def complete(answer: asyncio.Future[Any]) -> None:
            if answer.cancelled():  # at the end of the loop: a lost call
                return
            if (error := answer.exception()) is not None:
                future.set_exception(error)
            else:
                future.set_result(answer.result())

        self._answer.add_done_callback(complete)
        return future
