"""Who leads a job: of two processes on one database, and of two runs in one data directory."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from batchray.config import load_settings
from batchray.errors import (
    BatchFormatError,
    ConfigError,
    JobNotEndedError,
    KeyInUseError,
    LeaseLostError,
    StoreUnavailableError,
)
from batchray.jobs.control import ControlFile, LeaseChannel
from batchray.jobs.driver import run_job, start_job
from batchray.jobs.idle import cancel_idle_job
from batchray.jobs.runtime import Runtime
from batchray.schema import new_job_id
from batchray.schema.progress import Progress
from batchray.store import DEFAULT_USER, JobRecord, LedJob, NewItem, NewJob, NewStep, Store, run_all
from tests.builders.jobs import AGENTS, Scripted, started
from tests.builders.jobs import new_job as driver_job
from tests.builders.records import agents_of, begin, items, new_job, outcome, reopened
from tests.polling import until, wait_until
from tests.postgres import Database


@pytest.fixture
def url(database: Database) -> str:
    return database.new_url()


@pytest.fixture
def one(url: str, tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "one", url) as opened:
        yield opened


@pytest.fixture
def two(one: Store, url: str, tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "two", url) as opened:
        yield opened


def run_out(store: Store) -> None:
    """Expire all leases, as time would."""
    with store.database.transaction() as connection:
        connection.exec_driver_sql("UPDATE leases SET until = 1")


def test_a_job_is_led_by_one_process_until_its_lease_runs_out(one: Store, two: Store) -> None:
    job = new_job(one)
    with pytest.raises(LeaseLostError, match="another server leads it"):
        two.jobs.start(job.id)
    assert (one.running_jobs(), two.running_jobs(), two.jobs.unended()) == ({job.id}, {job.id}, [])
    run_out(one)
    assert [each.id for each in two.jobs.unended()] == [job.id]
    assert two.jobs.start(job.id).epoch == job.epoch + 1
    with pytest.raises(LeaseLostError):
        one.leases.renew(job)


def test_writes_of_a_former_leader_are_refused(one: Store, two: Store) -> None:
    job = new_job(one)
    begin(one, job, 0, 1)
    run_out(one)
    taken = two.jobs.start(job.id)
    begin(two, taken, 0, attempt=2)
    for late in ([outcome(0)], [outcome(0, 2)], [outcome(1)]):
        with pytest.raises(LeaseLostError):
            one.outcomes.write(job, [], late)
    with pytest.raises(LeaseLostError):
        begin(one, job, 2)
    assert two.jobs.get(job.id).done == 0
    assert len(two.outcomes.write(taken, [], [outcome(0, 2, messages=b"[1]")])) == 1


def is_waited_for(store: Store) -> bool:
    """Return whether a transaction waits for a lock of the database."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with store.database.reading() as connection:
        return connection.exec_driver_sql(waiting).first() is not None


