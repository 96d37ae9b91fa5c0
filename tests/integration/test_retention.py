from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from batchray.cli.main import cli
from batchray.errors import UnknownJobError
from batchray.jobs.retention import prune
from batchray.schema.progress import Progress
from batchray.store import AsyncStore, Store
from batchray.store.tables import metadata
from tests.builders.batches import GOOD
from tests.builders.commands import AGENTS, command, local
from tests.builders.records import begin, called_back, check_integrity, ended, new_job
from tests.postgres import Database


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    url = request.getfixturevalue("database").new_url() if request.param == "postgres" else None
    with Store.open(tmp_path / "data", url) as opened:
        yield opened


def test_a_job_is_kept_while_its_callback_is_still_to_be_sent(store: Store) -> None:
    first, second = (store.jobs.end(new_job(store), "failed", "error", Progress(), None, 0) for _ in range(2))
    called_back(store, first, time.time() + 3600)
    assert not store.retention.prune("9999")
    called_back(store, first, None)
    while store.retention.prune("9999"):
        pass
    assert store.jobs.find() == [second]
    assert [due.job.id for due in store.callbacks.due(1e12, 10)] == [second.id]


def test_a_job_whose_callback_is_never_sent_is_deleted_in_the_end(store: Store) -> None:
    job = new_job(store)
    begin(store, job, 0)
    called_back(store, store.jobs.end(job, "failed", "error", Progress(), None, 0), time.time() - 31 * 24 * 3600)
    assert store.retention.prune("9999")
    assert (store.callbacks.count(), store.callbacks.due(1e12, 10)) == (1, [])  # half deleted, and no callback is sent
    while store.retention.prune("9999"):
        pass
    assert store.integrity.check() == (0, 0, 0, [])


def test_an_ended_job_is_deleted_in_small_steps_and_unknown_after_the_first(store: Store) -> None:
    old, running = ended(store, 1203), new_job(store)
    assert old.completed_at is not None
    new = ended(store)
    n_steps = 0
    while store.retention.prune(new.completed_at or ""):
        n_steps += 1
        with pytest.raises(UnknownJobError):
            store.jobs.get(old.id)
        assert [job.id for job in store.jobs.find()] == [running.id, new.id]
        assert sum(store.jobs.count_by_status().values()) == 2
        assert store.items.count_by_status()["succeeded"] == 3
    assert n_steps >= 8  # three tables of 1,203 rows, 500 at a time
    assert (store.jobs.get(new.id), store.jobs.get(running.id).total) == (new, 3)
    assert len(store.items.results(new)) == 3
    assert store.integrity.check() == (2, 6, 3, [])


def test_a_step_deletes_about_a_page_of_bytes(store: Store) -> None:
    ended(store, 40, 1_000_000)
    n_steps = 0
    while store.retention.prune("9999"):
        n_steps += 1
    assert n_steps >= 5


def test_half_a_deleted_job_is_finished_later_and_never_part_of_a_new_one(store: Store) -> None:
    ended(store, 1203)
    assert store.retention.prune("9999")
    fresh = ended(store)
    assert store.retention.prune("2000") is False
    while store.retention.prune(fresh.completed_at or ""):
        pass
    assert store.integrity.check() == (1, 3, 3, [])
    assert [each.index for each in store.items.results(fresh)] == [0, 1, 2]


def test_two_servers_that_delete_at_once_leave_nothing_behind(database: Database, tmp_path: Path) -> None:
    url = database.new_url()
    with Store.open(tmp_path / "one", url) as one, Store.open(tmp_path / "two", url) as two:
        ended(one, 1203)
        assert one.retention.prune("9999")

        def meanwhile(connection: object, cursor: object, statement: str, *_: object) -> None:
            if statement.startswith("DELETE FROM") and "idx" in statement:  # what it has read is there no more
                two.retention.prune("9999")

        sa.event.listen(one.database.backend.engine, "before_cursor_execute", meanwhile)
        while one.retention.prune("9999"):
            pass
        assert [table.name for table in metadata.sorted_tables if n_rows(two, table)] == []


def n_rows(store: Store, table: sa.Table) -> int:
    with store.database.reading() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()


async def test_ended_jobs_are_deleted_after_the_retention_period(store: Store) -> None:
    job = ended(store)
    await prune(AsyncStore(store), days=1)
    assert store.jobs.get(job.id) == job
    await prune(AsyncStore(store), days=1e-9)
    assert store.jobs.find() == []


async def test_the_space_of_deleted_jobs_is_returned_to_the_file_system(tmp_path: Path) -> None:
    file = tmp_path / "batchray.db"
    with Store.open(tmp_path) as store:
        ended(store, 30, 1_000_000)
        store.database.checkpoint()
        assert file.stat().st_size > 30_000_000
        while store.retention.prune("9999"):
            pass
        n_pieces = 1
        while store.retention.shrink():
            n_pieces += 1
        assert n_pieces <= 10  # of 4 MiB
        assert file.stat().st_size < 1_000_000
        assert (tmp_path / "batchray.db-wal").stat().st_size == 0
    check_integrity(tmp_path)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_the_command_line_keeps_checks_saves_and_deletes_in_both_databases(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = {"BATCHRAY_DATABASE_URL": request.getfixturevalue("database").new_url()} if kind == "postgres" else {}
    (tmp_path / "agents.yaml").write_text(AGENTS)
    done = command(tmp_path, *local("-", "--quiet"), given=GOOD + b"\n" + GOOD + b"\n", **url)
    assert done.status == 0, done.err
    job_id = done.out.strip()
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str]:
        called = CliRunner().invoke(cli, arguments, env=url)
        return called.exit_code, called.output

    assert call("status")[1].startswith(f"{job_id}  completed    2 of 2 done")
    assert len(command(tmp_path, "results", job_id, **url).out.splitlines()) == 2
    assert call("db", "check") == (0, "1 jobs, 2 items, 2 outcomes\n")
    assert call("db", "export", "--output", "o.jsonl")[0] == 0
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 2
    assert call("db", "prune") == (0, "1 jobs are left\n")
    assert call("db", "prune", "--days", "0", "--yes") == (0, "0 jobs are left\n")
    assert isinstance(CliRunner().invoke(cli, ["results", job_id], env=url).exception, UnknownJobError)


async def test_space_that_an_earlier_server_did_not_return_is_returned_later(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        ended(store, 30, 1_000_000)
        while store.retention.prune("9999"):
            pass
        await prune(AsyncStore(store), days=1)
        assert (tmp_path / "batchray.db").stat().st_size < 1_000_000
