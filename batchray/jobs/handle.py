"""The handle of a job: its state, its results, and how it is steered."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from batchray.errors import ConfigError, JobInterruptedError, StoreError
from batchray.jobs.control import ControlRequest, leave_request
from batchray.jobs.idle import cancel_idle_job
from batchray.jobs.running import RunningJob
from batchray.schema import Result
from batchray.schema.progress import TIMINGS, Percentiles, Progress
from batchray.store import FailureKind, JobRecord, Store, run_all, running_jobs
from batchray.views.results import result_of, to_frame

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

_POLL_S = 0.25


class Job:
    """A job, running here, elsewhere, or ended.  All it tells comes from the store, so it holds no results itself."""

    def __init__(
        self,
        job_id: str,
        data_dir: Path,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        url: str | None = None,
    ) -> None:
        self.id, self.data_dir, self._url = job_id, data_dir, url
        self._loop = loop
        self._running: RunningJob | None = None
        self._wishes: list[ControlRequest] = []  # of before it has started
        self._lock = threading.Lock()
        self._future: concurrent.futures.Future[JobRecord] | None = None

    def runs_here(self, future: concurrent.futures.Future[JobRecord]) -> None:
        """Take note of what this process will know the job's end by."""
        self._future = future

    def when_over(self, call: Callable[[], object]) -> None:
        """Call a function, on some thread, when this process does not run the job any more."""
        if self._future is not None:
            self._future.add_done_callback(lambda _: call())

    def error(self) -> BaseException | None:
        """Return what stopped it before its end; None while it runs here, and where it ended."""
        future = self._future
        if future is None or not future.done():
            return None
        return JobInterruptedError(self.id) if future.cancelled() else future.exception()

    def started(self, running: RunningJob) -> None:
        """Take note of the job's live state in this process, and do what was asked for before there was any."""
        with self._lock:
            self._running = running
        for wishes in self._wishes:
            running.steer(wishes)

    def __repr__(self) -> str:
        record = self.record()
        return f"<Job {self.id} {record.status}: {record.done:,} of {record.total:,} done>"

    def record(self) -> JobRecord:
        """Return the job as the store has it now."""
        with self._reading() as store:
            return store.jobs.get(self.id)

    def _reading(self) -> Store:
        return Store.open_for_reading(self.data_dir, self._url)

    @property
    def _is_run(self) -> bool:
        """Whether some process runs it."""
        if self._url is None:
            return self.id in running_jobs(self.data_dir)
        with self._reading() as store:
            return self.id in store.running_jobs()

    @property
    def status(self) -> str:
        """`created`, `running`, `completed`, `failed`, `cancelled` or `expired`."""
        return self.record().status

    @property
    def counts(self) -> dict[str, int]:
        """Items by outcome."""
        return self.record().counts

    @property
    def is_done(self) -> bool:
        """Whether nothing more will come: the job has ended, or no process runs it."""
        if self._future is not None:
            return self._future.done()
        return not self._is_run or self.record().is_ended

    @property
    def is_started(self) -> bool:
        """Whether items may run: False while this process still starts what they run on."""
        return self._future is None or self._running is not None

    @property
    def in_flight(self) -> int:
        """Requests in flight, as far as this process runs the job."""
        return self._running.window.in_flight if self._running else 0

    @property
    def progress(self) -> Progress:
        """Counts, tokens and timings so far."""
        if self._running is not None and not self.is_done:
            return self._running.progress
        record = self.record()
        if record.progress is not None:
            return record.progress
        progress = Progress(total=record.total)
        with self._reading() as store:
            for status, timing, usage in store.items.timings(record):
                progress.record(status, timing, usage)
        return progress

    @property
    def timing(self) -> dict[str, Percentiles]:
        """Percentiles in seconds of `queued`, `ttft` and `duration`, from a histogram: at most 4.4 % too high."""
        timings = self.progress.timings
        return {name: timings[name].percentiles() for name in TIMINGS}

    def failures(self) -> list[FailureKind]:
        """Return the kinds of failures so far, the most frequent first."""
        with self._reading() as store:
            return store.items.failure_kinds(self._accepted)

    def results(
        self, order: Literal["finish", "index"] = "finish", *, wait: bool = True, failed: bool = False
    ) -> Iterator[Result]:
        """Yield results, while the job runs too.

        In finish order, or in index order, where each waits for those before it.  `wait=False` yields what there is
        now; `failed=True` only what did not succeed.
        """
        last_index, last_seq = -1, 0
        while True:
            is_last = not wait or self.is_done
            for stored in self._pages(order, last_index, last_seq):
                if order == "index" and not is_last and stored.index != last_index + 1:
                    break
                last_index, last_seq = stored.index, stored.seq
                if not failed or stored.status != "succeeded":
                    yield result_of(self._accepted, stored)
            if is_last:
                return
            time.sleep(_POLL_S)

    def to_pandas(self) -> pd.DataFrame:
        """Return the results as a frame, one row an item in index order.  Needs the extra `batchray[pandas]`."""
        return to_frame(self.results("index"))

    def wait(self, timeout: float | None = None) -> JobRecord:
        """Wait for the job's end and return it.

        Raises TimeoutError after `timeout` seconds, JobInterruptedError when the job was stopped before its end, and
        what made its driver stop.
        """
        if self._future is not None:
            try:
                return self._future.result(timeout)
            except concurrent.futures.CancelledError:
                raise JobInterruptedError(self.id) from None
        until = time.monotonic() + (timeout if timeout is not None else float("inf"))
        while not (record := self.record()).is_ended:
            if time.monotonic() > until:
                raise TimeoutError(f"job {self.id} has not ended after {timeout:g} s")
            if not self._is_run:
                raise JobInterruptedError(self.id, "no process runs it; `batchray resume` goes on with it")
            time.sleep(_POLL_S)
        return record

    async def ended(self) -> JobRecord:
        """Wait for the job's end in async code; otherwise as `wait`."""
        if self._future is None:
            return await asyncio.to_thread(self.wait)
        future = asyncio.wrap_future(self._future)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(lambda future: future.cancelled() or future.exception())  # nobody else will ask
            raise

    def cancel(self) -> None:
        """End the job: what runs is stopped, and every item without an outcome is canceled."""
        self._ask(ControlRequest(is_canceled=True))

    def pause(self) -> None:
        """Start no more items until `unpause`; what runs goes on."""
        self._ask(ControlRequest(is_paused=True))

    def unpause(self) -> None:
        """Start items again."""
        self._ask(ControlRequest(is_paused=False))

    def resize(self, max_in_flight: int) -> None:
        """Set the window."""
        if max_in_flight < 1:
            raise ConfigError(f"need max_in_flight >= 1, got {max_in_flight!r}")
        self._ask(ControlRequest(max_in_flight=max_in_flight))

    def stop(self, timeout: float = 15.0) -> None:
        """Stop running the job here and leave it unfinished, for `resume`; returns when nothing of it runs any more."""
        if (stopping := self.interrupt()) is not None:
            concurrent.futures.wait([stopping], timeout)

    def interrupt(self) -> concurrent.futures.Future[JobRecord] | None:
        """Begin to stop it as `stop` does; returns what is done when nothing of it runs any more, if it runs here."""
        if self._running is not None:
            self._call(self._running.interrupt)
        elif self._future is not None:
            self._future.cancel()
        return self._future

    def live(self) -> Progress:
        """Return counts and tokens so far, cheaply; timings only where this process runs the job."""
        if self._running is not None:
            return self._running.progress
        record = self.record()
        return Progress(record.total, record.counts, record.prompt_tokens, record.completion_tokens)

    @functools.cached_property
    def _accepted(self) -> JobRecord:
        """The job as it was at some time: for what never changes of it."""
        return self.record()

    def _pages(self, order: str, last_index: int, last_seq: int) -> Iterator[Any]:
        with self._reading() as store:
            while True:
                after_seq = last_seq if order == "finish" else None
                page = store.items.results(self._accepted, after_index=last_index, after_seq=after_seq)
                yield from page
                if not page:
                    return
                last_index, last_seq = page[-1].index, page[-1].seq

    def _call(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a function on the loop that runs the job."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)

    def steer(self, wishes: ControlRequest) -> bool:
        """Do what is asked for, or do it as soon as the job has started; False where this process does not run it."""
        if self._future is None or self._future.done():
            return False
        with self._lock:
            running = self._running
            if running is None:
                self._wishes.append(wishes)
        if running is not None:
            self._call(running.steer, wishes)
        return True

    def _keep_cancel(self) -> None:
        """Leave a cancel of a job that runs here where its next run finds it, should this process die before."""
        try:
            leave_request(self.data_dir, self._url, self.id, ControlRequest(is_canceled=True))
        except (OSError, StoreError) as error:
            logger.warning("job %s is cancelled, but that cannot be kept now: %s", self.id, error)

    def _ask(self, wishes: ControlRequest) -> None:
        if self.steer(wishes):
            if wishes.is_canceled:
                self._keep_cancel()
            return
        if not self.is_done and self._is_run:
            leave_request(self.data_dir, self._url, self.id, wishes)
        elif wishes.is_canceled:
            with Store.open(self.data_dir, self._url) as store:
                run_all(cancel_idle_job(store, self.id))
        elif not self.record().is_ended:
            raise JobInterruptedError(self.id, "no process runs it; `batchray resume` goes on with it")
