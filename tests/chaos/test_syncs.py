"""A writer of SQLite is killed at its N-th sync, for every N between the start and the end of a job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from batchray.schema import new_job_id
from batchray.store import Store
from tests.builders.records import check_integrity
from tests.chaos.kill_at_sync import run_until_sync

N_ITEMS, N_COMMIT = 40, 8
IMPORTS = """
import sys
from collections.abc import Callable
from pathlib import Path
from batchray.schema.progress import Progress
from batchray.store import NewAttempt, NewItem, NewJob, NewOutcome, Store
"""
JOB = """
def say(*words):
    print(*words, flush=True)

def outcome(index):
    return NewOutcome(
        index=index, attempt=1, status="succeeded", stop_reason="end_turn", error=None,
        usage={"prompt_tokens": 10}, queued_ns=5, ttft_ns=None, duration_ns=7, messages=b"[%d]" % index,
    )

data_dir, job_id, n_items, n_commit = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
with Store.open(data_dir) as store:
    store.jobs.create(NewJob(job_id, lambda ids: {}, "http://h/"), [NewItem("a", None, b"x" * 9000)] * n_items)
    say("created")
    store.database.checkpoint()
    job = store.jobs.start(job_id)
    for first in range(0, n_items, n_commit):
        indexes = range(first, first + n_commit)
        store.outcomes.write(job, [NewAttempt(index, 1) for index in indexes])
        store.outcomes.write(job, [], [outcome(index) for index in indexes])
        say("recorded", first + n_commit)
    store.jobs.end(job, "completed", "end_turn", Progress(), None, 1)
    say("ended")
    store.database.checkpoint()
say("closed")
"""


@pytest.mark.parametrize(
    "every",
    [pytest.param(12, id="short"), pytest.param(1, id="full", marks=[pytest.mark.chaos, pytest.mark.timeout(600)])],
)
def test_a_kill_at_any_sync_keeps_what_was_acknowledged_and_leaves_no_partial_commit(
    every: int, tmp_path: Path, report: Callable[..., None]
) -> None:
    n_kills = 0
    for n in range(1, 1000, every):
        for sign in (-1, 1):
            data_dir, job_id = tmp_path / f"{n}{sign}", new_job_id()
            ended = run_until_sync(IMPORTS, JOB, str(data_dir), job_id, str(N_ITEMS), str(N_COMMIT), n=sign * n)
            if ended.status == 0:
                assert ended.lines[-1] == "closed"
                assert n_kills > 20 / every  # opening, creating, five commits of two each, the end, checkpoints
                report(kills=n_kills, half=0, lost=0)
                return
            n_kills += 1
            check(data_dir, job_id, ended.lines)


def check(data_dir: Path, job_id: str, lines: list[str]) -> None:
    """Check that a store holds what the killed process had printed, and nothing partial."""
    with Store.open(data_dir) as store:
        jobs = store.jobs.find()
        assert [job.id for job in jobs] in ([], [job_id])
        assert jobs or "created" not in lines
        recorded = max((int(line.split()[1]) for line in lines if line.startswith("recorded")), default=0)
        for job in jobs:
            assert (job.total, len(store.items.find(job))) == (N_ITEMS, N_ITEMS)
            results = store.items.results(job)
            assert job.done == len(results) >= recorded
            assert job.done % N_COMMIT == 0
            assert [result.messages for result in results] == [b"[%d]" % result.index for result in results]
            assert job.is_ended or "ended" not in lines
            assert store.callbacks.count() == int(job.is_ended)
        assert store.integrity.check().problems == []
    check_integrity(data_dir)
