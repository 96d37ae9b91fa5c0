"""The runs of one lane by the key of their attempt: each is run once, however often it is called for."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

# Reports whose answer may have got lost on the way.  Who asks again does so within seconds; where its report is gone
# by then, it is run again.
_MAX_REPORTS = 4096
_MAX_REPORT_BYTES = 16 * 1024 * 1024
_STOPPED = b""


class Runs:
    """What a lane runs, and the newest of what it has run."""

    def __init__(self, max_reports: int = _MAX_REPORTS, max_bytes: int = _MAX_REPORT_BYTES) -> None:
        self._max_reports, self._max_bytes = max_reports, max_bytes
        self._running: dict[str, asyncio.Task[bytes]] = {}
        self._reports: OrderedDict[str, bytes] = OrderedDict()
        self._n_bytes = 0

    async def run(self, key: str, start: Callable[[], Awaitable[bytes]]) -> bytes:
        """Run to the end, and return the report; empty for a run that was stopped, for which nobody waits.

        A second call for one key waits for the same run, or gets the same report.
        """
        if (report := self._reports.get(key)) is not None:
            return report
        if (run := self._running.get(key)) is None:
            run = self._running[key] = asyncio.ensure_future(start())
            run.add_done_callback(partial(self._end, key))
        try:
            return await asyncio.shield(run)
        except asyncio.CancelledError:
            if self._reports.get(key) == _STOPPED:
                return _STOPPED
            if run.cancelled():  # by code of its own; a cancel would be taken for a lost call, and made again
                raise RuntimeError("the run cancelled itself") from None
            raise

    def stop(self, keys: Iterable[str]) -> None:
        """Stop runs.  A call for one of them that is still on its way will not start it."""
        for key in keys:
            if (run := self._running.get(key)) is not None:
                run.cancel()
            self._remember(key, _STOPPED)

    def _end(self, key: str, run: asyncio.Task[bytes]) -> None:
        del self._running[key]
        if not run.cancelled() and run.exception() is None:
            self._remember(key, run.result())

    def _remember(self, key: str, report: bytes) -> None:
        if key in self._reports:
            return
        self._reports[key] = report
        self._n_bytes += len(report)
        while len(self._reports) > self._max_reports or self._n_bytes > self._max_bytes:
            _, oldest = self._reports.popitem(last=False)
            self._n_bytes -= len(oldest)
