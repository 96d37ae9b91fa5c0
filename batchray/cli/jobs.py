"""The commands that read and steer jobs: batchray status | results | export | cancel | pause | unpause."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batchray.cli.exits import complain, leave
from batchray.cli.job_names import find_ids, find_jobs, place_of, reading_settings
from batchray.cli.options import Command, include_input_option, store_options, store_settings
from batchray.cli.output import (
    Shown,
    as_dict,
    as_line,
    check_output,
    export_results,
    print_summary,
    write_results,
)
from batchray.errors import BatchrayError, UsageError
from batchray.views.export_formats import EXPORT_FORMATS, OPENAI_ENDPOINTS

if TYPE_CHECKING:
    from batchray.jobs.handle import Job


def _jobs_argument(is_required: bool = True) -> Callable[[Command], Command]:
    metavar = "JOB..." if is_required else "[JOB]..."
    return click.argument("names", metavar=metavar, nargs=-1, required=is_required)


@click.command()
@_jobs_argument(is_required=False)
@click.option("--json", "is_json", is_flag=True, help="Print JSON, one object per line.")
@store_options
def status(
    names: tuple[str, ...], is_json: bool, config: Path | None, data_dir: Path | None, database_url: str | None
) -> None:
    """Show jobs: all of them, one per line, or the named ones with the summary that `batchray run` ends with.

    Example: batchray status last
    """
    from batchray.jobs.states import state_of
    from batchray.store import Store

    settings = reading_settings(config, data_dir, database_url)
    with Store.open_for_reading(settings.data_dir, settings.url) as store:
        records = [store.jobs.get(job_id) for job_id in find_ids(store, names, place_of(settings))] or store.jobs.find()
        running = store.running_jobs()
        states = [state_of(record, store, running) for record in records]
    for record, state in zip(records, states, strict=True):
        click.echo(json.dumps(as_dict(record, state)) if is_json else as_line(record, state))
        if names and not is_json:
            print_summary(record, state, settings)


@click.command()
@_jobs_argument()
@click.option("--failed", is_flag=True, help="Only items that did not succeed.")
@include_input_option
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="File instead of standard output.")
@store_options
def results(
    names: tuple[str, ...],
    failed: bool,
    include_input: bool,
    output: Path | None,
    config: Path | None,
    data_dir: Path | None,
    database_url: str | None,
) -> None:
    """Print the outcomes of jobs as JSON Lines.

    They come in the order of the batch; of a running job, those recorded so far.  With several jobs each line has a
    job_id.

    Example: batchray results last --failed
    """
    jobs = find_jobs(store_settings(config, data_dir, database_url), names)
    check_output(output)
    write_results(jobs, output or Path("-"), Shown(failed, include_input))


@click.command()
@click.argument("name", metavar="JOB")
@click.option("--format", "format_name", type=click.Choice(EXPORT_FORMATS), help="Default: by the name of the output.")
@click.option("--output", default="-", metavar="PATH", help="File, directory or address (s3://...).  Default: `-`.")
@click.option(
    "--endpoint",
    type=click.Choice(OPENAI_ENDPOINTS),
    default=OPENAI_ENDPOINTS[0],
    help="The endpoint whose objects the lines of --format openai have.",
)
@store_options
def export(
    name: str,
    format_name: str | None,
    output: str,
    endpoint: str,
    config: Path | None,
    data_dir: Path | None,
    database_url: str | None,
) -> None:
    """Write the outcomes of a job in the format of another program.

    \b
    parquet    one file, or a directory of parts that the next export continues
    csv        the same columns, with JSON for nested ones
    jsonl      a line for each outcome, with its input
    openai     OpenAI's batch output file; errors, if any, are in x.errors.jsonl for x.jsonl
    anthropic  Anthropic's batch results
    sft        chat messages with tools of the requests that succeeded, to fine-tune a model
    atif       Harbor's trajectories: lines, or one file each in a directory

    They come in the order of the batch; of a running job, those recorded so far.  A file appears whole or not at all; a
    name that ends in .gz or .zst is compressed.

    Example: batchray export last --output results.parquet
    """
    [job] = find_jobs(store_settings(config, data_dir, database_url), [name])
    export_results(job, output, format_name, endpoint)


@click.command()
@_jobs_argument()
@store_options
def cancel(names: tuple[str, ...], config: Path | None, data_dir: Path | None, database_url: str | None) -> None:
    """End jobs.

    Items in flight are stopped, and items without an outcome are canceled.

    Example: batchray cancel last
    """
    _steer(find_jobs(store_settings(config, data_dir, database_url), names), lambda job: job.cancel())


@click.command()
@_jobs_argument()
@store_options
def pause(names: tuple[str, ...], config: Path | None, data_dir: Path | None, database_url: str | None) -> None:
    """Pause running jobs.

    Items in flight continue; no more are started until `batchray unpause`.

    Example: batchray pause last
    """
    _steer(find_jobs(store_settings(config, data_dir, database_url), names), lambda job: job.pause())


@click.command()
@_jobs_argument()
@store_options
def unpause(names: tuple[str, ...], config: Path | None, data_dir: Path | None, database_url: str | None) -> None:
    """Continue paused jobs.

    Example: batchray unpause last
    """
    _steer(find_jobs(store_settings(config, data_dir, database_url), names), lambda job: job.unpause())


def _steer(jobs: Sequence[Job], request: Callable[[Job], None]) -> None:
    """Make a control request to each job.  One that fails is reported, and the others get theirs all the same."""
    exit_status = 0
    for job in jobs:
        try:
            request(job)
        except BatchrayError as error:
            complain(error)
            exit_status = max(exit_status, 2 if isinstance(error, UsageError) else 1)
    if exit_status:
        leave(exit_status)
