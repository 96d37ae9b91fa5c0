"""Prints jobs and writes files of results for the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from batchray.errors import BatchrayError, ConfigError
from batchray.support.files import atomic_write

if TYPE_CHECKING:
    from batchray.config import StoreSettings
    from batchray.jobs.handle import Job
    from batchray.store import JobRecord


def check_output(output: Path | None) -> None:
    """Raise ConfigError if a file cannot be written; called before anything runs."""
    if output is not None and not os.access(output if output.exists() else output.absolute().parent, os.W_OK):
        raise ConfigError(f"--output {output} cannot be written")


def print_results(jobs: Sequence[Job], failed: bool) -> None:
    """Print one line of JSON per result, in UTF-8 whatever the locale."""
    with open(sys.stdout.fileno(), "w", encoding="utf-8", closefd=False) as file:
        _write(jobs, file, failed)


def write_results(jobs: Sequence[Job], output: Path, failed: bool = False) -> None:
    """Write one line of JSON per result to a file, which appears whole or not at all.

    Raises BatchrayError if it cannot be written.
    """
    try:
        if output.exists() and not output.is_file():  # write into a pipe or a device, do not replace it
            with output.open("w", encoding="utf-8") as file:
                return _write(jobs, file, failed)
        with atomic_write(output.resolve(), encoding="utf-8") as file:  # the file behind a link, not the link
            _write(jobs, file, failed)
    except OSError as error:
        raise BatchrayError(f"{output} cannot be written: {error.strerror}; the results are kept in the job") from None


def _write(jobs: Sequence[Job], file: IO[str], failed: bool) -> None:
    for line in _lines(jobs, failed):
        file.write(line + "\n")


def _lines(jobs: Sequence[Job], failed: bool) -> Iterator[str]:
    """Yield results as JSON; those of several jobs begin with the id of theirs."""
    for job in jobs:
        beginning = f'{{"job_id":"{job.id}",' if len(jobs) > 1 else "{"
        for result in job.results("index", wait=False, failed=failed):
            yield beginning + result.model_dump_json().removeprefix("{")


def print_summary(record: JobRecord, state: str, settings: StoreSettings) -> None:
    """Print a job's outcomes, kinds of failures, durations and tokens so far."""
    from batchray.jobs.handle import Job
    from batchray.views.progress_display import summary

    job = Job(record.id, settings.data_dir, url=settings.url)
    summary(record, state, job.timing, job.failures())


def as_dict(record: JobRecord, state: str) -> dict[str, Any]:
    """Return a job as `status --json` prints it."""
    names = ("id", "created_at", "started_at", "completed_at", "stop_reason", "total")
    more = ("prompt_tokens", "completion_tokens", "ttft_ns", "total_duration_ns")
    return (
        {name: getattr(record, name) for name in names}
        | {"status": state, "state": state}
        | record.counts
        | {n: getattr(record, n) for n in more}
    )


def as_line(record: JobRecord, state: str) -> str:
    """Return a job as `status` prints it."""
    failed = record.done - record.counts["succeeded"]
    when = record.created_at[:19].replace("T", " ")
    return f"{record.id}  {state:<11}  {record.done:,} of {record.total:,} done, {failed:,} failed  {when}"
