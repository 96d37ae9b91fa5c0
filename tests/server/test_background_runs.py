"""Runs in the background, their cancel, and the deletion of jobs and runs, through Letta's Python SDK."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import letta_client
import pytest
from letta_client import Letta
from letta_client.types import AgentState, BatchJob
from letta_client.types.agents import Run

from batchray.store import Store
from batchray.store.tables import metadata
from tests.polling import until
from tests.server.live import LiveServer

JOBS = "/v1/jobs"


@pytest.fixture
def letta(server: LiveServer) -> Iterator[Letta]:
    with Letta(base_url=server.url, api_key="any", _strict_response_validation=True) as client:
        yield client


@pytest.fixture
def agent(letta: Letta) -> Iterator[AgentState]:
    """Return an agent that follows the script in its message, and remembers none."""
    created = letta.agents.create(name="actor", model="offline/scripted", message_buffer_autoclear=True)
    yield created
    letta.agents.delete(created.id)


def script(*turns: dict[str, Any]) -> str:
    return json.dumps({"script": turns})


GREETING = script({"text": "Hello."})
SLOW = script({"text": "late", "delay_s": 60})


def ended(letta: Letta, run: Run) -> Run:
    return until(lambda: found if (found := letta.runs.retrieve(run.id)).completed_at is not None else None)


def ended_batch(letta: Letta, agent: AgentState, *texts: str) -> BatchJob:
    job = letta.batches.create(requests=[{"agent_id": agent.id, "input": text} for text in texts])
    return until(lambda: found if (found := letta.batches.retrieve(job.id)).completed_at is not None else None)


def rows_of(server: LiveServer, key: int) -> dict[str, int]:
    """Return the tables that still have rows of a job."""
    store = Store.open_for_reading(server.data_dir)
    try:
        with store.database.reading() as connection:
            tables = [table for table in metadata.sorted_tables if "job" in table.c]
            found = {t.name: connection.execute(t.select().where(t.c.job == key)).all() for t in tables}
    finally:
        store.close()
    return {name: len(rows) for name, rows in found.items() if rows}


def key_of(server: LiveServer, job_id: str) -> int:
    store = Store.open_for_reading(server.data_dir)
    try:
        return store.jobs.get(job_id).key
    finally:
        store.close()


def test_a_run_in_the_background_is_retrieved_and_listed(letta: Letta, agent: AgentState) -> None:
    run = letta.agents.messages.create_async(agent.id, messages=[{"role": "user", "content": GREETING}])
    assert (run.agent_id, run.background) == (agent.id, True)
    assert run.metadata is not None
    assert run.metadata["run_type"] == "send_message_async"
    done = ended(letta, run)
    assert (done.status, done.stop_reason, done.callback_url) == ("completed", "end_turn", None)
    assert [each.id for each in letta.runs.list(agent_id=agent.id, background=True)] == [run.id]
    said = [message.message_type for message in letta.runs.messages.list(run.id)]
    assert said == ["user_message", "assistant_message"]
    assert [message.message_type for message in letta.agents.messages.list(agent.id, order="asc")] == said


def test_a_run_in_the_background_is_one_for_its_idempotency_key(letta: Letta, agent: AgentState) -> None:
    key = {"Idempotency-Key": f"background {agent.id}"}
    runs = {letta.agents.messages.create_async(agent.id, input=GREETING, extra_headers=key).id for _ in range(2)}
    assert len(runs) == 1
    with pytest.raises(letta_client.UnprocessableEntityError, match="another body"):
        letta.agents.messages.create(agent.id, input=GREETING, extra_headers=key)


def test_runs_of_an_agent_are_canceled(letta: Letta, agent: AgentState) -> None:
    first, second, third = (letta.agents.messages.create_async(agent.id, input=SLOW) for _ in range(3))
    assert letta.agents.messages.cancel(agent.id, run_ids=[first.id]) == {first.id: "cancelled"}
    assert ended(letta, first).status == "cancelled"
    assert letta.agents.messages.cancel(agent.id) == {second.id: "cancelled", third.id: "cancelled"}
    assert {ended(letta, run).stop_reason for run in (second, third)} == {"cancelled"}
    with pytest.raises(letta_client.ConflictError, match="No active runs to cancel"):
        letta.agents.messages.cancel(agent.id)


def test_runs_that_cannot_be_canceled_are_reported_as_failed(
    letta: Letta, agent: AgentState, server: LiveServer
) -> None:
    job = letta.batches.create(requests=[{"agent_id": agent.id, "input": SLOW}])
    [of_a_batch] = letta.runs.list(agent_id=agent.id)
    others = ["run-00000000-0000-4000-8000-000000000000", "nothing", of_a_batch.id]
    assert letta.agents.messages.cancel(agent.id, run_ids=others) == dict.fromkeys(others, "failed")
    other = letta.agents.create(name="other", model="offline/scripted")
    run = letta.agents.messages.create_async(other.id, input=SLOW)
    assert letta.agents.messages.cancel(agent.id, run_ids=[run.id]) == {run.id: "failed"}
    letta.agents.messages.cancel(other.id)
    letta.batches.cancel(job.id)
    letta.agents.delete(other.id)


def test_jobs_are_listed_retrieved_and_canceled(letta: Letta, agent: AgentState) -> None:
    done = ended_batch(letta, agent, GREETING)
    job = letta.batches.create(requests=[{"agent_id": agent.id, "input": SLOW}])

    def listed(query: str) -> list[str]:
        return [each.id for each in letta.get(f"{JOBS}/?{query}", cast_to=list[BatchJob])]

    assert listed("limit=2") == [job.id, done.id]
    assert listed(f"order=asc&after={done.id}") == listed(f"ascending=true&after={done.id}") == [job.id]
    assert job.id in listed("active=true")
    assert done.id not in listed("active=true")
    assert letta.get(f"{JOBS}/{done.id}", cast_to=BatchJob).to_dict() == letta.batches.retrieve(done.id).to_dict()
    assert letta.patch(f"{JOBS}/{job.id}/cancel", cast_to=BatchJob).id == job.id
    until(lambda: letta.batches.retrieve(job.id).status == "cancelled")


@pytest.mark.parametrize("path", [JOBS, "/v1/messages/batches"])
def test_a_deleted_batch_is_unknown_and_its_rows_are_gone(
    letta: Letta, agent: AgentState, server: LiveServer, path: str
) -> None:
    job = ended_batch(letta, agent, GREETING, GREETING)
    [step, _] = letta.steps.list(agent_id=agent.id)
    letta.steps.feedback.create(step.id, feedback="positive")
    key = key_of(server, job.id)
    assert {"jobs", "items", "outcomes", "step_feedback"} <= {*rows_of(server, key)}
    assert letta.delete(f"{path}/{job.id}", cast_to=BatchJob).id == job.id
    assert rows_of(server, key) == {}
    assert list(letta.runs.list(agent_id=agent.id)) == []
    paths = (f"{JOBS}/{job.id}", f"/v1/messages/batches/{job.id}", f"/v1/runs/{step.run_id}", f"/v1/steps/{step.id}")
    for unknown in paths:
        with pytest.raises(letta_client.NotFoundError):
            letta.get(unknown, cast_to=object)
    with pytest.raises(letta_client.NotFoundError):
        letta.delete(f"{path}/{job.id}", cast_to=object)


def test_a_running_batch_is_canceled_and_deleted(letta: Letta, agent: AgentState, server: LiveServer) -> None:
    job = letta.batches.create(requests=[{"agent_id": agent.id, "input": SLOW}] * 3)
    key = key_of(server, job.id)
    assert letta.delete(f"{JOBS}/{job.id}", cast_to=BatchJob).status == "cancelled"
    assert rows_of(server, key) == {}
    assert "Traceback" not in server.log


def test_a_single_run_is_deleted_and_one_of_a_batch_with_its_batch_only(letta: Letta, agent: AgentState) -> None:
    run = letta.agents.messages.create_async(agent.id, input=SLOW)
    assert letta.delete(f"/v1/runs/{run.id}", cast_to=object) is None
    with pytest.raises(letta_client.NotFoundError):
        letta.runs.retrieve(run.id)
    job = ended_batch(letta, agent, GREETING)
    [of_a_batch] = letta.runs.list(agent_id=agent.id)
    with pytest.raises(letta_client.ConflictError, match=f"belongs to batch {job.id}"):
        letta.delete(f"/v1/runs/{of_a_batch.id}", cast_to=object)
