"""Large jobs and files are stored in pieces: other writes run in between, and nothing is seen before it is complete."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from threading import Barrier, Event, Thread

import orjson
import pytest
import sqlalchemy as sa

from batchray.errors import KeyInUseError, StoreError, StoreFullError, StoreUnavailableError, UnknownJobError
from batchray.jobs.create import create_job
from batchray.jobs.retention import run_purge
from batchray.schema import new_job_id
from batchray.store import AsyncStore, CarriedColumns, ItemPage, NewFile, NewJob, NewOutcome, Store, TakenOver
from batchray.store.tables import file_parts, files, jobs, metadata
from batchray.store.unseen import PIECE_BYTES, NewRow
from tests.builders.jobs import AGENTS
from tests.builders.records import agents_of, begin, ended, new_job, outcome
from tests.polling import until
from tests.postgres import Database

TIMEOUT_S = 60
N_PAGES = 4


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    url = request.getfixturevalue("database").new_url() if request.param == "postgres" else None
    with Store.open(tmp_path / "data", url) as opened:
        yield opened


def pages(between: Callable[[int], object], n: int = N_PAGES) -> Iterator[ItemPage]:
    """Yield pages, each of which is a piece; call `between` before each and after the last one."""
    for number in range(n):
        between(number)
        yield ItemPage(["a"], [f"c-{number}"], [b"%0*d" % (PIECE_BYTES, number)])
    between(n)


def n_rows(store: Store, *tables: sa.Table) -> int:
    with store.database.reading() as connection:
        counts = [sa.select(sa.func.count()).select_from(table) for table in tables]
        return sum(connection.execute(count).scalar_one() for count in counts)


def purge(store: Store) -> None:
    """Wait until what was discarded is deleted, which the writer's thread does."""
    store.database.call_soon(lambda: [None for _ in iter(store.retention.purge, False)]).result(TIMEOUT_S)
    store.database.call_soon(lambda: [None for _ in iter(store.files.purge, False)]).result(TIMEOUT_S)


def test_outcomes_of_a_job_are_committed_between_the_pieces_of_another_which_is_not_seen(store: Store) -> None:
    running = new_job(store, N_PAGES + 1)
    seen = store.integrity.check()
    new = NewJob(new_job_id(), agents_of, "http://h/", idempotency_key="k")

    def between(number: int) -> None:
        written = store.database.call_soon(write, number).result(TIMEOUT_S)  # it would wait for a transaction of `new`
        assert [each.index for each in written] == [number]
        assert (store.integrity.check()[:2], store.jobs.count_by_status()) == (seen[:2], {"running": 1})
        assert [job.id for job in (*store.jobs.find(), *store.jobs.find(is_active=True))] == [running.id] * 2
        assert store.jobs.find_by_idempotency_key(new.user_id, "k") is None
        assert store.jobs.ids_with_prefix("", 9) == [running.id]
        assert new.id not in {job.id for job in store.jobs.unended()}
        assert not store.retention.purge()
        with pytest.raises(UnknownJobError):
            store.jobs.get(new.id)

    def write(number: int) -> list[NewOutcome]:
        begin(store, running, number)
        return store.outcomes.write(running, [], [outcome(number)])

    with ThreadPoolExecutor(1) as intake:
        assert intake.submit(store.jobs.create_paged, new, pages(between)).result(TIMEOUT_S) == N_PAGES
    job = store.jobs.get(new.id)
    assert (job.total, job.status, job.is_ended, job.callback_url) == (N_PAGES, "created", False, "http://h/")
    items = store.items.unfinished(job, -1)
    assert [(each.index, int(each.request[-9:])) for each in items] == [(n, n) for n in range(N_PAGES)]
    assert store.jobs.start(new.id).epoch == 2
    assert store.integrity.check().problems == []


@pytest.mark.parametrize("agent_ids", [["a"], ["a", "b"]])
@pytest.mark.parametrize("custom_ids", [[None], ["c"], ["c", None, "d"]])
def test_pages_of_any_length_come_back_as_they_were(
    agent_ids: list[str], custom_ids: list[str | None], store: Store
) -> None:
    lengths = (1, 99, 100, 101, 250)
    values = zip(range(sum(lengths)), cycle(agent_ids), cycle(custom_ids), strict=False)
    given = [(agent_id, custom_id, b"%d" % index) for index, agent_id, custom_id in values]
    rest = iter(given)
    pages = [ItemPage(*zip(*islice(rest, length), strict=True)) for length in lengths]
    store.jobs.create_paged(NewJob(new_job_id(), lambda ids: dict.fromkeys(ids)), pages)
    stored = metadata.tables["items"]
    with store.database.reading() as connection:
        rows = connection.execute(sa.select(stored).order_by(stored.c.idx)).all()
    assert [row[1:] for row in rows] == [(index, *each) for index, each in enumerate(given)]


