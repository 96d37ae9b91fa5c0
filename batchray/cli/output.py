"""Prints jobs and writes files of results for the command line."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import click

from batchray.cli.exits import saying_if_stopped
from batchray.errors import BatchrayError, ConfigError, UsageError
from batchray.support.files import atomic_write, check_can_write
from batchray.views.export_formats import EXPORT_FORMATS

if TYPE_CHECKING:
    from batchray.config import StoreSettings
    from batchray.jobs.handle import Job
    from batchray.jobs.start import Output
    from batchray.store import JobRecord


# Suffixes of formats that the output is not written in, and the remedy.
_OTHER_FORMATS = {
    ".csv": "`batchray export JOB --output FILE.csv` writes CSV",
    ".tsv": "job.to_pandas().to_csv(..., sep='\\t') in Python writes TSV",
    ".xlsx": "job.to_pandas().to_excel(...) in Python writes a workbook",
    ".parquet": "`batchray export JOB --output FILE.parquet` writes Parquet",
    ".json": "that is one object a line, not one JSON document",
    ".gz": "`batchray export JOB --output FILE.jsonl.gz` compresses them",
    ".zst": "`batchray export JOB --output FILE.jsonl.zst` compresses them",
}
_STANDARD_STREAMS = {"-": 1, "/dev/stdout": 1, "/dev/stderr": 2}


class Shown(NamedTuple):
    """Which results are written, and whether with their input."""

    failed: bool = False
    include_input: bool = False


def check_output(output: Path | None, include_input: bool = False, inputs: Sequence[str | Path] = ()) -> Output | None:
    """Return the output that a later run of the job has too: a file, not a stream.  Called before anything runs.

    Raises ConfigError if the file cannot be written, or is one of the `inputs`; prints a notice if its name promises
    another format.
    """
    if output is None or stream_of(output) is not None:
        return None
    from batchray.jobs.start import Output

    check_can_be_written(output)
    if output.is_file() and any(_is_in(output, each) for each in inputs):
        raise ConfigError(f"--output {output} is an input of this command, which would be lost; name another file")
    if (remedy := _OTHER_FORMATS.get(output.suffix.lower())) is not None:
        click.echo(f"batchray: --output {output} will hold JSON Lines; {remedy}", err=True)
    return Output(output, include_input)


def _is_in(output: Path, given: str | Path) -> bool:
    """Whether a file is an input: a path, a `file://` address, or standard input."""
    from batchray.batch.places import LocalPlace, place_of

    if str(given) == "-":
        return os.path.samestat(output.stat(), os.fstat(0))
    if "://" in str(given) and not str(given).startswith("file://"):
        return False
    place = place_of(given)
    return isinstance(place, LocalPlace) and place.path.exists() and output.samefile(place.path)


def check_can_be_written(output: Path) -> None:
    """Raise ConfigError for a file, a pipe or a device that cannot be written.  A stream is not looked at."""
    if stream_of(output) is not None:
        return
    try:
        if output.exists() and not os.access(output, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if output.is_file() or not output.exists():
            check_can_write(output.resolve())
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error.strerror}") from None


def stream_of(output: Path) -> int | None:
    """Return the open descriptor of this process that `-` or a path such as /dev/stdout stands for; None for a file.

    The file behind it, if there is one, has other content: the results are written after that.
    """
    found = re.fullmatch(r"/(?:dev|proc/self)/fd/(\d+)", str(output))
    return int(found[1]) if found else _STANDARD_STREAMS.get(str(output))


@contextmanager
def own_stdout() -> Iterator[IO[str]]:
    """Yield standard output for this command alone: anything else that writes there writes to standard error.

    Code of agents may write from C, in child processes and in threads of its own, which a capture does not see.
    """
    try:
        descriptor, others = sys.stdout.fileno(), sys.stderr.fileno()
    except (AttributeError, OSError):  # replaced by an object without a file
        yield sys.stdout
        return
    sys.stdout.flush()
    with os.fdopen(os.dup(descriptor), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors) as own:
        os.dup2(others, descriptor)
        try:
            yield own
        finally:
            sys.stdout.flush()
            os.dup2(own.fileno(), descriptor)


def write_results(jobs: Sequence[Job], output: Path, shown: Shown) -> None:
    """Write one line of JSON per result.  A file appears whole or not at all; `-` is standard output.

    Raises BatchrayError if it cannot be written.
    """
    stopped = f"results stopped; {undone_of(output)}; they are kept in the job"
    try:
        with saying_if_stopped(stopped), text_output(output) as file:
            _write(jobs, file, shown)
    except BrokenPipeError:  # the reader of the output has closed it
        raise
    except OSError as error:
        raise BatchrayError(f"{output} cannot be written: {error.strerror}; the results are kept in the job") from None


def undone_of(output: Path) -> str:
    """Return what is not done if the writing of an output is stopped."""
    return f"{output} was not written" if stream_of(output) is None else "the output is not complete"


@contextmanager
def text_output(output: Path) -> Iterator[IO[str]]:
    """Open an output for text: a file that appears whole or not at all, a pipe or a device, or an open stream."""
    if (descriptor := stream_of(output)) is not None:
        sys.stdout.flush()
        with open(descriptor, "w", encoding="utf-8", closefd=False) as file:  # in UTF-8 whatever the locale
            yield file
    elif output.exists() and not output.is_file():  # write into a pipe or a device, do not replace it
        with output.open("w", encoding="utf-8") as file:
            yield file
    else:
        with atomic_write(output.resolve(), encoding="utf-8") as file:  # the file behind a link, not the link
            yield file


def _write(jobs: Sequence[Job], file: IO[str], shown: Shown) -> None:
    for line in _lines(jobs, shown):
        file.write(line + "\n")


def _lines(jobs: Sequence[Job], shown: Shown) -> Iterator[str]:
    """Yield results as JSON; those of several jobs begin with the id of theirs."""
    for job in jobs:
        beginning = f'{{"job_id":"{job.id}",' if len(jobs) > 1 else "{"
        for result in job.results("index", wait=False, **shown._asdict()):
            yield beginning + result.model_dump_json().removeprefix("{")


def export_results(job: Job, output: str, format_name: str | None, endpoint: str) -> None:
    """Write an export; `-` and the like are standard output.  Raises UsageError and ConfigError."""
    if (descriptor := stream_of(Path(output))) is None:
        with saying_if_stopped(f"export stopped; {_left(output, format_name)}"):
            job.export(output, format_name, endpoint=endpoint)
        return
    if format_name is None:
        raise UsageError(f"name the --format of standard output: {', '.join(EXPORT_FORMATS)}")
    if format_name == "parquet":
        raise UsageError("Parquet is not written to standard output; name a file or a directory with --output PATH")
    sys.stdout.flush()
    try:
        stopped = f"export stopped; {undone_of(Path(output))}; run the command again"
        with saying_if_stopped(stopped), open(descriptor, "wb", closefd=False) as file:
            job.export(file, format_name, endpoint=endpoint)
    except BrokenPipeError:  # the reader of the output has closed it
        raise
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", output) from None


def _left(output: str, format_name: str | None) -> str:
    """Return what an export that was stopped has left, and what to do."""
    is_directory = Path(output).is_dir() or (format_name in ("parquet", "atif") and not PurePosixPath(output).suffix)
    if not is_directory:
        return f"{undone_of(Path(output))}; run the command again"
    if format_name == "atif":
        return f"{output} has some of the files; run the command again"
    return f"{output} has the parts that are complete; run the command again to continue it"


def print_summary(record: JobRecord, state: str, settings: StoreSettings) -> None:
    """Print a job's outcomes, kinds of failures, durations and tokens so far."""
    from batchray.jobs.handle import Job
    from batchray.views.summary import summary

    job = Job(record.id, settings.data_dir, url=settings.url)
    summary(record, state, job.timing, job.failures())


def as_dict(record: JobRecord, state: str) -> dict[str, Any]:
    """Return a job as `status --json` prints it."""
    names = ("id", "created_at", "started_at", "completed_at", "stop_reason", "paused_because", "total")
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
    line = f"{record.id}  {state:<11}  {record.done:,} of {record.total:,} done, {failed:,} failed  {when}"
    return line if record.paused_because is None else f"{line}  {record.paused_because}"
