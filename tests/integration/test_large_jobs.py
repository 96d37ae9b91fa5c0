"""Work on large jobs in small pieces: the tally, a retry, an early end, and the search for items without an outcome."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from batchray.schema.progress import STATUSES, Progress
from batchray.store import (
    JobRecord,
    LedJob,
    NewAttempt,
    Store,
    StoredResult,
    figures,
    queries,
    reopenings,
    run_all,
    tallies,
)
from batchray.store import outcomes as outcome_writes
from batchray.support.failpoints import VARIABLE
from tests.builders.records import begin, new_job, outcome


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    url = None if request.param == "sqlite" else request.getfixturevalue("database").new_url()
    with Store.open(tmp_path, url) as store:
        yield store


@pytest.fixture
def in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of a hundred items takes as many pieces as a large one."""
    monkeypatch.setattr(tallies, "TALLY_EVERY", 7)
    monkeypatch.setattr(tallies, "CHUNK", 3)
    monkeypatch.setattr(figures, "CHUNK", 3)
    monkeypatch.setattr(figures, "_MAX_COUNTED", 2)
    monkeypatch.setattr(reopenings, "_ROWS", 5)
    monkeypatch.setattr(queries, "_COUNTED", 4)
    monkeypatch.setattr(outcome_writes, "_ITEMS_SEEN", 6)
    monkeypatch.setattr(outcome_writes, "_ITEMS_PER_TRANSACTION", 2)


def finish(store: Store, job: LedJob, statuses: dict[int, str], attempt: int = 1) -> None:
    begin(store, job, *statuses, attempt=attempt)
    store.outcomes.write(job, [], [outcome(index, attempt, status) for index, status in statuses.items()])


def end(store: Store, job: LedJob) -> JobRecord:
    return store.jobs.end(job, "completed", "end_turn", Progress(), 1, 2)


def check_counts(store: Store, job: JobRecord) -> None:
    """Check a job's counts against its rows, its tally and all reads against those that a retry has not given up."""
    rows = store.items.results_between(job, 0, job.total)
    record, tally = store.jobs.get(job.id), run_all(store.tallies.tally(job))
    counts = Counter(each.status for each in rows)
    assert record.counts == {status: counts[status] for status in STATUSES}
    assert record.prompt_tokens == sum(each.usage.get("prompt_tokens", 0) for each in rows)
    with store.database.reading() as connection:
        until_seq = connection.execute(sa.select(queries.failed_until_seq(job))).scalar_one()
    own = [each for each in rows if each.status == "succeeded" or each.seq > until_seq]
    check_reads(store, job, own)
    progress = tally.progress(job.total)
    assert {status: n for status, n in progress.counts.items() if n} == Counter(each.status for each in own)
    assert progress.prompt_tokens == sum(each.usage.get("prompt_tokens", 0) for each in own)
    assert progress.timings["duration"].count == sum(each.duration_ns > 0 for each in own)
    kinds = store.tallies.failure_kinds(job)
    assert sum(kind.n_items for kind in kinds) == sum(each.error is not None for each in own)
    assert Counter(kind[:3] for kind in kinds) == Counter(kind[:3] for kind in tally.failure_kinds())