def test_an_error_after_some_pieces_leaves_nothing(store: Store) -> None:
    def fail(number: int) -> None:
        if number >= N_PAGES:
            raise ValueError("bad line")

    carried = [CarriedColumns(0, 1, b"x" * PIECE_BYTES)]
    with pytest.raises(ValueError, match="bad line"):
        store.jobs.create_paged(NewJob(new_job_id(), agents_of), pages(fail), carried)
    with pytest.raises(ValueError, match="bad agents"):
        store.jobs.create_paged(NewJob(new_job_id(), _bad_agents), pages(int), carried)
    with pytest.raises(ValueError, match="bad line"):
        store.files.create("u", NewFile("f", "f.jsonl", "batch", 9), (page.requests[0] for page in pages(fail, 9)))
    purge(store)
    assert n_rows(store, *(table for table in metadata.sorted_tables)) == 0


def _bad_agents(ids: object) -> dict[str, object]:
    raise ValueError("bad agents")


async def test_a_pipe_may_pause_because_nothing_is_stored_until_it_ends(tmp_path: Path) -> None:
    pipe, n_stored = tmp_path / "pipe.jsonl", []
    os.mkfifo(pipe)
    line = orjson.dumps({"agent_id": "echo", "input": "x" * PIECE_BYTES}) + b"\n"

    def send() -> None:
        with pipe.open("wb") as output:
            for _ in range(N_PAGES):  # when the last one has begun to arrive, those before it would be stored
                output.write(line)
                output.flush()
            n_stored.append(n_rows(opened, jobs))

    with Store.open(tmp_path / "data") as opened:
        sending = asyncio.create_task(asyncio.to_thread(send))
        job_id = await create_job(opened, pipe, AGENTS, None)
        await sending
        assert (n_stored, opened.jobs.get(job_id).total) == ([0], N_PAGES)


def test_pieces_left_by_a_crash_are_removed_when_the_directory_is_opened(tmp_path: Path) -> None:
    def crash(number: int) -> None:
        if number == 2:  # the log of SQLite has all that is committed
            database.call_soon(shutil.copytree, tmp_path / "data", tmp_path / "left").result(TIMEOUT_S)

    def parts() -> Iterator[bytes]:
        for number in range(9):
            if number == 8:
                database.call_soon(shutil.copytree, tmp_path / "data", tmp_path / "left-file").result(TIMEOUT_S)
            yield b"x" * PIECE_BYTES

    with Store.open(tmp_path / "data") as running:
        database = running.database
        running.jobs.create_paged(NewJob(new_job_id(), agents_of), pages(crash))
        running.files.create("u", NewFile("f", "f.jsonl", "batch", 9), parts())
    for name, n_jobs, left in (("left", 0, metadata.sorted_tables), ("left-file", 1, (files, file_parts))):
        with Store.open_for_reading(tmp_path / name) as before:
            assert n_rows(before, *left) > 0
            assert before.integrity.check().n_jobs == n_jobs
        with Store.open(tmp_path / name) as after:
            after.purge_soon()
            purge(after)
            assert n_rows(after, *left) == 0
            assert after.integrity.check().n_jobs == n_jobs


