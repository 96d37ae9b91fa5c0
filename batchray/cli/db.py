"""The commands that look after a database: batchray db check | export | prune."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import click

from batchray.errors import BatchrayError

_F = Callable[..., Any]

KEPT_DAYS = 29.0


DEFAULT_DATA_DIR = Path(".batchray")

data_dir_option = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_DATA_DIR,
    envvar="BATCHRAY_DATA_DIR",
    show_default=True,
    help="Where jobs and their results are kept.",
)
_database_url_option = click.option(
    "--database-url",
    envvar="BATCHRAY_DATABASE_URL",
    help="A PostgreSQL database to keep jobs in instead; a password is better kept in BATCHRAY_DATABASE_URL.",
)


def store_options(command: _F) -> _F:
    """Add what says where jobs are kept: --data-dir and --database-url."""
    return data_dir_option(_database_url_option(command))


@click.group()
def db() -> None:
    """Check, save and clear the database that jobs are kept in."""


@db.command()
@store_options
def check(data_dir: Path, database_url: str | None) -> None:
    """Read the whole database and say what is in it, and what is damaged; exit status 1 where something is.

    Example: batchray db check
    """
    from batchray.store import Store

    with Store.open_for_reading(data_dir, database_url) as store:
        counted = store.integrity.check()
    click.echo(f"{counted.n_jobs:,} jobs, {counted.n_items:,} items, {counted.n_outcomes:,} outcomes")
    for problem in counted.problems:
        click.echo(problem)
    if counted.problems:
        raise BatchrayError("the database is damaged; `batchray db export --output FILE` saves what is readable")


@db.command()
@click.option("--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Where to write.")
@store_options
def export(output: Path, data_dir: Path, database_url: str | None) -> None:
    """Write the outcomes of all jobs as JSON Lines, each with its job_id, as far as they can be read.

    What cannot be read is said on standard error, and the exit status is then 1.

    Example: batchray db export --output outcomes.jsonl
    """
    from batchray.store import Store

    lost: list[str] = []
    try:
        with Store.open_for_reading(data_dir, database_url) as store, output.open("w", encoding="utf-8") as file:
            n_outcomes = _write_all(store, file, lost.append)
    except OSError as error:
        raise BatchrayError(f"{output} cannot be written: {error.strerror}") from None
    click.echo(f"{n_outcomes:,} outcomes written to {output}")
    for what in lost:
        click.echo(f"not readable: {what}", err=True)
    if lost:
        raise BatchrayError("what is listed above could not be read")


def _write_all(store: Any, file: IO[str], lost: Callable[[str], None]) -> int:
    from batchray.store.integrity import UNREADABLE
    from batchray.views.results import result_of

    n_outcomes = 0
    for job in store.integrity.readable_jobs(lost):
        for stored in store.integrity.readable_results(job, lost):
            try:
                line = {"job_id": job.id, **result_of(job, stored).model_dump(mode="json")}
            except UNREADABLE:
                lost(f"{job.id}: the outcome of item {stored.index}")
                continue
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            n_outcomes += 1
    return n_outcomes


@db.command()
@click.option("--days", type=click.FloatRange(min=0), default=KEPT_DAYS, show_default=True, help="How long to keep.")
@store_options
def prune(days: float, data_dir: Path, database_url: str | None) -> None:
    """Delete jobs that ended more than so many days ago.  A server does that by itself.

    Example: batchray db prune --days 7
    """
    import asyncio

    from batchray.jobs.retention import prune as prune_store
    from batchray.store import AsyncStore, Store

    with Store.open(data_dir, database_url) as store:
        asyncio.run(prune_store(AsyncStore(store), days))
        click.echo(f"{sum(store.jobs.count_by_status().values()):,} jobs are left")