def check_figures(store: Store, job: JobRecord, own: list[StoredResult]) -> None:
    """Check what reports read, of all these outcomes and of the first half of those that the job ever had."""
    last = max((each.seq for each in own), default=0)
    for until_seq in (last // 2, last):
        read = [each for each in own if each.seq <= until_seq]
        failures = [each for page in store.figures.failures(job, until_seq) for each in page]
        assert [(each.index, each.custom_id, orjson.loads(each.error or b"")) for each in failures] == [
            (each.index, each.custom_id, each.error) for each in read if each.error is not None
        ]
        slowest = [(each.duration_ns, each.index) for each in store.figures.slowest(job, until_seq, 3)]
        by_duration = sorted((-each.duration_ns, each.index) for each in read if each.duration_ns)
        assert slowest == [(-duration_ns, index) for duration_ns, index in by_duration[:3]]
        ends = sum(store.figures.ends(job, until_seq), Counter())
        assert Counter((status, usage) for _, status, usage in ends.elements()) == Counter(
            (each.status, orjson.dumps(each.usage)) for each in read
        )
        for agent_ids in ({"a"}, {"a", "b"}):
            usages = sum(store.figures.usages(job, until_seq, agent_ids), Counter())
            assert usages == Counter((each.agent_id, orjson.dumps(each.usage)) for each in read)


def check_reads(store: Store, job: JobRecord, own: list[StoredResult]) -> None:
    """Check that these outcomes are shown, and that all other items are shown as pending."""
    failed = [each.index for each in own if each.status != "succeeded"]
    assert store.items.results(job) == own
    assert store.items.results(job, after_seq=0) == store.items.finished(job) == sorted(own, key=lambda each: each.seq)
    assert [each.index for each in store.items.results(job, is_failed=True)] == failed
    check_figures(store, job, own)
    known = {each.index: each for each in own}
    assert [each.status for each in store.items.find(job)] == [
        known[index].status if index in known else None for index in range(job.total)
    ]
    pending = [each.index for each in store.items.find(job, status="pending")]
    assert pending == [index for index in range(job.total) if index not in known]
    for status in ("errored", "canceled"):
        found = [each.index for each in store.items.find(job, status=status)]
        assert found == [each.index for each in own if each.status == status]
    for index in (0, 1, 9):
        assert store.items.result(job, index) == known.get(index)
        assert store.items.finish_position(job, index) == (known[index].seq if index in known else None)
        run = store.runs.get(job.user_id, job.id, index)
        assert run is not None
        assert run.status == (known[index].status if index in known else None)


@pytest.mark.usefixtures("in_small_pieces")
@pytest.mark.parametrize("seed", range(3))
def test_a_tally_is_the_sum_of_the_outcomes_whenever_it_was_stored(store: Store, seed: int) -> None:
    random, job = Random(seed), new_job(store, 60)
    left = set(range(60))
    for attempt in (1, 2):
        while left:
            taken = random.sample(sorted(left), min(len(left), random.randint(1, 9)))
            finish(store, job, {index: random.choice(STATUSES[:2]) for index in taken}, attempt)
            left.difference_update(taken)
            if random.random() < 0.5:
                run_all(store.tallies.catch_up(job))
                check_counts(store, job)
        check_counts(store, job)
        end(store, job)
        store.jobs.reopen(job.id)
        check_counts(store, job)
        job = store.jobs.start(job.id)
        run_all(store.reopenings.clear(job))
        check_counts(store, job)
        left = {each.index for each in store.items.unfinished(job, -1)}


@pytest.mark.usefixtures("in_small_pieces")
def test_a_retry_that_is_taken_over_in_the_middle_deletes_each_failure_once_and_nothing_else(store: Store) -> None:
    job = new_job(store, 30)
    store.outcomes.write(job, [NewAttempt(index, 2, 2) for index in range(30)])
    statuses = {index: "errored" if index % 2 else "succeeded" for index in range(30)}
    store.outcomes.write(job, [], [outcome(index, 2, status) for index, status in statuses.items()])
    end(store, job)
    store.jobs.reopen(job.id)
    n_left, again = [], list[int]()
    job = store.jobs.start(job.id)
    while (until := store.reopenings.clear_part(job, after=-1)) is not None:
        check_counts(store, job)
        n_left.append(store.jobs.get(job.id).counts["errored"])
        finish(store, job, {until: "errored"}, attempt=3)
        again.append(until)
        job = store.jobs.start(job.id)  # each leader deletes one part, and is then taken over
    assert (n_left, again) == ([10, 6, 2], [9, 19, 29])
    check_counts(store, job)
    assert [each.index for each in store.items.results(job)] == sorted([*range(0, 30, 2), *again])
    pending = store.items.unfinished(job, -1)
    assert [(each.index, each.attempt, each.blamed_crashes) for each in pending] == [
        (index, 2, 0) for index in range(1, 30, 2) if index not in again
    ]
    assert [each.index for each in store.items.unfinished(job, 3, until=7)] == [5, 7]


_RETRY = """
import sys
from pathlib import Path
from batchray.store import Store, run_all

with Store.open(Path(sys.argv[1])) as store:
    store.jobs.reopen(sys.argv[2])
    run_all(store.reopenings.clear(store.jobs.start(sys.argv[2])))
"""


def test_a_retry_that_is_killed_between_two_parts_is_continued_by_the_next_leader(tmp_path: Path) -> None:
    n_items = 2_500
    with Store.open(tmp_path) as store:
        job = new_job(store, n_items)
        finish(store, job, dict.fromkeys(range(n_items - 1), "errored") | {n_items - 1: "succeeded"})
        end(store, job)
    command = [sys.executable, "-c", _RETRY, str(tmp_path), job.id]
    killed = subprocess.run(command, env={**os.environ, VARIABLE: "failures-cleared:2"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    with Store.open(tmp_path) as store:
        assert store.integrity.check().problems == []
        job = store.jobs.start(job.id)
        assert store.jobs.get(job.id).counts["errored"] == n_items - 1 - 2_000
        run_all(store.reopenings.clear(job))
        assert (store.jobs.get(job.id).done, len(store.items.results(job))) == (1, 1)


@pytest.mark.usefixtures("in_small_pieces")
@pytest.mark.parametrize("finished", [set(), {*range(40)}, {*range(39)}, {*range(30)} - {3, 17}, {0, 5, 6, 39}])
def test_items_without_an_outcome_are_found_and_ended_at_any_index(store: Store, finished: set[int]) -> None:
    job = new_job(store, 40)
    finish(store, job, dict.fromkeys(finished, "succeeded"))
    left = [index for index in range(40) if index not in finished]
    for after in (-1, 2, 17, 38):
        found = [each.index for each in store.items.unfinished(job, after)]
        assert found == [index for index in left if index > after]
    ending = store.outcomes.end_unfinished(job, "canceled", "cancelled", None)
    next(ending, None)
    ending = store.outcomes.end_unfinished(store.jobs.start(job.id), "canceled", "cancelled", None)  # after a crash
    run_all(ending)
    assert store.jobs.get(job.id).counts["canceled"] == len(left)
    assert [each.index for each in store.items.find(job, status="canceled")] == left
    check_counts(store, job)


def plans(store: Store, read: Any) -> str:
    """Return the database's plans of the queries that a function makes, if it may not read a table from end to end."""
    told: list[str] = []
    is_shared = store.is_shared

    def explain(connection: sa.Connection, cursor: object, statement: str, values: Any, *_: object) -> None:
        if statement.lstrip().startswith("SELECT") and not told_now:
            told_now.append(True)
            how = "EXPLAIN " if is_shared else "EXPLAIN QUERY PLAN "
            told.extend(" ".join(map(str, row)) for row in connection.exec_driver_sql(how + statement, values))
            told_now.clear()

    told_now: list[bool] = []
    engine = store.database.backend.engine
    with store.database.transaction() as connection:
        if is_shared:
            connection.exec_driver_sql("ANALYZE")
    sa.event.listen(engine, "before_cursor_execute", explain)
    try:
        read()
    finally:
        sa.event.remove(engine, "before_cursor_execute", explain)
    return "\n".join(told)


def test_failures_are_read_through_an_index_of_their_own(store: Store) -> None:
    job = new_job(store, 400)
    finish(store, job, {index: "errored" if index % 200 == 199 else "succeeded" for index in range(400)})
    for read in (
        lambda: store.items.results(job, is_failed=True),
        lambda: store.items.find(job, status="errored"),
        lambda: store.items.find(job, status="expired"),
        lambda: store.tallies.failure_kinds(job),
    ):
        assert "failed_outcomes" in plans(store, read)
    end(store, job)
    store.jobs.reopen(job.id)
    again = store.jobs.start(job.id)
    assert "failed_outcomes" in plans(store, lambda: store.reopenings.clear_part(again, after=-1))