def test_another_server_removes_the_pieces_of_a_dead_one_and_a_late_piece_is_refused(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = database.new_url()

    def between(number: int) -> None:
        if number == 2:
            store.database.call_soon(int).result(TIMEOUT_S)  # a piece that is being stored is left out by a purge
            assert not other.retention.purge()  # the other one may still be at it
            monkeypatch.setattr(other.database.backend, "now", lambda connection: time.time() + 120)
            assert other.retention.purge()

    with Store.open(tmp_path / "one", url) as store, Store.open(tmp_path / "two", url) as other:
        with pytest.raises(StoreUnavailableError, match="too long between two pieces; send it again"):
            store.jobs.create_paged(NewJob(new_job_id(), agents_of), pages(between))
        purge(other)
        purge(store)  # which may have been at it: each leaves out what the other one has locked
        assert n_rows(store, *metadata.sorted_tables) == 0


def test_a_store_that_closes_while_a_job_is_stored_says_so(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    def close(number: int) -> None:
        if number == 2:
            store.close()

    new = NewJob(new_job_id(), agents_of)
    with pytest.raises(StoreError, match="is closed"):
        store.jobs.create_paged(new, pages(close))
    assert f"what was stored of {new.id} cannot be deleted now" in caplog.text


async def test_a_running_server_removes_the_pieces_of_one_that_crashed_just_before_its_start(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(number: int) -> None:
        if number == 2:
            raise ValueError("crash")

    monkeypatch.setattr(NewRow, "discard", lambda *_: None)
    with pytest.raises(ValueError, match="crash"):
        store.jobs.create_paged(NewJob(new_job_id(), agents_of), pages(crash))
    running = AsyncStore(store)
    assert await running.call(n_rows, store, *metadata.sorted_tables) > 0
    monkeypatch.setattr(store.database.backend, "now", lambda connection: time.time() + 120)
    purging = asyncio.create_task(run_purge(running))
    async with asyncio.timeout(TIMEOUT_S):
        while await running.call(n_rows, store, *metadata.sorted_tables):
            await asyncio.sleep(0)
    purging.cancel()
    await asyncio.wait([purging])


def test_one_of_two_large_jobs_with_one_idempotency_key_is_stored(database: Database, tmp_path: Path) -> None:
    url, together = database.new_url(), Barrier(2, timeout=TIMEOUT_S)

    def between(number: int) -> None:
        if number in (1, N_PAGES):  # both are stored, and none is complete
            together.wait()

    def create(store: Store) -> bool:
        try:
            return store.jobs.create_paged(NewJob(new_job_id(), agents_of, idempotency_key="k"), pages(between)) == 4
        except KeyInUseError:
            return False

    with (
        Store.open(tmp_path / "one", url) as one,
        Store.open(tmp_path / "two", url) as two,
        ThreadPoolExecutor(2) as pool,
    ):
        assert sorted(pool.map(create, (one, two))) == [False, True]
        purge(one)
        purge(two)
        assert one.integrity.check() == (1, N_PAGES, 0, [])
        assert n_rows(one, metadata.tables["items"]) == N_PAGES


def test_two_large_jobs_are_stored_at_once(store: Store) -> None:
    together = Barrier(2, timeout=TIMEOUT_S)
    new = [NewJob(new_job_id(), agents_of) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda each: store.jobs.create_paged(each, pages(lambda _: together.wait())), new))
    for each in new:
        assert [item.custom_id for item in store.items.find(store.jobs.get(each.id))] == [f"c-{n}" for n in range(4)]


def test_a_large_request_stored_on_the_writers_thread_does_not_wait_for_a_piece_behind_it(store: Store) -> None:
    with store.database._piece_lock:  # as a caller has it whose piece is in the queue of that thread
        creating = store.database.call_soon(store.jobs.create_paged, NewJob(new_job_id(), agents_of), pages(int))
        assert creating.result(TIMEOUT_S) == N_PAGES


def test_a_disk_that_fills_up_between_two_pieces_leaves_nothing(tmp_path: Path) -> None:
    def fill(number: int) -> None:
        if number == 2:
            opened.database.call_soon(limit, "PRAGMA page_count").result(TIMEOUT_S)

    def limit(to: str) -> None:
        with opened.database.backend.engine.connect() as connection:
            n_pages = connection.exec_driver_sql(to).scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {n_pages}")

    with Store.open(tmp_path) as opened:
        with pytest.raises(StoreFullError, match="database or disk is full"):
            opened.jobs.create_paged(NewJob(new_job_id(), agents_of), pages(fill))
        purge(opened)
        assert n_rows(opened, *metadata.sorted_tables) == 0
        limit("SELECT 1073741823")
        assert opened.jobs.create_paged(NewJob(new_job_id(), agents_of), pages(int)) == N_PAGES


def test_outcomes_of_many_items_are_taken_over_in_pieces_and_counted(store: Store) -> None:
    source = ended(store, 250)
    items = [ItemPage(["a"] * 250, [None] * 250, [b"{}"] * 250)]
    new = NewJob(new_job_id(), agents_of, taken_over=lambda: TakenOver(source, [(n, n) for n in range(250)]))
    store.jobs.create_paged(new, items)
    job = store.jobs.get(new.id)
    assert (job.counts["succeeded"], job.prompt_tokens, job.completion_tokens) == (250, 2500, 250)
    assert [each.seq for each in store.items.results(job)] == [*range(1, 251)]
    assert store.integrity.check().problems == []


def test_a_store_that_closes_during_a_purge_ends_it_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    began, is_closing, n_steps = Event(), Event(), list[int]()

    def step() -> bool:
        n_steps.append(1)
        began.set()
        return is_closing.wait(TIMEOUT_S)

    store = Store.open(tmp_path / "data")
    store.database.repeat_soon(step)
    assert began.wait(TIMEOUT_S)
    closing = Thread(target=store.close)
    closing.start()
    until(lambda: not store.database._writer_thread().is_open)
    is_closing.set()
    closing.join(TIMEOUT_S)
    assert (len(n_steps), caplog.text) == (1, "")
