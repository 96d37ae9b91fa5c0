"""Reports of a lane, which its driver asks for: what holds back its calls to model providers, and its warnings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from batchray.executors.provider_board import REPORT_S
from batchray.executors.ray.worker_log import LoggedWarning, WorkerLog
from batchray.schema import ProviderWait

IDLE_S = 10.0
"""How long a call waits for something to report; a driver whose runs have ended notices after that time."""


class LaneReport(NamedTuple):
    """One report of a lane: `waits` in the form of `ProviderWait`, and the warnings since the last report."""

    waits: list[dict[str, Any]]
    warnings: list[LoggedWarning]


class ProviderReports:
    """The reports of one lane.  `read` returns the providers that hold its calls back now; `log` has its warnings."""

    def __init__(
        self,
        read: Callable[[], Sequence[ProviderWait]],
        log: WorkerLog | None = None,
        *,
        idle_s: float = IDLE_S,
        report_s: float = REPORT_S,
    ) -> None:
        self._read, self._log = read, log if log is not None else WorkerLog()
        self._idle_s, self._report_s = idle_s, report_s
        self._changed = asyncio.Event()

    def set_changed(self) -> None:
        """Answer a call that waits."""
        self._changed.set()

    async def next(self, is_waiting: bool) -> LaneReport:
        """Return what holds calls back and what was logged, as soon as there is something.

        A driver that has been told so (`is_waiting`) gets the next report soon: the number of calls that wait changes,
        and a provider opens silently.
        """
        self._changed.clear()
        if not self._log and (is_waiting or not self._read()):
            try:
                async with asyncio.timeout(self._report_s if is_waiting else self._idle_s):
                    await self._changed.wait()
            except TimeoutError:
                pass
        return LaneReport([asdict(wait) for wait in self._read()], self._log.take())
