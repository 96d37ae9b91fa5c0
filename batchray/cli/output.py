"""What the command line prints and writes: a line or an object for a job, a file of results."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from batchray.errors import BatchrayError, ConfigError
from batchray.support.files import atomic_write

if TYPE_CHECKING:
    from batchray.jobs.handle import Job
    from batchray.store import JobRecord


def check_output(output: Path | None) -> None:
    """Refuse an output that cannot be written before anything runs."""
    if output is not None and not os.access(output if output.exists() else output.absolute().parent, os.W_OK):
        raise ConfigError(f"--output {output} cannot be written")


def print_results(job: Job, failed: bool) -> None:
    """Print one line of JSON a result, in UTF-8, whatever the locale."""
    with open(sys.stdout.fileno(), "w", encoding="utf-8", closefd=False) as file:
        _write(job, file, failed)


def write_results(job: Job, output: Path, failed: bool = False) -> None:
    """Write one line of JSON a result into a file, which is there whole or not at all.

    Raises BatchrayError where it cannot be written.
    """
    try:
        if output.exists() and not output.is_file():  # a pipe or a device is written to, never replaced
            with output.open("w", encoding="utf-8") as file:
                return _write(job, file, failed)
        with atomic_write(output.resolve(), encoding="utf-8") as file:  # the file behind a link, not the link
            _write(job, file, failed)
    except OSError as error:
        raise BatchrayError(f"{output} cannot be written: {error.strerror}; the results are kept in the job") from None


def _write(job: Job, file: IO[str], failed: bool) -> None:
    for result in job.results("index", wait=False, failed=failed):
        file.write(result.model_dump_json() + "\n")


def state_of(record: JobRecord, data_dir: Path, is_running: bool) -> str:
    """Return the job's status, or what a status cannot say: that nobody runs it, or that it is paused."""
    from batchray.jobs.control import ControlFile

    if record.is_ended:
        return record.status
    if not is_running:
        return "unfinished"
    return "paused" if (ControlFile(data_dir, record.id).read() or {}).get("is_paused") else "running"


def as_plain(record: JobRecord, state: str) -> dict[str, Any]:
    """Return what `status --json` prints of a job."""
    names = ("id", "status", "created_at", "started_at", "completed_at", "stop_reason", "total")
    more = ("prompt_tokens", "completion_tokens", "ttft_ns", "total_duration_ns")
    return (
        {name: getattr(record, name) for name in names}
        | {"state": state}
        | record.counts
        | {n: getattr(record, n) for n in more}
    )


def as_line(record: JobRecord, state: str) -> str:
    """Return what `status` prints of a job."""
    failed = record.done - record.counts["succeeded"]
    when = record.created_at[:19].replace("T", " ")
    return f"{record.id}  {state:<10}  {record.done:,} of {record.total:,} done, {failed:,} failed  {when}"
