"""A job that this process runs: its future, its live state, and the control requests to it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

from batchray.errors import JobInterruptedError
from batchray.jobs.control import ControlRequest
from batchray.jobs.running import RunningJob
from batchray.schema.progress import Progress
from batchray.store import JobRecord


class LocalRun:
    """One run of a job in this process, from its submission until its driver has stopped.  Thread-safe."""

    def __init__(self, job_id: str, loop: asyncio.AbstractEventLoop) -> None:
        self.id, self._loop = job_id, loop
        self._running: RunningJob | None = None
        self._early_requests: list[ControlRequest] = []  # made before the driver has started
        self._lock = threading.Lock()
        self._future: concurrent.futures.Future[JobRecord] = concurrent.futures.Future()

    def set_future(self, future: concurrent.futures.Future[JobRecord]) -> None:
        """Set the future of the driver, which is submitted with this object as an argument."""
        self._future = future

    def on_started(self, running: RunningJob) -> None:
        """Take the live state of the driver, and make the control requests that came before it.  On the loop."""
        with self._lock:
            self._running = running
        for request in self._early_requests:
            running.steer(request)

    @property
    def is_started(self) -> bool:
        """Whether items may run: False while the executor is starting."""
        return self._running is not None

    @property
    def is_done(self) -> bool:
        """Whether the driver has stopped."""
        return self._future.done()

    @property
    def was_cancelled(self) -> bool:
        """Whether the driver was stopped before it had started."""
        return self._future.cancelled()

    @property
    def in_flight(self) -> int:
        """Requests in flight."""
        return self._running.window.in_flight if self._running else 0

    @property
    def is_paused(self) -> bool:
        """Whether the job starts no more items now."""
        return self._running is not None and self._running.is_paused

    @property
    def providers(self) -> list[dict[str, Any]]:
        """The providers that hold requests back now, as in `RunningJob.snapshot`."""
        return self._running.providers() if self._running else []

    @property
    def newest_failure(self) -> dict[str, Any] | None:
        """The newest error of this run; None without one."""
        failures = self._running.failures if self._running is not None else None
        return failures[-1] if failures else None

    @property
    def progress(self) -> Progress | None:
        """Counts, tokens and timings so far; None before the start."""
        return self._running.progress if self._running else None

    def add_done_callback(self, call: Callable[[], object]) -> None:
        """Call a function, on any thread, when the driver has stopped."""
        self._future.add_done_callback(lambda _: call())

    def error(self) -> BaseException | None:
        """Return the error that stopped the driver; None while it runs, and if the job has ended."""
        if not self._future.done():
            return None
        return JobInterruptedError(self.id) if self._future.cancelled() else self._future.exception()

    def wait(self, timeout: float | None = None) -> JobRecord:
        """Wait for the job's end and return it.  Raises TimeoutError, JobInterruptedError, or the driver's error."""
        try:
            return self._future.result(timeout)
        except concurrent.futures.CancelledError:
            raise JobInterruptedError(self.id) from None

    async def wait_async(self) -> JobRecord:
        """Wait for the job's end in async code.  Cancelling the wait does not stop the job."""
        future = asyncio.wrap_future(self._future)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            # Retrieves the error, or asyncio would log that it never was.
            future.add_done_callback(lambda future: future.cancelled() or future.exception())
            raise

    def steer(self, request: ControlRequest) -> bool:
        """Make a control request now, or as soon as the driver has started.  Returns False if it has stopped."""
        if self._future.done():
            return False
        with self._lock:
            running = self._running
            if running is None:
                self._early_requests.append(request)
        if running is not None:
            self._call(running.steer, request)
        return True

    def interrupt(self) -> concurrent.futures.Future[JobRecord]:
        """Begin to stop the driver and leave the job unfinished.  The returned future is done when it has stopped."""
        if self._running is not None:
            self._call(self._running.interrupt)
        else:
            self._future.cancel()
        return self._future

    def _call(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a function on the loop that runs the job."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)
