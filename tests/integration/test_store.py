from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from batchray.errors import ConfigError, JobEndedError, JobNotEndedError, StoreError, StoreLockedError, UnknownJobError
from batchray.schema import new_job_id
from batchray.schema.progress import STATUSES, Progress
from batchray.store import (
    AheadCounts,
    CarriedColumns,
    NewAttempt,
    NewItem,
    NewJob,
    Store,
    TakenOver,
    is_locked,
    run_all,
    running_jobs,
)
from batchray.store.sqlite import _compiler as compiler
from tests.builders.records import AGENTS, agents_of, begin, check_integrity, items, new_job, outcome
from tests.postgres import Database


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    url = request.getfixturevalue("database").new_url() if request.param == "postgres" else None
    with Store.open(tmp_path / "data", url) as opened:
        yield opened


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "data") as opened:
        yield opened


def test_no_connection_stays_open_for_compiled_statements() -> None:
    counts = {"connect": 0, "close": 0}
    listeners = {name: lambda *args, name=name: counts.update({name: counts[name] + 1}) for name in counts}
    for name, listener in listeners.items():
        sa.event.listen(sa.pool.Pool, name, listener)
    kept = compiler.__wrapped__()
    for name, listener in listeners.items():
        sa.event.remove(sa.pool.Pool, name, listener)
    assert counts == {"connect": 1, "close": 1}, kept


def test_a_connection_in_use_while_its_store_closes_is_closed_when_it_is_given_back(
    database: Database, tmp_path: Path
) -> None:
    store = Store.open(tmp_path / "data", database.new_url())
    with store.database.backend.engine.connect() as connection:
        used = connection.connection.driver_connection
        store.close()
        assert connection.exec_driver_sql("SELECT 1").scalar() == 1
    assert used is not None
    assert used.closed


def test_a_migration_that_fails_leaves_the_store_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(connection: object, version: int) -> None:
        raise KeyError(version)

    with monkeypatch.context() as patched:
        patched.setattr("batchray.store.database_schema.migrate", fail)
        with pytest.raises(KeyError):
            Store.open(tmp_path)
    with Store.open(tmp_path):  # not locked
        pass


def test_a_job_is_read_back_as_it_was_created(store: Store) -> None:
    job_id = new_job_id()
    store.jobs.create(NewJob(job_id, agents_of, "http://h/"), items(3))
    job = store.jobs.get(job_id)
    assert (job.status, job.total, job.done, job.callback_url) == ("created", 3, 0, "http://h/")
    assert store.jobs.agent_snapshot(job_id) == AGENTS
    assert (job.started_at, job.completed_at, job.progress) == (None, None, None)
    assert not job.is_ended
    pending = store.items.unfinished(job, after=-1)
    assert [(each.index, each.agent_id, each.request, each.attempt, each.blamed_crashes) for each in pending] == [
        (0, "a", b"0000000000", 0, 0),
        (1, "a", b"0000000001", 0, 0),
        (2, "a", b"0000000002", 0, 0),
    ]
    assert [each.id for each in store.jobs.find()] == [job_id]


def test_the_rows_of_a_job_are_found_by_the_index_of_an_item(store: Store) -> None:
    parts = [CarriedColumns(0, 2, b"\0first"), CarriedColumns(2, 1, b"second")]
    for carried in ([], parts):
        job_id = new_job_id()
        store.jobs.create(NewJob(job_id, agents_of), items(3), carried)
    job = store.jobs.get(job_id)
    assert [store.items.carried_columns(job, index) for index in range(3)] == [parts[0], parts[0], parts[1]]
    other = next(each for each in store.jobs.find() if each.id != job_id)
    assert store.items.carried_columns(other, 0) is None


def test_an_exception_of_the_items_undoes_the_creation_of_a_job(store: Store) -> None:
    def broken() -> Iterator[NewItem]:
        yield from items(1200)
        raise LookupError("line 1201")

    job_id = new_job_id()
    with pytest.raises(LookupError, match="line 1201"):
        store.jobs.create(NewJob(job_id, agents_of), broken())
    assert store.jobs.find() == []
    with pytest.raises(UnknownJobError, match=job_id):
        store.jobs.get(job_id)
    assert new_job(store).total == 3