def test_a_takeover_in_the_middle_of_a_write_waits_for_the_write_without_a_deadlock(one: Store, two: Store) -> None:
    job = new_job(one)
    begin(one, job, 0)
    run_out(one)
    epochs: list[int] = []
    taking = threading.Thread(target=lambda: epochs.append(two.jobs.start(job.id).epoch))

    def meanwhile(connection: object, cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("UPDATE jobs"):  # it has the lease's row, and wants the job's
            taking.start()
            until(lambda: is_waited_for(one))

    sa.event.listen(one.database.backend.engine, "before_cursor_execute", meanwhile)
    assert one.outcomes.write(job, [], [outcome(0)]) == [outcome(0)]
    taking.join()
    assert epochs == [job.epoch + 1]
    assert two.jobs.get(job.id).done == 1


def test_a_second_run_in_one_data_directory_fences_the_first(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        first = new_job(store)
        begin(store, first, 0)
        second = store.jobs.start(first.id)
        with pytest.raises(LeaseLostError):
            store.outcomes.write(first, [], [outcome(0)])
        assert len(store.outcomes.write(second, [], [outcome(0)])) == 1


def test_a_released_lease_lets_another_server_continue_at_once(one: Store, two: Store) -> None:
    job = new_job(one)
    one.leases.release(job)
    assert two.jobs.start(job.id).epoch == job.epoch + 1


def test_a_job_that_waits_in_the_queue_of_one_server_can_be_started_by_another_at_once(one: Store, two: Store) -> None:
    job_id = new_job_id()
    one.jobs.create(NewJob(job_id, agents_of), items(1))
    two.leases.offer(job_id)  # which has not reserved it
    assert two.jobs.unended() == []
    one.leases.offer(job_id)
    assert [job.id for job in two.jobs.unended()] == [job_id]
    two.jobs.start(job_id)
    for store in (one, two):
        store.leases.offer(job_id)  # it runs now
        assert store.jobs.unended() == []


def test_a_release_by_a_former_leader_has_no_effect(one: Store, two: Store) -> None:
    job = new_job(one)
    run_out(one)
    taken = two.jobs.start(job.id)
    one.leases.release(job)
    assert two.leases.renew(taken) == {}


def test_a_write_whose_answer_was_lost_counts_as_taken_when_it_is_repeated(one: Store) -> None:
    job = new_job(one)
    begin(one, job, 0, 1)
    assert len(one.outcomes.write(job, [], [outcome(0)])) == 1
    again = one.outcomes.write(job, [], [outcome(0), outcome(1)], is_again=True)
    assert [each.index for each in again] == [0, 1]
    assert (one.jobs.get(job.id).done, len(one.items.results(job))) == (2, 2)


def test_fifty_creates_at_once_with_one_idempotency_key_make_one_job(one: Store, two: Store) -> None:
    made: Counter[str] = Counter()

    def create(store: Store) -> None:
        new = NewJob(new_job_id(), agents_of, idempotency_key="k")
        try:
            store.jobs.create(new, items(3))
        except (KeyInUseError, StoreUnavailableError):  # the first one may be slow
            made["refused"] += 1
        else:
            made["made"] += 1

    threads = [threading.Thread(target=create, args=((one, two)[n % 2],)) for n in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == {"made": 1, "refused": 49}
    job = two.jobs.find_by_idempotency_key(DEFAULT_USER, "k")
    assert job is not None
    assert job.total == 3


def test_a_create_does_not_wait_for_a_slow_one_of_the_same_idempotency_key(one: Store, two: Store) -> None:
    def slow() -> Iterator[NewItem]:
        assert two.jobs.create(NewJob(new_job_id(), agents_of, idempotency_key="k"), items(1)) == 1
        assert new_job(two).total == 3
        yield from items(3)

    with pytest.raises(KeyInUseError):
        one.jobs.create(NewJob(new_job_id(), agents_of, idempotency_key="k"), slow())
    job = one.jobs.find_by_idempotency_key(DEFAULT_USER, "k")
    assert job is not None
    assert job.total == 1


def test_a_callback_is_sent_by_one_server_and_by_another_when_that_one_dies(one: Store, two: Store) -> None:
    job = new_job(one, 1)
    begin(one, job, 0)
    one.outcomes.write(job, [], [outcome(0)])
    one.jobs.end(job, "completed", "end_turn", Progress(), None, 0)
    assert two.callbacks.claim(1e12, 10) == []
    assert [due.job.id for due in one.callbacks.claim(1e12, 10)] == [job.id]
    run_out(one)
    assert [due.job.id for due in two.callbacks.claim(1e12, 10)] == [job.id]
    assert one.callbacks.claim(1e12, 10) == []


def test_a_job_is_reopened_by_another_process_than_the_one_that_ended_it(one: Store, two: Store) -> None:
    job = new_job(one, 1)
    begin(one, job, 0)
    one.outcomes.write(job, [], [outcome(0, status="errored")])
    one.jobs.end(job, "failed", "error", Progress(), None, 0)
    two.jobs.reopen(job.id)
    with pytest.raises(LeaseLostError):
        one.jobs.start(job.id)
    assert two.jobs.start(job.id).epoch > job.epoch


def failed(store: Store, job: LedJob) -> JobRecord:
    return store.jobs.end(job, "failed", "error", Progress(), None, 0)


def test_the_late_end_of_a_former_leader_does_not_end_a_job_that_was_opened_again(one: Store, two: Store) -> None:
    job = new_job(one, 1)
    ended = failed(one, job)
    assert failed(one, job) == ended  # its answer may have been lost
    two.jobs.reopen(job.id)
    with pytest.raises(LeaseLostError):
        failed(one, job)
    taken = two.jobs.start(job.id)
    with pytest.raises(LeaseLostError):
        failed(one, job)
    assert not two.jobs.get(job.id).is_ended
    assert failed(two, taken).is_ended


def test_a_job_that_was_taken_over_is_not_ended_by_its_former_leader(one: Store, two: Store) -> None:
    job = new_job(one, 1)
    run_out(one)
    two.jobs.start(job.id)
    with pytest.raises(LeaseLostError):
        failed(one, job)
    assert not two.jobs.get(job.id).is_ended


def test_a_former_leader_takes_no_steps_from_the_next_one(one: Store, two: Store) -> None:
    job = new_job(one, 1)
    begin(one, job, 0)
    ending = one.outcomes.end_unfinished(job, "canceled", "cancelled", None)
    next(ending)  # every item has an outcome now
    run_out(two)
    failed(two, two.jobs.take_over(job.id))
    again = reopened(two, job.id)
    begin(two, again, 0, attempt=2)
    two.outcomes.write(again, [], [], steps=[NewStep(0, 2, 1, b"1")])
    with pytest.raises(LeaseLostError):
        next(ending)
    assert two.items.checkpoints(job, 0) == [b"1"]


def test_a_late_end_of_an_earlier_run_in_one_data_directory_ends_nothing(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        first = new_job(store, 1)
        failed(store, first)
        store.jobs.reopen(first.id)
        with pytest.raises(LeaseLostError):
            failed(store, first)
        assert not store.jobs.get(first.id).is_ended


def test_one_of_two_servers_that_reopen_a_job_at_once_is_refused(one: Store, two: Store) -> None:
    job = new_job(one, 1)
    begin(one, job, 0)
    one.outcomes.write(job, [], [outcome(0, status="errored")])
    failed(one, job)
    opened: list[LedJob] = []

    def meanwhile(connection: object, cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("UPDATE leases") and not opened:  # it has read that the job has ended
            opened.append(reopened(two, job.id))
            begin(two, opened[0], 0, attempt=2)

    sa.event.listen(one.database.backend.engine, "before_cursor_execute", meanwhile)
    with pytest.raises(JobNotEndedError, match=f"job {job.id} has not ended yet"):
        one.jobs.reopen(job.id)
    assert len(opened) == 1
    assert len(two.outcomes.write(two.jobs.start(job.id), [], [outcome(0, 2)])) == 1


def test_a_job_that_another_process_runs_is_not_cancelled_behind_its_back(one: Store, two: Store) -> None:
    job = new_job(one)
    run_all(cancel_idle_job(two, job.id))
    assert (two.jobs.get(job.id).is_ended, one.leases.requested(job)) == (False, {"is_canceled": True})
    run_out(one)
    run_all(cancel_idle_job(two, job.id))
    ended = two.jobs.get(job.id)
    assert (ended.status, bool(ended.total_duration_ns)) == ("cancelled", True)  # it had been started


def test_a_large_job_that_another_process_takes_over_while_it_is_being_cancelled_is_cancelled_there(
    one: Store, two: Store
) -> None:
    job = new_job(one)
    run_out(one)
    taken: list[LedJob] = []

    def meanwhile(connection: object, cursor: object, statement: str, *_: object) -> None:
        if "ttft_ns" in statement and statement.startswith("SELECT") and not taken:  # it counts the outcomes
            run_out(one)
            taken.append(one.jobs.start(job.id))

    sa.event.listen(two.database.backend.engine, "before_cursor_execute", meanwhile)
    run_all(cancel_idle_job(two, job.id))
    assert (one.jobs.get(job.id).is_ended, one.leases.requested(taken[0])) == (False, {"is_canceled": True})


def lease_of(store: Store, job: LedJob) -> float:
    """Return when a job's lease runs out."""
    with store.database.reading() as connection:
        return float(connection.exec_driver_sql(f"SELECT until FROM leases WHERE job = {job.key}").scalar_one())


async def test_a_leader_gets_requests_of_other_servers_within_a_second_and_renews_its_lease_in_time(
    one: Store, two: Store
) -> None:
    now = 0.0
    job = new_job(one)
    link = LeaseChannel(one, job, lambda: now)
    assert await link.update({}) == {}
    renewed = lease_of(one, job)
    two.leases.request(job, is_paused=True)
    two.leases.request(job, max_in_flight=3)
    assert await link.update({}) == {}
    now += 1.0
    assert await link.update({}) == {"is_paused": True, "max_in_flight": 3}
    assert lease_of(one, job) == renewed
    now += one.leases.duration_s / 3
    assert await link.update({}) == {"is_paused": True, "max_in_flight": 3}
    assert lease_of(one, job) > renewed


async def test_a_leader_keeps_the_requests_it_has_read_while_the_leases_cannot_be_read(one: Store, two: Store) -> None:
    now = 0.0
    job = new_job(one)
    two.leases.request(job, is_paused=True)
    link = LeaseChannel(one, job, lambda: now)
    assert await link.update({}) == {"is_paused": True}
    with two.database.transaction() as connection:
        connection.exec_driver_sql("ALTER TABLE leases RENAME TO out_of_reach")
    for _ in range(2):
        now += one.leases.duration_s
        assert await link.update({}) == {"is_paused": True}
        now += 1.0
        assert await link.update({}) == {"is_paused": True}


async def test_an_unreadable_control_file_does_not_withdraw_the_requests_read_before(tmp_path: Path) -> None:
    control = ControlFile(tmp_path, "job-1")
    assert await control.update({}) == {}
    control.ask(is_paused=True)
    assert await control.update({}) == {"is_paused": True}
    (tmp_path / "control" / "job-1.json").write_bytes(b"garbage")
    assert await control.update({}) is None
    control.close()
    assert await control.update({}) == {}


async def test_closing_a_control_file_keeps_a_requested_cancel_and_drops_other_requests(tmp_path: Path) -> None:
    control = ControlFile(tmp_path, "job-1")
    control.ask(is_paused=True, max_in_flight=3)
    control.ask(is_canceled=True)
    control.close()
    assert control.read() == {"is_canceled": True}
    control.ask(is_paused=True)
    control.clear()
    assert control.read() == {}
    control.ask(is_paused=True)
    control.close()
    assert control.read() == {}
    assert list((tmp_path / "control").iterdir()) == []


def test_starting_a_job_that_has_ended_returns_its_record_and_is_no_interruption(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, renewed = Runtime(), list[LedJob]()
    try:
        settings = load_settings(executor="local", data_dir=tmp_path, database_url=url)
        store = session.open_store(settings)
        job_id = driver_job(store, "echo")
        run_all(cancel_idle_job(store, job_id))
        ended = store.jobs.get(job_id)
        monkeypatch.setattr(store.leases, "renew", renewed.append)  # it has none, which would be taken for a lost one
        assert session.start(job_id, AGENTS, store, settings).wait(60) == ended
        assert renewed == []
    finally:
        session.close()


def test_a_cancel_requested_of_a_former_leader_reaches_the_server_that_takes_over(one: Store, two: Store) -> None:
    job = new_job(one)
    two.leases.request(job, is_canceled=True, is_paused=True)  # a pause lasts as long as who was asked for it
    run_out(one)
    taken = two.jobs.start(job.id)
    assert (two.leases.requested(taken), two.leases.renew(taken)) == ({"is_canceled": True}, {"is_canceled": True})
    with pytest.raises(LeaseLostError):
        one.leases.requested(job)


async def test_a_job_that_is_cancelled_elsewhere_before_its_leader_starts_it_is_cancelled_at_once(
    one: Store, two: Store
) -> None:
    job_id = driver_job(one, *["echo"] * 300)
    run_all(cancel_idle_job(two, job_id))
    job = await started(one, job_id, max_in_flight=1)
    executor = Scripted(lambda order: wait_until(lambda: job.ending is not None))
    record = await run_job(job, executor, [LeaseChannel(one, job.record)])
    assert (record.status, len(executor.specs) <= 1) == ("cancelled", True)


def test_a_cancel_requested_before_the_end_of_a_job_does_not_reach_its_retry(one: Store, two: Store) -> None:
    job = new_job(one, 1)
    two.leases.request(job, is_canceled=True)
    run_all(cancel_idle_job(one, job.id))
    two.jobs.reopen(job.id)
    assert two.leases.requested(two.jobs.start(job.id)) == {}


def test_a_request_to_a_former_leader_does_not_reach_the_current_one(one: Store, two: Store) -> None:
    job = new_job(one, 1)
    run_out(one)
    run_all(cancel_idle_job(two, job.id))
    two.jobs.reopen(job.id)
    again = two.jobs.start(job.id)
    one.leases.request(job, is_canceled=True)
    assert two.leases.requested(again) == {}


async def test_a_job_that_is_taken_over_stops_on_one_server_and_continues_on_the_other(one: Store, two: Store) -> None:
    gates = Scripted(lambda order: None)
    job_id = driver_job(one, *["echo"] * 300)
    job = await started(one, job_id, max_in_flight=4)

    def take_over(order: object) -> None:
        if len(first.specs) == 100:
            run_out(two)
            taken.append(two.jobs.start(job_id))

    taken: list[object] = []
    first = Scripted(take_over)
    with pytest.raises(LeaseLostError):
        await run_job(job, first)
    assert len(first.specs) < 110
    record = await run_job(await start_job(job_id, AGENTS, two, job.settings), gates)
    assert record.counts["succeeded"] == 300
    assert sorted(result.index for result in two.items.results(record)) == list(range(300))


async def test_a_restart_of_the_database_in_the_middle_of_a_job_costs_no_attempt(
    one: Store, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    job = await started(one, driver_job(one, *["echo"] * 500), max_in_flight=16)
    executor = Scripted(lambda order: database.stop() if order.index in (100, 300) else None)
    running = asyncio.create_task(run_job(job, executor))
    for _ in range(2):
        await wait_until(lambda: "waits: the store in" in caplog.text)
        caplog.clear()
        await asyncio.to_thread(database.start)
    record = await running
    assert record.counts["succeeded"] == 500
    assert sorted(order.index for order in executor.specs) == list(range(500))


def test_a_database_that_is_not_there_is_one_sentence_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError) as refused:
        Store.open(tmp_path, f"postgresql+psycopg://me:secret@/nowhere?host={tmp_path}")
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("url", ["mysql://h/d", "nonsense"])
def test_an_url_that_is_no_postgresql_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="database_url"):
        Store.open(tmp_path, url)


def test_text_that_postgresql_cannot_hold_is_refused_as_text(one: Store) -> None:
    before = one.jobs.find()
    with pytest.raises(BatchFormatError, match="NUL"):
        one.jobs.create(NewJob(new_job_id(), agents_of), [items(1)[0]._replace(custom_id="a\0b")])
    assert one.jobs.find() == before
