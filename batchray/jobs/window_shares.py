"""One window for all jobs of a process, shared equally among those that run."""

from __future__ import annotations

from batchray.jobs.running import RunningJob


class WindowShares:
    """Divides a window among running jobs.  Without a size, each job keeps the window of its own settings."""

    def __init__(self) -> None:
        self._jobs: dict[RunningJob, None] = {}  # in the order of their start
        self._size: int | None = None
        self._is_paused = False

    def set_size(self, size: int) -> None:
        """Give all jobs together `size` requests in flight: each its equal share, and at least one.

        A job that starts gets its share at once; the others shrink to theirs as their requests finish.
        """
        self._size = size

    def add(self, job: RunningJob) -> None:
        """Give a job that starts its share; the run of a single request needs none."""
        if self._is_paused:
            job.window.pause()
        if not job.record.is_single:
            self._jobs[job] = None
            self._divide()

    def remove(self, job: RunningJob) -> None:
        """Divide the share of a job that has stopped among the others."""
        self._jobs.pop(job, None)
        self._divide()

    def pause(self) -> None:
        """Start no more items, in jobs that start later neither."""
        self._is_paused = True
        for job in self._jobs:
            job.window.pause()

    def _divide(self) -> None:
        if self._size is not None:
            for job in self._jobs:
                job.window.resize(max(1, self._size // len(self._jobs)))