def test_a_new_job_takes_over_outcomes_that_succeeded(store: Store) -> None:
    source = new_job(store, 1200)
    done = [*range(5, 1100), 0]
    store.outcomes.write(source, [NewAttempt(index, 1) for index in done])
    kept = [outcome(index, messages=b"[%d]" % index) for index in done[:-1]]
    store.outcomes.write(source, outcomes=[*kept, outcome(0, status="errored")])
    pairs = [(n, index) for n, index in enumerate([1099, 0, *range(5, 900)])]
    taking = NewJob(new_job_id(), agents_of, taken_over=lambda: TakenOver(source, pairs))
    store.jobs.create(taking, items(1000))
    job = store.jobs.get(taking.id)
    assert (job.counts["succeeded"], job.done, job.status) == (len(pairs) - 1, len(pairs) - 1, "created")
    first, second = store.items.results(job, limit=2)
    assert (first.index, first.messages, first.attempts) == (0, b"[1099]", 1)
    assert (second.index, second.messages) == (2, b"[5]")
    assert store.items.unfinished(job, after=-1, limit=1)[0].index == 1  # the source's item 0 has not succeeded
    led = store.jobs.start(job.id)
    begin(store, led, 1)
    store.outcomes.write(led, outcomes=[outcome(1)])
    assert store.items.results(led, after_seq=len(pairs))[0].index == 1
    assert [each.index for each in store.items.succeeded_requests(source, 4, 2)] == [5, 6]


class Recorded(NamedTuple):
    """The contents of one commit: attempts that began, then outcomes, as (index, attempt) each."""

    begun: list[int]
    outcomes: list[tuple[int, int]]


@settings(max_examples=50)
@given(
    st.lists(
        st.builds(
            Recorded,
            st.lists(st.integers(0, 3), max_size=3),
            st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), max_size=6),
        ),
        max_size=8,
    )
)
def test_recording_in_any_order_twice_or_late_takes_one_outcome_of_the_current_attempt(commits: list[Recorded]) -> None:
    current: dict[int, int] = {}
    expected: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as directory, Store.open(Path(directory)) as store:
        job = new_job(store, 4)
        for begun, outcomes in commits:
            attempts = []
            for index in begun:
                if index not in expected:  # the driver begins none of a finished item
                    current[index] = current.get(index, 0) + 1
                    attempts.append(NewAttempt(index, current[index]))
            taken = store.outcomes.write(job, attempts, [outcome(index, attempt) for index, attempt in outcomes])
            due = [(i, a) for i, a in dict.fromkeys(outcomes) if current.get(i) == a and i not in expected]
            assert [(each.index, each.attempt) for each in taken] == due
            expected.update(due)
        results = store.items.results(job)
        assert [(each.index, each.attempts) for each in results] == sorted(expected.items())
        in_order = store.items.results(job, after_seq=0)
        assert [each.seq for each in in_order] == list(range(1, len(expected) + 1))
        assert [each.index for each in in_order] == list(expected)
        record = store.jobs.get(job.id)
        assert (record.counts["succeeded"], record.prompt_tokens) == (len(expected), 10 * len(expected))
        assert {each.index for each in store.items.unfinished(job, after=-1)} == set(range(4)) - expected.keys()


def test_a_taken_outcome_never_changes(store: Store) -> None:
    job = new_job(store)
    begin(store, job, 0)
    assert len(store.outcomes.write(job, [], [outcome(0, messages=b"[1]")])) == 1
    begin(store, job, 0, attempt=2)
    assert store.outcomes.write(job, [], [outcome(0, 1, "errored"), outcome(0, 2, "errored")]) == []
    (result,) = store.items.results(job)
    assert (result.status, result.messages, result.error) == ("succeeded", b"[1]", None)


