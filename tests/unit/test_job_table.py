"""The states of a server's jobs, and the order of its queue."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchray.jobs.local_run import LocalRun
from batchray.server.job_table import TRANSITIONS, JobState, JobTable

S = JobState
# The shortest way to each state.
PATHS: dict[JobState | None, tuple[JobState, ...]] = {
    None: (),
    S.QUEUED: (S.QUEUED,),
    S.STARTING: (S.QUEUED, S.STARTING),
    S.RUNNING: (S.QUEUED, S.STARTING, S.RUNNING),
    S.RESTARTING: (S.QUEUED, S.STARTING, S.RESTARTING),
    S.REOPENING: (S.REOPENING,),
    S.ENDING: (S.QUEUED, S.ENDING),
    S.ABANDONED: (S.ABANDONED,),
}
ALLOWED = {
    (None, S.QUEUED): "accepted, or adopted",
    (None, S.STARTING): "a single run",
    (None, S.REOPENING): "a retry",
    (None, S.ABANDONED): "a single run of a server that died",
    (S.QUEUED, S.STARTING): "its turn has come",
    (S.QUEUED, S.ENDING): "cancelled before its start",
    (S.QUEUED, None): "expired, or the server stops",
    (S.STARTING, S.RUNNING): "started",
    (S.STARTING, S.RESTARTING): "could not be started",
    (S.STARTING, None): "an agent's code or key is missing",
    (S.RUNNING, S.RESTARTING): "its driver failed",
    (S.RUNNING, None): "ended, or left to another server",
    (S.RESTARTING, S.QUEUED): "after the delay, or adopted before",
    (S.RESTARTING, S.STARTING): "a single run, after the delay or adopted before",
    (S.RESTARTING, S.ENDING): "cancelled before its restart",
    (S.RESTARTING, S.REOPENING): "a retry of a job whose driver failed after its end",
    (S.RESTARTING, S.ABANDONED): "a single run whose driver failed",
    (S.RESTARTING, None): "expired",
    (S.REOPENING, S.QUEUED): "reopened",
    (S.REOPENING, None): "the store failed",
    (S.ENDING, S.QUEUED): "the store failed",
    (S.ENDING, S.RESTARTING): "the store failed",
    (S.ENDING, None): "ended",
    (S.ABANDONED, S.STARTING): "its client is here after all",
    (S.ABANDONED, None): "ended at last",
}


def table_with(job_id: str, state: JobState | None) -> JobTable:
    table = JobTable()
    for step in PATHS[state]:
        table.move(job_id, step)
    return table


def start_next(table: JobTable) -> str | None:
    job_id = table.first_queued()
    if job_id is not None:
        table.move(job_id, S.STARTING)
    return job_id


@pytest.mark.parametrize(("before", "after"), [*itertools.product(PATHS, PATHS)])
def test_only_the_listed_transitions_are_allowed(before: JobState | None, after: JobState | None) -> None:
    table = table_with("j", before)
    is_allowed = (before, after) in ALLOWED
    assert table.may_move("j", after) == is_allowed
    if is_allowed:
        table.remove("j") if after is None else table.move("j", after)
        assert table.state("j") is after
    else:
        with pytest.raises(RuntimeError, match=f"job j: the transition from {before} to {after} is not allowed"):
            table.remove("j") if after is None else table.move("j", after)
        assert table.state("j") is before


def test_every_state_can_be_reached_and_left() -> None:
    assert set(TRANSITIONS) == {*JobState, None}
    assert all(TRANSITIONS.values())
    assert {state for states in TRANSITIONS.values() for state in states} == {*JobState, None}


def test_jobs_start_in_the_order_in_which_they_were_queued() -> None:
    table = JobTable()
    for job_id in "abc":
        table.move(job_id, S.QUEUED)
    assert [start_next(table) for _ in range(4)] == ["a", "b", "c", None]


def test_a_job_that_is_queued_again_goes_to_the_end_unless_it_goes_to_the_front() -> None:
    table = JobTable()
    for job_id in "abcd":
        table.move(job_id, S.QUEUED)
    assert start_next(table) == "a"
    table.move("a", S.RESTARTING)
    table.move("a", S.QUEUED)
    table.move("c", S.ENDING)
    table.move("c", S.QUEUED, at_front=True)
    assert [start_next(table) for _ in range(4)] == ["c", "b", "d", "a"]


def test_removing_the_queued_jobs_leaves_the_others() -> None:
    table = JobTable()
    for job_id in "abc":
        table.move(job_id, S.QUEUED)
    start_next(table)
    table.remove_queued()
    assert ["a" in table, "b" in table, "c" in table] == [True, False, False]


async def test_running_jobs_are_those_with_a_run() -> None:
    table = table_with("a", S.STARTING)
    job = LocalRun("a", asyncio.get_running_loop())
    table.move("b", S.QUEUED)
    assert table.running_job("a") is None
    table.move("a", S.RUNNING, job=job)
    assert table.running_job("a") is job
    assert table.running_job("b") is None
    table.move("a", S.RESTARTING)
    assert table.running_job("a") is None


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([*JobState, None]), st.booleans()), max_size=60))
def test_taken_slots_are_the_started_jobs_that_do_not_skip_the_queue(
    steps: list[tuple[str, JobState | None, bool]],
) -> None:
    table = JobTable()
    for job_id, state, skips_queue in steps:
        if not table.may_move(job_id, state):
            continue
        if state is None:
            table.remove(job_id)
        else:
            table.move(job_id, state, skips_queue=skips_queue)
        entries = [entry for each in "abcd" if (entry := table.get(each)) is not None]
        started = [entry for entry in entries if entry.state in (S.STARTING, S.RUNNING) and not entry.skips_queue]
        assert table.n_slots_taken == len(started)
