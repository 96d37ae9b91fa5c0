"""The handle of a job: reads its state and its results, and steers it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchray.errors import ConfigError, JobEndedError, JobInterruptedError, JobPausedError, StoreError
from batchray.jobs.control import ControlRequest, leave_request
from batchray.jobs.idle import cancel_idle_job
from batchray.jobs.local_run import LocalRun
from batchray.jobs.reader import POLL_S, JobReader
from batchray.jobs.states import PAUSED, state_of
from batchray.schema.progress import TIMINGS, Percentiles, Progress
from batchray.store import JobRecord, Store, run_all, running_jobs
from batchray.views.next_steps import JobLocation
from batchray.views.report import Report, brief_report, whole_report
from batchray.views.report_html import report_html, unreadable_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

_N_NEWEST = 5_000
"""How many of the newest outcomes a notebook searches for failures."""


class Job(JobReader):  # more than 20 methods, because it is the public API of a job
    """A job that runs in this process or another one, or has ended.

    It holds no results: all that it returns comes from the store, or from the run in this process.
    """

    def __init__(
        self,
        job_id: str,
        data_dir: Path,
        *,
        url: str | None = None,
        local_run: LocalRun | None = None,
        seen: str | None = None,
    ) -> None:
        super().__init__(job_id, data_dir, url)
        self._local, self._seen = local_run, seen

    def __repr__(self) -> str:
        if self._seen is not None:
            return f"<Job {self.id}: {self._seen}>"
        where = "running in this process" if self._local is not None and not self._local.is_done else str(self.data_dir)
        return f"<Job {self.id}: {where}>"

    def __getattr__(self, name: str) -> Any:
        if name not in _DEPRECATED:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        advice, old = _DEPRECATED[name]
        warnings.warn(f"Job.{name} is deprecated; {advice}", DeprecationWarning, stacklevel=2)
        return old(self)

    @property
    def status(self) -> str:
        """`completed`, `failed`, `cancelled`, `expired`; before its end `created`, `running`, `paused`, `interrupted`.

        An interrupted job has not ended and no process runs it: `batchray resume` continues it.
        """
        return state_of(self.record(), self._store(), self._running_ids())

    @property
    def counts(self) -> dict[str, int]:
        """Items by outcome."""
        return self.record().counts

    @property
    def is_done(self) -> bool:
        """Whether no more results will come: the job has ended, or no process runs it."""
        if self._local is not None:
            return self._local.is_done
        return not self._is_running() or self.record().is_ended

    @property
    def is_started(self) -> bool:
        """Whether items may run: False while this process is starting the job's executor."""
        return self._local is None or self._local.is_started

    @property
    def in_flight(self) -> int:
        """Requests in flight; 0 if another process runs the job."""
        return self._local.in_flight if self._local is not None else 0

    @property
    def is_paused(self) -> bool:
        """Whether the job starts no more items until `unpause`."""
        return self._local.is_paused if self._local is not None else self.status == PAUSED

    @property
    def paused_because(self) -> str | None:
        """Why the job has paused itself; None if it has not."""
        return self.record().paused_because

    @property
    def waits(self) -> list[dict[str, Any]]:
        """The providers that hold requests back now; empty if another process runs the job.

        Each has `provider`, `kind` (`rate_limited` or `unavailable`), `reason`, `is_shut`, `wait_s` until its next
        call, `since_s` for which it has taken none, and `n_waiting`, the requests that wait for it.
        """
        return self._local.providers if self._local is not None else []

    @property
    def newest_failure(self) -> dict[str, Any] | None:
        """The newest error of this run, with `index`, `attempt`, `type` and `message`; None without one.

        None too if another process runs the job.
        """
        return self._local.newest_failure if self._local is not None else None

    @property
    def progress(self) -> Progress:
        """Counts, tokens and timings so far."""
        local = self._local
        if local is not None and local.progress is not None and not local.is_done:
            return local.progress
        record = self.record()
        if record.progress is not None:
            return record.progress
        return self._tally().progress(record.total)

    def progress_now(self) -> Progress:
        """Return counts and tokens so far, cheaper than `progress`; timings only if this process runs the job."""
        if self._local is not None and self._local.progress is not None:
            return self._local.progress
        record = self.record()
        return Progress(record.total, record.counts, record.prompt_tokens, record.completion_tokens)

    @property
    def timing(self) -> dict[str, Percentiles]:
        """Percentiles in seconds of `queued`, `ttft` and `duration`, from a histogram: at most 4.4 % too high."""
        timings = self.progress.timings
        return {name: timings[name].percentiles() for name in TIMINGS}

    def report(self) -> Report:
        """Return counts, failures by message, slowest requests, tokens, cost and next steps.

        `print` shows it as text, a notebook as HTML; `to_dict` and `to_markdown` return it otherwise.
        """
        record, store = self.record(), self._store()
        snapshot = store.jobs.agent_snapshot(self.id)
        return whole_report(record, self.status, self._place, snapshot, self._tally(), store.figures)

    def plot(self) -> Figure:
        """Return a figure of throughput, outcomes, durations and tokens so far.  Needs the extra `batchray[plot]`.

        It is matplotlib's, made without pyplot: `savefig` writes it, and a notebook shows it.  Raises ConfigError if
        matplotlib is not installed.
        """
        try:
            from batchray.views.plots import job_figure
        except ModuleNotFoundError as error:
            if error.name is None or not error.name.startswith("matplotlib"):
                raise
            raise ConfigError("plots need matplotlib: pip install 'batchray[plot]'") from None
        record, tally = self.record(), self._tally()
        ends = self._store().figures.ends(record, tally.until_seq)
        return job_figure(record, self.status, tally.progress(record.total), ends)

    def brief_report(self) -> Report:
        """Return the report without what takes long: it costs the same however large the job is."""
        record, store = self.record(), self._store()
        snapshot, has_failed = store.jobs.agent_snapshot(self.id), record.done > record.counts["succeeded"]
        failures = store.figures.newest_failures(record, _N_NEWEST) if has_failed else ()
        progress = self._local.progress if self._local is not None else None
        return brief_report(record, self.status, self._place, snapshot, failures, progress or record.progress)

    def _repr_html_(self) -> str:
        """Return the job's state for a notebook; a sentence if it cannot be read."""
        try:
            return report_html(self.brief_report())
        except Exception as error:  # noqa: BLE001  # a notebook would show a traceback instead of the job
            return unreadable_html(f"job {self.id}", error)

    @property
    def _place(self) -> JobLocation:
        return JobLocation(self.data_dir, self.url)

    def wait(self, timeout: float | None = None) -> JobRecord:
        """Wait for the job's end and return it.

        Raises TimeoutError after `timeout` seconds, JobPausedError if the job has paused itself, JobInterruptedError if
        it was stopped before its end, and the error that stopped its driver.
        """
        if self._local is not None:
            return self._local.wait(timeout)
        until = self._deadline(timeout)
        while (record := self._record_if_ended()) is None:
            self._check_deadline(until, timeout)
            time.sleep(POLL_S)
        return record

    async def wait_async(self, timeout: float | None = None) -> JobRecord:
        """Wait for the job's end in async code; otherwise as `wait`.  Cancelling the wait does not stop the job."""
        if self._local is not None:
            try:
                async with asyncio.timeout(timeout):
                    return await self._local.wait_async()
            except asyncio.CancelledError:
                if self._local.was_cancelled:
                    raise JobInterruptedError(self.id) from None
                raise
        until = self._deadline(timeout)
        while (record := await asyncio.to_thread(self._record_if_ended)) is None:
            self._check_deadline(until, timeout)
            await asyncio.sleep(POLL_S)
        return record

    def cancel(self) -> None:
        """End the job: items in flight are stopped, and every item without an outcome is canceled."""
        self._request(ControlRequest(is_canceled=True))

    def pause(self) -> None:
        """Start no more items until `unpause`; items in flight continue."""
        self._request(ControlRequest(is_paused=True))

    def unpause(self) -> None:
        """Start items again."""
        self._request(ControlRequest(is_paused=False))

    def resize(self, max_in_flight: int) -> None:
        """Set how many requests may be in flight at once."""
        if max_in_flight < 1:
            raise ConfigError(f"need max_in_flight >= 1, got {max_in_flight!r}")
        self._request(ControlRequest(max_in_flight=max_in_flight))

    def stop(self, timeout: float = 15.0) -> None:
        """Stop the job in this process and leave it unfinished, for `resume`.

        Returns when nothing of it runs any more, or after `timeout` seconds.
        """
        if self._local is not None:
            concurrent.futures.wait([self._local.interrupt()], timeout)

    def _is_running(self) -> bool:
        """Return whether a process runs the job."""
        return self.id in self._running_ids()

    def _running_ids(self) -> set[str]:
        return running_jobs(self.data_dir) if self.url is None else self._store().running_jobs()

    def _record_if_ended(self) -> JobRecord | None:
        """Return the job if it has ended.  Raises JobInterruptedError if it has not, and no process runs it."""
        record = self.record()
        if record.is_ended:
            return record
        if not self._is_running():
            record = self.record()  # again: its process may have ended it between the two reads
            if record.paused_because is not None:
                raise JobPausedError(self.id, record.paused_because)
            if not record.is_ended:
                raise self._not_running()
            return record
        return None

    def _not_running(self) -> JobInterruptedError:
        return JobInterruptedError(self.id, "no process runs it; `batchray resume` continues it")

    def _deadline(self, timeout: float | None) -> float:
        return time.monotonic() + (timeout if timeout is not None else float("inf"))

    def _check_deadline(self, until: float, timeout: float | None) -> None:
        if time.monotonic() > until:
            raise TimeoutError(f"job {self.id} has not ended after {timeout:g} s")

    def _request(self, request: ControlRequest) -> None:
        """Make a control request to the process that runs the job.  Without one, a cancel ends the job here."""
        if self._local is not None and self._local.steer(request):
            if request.is_canceled:
                self._persist_cancel()
        elif not self.is_done and self._is_running():
            leave_request(self.data_dir, self.url, self.id, request)
        elif self.record().is_ended:
            raise JobEndedError(self.id)
        elif request.is_canceled:
            with Store.open(self.data_dir, self.url) as store:
                run_all(cancel_idle_job(store, self.id))
        else:
            raise self._not_running()

    def _persist_cancel(self) -> None:
        """Store the cancel of a job that runs here, so that its next run finds it if this process dies before."""
        try:
            leave_request(self.data_dir, self.url, self.id, ControlRequest(is_canceled=True))
        except (OSError, StoreError) as error:
            logger.warning("job %s is cancelled, but the cancel cannot be stored now: %s", self.id, error)


_DEPRECATED: dict[str, tuple[str, Callable[[Job], Any]]] = {
    "ended": ("use wait_async()", lambda job: job.wait_async),
    "live": ("use progress", lambda job: job.progress_now),
    "error": ("wait() raises the error", lambda job: job._local.error if job._local else lambda: None),
    "interrupt": ("use stop()", lambda job: job._local.interrupt if job._local else lambda: None),
    "steer": (
        "use pause(), unpause(), cancel() or resize()",
        lambda job: job._local.steer if job._local else lambda _: False,
    ),
    "when_over": ("await wait_async()", lambda job: job._local.add_done_callback if job._local else lambda call: None),
}
"""Public names of 0.1.0: the advice, and what they still do."""