def test_an_outcome_of_an_attempt_that_never_began_is_not_taken(store: Store) -> None:
    job = new_job(store)
    assert store.outcomes.write(job, [], [outcome(0), outcome(99)]) == []
    assert store.jobs.get(job.id).done == 0


def test_an_attempt_that_is_counted_ahead_is_seen_once_it_has_begun(store: Store) -> None:
    job = new_job(store, 4)
    store.outcomes.write(job, ahead=AheadCounts([0, 1, 2], [], []))
    assert [each.attempts for each in store.items.find(job)] == [0, 0, 0, 0]
    assert [each.attempt for each in store.items.unfinished(job, -1)] == [1, 1, 1, 0]  # no number is used twice
    store.outcomes.write(job, ahead=AheadCounts([], [0], []))
    assert [each.attempts for each in store.items.find(job)] == [1, 0, 0, 0]
    store.outcomes.write(job, ahead=AheadCounts([], [], [0, 1, 2]))  # 0 has begun: it stays
    assert [each.attempt for each in store.items.unfinished(job, -1)] == [1, 0, 0, 0]


def test_an_outcome_shows_that_its_attempt_has_begun(store: Store) -> None:
    job = new_job(store, 2)
    write = partial(store.outcomes.write, job, outcomes=[outcome(0)])
    store.outcomes.write(job, ahead=AheadCounts([0, 1], [], []))
    assert len(write()) == 1
    assert len(write(is_again=True)) == 1
    assert store.items.results(job)[0].attempts == 1
    assert run_all(store.outcomes.end_unfinished(job, "canceled", "cancelled", None)) == 1
    assert store.items.results(job)[1].attempts == 1  # as those that were never counted


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["counted", "ran", "marked"]), max_size=5))
def test_a_driver_that_crashes_leaves_at_most_one_run_uncounted(crashes: list[str]) -> None:
    """Each driver crashes when the attempt is counted, or also ran, or also was marked as begun."""
    n_ran, numbers = 0, list[int]()
    with tempfile.TemporaryDirectory() as directory, Store.open(Path(directory)) as store:
        job = new_job(store, 1)
        for crash in [*crashes, "ends"]:
            [item] = store.items.unfinished(job, -1)
            if item.attempt == 0:
                store.outcomes.write(job, ahead=AheadCounts([0], [], []))
            else:
                counts = (item.blamed_crashes, item.collateral_crashes)
                store.outcomes.write(job, [NewAttempt(0, item.attempt + 1, *counts)])
            if crash != "counted":
                n_ran += 1
                numbers.append(item.attempt + 1)
            if crash in ("marked", "ends"):
                store.outcomes.write(job, ahead=AheadCounts([], [0], []))
        assert len(store.outcomes.write(job, outcomes=[outcome(0, numbers[-1])])) == 1
        # An attempt of an item with a history is counted even if the crash came before its spawn.
        n_unspawned = sum(crash == "counted" for crash in crashes[1:])
        assert n_ran - 1 <= store.items.results(job)[0].attempts - n_unspawned <= n_ran
        assert numbers == sorted(set(numbers))


def test_outcomes_of_one_job_are_not_those_of_another(store: Store) -> None:
    one, other = new_job(store), new_job(store)
    begin(store, one, 0)
    assert store.outcomes.write(other, [], [outcome(0)]) == []
    assert len(store.outcomes.write(one, [], [outcome(0)])) == 1
    assert (store.jobs.get(one.id).done, store.jobs.get(other.id).done) == (1, 0)


