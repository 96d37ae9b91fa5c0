"""The commands that look after the database of the jobs: batchray db check | export | prune."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from batchray.cli.exits import saying_if_stopped
from batchray.cli.job_names import place_of, reading_settings
from batchray.cli.options import store_options, store_settings
from batchray.cli.output import check_can_be_written, stream_of, text_output, undone_of
from batchray.errors import BatchrayError

if TYPE_CHECKING:
    from batchray.store import CarriedColumns, JobRecord, Store
    from batchray.views.carried import CarriedRows

KEPT_DAYS = 29.0


@click.group()
def db() -> None:
    """Check, export or prune the database of the jobs."""


@db.command()
@store_options
def check(config: Path | None, data_dir: Path | None, database_url: str | None) -> None:
    """Read the whole database and look for damage.

    Prints how much is in it, and each thing that is damaged; the exit status is then 1.

    Example: batchray db check
    """
    from batchray.store import Store

    settings = reading_settings(config, data_dir, database_url)
    with Store.open_for_reading(settings.data_dir, settings.url, accepts_older=True) as store:
        counted = store.integrity.check()
    click.echo(f"{counted.n_jobs:,} jobs, {counted.n_items:,} items, {counted.n_outcomes:,} outcomes")
    for problem in counted.problems:
        click.echo(problem)
    if counted.problems:
        raise BatchrayError("the database is damaged; `batchray db export --output FILE` saves what is readable")


@db.command()
@click.option("--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File to write.")
@store_options
def export(output: Path, config: Path | None, data_dir: Path | None, database_url: str | None) -> None:
    """Write the outcomes of all jobs as JSON Lines.

    Each line has its job_id.  The file appears whole or not at all.  Of a damaged database it writes all that can be
    read, lists the rest on standard error, and exits with status 1.

    Example: batchray db export --output outcomes.jsonl
    """
    from batchray.store import Store

    lost: list[str] = []
    check_can_be_written(output)
    settings = reading_settings(config, data_dir, database_url)
    reader = Store.open_for_reading(settings.data_dir, settings.url, accepts_older=True)
    stopped = f"export stopped; {undone_of(output)}; run the command again"
    try:
        with saying_if_stopped(stopped), reader as store, text_output(output) as file:
            n_outcomes = _write_all(store, file, lost.append)
    except BrokenPipeError:  # the reader of the output has closed it
        raise
    except OSError as error:
        raise BatchrayError(f"{output} cannot be written: {error.strerror}") from None
    click.echo(f"{n_outcomes:,} outcomes written to {output}", err=stream_of(output) is not None)
    for what in lost:
        click.echo(f"not readable: {what}", err=True)
    if lost:
        raise BatchrayError("some of the database cannot be read; it is listed above")


def _write_all(store: Store, file: IO[str], lost: Callable[[str], None]) -> int:
    from batchray.store.integrity import UNREADABLE
    from batchray.views.results import ResultViews

    n_outcomes = 0
    for job in store.integrity.readable_jobs(lost):
        views = ResultViews(job, rows=_readable_rows(store, job, lost))
        for stored in store.integrity.readable_results(job, lost):
            try:
                line = {"job_id": job.id, **views.result(stored).model_dump(mode="json")}
            except UNREADABLE:
                lost(f"{job.id}: the outcome of item {stored.index}")
                continue
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            n_outcomes += 1
    return n_outcomes


def _readable_rows(store: Store, job: JobRecord, lost: Callable[[str], None]) -> CarriedRows | None:
    """Return the readable rows of the table that a job was made of; an older database has none."""
    from batchray.batch.formats.carried import decode
    from batchray.store.database_schema import is_older
    from batchray.store.integrity import UNREADABLE
    from batchray.views.carried import CarriedRows

    if is_older(store.database):
        return None

    def read(index: int) -> CarriedColumns | None:
        try:
            found = store.items.carried_columns(job, index)
            if found is not None:
                decode(found.data)
        except UNREADABLE:
            lost(f"{job.id}: the row of item {index}")
            return None
        return found

    return CarriedRows(read)


@db.command()
@click.option(
    "--days",
    type=click.FloatRange(min=0),
    default=KEPT_DAYS,
    show_default=True,
    help="How many days after their end jobs are kept.",
)
@click.option("--yes", is_flag=True, help="Do not ask before --days 0 deletes all ended jobs.")
@store_options
def prune(days: float, yes: bool, config: Path | None, data_dir: Path | None, database_url: str | None) -> None:
    """Delete jobs that ended more than --days ago.

    A server does so by itself.  --days 0 asks first.

    Example: batchray db prune --days 7
    """
    import asyncio

    from batchray.jobs.retention import prune as prune_store
    from batchray.store import AsyncStore, Store

    settings = store_settings(config, data_dir, database_url)
    if days == 0 and not yes:
        click.confirm(f"Delete all ended jobs of {place_of(settings)} and their results?", abort=True, err=True)
    with Store.open(settings.data_dir, settings.url, allow_network_fs=settings.allow_network_fs) as store:
        asyncio.run(prune_store(AsyncStore(store), days))
        click.echo(f"{sum(store.jobs.count_by_status().values()):,} jobs are left")
