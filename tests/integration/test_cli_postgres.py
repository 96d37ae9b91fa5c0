"""Commands find and steer the jobs of a PostgreSQL database by their short names."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from batchray.cli.main import cli
from batchray.errors import AmbiguousJobError, UnknownJobError
from batchray.store import NewItem, NewJob, Store
from tests.postgres import Database

IDS = [f"job-4f000000-0000-4000-8000-00000000000{n}" for n in range(3)]


@pytest.fixture
def config(database: Database, tmp_path: Path) -> str:
    """Return a config file with the URL of a database that has three jobs."""
    url = database.new_url()
    with Store.open(tmp_path / "data", url) as store:
        for job_id in IDS:
            store.jobs.create(NewJob(job_id, lambda ids: {}), [NewItem("a", None, b'{"agent_id":"a","input":"x"}')])
            store.leases.release(store.jobs.start(job_id))
    file = tmp_path / "batchray.yaml"
    file.write_text(f"data_dir: {tmp_path / 'data'}\ndatabase_url: {url}\n")
    return str(file)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, catch_exceptions=True)


def states(config: str, *names: str) -> list[tuple[str, str]]:
    """Return the ids and states that `status` prints."""
    done = call("status", *names, "--config", config)
    assert done.exit_code == 0, done
    return [(line.split()[0], line.split()[1]) for line in done.output.splitlines() if line.startswith("job-")]


def test_jobs_of_a_database_are_found_and_cancelled_by_short_names(config: str) -> None:
    first, second, last = IDS
    assert states(config, "last") == [(last, "interrupted")]
    assert call("cancel", "last", second[4:], "--config", config).exit_code == 0
    assert states(config) == [(first, "interrupted"), (second, "cancelled"), (last, "cancelled")]
    done = call("results", "last", "--config", config, "--output", config + ".jsonl")
    assert done.exit_code == 0
    assert len(Path(config + ".jsonl").read_text().splitlines()) == 1


def test_a_name_that_fits_no_job_or_several_is_refused(config: str) -> None:
    unknown = call("pause", "5", "--config", config).exception
    assert isinstance(unknown, UnknownJobError)
    assert str(unknown).startswith("no job '5' in the database; ")
    ambiguous = call("pause", "4f", "--config", config).exception
    assert isinstance(ambiguous, AmbiguousJobError)
    assert str(ambiguous).endswith(f": {', '.join(reversed(IDS))}; type more of the id")
