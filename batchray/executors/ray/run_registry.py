"""The runs of one lane by the key of their attempt: each runs once, however often it is called for."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from enum import Enum
from functools import partial

from batchray.errors import WorkerDiedError

# Reports may be lost on their way to the driver.  It asks again within seconds.
_MAX_REPORTS = 4096
_MAX_REPORT_BYTES = 16 * 1024 * 1024
# Why a run has no report: 100 to 200 bytes each.
_MAX_MARKS = 65_536
_NO_REPORT = b""


class _Mark(Enum):
    """Why there is no report of a run."""

    STOPPED = "nothing waits for it"
    DROPPED = "it failed, or newer ones have taken its place"


class RunRegistry:
    """The runs of a lane, and the newest reports of finished ones."""

    def __init__(
        self, max_reports: int = _MAX_REPORTS, max_bytes: int = _MAX_REPORT_BYTES, max_marks: int = _MAX_MARKS
    ) -> None:
        self._max_reports, self._max_bytes, self._max_marks = max_reports, max_bytes, max_marks
        self._running: dict[str, asyncio.Task[bytes]] = {}
        self._reports: OrderedDict[str, bytes] = OrderedDict()
        self._marks: OrderedDict[str, _Mark] = OrderedDict()
        self._n_bytes = 0

    async def run(self, key: str, start: Callable[[], Awaitable[bytes]]) -> bytes:
        """Run to the end and return the report; empty for a run that was stopped, for which nothing waits.

        A second call for a key waits for the same run, or returns the same report.  Raises WorkerDiedError if the
        report is gone, or never existed: the same attempt is not run a second time.
        """
        if (report := self._reports.get(key)) is not None:
            return report
        if (mark := self._marks.get(key)) is _Mark.STOPPED:
            return _NO_REPORT
        if mark is _Mark.DROPPED:
            raise WorkerDiedError("its report was lost on the way", is_suspect=False)
        if (run := self._running.get(key)) is None:
            run = self._running[key] = asyncio.ensure_future(start())
            run.add_done_callback(partial(self._end, key))
        try:
            return await asyncio.shield(run)
        except asyncio.CancelledError:
            if self._marks.get(key) is _Mark.STOPPED:
                return _NO_REPORT
            if run.cancelled():  # by its own code; the driver would take a cancel for a lost call, and make it again
                raise RuntimeError("the run cancelled itself") from None
            raise

    def stop(self, keys: Iterable[str]) -> None:
        """Stop runs.  A call for one of them that is still on its way does not start it."""
        for key in keys:
            if (run := self._running.get(key)) is not None:
                run.cancel()
            if key not in self._reports:
                self._mark(key, _Mark.STOPPED)

    def _end(self, key: str, run: asyncio.Task[bytes]) -> None:
        del self._running[key]
        if key in self._marks:
            return
        if run.cancelled() or run.exception() is not None:
            self._mark(key, _Mark.DROPPED)
        else:
            self._remember(key, run.result())

    def _remember(self, key: str, report: bytes) -> None:
        """Store a report of any length, and drop older ones beyond the limits."""
        self._reports[key] = report
        self._n_bytes += len(report)
        while len(self._reports) > 1 and (len(self._reports) > self._max_reports or self._n_bytes > self._max_bytes):
            oldest, dropped = self._reports.popitem(last=False)
            self._n_bytes -= len(dropped)
            self._mark(oldest, _Mark.DROPPED)

    def _mark(self, key: str, mark: _Mark) -> None:
        self._marks[key] = mark
        if len(self._marks) > self._max_marks:
            self._marks.popitem(last=False)
