"""Reports of what holds back a lane's calls to model providers, which its driver asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from batchray.executors.provider_board import REPORT_S
from batchray.schema import ProviderWait

IDLE_S = 10.0
"""How long a call waits for something to report; a driver whose runs have ended notices after that time."""


class ProviderReports:
    """The reports of one lane.  `read` returns the providers that hold its calls back now."""

    def __init__(
        self, read: Callable[[], Sequence[ProviderWait]], idle_s: float = IDLE_S, report_s: float = REPORT_S
    ) -> None:
        self._read, self._idle_s, self._report_s = read, idle_s, report_s
        self._changed = asyncio.Event()

    def set_changed(self) -> None:
        """Answer a call that waits."""
        self._changed.set()

    async def next(self, is_waiting: bool) -> list[dict[str, Any]]:
        """Return what holds calls back, in the form of `ProviderWait`, as soon as there is something.

        A driver that has been told so (`is_waiting`) gets the next report soon: the number of calls that wait changes,
        and a provider opens without a word.
        """
        self._changed.clear()
        if is_waiting or not self._read():
            try:
                async with asyncio.timeout(self._report_s if is_waiting else self._idle_s):
                    await self._changed.wait()
            except TimeoutError:
                pass
        return [asdict(wait) for wait in self._read()]
