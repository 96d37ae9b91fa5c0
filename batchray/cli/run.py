"""The commands that run a job to its end: batchray run | resume | retry."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from batchray.cli.exits import abort_status, complain, interruptible, leave
from batchray.cli.job_names import find_id_to_start
from batchray.cli.options import (
    DEFAULT_DATA_DIR,
    INPUT_OPTIONS,
    Command,
    agents_options,
    env_file_options,
    executor_options,
    include_input_option,
    input_options,
    log_level_option,
    store_options,
)
from batchray.cli.output import Shown, check_output, own_stdout, write_results
from batchray.errors import (
    BatchrayError,
    ConfigError,
    JobInterruptedError,
    JobPausedError,
    StoreLockedError,
    UsageError,
)

if TYPE_CHECKING:
    from batchray.config import Settings
    from batchray.jobs.handle import Job
    from batchray.jobs.start import Output
    from batchray.store import JobRecord

_LOOK_AGAIN_S = 0.5


def _run_options(command: Command) -> Command:
    options = (
        click.option(
            "--output",
            type=click.Path(dir_okay=False, path_type=Path, allow_dash=True),
            help="Write the results to this file, one JSON line per item; - is standard output.",
        ),
        include_input_option,
        click.option("--max-in-flight", type=click.IntRange(min=1), help="Requests in flight at once.  Default: 256."),
        click.option(
            "--max-failures",
            metavar="N|P%",
            help="Pause the job if more requests fail: 25, or 5%.  Default: none.",
        ),
        executor_options,
        click.option("--no-wait", is_flag=True, help="Fail if another process is using the data directory."),
        click.option("--quiet", is_flag=True, help="Show no progress and no summary."),
    )
    for option in reversed(options):
        command = option(command)
    return agents_options(store_options(log_level_option(command)))


@click.command()
@click.argument("requests")
@input_options
@_run_options
def run(requests: str, agents_files: tuple[Path, ...], output: Path | None, **options: Any) -> None:
    """Run the batch in REQUESTS and wait for it.

    REQUESTS is a file, an address such as s3://bucket/file, or - for standard input: JSON Lines or JSON with requests,
    or a table (Parquet, CSV, Arrow, rows of JSON) whose rows become requests.  It may be compressed with gzip or zstd.

    \b
    Examples:
      batchray run requests.jsonl --agents agents.yaml --output results.jsonl
      batchray run questions.parquet --agents agents.yaml --agent assistant --input-column question --id-column id
    """
    from batchray.batch.formats.options import InputOptions
    from batchray.config import load_agents
    from batchray.jobs.start import submit_with

    rows = InputOptions(**{name: options.pop(name) for name in INPUT_OPTIONS})

    if not agents_files:
        raise ConfigError("give the agents that the requests name: --agents FILE")
    kept = check_output(output, options["include_input"], [requests, *agents_files])
    # Not sys.stdin: after an interrupt a thread may still wait for it, and Python would wait for that thread at exit.
    source = open(0, "rb", closefd=False) if requests == "-" else requests  # noqa: SIM115

    def start(settings: Settings) -> Job:
        return submit_with(settings, source, load_agents(agents_files), output=kept, options=rows)

    _watch(start, output, options)


@click.command()
@click.argument("name", metavar="JOB")
@_run_options
def resume(name: str, agents_files: tuple[Path, ...], output: Path | None, **options: Any) -> None:
    """Continue an unfinished JOB and wait for it.

    Items that have an outcome are not run again.  The job's agents are stored with it; --agents replaces
    those with the same ids.

    Example: batchray resume last --output results.jsonl
    """
    kept = check_output(output, options["include_input"], agents_files)
    _watch(_starter(name, agents_files, kept, is_retry=False), output, options)


@click.command()
@click.argument("name", metavar="JOB")
@_run_options
def retry(name: str, agents_files: tuple[Path, ...], output: Path | None, **options: Any) -> None:
    """Run the failed items of an ended JOB again and wait for them.

    Items that succeeded are not run again.  The job's agents are stored with it; --agents replaces
    those with the same ids.

    Example: batchray retry last
    """
    kept = check_output(output, options["include_input"], agents_files)
    _watch(_starter(name, agents_files, kept, is_retry=True), output, options)


def _starter(
    name: str, agents_files: tuple[Path, ...], output: Output | None, *, is_retry: bool
) -> Callable[[Settings], Job]:
    """Return the function that starts a job of the store again.  Checks the agents at once."""
    from batchray.config import load_agents
    from batchray.jobs.start import start_again

    agents = load_agents(agents_files) if agents_files else None
    return lambda settings: start_again(settings, find_id_to_start(settings, name), agents, output, is_retry=is_retry)


def _watch(start: Callable[[Settings], Job], output: Path | None, options: dict[str, Any]) -> NoReturn:
    """Start a job, print its id, show its progress, write its results, and exit with its status."""
    from batchray.config import load_settings
    from batchray.jobs.start import output_of
    from batchray.views.progress_display import show_progress

    names = ("quiet", "no_wait", "config", "include_input")
    is_quiet, no_wait, config, include_input = (options.pop(name) for name in names)
    settings = load_settings(config, **options)
    place = _place_options(settings, config)
    job: Job | None = None
    try:
        with own_stdout() as stdout:
            job = _start_when_free(start, settings, is_waiting=not no_wait)
            if output is None and (kept := output_of(job)) is not None:
                output, include_input = kept
            is_piped = str(output) == "-"  # the results are all that standard output gets
            is_quiet = is_quiet or is_piped
            click.echo(job.id, file=None if is_piped else stdout, err=is_piped)
            if not is_quiet:
                show_progress(job)
            record = job.wait()
    except KeyboardInterrupt as interrupt:
        if job is not None:
            _stop(job, place)
        leave(abort_status(interrupt))
    except JobPausedError as error:
        click.echo(f"batchray: job {error.job_id} is paused: {error.reason}", err=True)
        click.echo(_how_to_resume(error.job_id, place), err=True)
        leave(1)
    except (JobInterruptedError, UsageError):
        raise
    except BatchrayError as error:
        complain(error)
        if job is not None:
            click.echo(_how_to_resume(job.id, place), err=True)
        leave(1)
    if output is not None:
        write_results([job], output, Shown(include_input=include_input))
    if not is_quiet:
        _summarize(job, record, output, place)
    leave(0 if record.counts["succeeded"] == record.total else 1)


def _start_when_free(start: Callable[[Settings], Job], settings: Settings, *, is_waiting: bool) -> Job:
    """Start a job as soon as no other process writes to its data directory."""
    has_said_so = False
    while True:
        try:
            return start(settings)
        except StoreLockedError as error:
            if not is_waiting:
                raise
            if not has_said_so:
                click.echo(f"batchray: {error.reason}; this command starts when it has ended", err=True)
            has_said_so = True
        time.sleep(_LOOK_AGAIN_S)


def _place_options(settings: Settings, config: Path | None) -> str:
    """Return the options with which another command finds the job, to be printed after its id."""
    if settings.url is None:
        is_default = settings.data_dir == DEFAULT_DATA_DIR
        return "" if is_default else f" --data-dir {shlex.quote(str(settings.data_dir))}"
    source = click.get_current_context().get_parameter_source("database_url")
    if source is click.core.ParameterSource.COMMANDLINE:
        return " --database-url URL"  # not the URL itself, which may have a password in it
    return "" if source is click.core.ParameterSource.ENVIRONMENT else f" --config {shlex.quote(str(config))}"


def _stop(job: Job, place: str) -> None:
    with interruptible():
        click.echo("\nstopping; a second Ctrl-C stops at once", err=True)
        job.stop()
    record = job.record()
    if not record.is_ended:
        click.echo(f"interrupted with {record.done:,} of {record.total:,} done; all of them are kept", err=True)
        click.echo(_how_to_resume(job.id, place), err=True)


def _how_to_resume(job_id: str, place: str) -> str:
    return f"to continue: batchray resume {job_id}{place}{env_file_options()}"


def _summarize(job: Job, record: JobRecord, output: Path | None, place: str) -> None:
    from batchray.views.summary import summary

    summary(record, record.status, job.timing, job.failures())
    command = f"batchray results {job.id}{place}"
    click.echo(f"results: {output}" if output else f"results: {command}")
    if record.counts["succeeded"] < record.total:
        click.echo(f"failures: {command} --failed")
        again = f"batchray retry {job.id}{place}{env_file_options()}"
        click.echo(f"next: batchray report {job.id}{place}; {again}")
