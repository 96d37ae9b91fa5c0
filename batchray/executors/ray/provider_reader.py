"""Reads the reports of a lane while requests run there: providers that hold back its calls, and warnings."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray.exceptions

from batchray.executors.provider_board import ProviderBoard
from batchray.executors.ray.answers import answer_of
from batchray.executors.ray.provider_reports import IDLE_S
from batchray.executors.ray.worker_log import WorkerWarnings
from batchray.schema import ProviderWait

_PAUSE_S = 0.2
# For a lane that is busy, and for a call that was lost without an error.
_LATE_S = 20.0


class ProviderReader:
    """Reads the reports of one lane, one call at a time, and puts them on the board, and into the log."""

    def __init__(self, lane: Any, board: ProviderBoard, warnings: WorkerWarnings) -> None:
        self._lane, self._board, self._warnings = lane, board, warnings
        self._n_running = 0
        self._reading: asyncio.Task[None] | None = None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read inside this block."""
        self._n_running += 1
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._read())
        try:
            yield
        finally:
            self._n_running -= 1

    def close(self) -> None:
        """Stop reading, and forget what the lane has reported."""
        if self._reading is not None:
            self._reading.cancel()
        self._board.forget(self)

    async def _read(self) -> None:
        is_waiting = False
        try:
            while self._n_running:
                try:
                    async with asyncio.timeout(IDLE_S + _LATE_S):
                        waits, warnings = await answer_of(self._lane.report.remote(is_waiting))
                except (TimeoutError, ray.exceptions.RayError):  # a run that it concerns reports that itself
                    waits, warnings = [], []
                    await asyncio.sleep(_PAUSE_S)
                is_waiting = bool(waits)
                self._board.report(self, [ProviderWait(**each) for each in waits])
                self._warnings.log(warnings)
        finally:
            self._reading = None
            self._board.forget(self)