def test_attempts_deaths_and_losses_are_read_back_after_a_restart(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        job = new_job(store, 2)
        store.outcomes.write(job, [NewAttempt(0, 1), NewAttempt(1, 1)])
        store.outcomes.write(job, [NewAttempt(1, 4, 1, 2)])
    with Store.open(tmp_path) as store:
        pending = store.items.unfinished(job, after=-1)
        assert [(each.attempt, each.blamed_crashes, each.collateral_crashes) for each in pending] == [
            (1, 0, 0),
            (4, 1, 2),
        ]


def test_an_outcome_is_fenced_by_all_attempts_and_shows_those_that_were_not_lost(store: Store) -> None:
    job = new_job(store, 1)
    store.outcomes.write(job, [NewAttempt(0, 4, 1, 2)])
    assert [each.attempts for each in store.items.find(job)] == [2]
    assert store.outcomes.write(job, [], [outcome(0, 2)]) == []
    assert store.outcomes.write(job, [], [outcome(0, 4)]) == [outcome(0, 4)]
    assert store.outcomes.write(job, [], [outcome(0, 4)], is_again=True) == [outcome(0, 4)]
    assert ([each.attempts for each in store.items.find(job)], store.items.results(job)[0].attempts) == ([2], 2)


def test_a_result_is_read_back_as_it_was_recorded(store: Store) -> None:
    job = new_job(store)
    begin(store, job, 1)
    store.outcomes.write(job, [], [replace(outcome(1, 1, "errored", b'[{"id":1}]'), ttft_ns=3)])
    (result,) = store.items.results(job)
    assert (result.seq, result.index, result.agent_id, result.custom_id) == (1, 1, "a", "c-1")
    assert (result.request, result.attempts, result.messages) == (b"0000000001", 1, b'[{"id":1}]')
    assert (result.error, result.usage["prompt_tokens"]) == ({"type": "x", "message": "why"}, 10)
    assert (result.queued_ns, result.ttft_ns, result.duration_ns) == (5, 3, 7)
    progress = run_all(store.tallies.tally(job)).progress(job.total)
    assert progress.counts["errored"] == 1
    assert [progress.timings[name].max_ns for name in ("queued", "ttft", "duration")] == [5, 3, 7]


def test_pages_are_cut_by_count_and_by_bytes(store: Store) -> None:
    small, large = new_job(store, 1201), new_job(store, 30, size=1_000_000)
    for job, sizes in ((small, [500, 500, 201]), (large, [8, 8, 8, 6])):
        pages, last = [], -1
        while page := store.items.unfinished(job, after=last):
            pages.append([each.index for each in page])
            last = page[-1].index
        assert [index for page in pages for index in page] == list(range(job.total))
        assert list(map(len, pages)) == sizes
    begin(store, large, *range(30))
    store.outcomes.write(large, [], [outcome(index, messages=b"[%s]" % (b" " * 1_000_000)) for index in range(30)])
    assert len(store.items.results(large)) == 4
    assert [each.index for each in store.items.results(large, max_bytes=1)] == [0]
    assert [each.index for each in store.items.finished(large, order="desc", max_bytes=4_100_000)] == [29, 28]
    assert [each.index for each in store.items.results(large, after_index=27)] == [28, 29]
    assert [each.index for each in store.items.results(large, after_seq=28)] == [28, 29]


def test_failed_results_can_be_asked_for_alone(store: Store) -> None:
    job = new_job(store)
    begin(store, job, 0, 1, 2)
    store.outcomes.write(job, [], [outcome(2, status="errored"), outcome(0), outcome(1, status="expired")])
    assert [each.index for each in store.items.results(job, is_failed=True)] == [1, 2]
    all_results = store.items.results(job, omits_succeeded=True)
    assert [(each.index, bool(each.request), bool(each.messages)) for each in all_results] == [
        (0, False, False),
        (1, True, True),
        (2, True, True),
    ]
    assert store.jobs.get(job.id).counts == {"succeeded": 1, "errored": 1, "canceled": 0, "expired": 1}


def test_failures_are_counted_by_kind_the_most_frequent_first(store: Store) -> None:
    job = new_job(store, 6)
    begin(store, job, *range(6))
    kinds = [("error", "a"), ("error", "b"), ("llm_api_error", "b"), ("error", "b")]
    failed = [
        replace(outcome(index, 1, "errored"), stop_reason=stop_reason, error={"type": type, "message": str(index)})
        for index, (stop_reason, type) in enumerate(kinds)
    ]
    store.outcomes.write(job, [], [*failed, outcome(4)])
    first, *others = run_all(store.tallies.tally(job)).failure_kinds()
    assert (first.stop_reason, first.type, first.n_items, first.example in "13") == ("error", "b", 2, True)
    assert {(each.stop_reason, each.type, each.n_items) for each in others} == {
        ("error", "a", 1),
        ("llm_api_error", "b", 1),
    }


def test_a_job_ends_once(store: Store) -> None:
    job = new_job(store)
    progress = Progress(total=3)
    progress.record("succeeded", {"duration_ns": 7}, {})
    ended = store.jobs.end(job, "completed", "end_turn", progress, 11, 22)
    assert (ended.status, ended.stop_reason, ended.ttft_ns, ended.total_duration_ns) == (
        "completed",
        "end_turn",
        11,
        22,
    )
    assert (ended.progress, ended.is_ended) == (progress, True)
    assert store.jobs.end(job, "failed", "error", Progress(), None, 0) == ended
    with pytest.raises(JobEndedError):
        store.jobs.start(job.id)
    assert store.jobs.get(job.id) == ended


def test_items_without_an_outcome_are_all_ended_and_the_others_stay(store: Store) -> None:
    job = new_job(store, 1203)
    begin(store, job, 0, 1)
    begin(store, job, 1, attempt=2)
    store.outcomes.write(job, [], [outcome(0)])
    assert run_all(store.outcomes.end_unfinished(job, "canceled", "cancelled", None)) == 1202
    assert store.items.unfinished(job, after=-1) == []
    assert store.jobs.get(job.id).counts == {"succeeded": 1, "errored": 0, "canceled": 1202, "expired": 0}
    assert [(each.status, each.attempts) for each in store.items.results(job)[:3]] == [
        ("succeeded", 1),
        ("canceled", 2),
        ("canceled", 1),
    ]
    assert run_all(store.outcomes.end_unfinished(job, "canceled", "cancelled", None)) == 0


def test_a_reopened_job_keeps_what_succeeded_and_forgets_the_rest(store: Store) -> None:
    job = new_job(store)
    store.outcomes.write(job, [NewAttempt(0, 1), NewAttempt(1, 3, 3), NewAttempt(2, 1)])
    store.outcomes.write(job, [], [outcome(1, 3, "errored"), outcome(0), outcome(2, 1, "canceled")])
    store.jobs.end(job, "completed", "end_turn", Progress(), 1, 2)
    store.jobs.reopen(job.id)
    again = store.jobs.get(job.id)
    assert (again.status, again.is_ended, again.stop_reason, again.progress) == ("created", False, None, None)
    run_all(store.reopenings.clear(store.jobs.start(job.id)))
    again = store.jobs.get(job.id)
    assert again.counts == {"succeeded": 1, "errored": 0, "canceled": 0, "expired": 0}
    assert (again.prompt_tokens, again.completion_tokens) == (10, 1)
    assert [(each.index, each.attempt, each.blamed_crashes) for each in store.items.unfinished(again, after=-1)] == [
        (1, 3, 0),
        (2, 1, 0),
    ]
    again = store.jobs.start(job.id)
    begin(store, again, 1, attempt=4)
    assert len(store.outcomes.write(again, [], [outcome(1, 4)])) == 1
    assert [each.index for each in store.items.results(again, after_seq=3)] == [1]


def test_only_a_job_that_has_ended_is_opened_again(store: Store) -> None:
    job = new_job(store, 1)
    begin(store, job, 0)
    store.outcomes.write(job, [], [outcome(0, 1, "errored")])
    with pytest.raises(JobNotEndedError, match=f"job {job.id} has not ended yet"):
        store.jobs.reopen(job.id)
    assert store.jobs.get(job.id).counts["errored"] == 1
    with pytest.raises(UnknownJobError):
        store.jobs.reopen("job-x")
    assert store.jobs.end(job, "failed", "error", Progress(), None, 0).is_ended


@pytest.mark.parametrize("next_at", [None, 5e12])
def test_a_callback_attempt_for_an_earlier_end_of_a_job_does_not_count_for_its_next_end(
    store: Store, next_at: float | None
) -> None:
    def end(attempt: int) -> str:
        job = store.jobs.start(job_id)
        run_all(store.reopenings.clear(job))
        begin(store, job, 0, attempt=attempt)
        store.outcomes.write(job, [], [outcome(0, attempt, "errored")])
        return store.jobs.end(job, "failed", "error", Progress(), None, 0).completed_at or ""

    def record(completed_at: str) -> None:
        store.callbacks.record(job_id, completed_at, sent_at="t", status_code=200, error=None, next_at=next_at)

    def due() -> list[tuple[str | None, int]]:
        return [(each.job.completed_at, each.n_attempts) for each in store.callbacks.due(1e12, 10)]

    job_id = new_job(store, 1).id
    first = end(attempt=1)
    store.jobs.reopen(job_id)
    record(first)
    second = end(attempt=2)
    record(first)
    assert (due(), store.jobs.get(job_id).callback_sent_at) == ([(second, 0)], None)
    record(second)
    assert (due(), store.jobs.get(job_id).callback_sent_at) == ([], "t")


# -- one writer, many readers


CHILD = """
import sys, time
from pathlib import Path
from batchray.errors import BatchrayError
from batchray.schema.progress import Progress
from batchray.store import CarriedColumns, NewAttempt, NewItem, NewJob, NewOutcome, Store

def say(*words):
    print(*words, flush=True)

def outcome(index):
    return NewOutcome(
        index=index, attempt=1, status="succeeded", stop_reason="end_turn", error=None,
        usage={"prompt_tokens": 10}, queued_ns=5, ttft_ns=None, duration_ns=7, messages=b"[]",
    )

data_dir, job_id = Path(sys.argv[1]), sys.argv[2]
"""


@contextlib.contextmanager
def child(code: str, data_dir: Path, job_id: str = "") -> Iterator[Callable[[], str]]:
    """Run code in another process; yields what reads its next line."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD + code, str(data_dir), job_id],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_a_second_writer_in_another_process_is_refused_with_the_first_ones_pid(tmp_path: Path) -> None:
    code = "import os\nwith Store.open(data_dir):\n    say(os.getpid())\n    sys.stdin.read()"
    with child(code, tmp_path) as line:
        pid = line().strip()
        with pytest.raises(StoreLockedError, match=f"^process {pid} is writing to {tmp_path}"):
            Store.open(tmp_path)
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)
    with Store.open(tmp_path):  # the lock ends with its process, however that ends
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


def test_no_running_job_is_forgotten_while_others_begin_and_end(sqlite: Store) -> None:
    def begin_and_end(name: str) -> None:
        for n in range(300):
            sqlite.mark_running(f"job-{name}-{n}")
            sqlite.unmark_running(f"job-{name}-{n}")
        sqlite.mark_running(f"job-{name}")

    names = ("a", "b", "c")
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(begin_and_end, names))
    assert running_jobs(sqlite.data_dir) == {f"job-{name}" for name in names}


def test_other_processes_know_which_jobs_are_run(sqlite: Store) -> None:
    assert running_jobs(sqlite.data_dir) == set()
    jobs = [new_job(sqlite).id for _ in range(2)]
    for job_id in jobs:
        sqlite.mark_running(job_id)
    assert running_jobs(sqlite.data_dir) == set(jobs)
    sqlite.unmark_running(jobs[0])
    assert running_jobs(sqlite.data_dir) == {jobs[1]}
    with pytest.raises(StoreLockedError, match=f"process {os.getpid()} is writing"):
        Store.open(sqlite.data_dir)
    sqlite.close()
    assert running_jobs(sqlite.data_dir) == set()


def test_a_second_writer_in_this_process_is_refused(sqlite: Store) -> None:
    with pytest.raises(StoreLockedError, match=f"process {os.getpid()} is writing"):
        Store.open(sqlite.data_dir)
    new_job(sqlite)  # the first one is not disturbed


def test_no_data_directory_is_not_locked(tmp_path: Path) -> None:
    assert not is_locked(tmp_path / "nowhere")


def test_a_reader_sees_each_commit_while_the_writer_is_open_and_after_its_close(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        job = new_job(store, 3)
        with Store.open_for_reading(tmp_path) as reader:
            assert reader.jobs.get(job.id).done == 0
            begin(store, job, 0)
            store.outcomes.write(job, [], [outcome(0)])
            assert (reader.jobs.get(job.id).done, [each.index for each in reader.items.results(job)]) == (1, [0])
            with pytest.raises(StoreError, match="attempt to write a readonly database"):
                run_all(reader.outcomes.end_unfinished(job, "canceled", "cancelled", None))
            with Store.open_for_reading(tmp_path) as another:
                assert another.jobs.get(job.id).done == 1
    with Store.open_for_reading(tmp_path) as reader:
        assert reader.jobs.get(job.id).done == 1


def test_a_reader_does_not_wait_for_a_long_transaction(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        job = new_job(store)
        with Store.open_for_reading(tmp_path) as reader:

            def slow() -> Iterator[NewItem]:
                yield items(1)[0]
                assert [each.id for each in reader.jobs.find()] == [job.id]

            store.jobs.create(NewJob(new_job_id(), agents_of), slow())
            assert len(reader.jobs.find()) == 2


def test_only_one_connection_ever_writes(tmp_path: Path) -> None:
    opened: list[str] = []

    def on_open(event: str, arguments: tuple[object, ...]) -> None:
        if event == "sqlite3.connect" and is_listening and str(tmp_path) in str(arguments[0]):
            opened.append(str(arguments[0]))

    is_listening = True
    sys.addaudithook(on_open)
    try:
        with Store.open(tmp_path) as store:
            job = new_job(store, 600)
            begin(store, job, *range(600))
            store.outcomes.write(job, [], [outcome(index) for index in range(600)])
            run_all(store.tallies.tally(job))
            threads = [
                threading.Thread(target=lambda: asyncio.run(store.database.call(store.jobs.find))) for _ in range(3)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            with Store.open_for_reading(tmp_path) as reader:
                reader.items.results(job)
    finally:
        is_listening = False
    assert len([uri for uri in opened if uri.endswith("?mode=rwc")]) == 1
    assert all(uri.endswith(("?mode=rwc", "?mode=ro")) for uri in opened)


async def test_calls_run_one_after_another_on_the_writers_thread(store: Store) -> None:
    job = new_job(store, 50)
    begin(store, job, *range(50))
    await asyncio.gather(*(store.database.call(store.outcomes.write, job, [], [outcome(index)]) for index in range(50)))
    assert [each.index for each in store.items.results(job, after_seq=0)] == list(range(50))
    names = await asyncio.gather(*(store.database.call(lambda: threading.current_thread().name) for _ in range(5)))
    assert set(names) == {"batchray-store"}
    with pytest.raises(UnknownJobError):
        await store.database.call(store.jobs.get, "job-0")


async def test_a_cancelled_wait_lets_the_write_finish(store: Store) -> None:
    job = new_job(store)
    begin(store, job, 0)
    release = threading.Event()
    blocking = asyncio.ensure_future(store.database.call(release.wait))
    recording = asyncio.ensure_future(
        store.database.call(lambda: release.wait() and store.outcomes.write(job, [], [outcome(0)]))
    )
    await asyncio.sleep(0)
    blocking.cancel()
    release.set()
    await recording
    assert store.jobs.get(job.id).done == 1


# -- crashes


def test_a_writer_killed_while_it_records_leaves_the_job_and_whole_commits(tmp_path: Path) -> None:
    job_id = new_job_id()
    code = """
store = Store.open(data_dir)
store.jobs.create(NewJob(job_id, lambda ids: {}), (NewItem("a", None, b"{}") for _ in range(3000)))
job = store.jobs.start(job_id)
store.outcomes.write(job, [NewAttempt(i, 1) for i in range(3000)])
for i in range(0, 3000, 3):
    store.outcomes.write(job, [], [outcome(i), outcome(i + 1), outcome(i + 2)])
    say(i + 3)
"""
    with child(code, tmp_path, job_id) as line:
        for _ in range(20):
            acknowledged = int(line())
    with Store.open(tmp_path) as store:
        job = store.jobs.get(job_id)
        assert (job.status, job.total) == ("running", 3000)
        assert job.done >= acknowledged
        assert job.done % 3 == 0
        assert job.prompt_tokens == 10 * job.done
        assert run_all(store.tallies.tally(job)).progress(job.total).counts == job.counts
        assert [each.index for each in store.items.unfinished(job, after=-1, limit=1)] == [job.done]
    check_integrity(tmp_path)


def test_a_writer_killed_while_it_creates_a_job_leaves_none(tmp_path: Path) -> None:
    code = """
def slow():
    for i in range(2000):
        yield NewItem("a", None, b"x" * 10_000)
    say("half")
    sys.stdin.read()

Store.open(data_dir).jobs.create(NewJob(job_id, lambda ids: {}), slow())
"""
    with child(code, tmp_path, new_job_id()) as line:
        assert line() == "half\n"
    with Store.open(tmp_path) as store:
        assert store.jobs.find() == []
        assert new_job(store).total == 3
    check_integrity(tmp_path)


def test_a_queued_write_is_written_before_the_store_closes(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    job = new_job(store)
    begin(store, job, 0)
    writing = store.database.call_soon(store.outcomes.write, job, [], [outcome(0)])
    store.close()
    assert writing.done()
    with Store.open_for_reading(tmp_path) as reader:
        assert reader.jobs.get(job.id).done == 1


def test_a_commit_is_flushed_to_the_disk(sqlite: Store) -> None:
    with sqlite.database.backend.engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2}


# -- directories that cannot be used


def test_a_data_directory_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "batchray.db")) as connection:
        connection.execute("PRAGMA user_version = 99")
    for opening in (Store.open, Store.open_for_reading):
        with pytest.raises(StoreError, match="was written by a newer version of batchray; upgrade to read it"):
            opening(tmp_path)
    assert not is_locked(tmp_path)


def test_a_file_that_is_not_a_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "batchray.db").write_bytes(b"this is not a database" * 100)
    for opening in (Store.open, Store.open_for_reading):
        with pytest.raises(StoreError, match="file is not a database"):
            opening(tmp_path)
    assert not is_locked(tmp_path)


def test_a_directory_without_data_has_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"no batchray data in {tmp_path}"):
        Store.open_for_reading(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_data_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for data_dir in (file, file / "data"):
        with pytest.raises(ConfigError, match=f"cannot write to {data_dir}"):
            Store.open(data_dir)


def test_a_directory_that_is_not_writable_is_refused() -> None:
    code = """
import os
if os.getuid() == 0:
    os.setuid(65534)  # nothing is forbidden to root
try:
    Store.open(data_dir)
except BatchrayError as error:
    say(type(error).__name__, error)
"""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o555)
        with child(code, Path(directory)) as line:
            assert line() == f"ConfigError cannot write to {directory}: Permission denied\n"
        os.chmod(directory, 0o755)


def test_a_store_that_fails_while_it_is_used_says_so(sqlite: Store) -> None:
    job = new_job(sqlite)
    begin(sqlite, job, 0)
    with sqlite.database.transaction() as connection:
        connection.execute(sa.text("DROP TABLE outcomes"))
    with pytest.raises(StoreError, match=f"the store in {sqlite.data_dir} failed: no such table: outcomes"):
        sqlite.outcomes.write(job, [], [outcome(0)])


def test_paths_may_hold_anything(tmp_path: Path) -> None:
    data_dir = tmp_path / "a b?c#d%20e&mode=memory" / "ü"
    with Store.open(data_dir) as store:
        job = new_job(store)
    assert (data_dir / "batchray.db").exists()
    with Store.open_for_reading(data_dir) as reader:
        assert reader.jobs.get(job.id).total == 3


def test_the_statuses_of_progress_are_the_columns_of_a_job(store: Store) -> None:
    assert tuple(new_job(store).counts) == STATUSES
