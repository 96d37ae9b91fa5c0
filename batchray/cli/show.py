"""The commands that show a job to a person: batchray show | report."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batchray.cli.exits import saying_if_stopped
from batchray.cli.job_names import find_jobs
from batchray.cli.options import store_options, store_settings
from batchray.errors import UnknownItemError, UsageError
from batchray.views.next_steps import JobLocation, on_command_line

if TYPE_CHECKING:
    from batchray.jobs.handle import Job
    from batchray.schema import Result

_MAX_DIGITS = 19
_MAX_SEARCHED = 20_000  # items; there is no index of custom_ids, so a search reads them all


@click.command()
@click.argument("name", metavar="JOB")
@click.argument("item", metavar="[INDEX|CUSTOM_ID]", required=False)
@click.option("--custom-id", metavar="ID", help="Show the request with this custom_id, also if it is a number.")
@click.option("--full", "is_full", is_flag=True, help="Print long texts and conversations whole.")
@store_options
def show(
    name: str,
    item: str | None,
    custom_id: str | None,
    is_full: bool,
    config: Path | None,
    data_dir: Path | None,
    database_url: str | None,
) -> None:
    """Show what one request of a JOB said and did: its conversation, tool calls, error, usage and timing.

    The request is named by its index, which counts from 0, or by its custom_id.  A number is an index if the job has
    such an index; with --custom-id it is a custom_id.  Without either the job is shown.

    \b
    Examples:
      batchray show last 17
      batchray show last question-4 --full
      batchray show last --custom-id 17
    """
    from rich.console import Console

    from batchray.views.report_text import print_report
    from batchray.views.trajectory_text import print_trajectory

    [job] = find_jobs(store_settings(config, data_dir, database_url), [name])
    console = Console(highlight=False)
    with saying_if_stopped("show stopped; run the command again"):
        if custom_id is not None:
            if item is not None:
                raise UsageError(f"show: give {item[:60]!r} or --custom-id, not both")
            print_trajectory(job.result(custom_id=custom_id), console, is_full=is_full)
        elif item is None:
            print_report(job.brief_report(), console)
        else:
            print_trajectory(_result(job, item, name), console, is_full=is_full)


@click.command()
@click.argument("name", metavar="JOB")
@click.option("--json", "is_json", is_flag=True, help="Print one JSON object.")
@click.option("--markdown", "is_markdown", is_flag=True, help="Print Markdown.")
@store_options
def report(
    name: str,
    is_json: bool,
    is_markdown: bool,
    config: Path | None,
    data_dir: Path | None,
    database_url: str | None,
) -> None:
    """Report on a JOB: outcomes, failures by message, slowest requests, tokens, cost, and what to do next.

    Of a running job it has the outcomes so far.

    \b
    Examples:
      batchray report last
      batchray report last --markdown > report.md
    """
    from rich.console import Console

    from batchray.views.report_text import print_report

    if is_json and is_markdown:
        raise UsageError("give only one of --json and --markdown")
    [job] = find_jobs(store_settings(config, data_dir, database_url), [name])
    with saying_if_stopped("report stopped; run the command again"):
        made = job.report()
    if is_json:
        click.echo(json.dumps(made.to_dict()))
    elif is_markdown:
        click.echo(made.to_markdown(), nl=False)
    else:
        print_report(made, Console(highlight=False))


def _result(job: Job, item: str, name: str) -> Result:
    """Return the result of an item: a number is its index, or a custom_id if the job has no such index.

    A number that is both is told on standard error; `name` is the job's in the command that is printed there.
    """
    is_number = item.isascii() and item.isdigit() and len(item) <= _MAX_DIGITS
    total = job.record().total
    if not is_number or int(item) >= total:
        return job.result(custom_id=item)
    other = int(item)
    if total <= _MAX_SEARCHED:
        with suppress(UnknownItemError):  # or it has no outcome yet, and so nothing to show
            other = job.result(custom_id=item).index
    if other != int(item):
        command = on_command_line("show", name, JobLocation(job.data_dir, job.url), "--custom-id", item)
        click.echo(f"batchray: {item} is an index here; item {other} has it as its custom_id: {command}", err=True)
    return job.result(int(item))
