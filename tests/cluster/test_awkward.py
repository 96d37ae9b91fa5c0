"""Unusual uses: blocking code, generators that wait, two executors, functions that cannot be pickled."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import batchray
from batchray import Agent, AgentRequest
from batchray.api import submit_retry
from batchray.errors import BatchFormatError, ConfigError
from batchray.jobs.control import ControlFile
from batchray.store import Store
from tests.cluster import agents
from tests.cluster.agents import ECHO, block_the_loop, echoes


@pytest.mark.parametrize("placement", ["lane", pytest.param("process", marks=pytest.mark.full)])
def test_code_that_blocks_its_event_loop_ends_at_its_deadline_and_the_next_job_is_complete(
    placement: str, options: dict[str, Any]
) -> None:
    blocker = Agent(id="block", run=block_the_loop, deadline_s=1, placement=placement)
    requests = [{"agent_id": "block", "input": "?"}, *echoes(100)]
    # The default grace is too long for a test.  One attempt, because every attempt runs until its deadline.
    limits: dict[str, Any] = {"deadline_grace_s": 2, "max_attempts": 1, "max_in_flight": 8}
    job = batchray.run(requests, [blocker, ECHO], **limits, **options)

    results = list(job.results("index"))
    assert len(results) == 101
    assert results[0].error is not None
    assert results[0].error.type in ("deadline_exceeded", "worker_died")
    again = batchray.run(list(echoes(200)), [ECHO], **options)
    assert again.counts["succeeded"] == 200


def test_a_generator_may_wait_for_another_job_of_the_same_directory(options: dict[str, Any]) -> None:
    options.pop("progress")
    first = batchray.submit(list(echoes(20)), [ECHO], **options)

    def second_stage() -> Iterator[dict[str, Any]]:
        for result in first.results():
            yield {"agent_id": "echo", "input": result.text}

    second = batchray.run(second_stage(), [ECHO], progress=False, **options)
    assert second.counts["succeeded"] == 20


def test_two_executors_of_one_process_close_cleanly(options: dict[str, Any]) -> None:
    batchray.run(list(echoes(2)), [ECHO], **options)
    options["lanes"] = 1
    assert batchray.run(list(echoes(2)), [ECHO], **options).counts["succeeded"] == 2
    batchray.shutdown()  # this also stops the session's cluster; the next test starts another

    import ray

    assert not ray.is_initialized()
    assert batchray.run(list(echoes(2)), [ECHO], **options).counts["succeeded"] == 2


def test_a_function_that_cannot_be_pickled_is_refused_before_the_batch_is_accepted(options: dict[str, Any]) -> None:
    lock = threading.Lock()

    def locked(request: AgentRequest) -> str:
        with lock:
            return "held"

    with pytest.raises(ConfigError, match="agent 'echo': its function cannot be sent to a lane"):
        batchray.run(list(echoes(1)), [Agent(id="echo", run=locked)], **options)
    assert not (Path(options["data_dir"]) / "batchray.db").exists()


def test_an_async_iterable_is_refused_like_any_other(options: dict[str, Any]) -> None:
    async def nothing() -> AsyncIterator[dict[str, Any]]:
        for request in list[dict[str, Any]]():
            yield request

    async def bad_third() -> AsyncIterator[dict[str, Any]]:
        for request in [*echoes(2), {"agent_id": "unknown", "input": "?"}]:
            yield request

    with pytest.raises(BatchFormatError, match="the batch is empty"):
        batchray.run(nothing(), [ECHO], **options)
    with pytest.raises(BatchFormatError, match=r"requests\[2\]: unknown agent 'unknown'"):
        batchray.run(bad_third(), [ECHO], **options)
    with Store.open_for_reading(options["data_dir"]) as store:
        assert store.jobs.find() == []


def test_a_refused_retry_keeps_all_outcomes(options: dict[str, Any]) -> None:
    def never(request: AgentRequest) -> str:
        raise ValueError("not today")

    options["executor"] = "local"
    job = batchray.run(list(echoes(3)), [Agent(id="echo", run=never)], **options)
    options.pop("progress")

    with pytest.raises(ConfigError, match="pass it in agents="):
        submit_retry(job.id, **options)
    assert job.counts["errored"] == 3
    assert len(list(job.results(failed=True))) == 3

    again = submit_retry(job.id, [Agent(id="echo", run=agents.echo)], **options)
    again.wait(60)
    assert again.counts == {"succeeded": 3, "errored": 0, "canceled": 0, "expired": 0}
    assert {result.attempts for result in again.results()} == {2}


def test_a_job_can_be_paused_and_canceled_at_once_after_it_was_submitted(options: dict[str, Any]) -> None:
    options.pop("progress")
    job = batchray.submit([{"agent_id": "wait", "input": "60"}] * 4, [Agent(id="wait", run=agents.wait)], **options)
    job.pause()
    job.cancel()

    assert job.wait(60).status == "cancelled"


def test_a_cancel_sent_before_the_end_of_a_job_does_not_cancel_its_retry(options: dict[str, Any]) -> None:
    def never(request: AgentRequest) -> str:
        raise ValueError("not today")

    options["executor"] = "local"
    job = batchray.run(list(echoes(3)), [Agent(id="echo", run=never)], **options)
    ControlFile(options["data_dir"], job.id).ask(
        is_canceled=True
    )  # as left by a driver that was killed right after the end
    options.pop("progress")
    again = submit_retry(job.id, [Agent(id="echo", run=agents.echo)], **options)
    assert (again.wait(60).status, again.counts["succeeded"]) == ("completed", 3)
