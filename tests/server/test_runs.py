"""Runs and steps through Letta's Python SDK: the ids of messages lead to them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import letta_client
import pytest
from letta_client import Letta
from letta_client.types import AgentState, BatchJob, Step
from letta_client.types.agents import LettaResponse, Run

from tests.server.live import LiveServer


@pytest.fixture
def letta(server: LiveServer) -> Iterator[Letta]:
    with Letta(base_url=server.url, api_key="any", _strict_response_validation=True) as client:
        yield client


@pytest.fixture
def agent(letta: Letta) -> Iterator[AgentState]:
    """Return an agent that follows the script in its message, and remembers none."""
    created = letta.agents.create(
        name="actor", model="offline/scripted", tools=["calculate"], message_buffer_autoclear=True
    )
    yield created
    letta.agents.delete(created.id)


def script(*turns: dict[str, Any]) -> str:
    return json.dumps({"script": turns})


SUM = script({"tool_calls": [{"name": "calculate", "arguments": {"expression": "1 + 1"}}]}, {"text": "It is 2."})
GREETING = script({"text": "Hello."})
FAILURE = script({"fail": {"type": "api_error", "message": "the provider refused this call"}})


def batch_of(letta: Letta, agent: AgentState, *texts: str) -> BatchJob:
    """Run a batch to its end."""
    job = letta.batches.create(requests=[{"agent_id": agent.id, "input": text} for text in texts])
    end = time.monotonic() + 60
    while job.completed_at is None:
        assert time.monotonic() < end, job
        time.sleep(0.02)
        job = letta.batches.retrieve(job.id)
    return job


def ids(listed: Any) -> list[str]:
    return [each.id for each in listed]


def run_id_of(answer: LettaResponse) -> str:
    assert answer.usage.run_ids is not None
    [run_id] = answer.usage.run_ids
    return run_id


def test_the_ids_of_a_batchs_messages_lead_to_runs_and_steps(letta: Letta, agent: AgentState) -> None:
    job = batch_of(letta, agent, SUM, GREETING)
    for message in letta.batches.messages.list(job.id):
        run = letta.runs.retrieve(str(message.run_id))
        assert (run.agent_id, run.status, run.stop_reason) == (agent.id, "completed", "end_turn")
        assert run.metadata == {"run_type": "batch", "job_id": job.id, "batch_item_id": message.batch_item_id}
        assert message.id in ids(letta.runs.messages.list(run.id))
        if message.role != "user":
            step = letta.steps.retrieve(str(message.step_id))
            assert step.run_id == run.id
            assert step.id in ids(letta.runs.steps.list(run.id))
            assert message.id in ids(letta.steps.messages.list(step.id))


def test_a_run_has_its_messages_steps_and_usage(letta: Letta, agent: AgentState) -> None:
    answer = letta.agents.messages.create(agent.id, input=SUM)
    run_id = run_id_of(answer)
    run = letta.runs.retrieve(run_id)
    assert (run.status, run.stop_reason, run.background, run.agent_id) == ("completed", "end_turn", False, agent.id)
    assert run.created_at is not None
    assert run.completed_at is not None
    assert run.created_at < run.completed_at
    assert (run.total_duration_ns or 0) > 0
    assert run.request_config is not None
    assert run.request_config.include_return_message_types is None

    types = ["user_message", "tool_call_message", "tool_return_message", "assistant_message"]
    messages = list(letta.runs.messages.list(run_id, limit=2))
    assert [message.message_type for message in messages] == types
    newest_first = list(letta.runs.messages.list(run_id, limit=3, order="desc"))
    assert [message.message_type for message in newest_first] == types[::-1]
    assert [message.model_dump() for message in messages[1:]] == [each.model_dump() for each in answer.messages]

    newest, oldest = letta.runs.steps.list(run_id, limit=1)
    assert ids(letta.runs.steps.list(run_id, order="asc")) == [oldest.id, newest.id]
    assert [message.message_type for message in letta.steps.messages.list(oldest.id)] == types[1:3]
    assert [message.message_type for message in letta.steps.messages.list(newest.id)] == types[3:]
    assert (oldest.status, oldest.stop_reason, newest.status, newest.stop_reason) == (
        "success",
        None,
        "success",
        "end_turn",
    )
    assert (oldest.model, oldest.provider_name) == ("scripted", "offline")
    usage = letta.runs.usage.retrieve(run_id)
    assert usage.prompt_tokens == answer.usage.prompt_tokens
    assert usage.completion_tokens == answer.usage.completion_tokens
    assert usage.total_tokens == answer.usage.total_tokens


def test_a_run_shows_only_messages_of_the_requested_types(letta: Letta, agent: AgentState) -> None:
    answer = letta.agents.messages.create(agent.id, input=SUM, include_return_message_types=["assistant_message"])
    run_id = run_id_of(answer)
    assert [message.message_type for message in letta.runs.messages.list(run_id)] == ["assistant_message"]


def test_a_failed_run_has_a_failed_step(letta: Letta, agent: AgentState) -> None:
    batch_of(letta, agent, FAILURE)
    [run] = letta.runs.list(agent_id=agent.id)
    assert (run.status, run.stop_reason) == ("failed", "llm_api_error")
    assert run.metadata is not None
    assert run.metadata["error"] == {"type": "api_error", "message": "the provider refused this call"}
    [step] = letta.runs.steps.list(run.id)
    assert (step.status, step.error_type, step.stop_reason) == ("failed", "api_error", "llm_api_error")
    assert letta.steps.retrieve(step.id).to_dict() == step.to_dict()
    assert list(letta.steps.messages.list(step.id)) == []


def test_runs_are_listed_page_by_page_in_both_orders(letta: Letta, agent: AgentState) -> None:
    for _ in range(2):
        batch_of(letta, agent, *[GREETING] * 3)
        letta.agents.messages.create(agent.id, input=GREETING)
    oldest_first = ids(letta.runs.list(agent_id=agent.id, order="asc", limit=3))
    assert len({*oldest_first}) == 8
    assert ids(letta.runs.list(agent_id=agent.id, limit=3)) == oldest_first[::-1]
    assert ids(letta.runs.list(agent_ids=[agent.id, "agent-other"], ascending=True)) == oldest_first
    assert ids(letta.runs.list(agent_id=agent.id, order="asc", after=oldest_first[1], limit=2)) == oldest_first[2:]
    before = letta.runs.list(agent_id=agent.id, order="asc", before=oldest_first[5], limit=2)
    assert ids(before.items) == oldest_first[3:5]
    both = letta.runs.list(agent_id=agent.id, order="desc", after=oldest_first[6], before=oldest_first[2], limit=9)
    assert ids(both.items) == oldest_first[3:6][::-1]


def test_runs_are_filtered(letta: Letta, agent: AgentState) -> None:
    batch_of(letta, agent, GREETING, FAILURE)

    def statuses(**wanted: Any) -> list[str | None]:
        return [run.status for run in letta.runs.list(agent_id=agent.id, order="asc", **wanted)]

    assert statuses() == ["completed", "failed"]
    assert statuses(statuses=["failed"]) == ["failed"]
    assert statuses(statuses=["failed", "completed", "cancelled"]) == ["completed", "failed"]
    assert statuses(stop_reason="end_turn") == ["completed"]
    assert statuses(active=True) == []
    assert statuses(active=True, statuses=["completed"]) == ["completed"]
    assert statuses(background=True) == []
    assert statuses(background=False) == ["completed", "failed"]
    assert statuses(conversation_id="conv-1") == []
    with pytest.raises(letta_client.UnprocessableEntityError):
        letta.runs.list(statuses=["over"])


def test_a_running_run_shows_what_it_has_done(letta: Letta, agent: AgentState) -> None:
    call = {"name": "calculate", "arguments": {"expression": "1 + 1"}}
    job = letta.batches.create(
        requests=[{"agent_id": agent.id, "input": script({"tool_calls": [call]}, {"text": "late", "delay_s": 60})}]
    )
    end = time.monotonic() + 60
    while not (steps := [step for run in letta.runs.list(agent_id=agent.id) for step in letta.runs.steps.list(run.id)]):
        assert time.monotonic() < end
        time.sleep(0.02)
    [run] = letta.runs.list(agent_id=agent.id, active=True)
    assert (run.status, run.completed_at, run.stop_reason) == ("running", None, None)
    assert steps[0].status in ("pending", "success")
    assert letta.steps.retrieve(steps[0].id).run_id == run.id
    assert (letta.runs.usage.retrieve(run.id).total_tokens or 0) > 0
    events = letta.runs.messages.stream(run.id)
    assert next(iter(events)).message_type == "tool_call_message"
    letta.batches.cancel(job.id)
    assert [event.message_type for event in events][-2:] == ["stop_reason", "usage_statistics"]
    assert letta.runs.retrieve(run.id).status == "cancelled"


def test_a_run_is_streamed_again_from_any_message(letta: Letta, agent: AgentState) -> None:
    answer = letta.agents.messages.create(agent.id, input=SUM)
    run_id = run_id_of(answer)
    types = ["tool_call_message", "tool_return_message", "assistant_message", "stop_reason", "usage_statistics"]
    events = list(letta.runs.messages.stream(run_id))
    assert [event.message_type for event in events] == types
    assert [getattr(event, "seq_id", None) for event in events[:3]] == [1, 2, 3]
    later = letta.runs.messages.stream(run_id, starting_after=2, include_pings=True, batch_size=10, poll_interval=0.5)
    assert [event.message_type for event in later] == types[2:]


def test_steps_are_listed_page_by_page_and_filtered(letta: Letta, agent: AgentState) -> None:
    batch_of(letta, agent, SUM, GREETING)
    letta.agents.messages.create(agent.id, input=SUM)
    oldest_first: list[Step] = list(letta.steps.list(agent_id=agent.id, order="asc", limit=2))
    assert len({*ids(oldest_first)}) == 5
    assert [step.run_id for step in oldest_first] == sorted(str(step.run_id) for step in oldest_first[:3]) + [
        step.run_id for step in oldest_first[3:]
    ]
    assert ids(letta.steps.list(agent_id=agent.id, limit=2)) == ids(oldest_first)[::-1]
    before = letta.steps.list(agent_id=agent.id, order="asc", before=oldest_first[3].id, limit=2)
    assert ids(before.items) == ids(oldest_first[1:3])
    after = letta.steps.list(agent_id=agent.id, order="desc", after=oldest_first[3].id)
    assert ids(after) == ids(oldest_first[:3])[::-1]

    def found(**wanted: Any) -> int:
        return len(list(letta.steps.list(agent_id=agent.id, **wanted)))

    assert found(model="scripted") == found(model="offline/scripted") == 5
    assert found(model="other") == found(trace_ids=["t"]) == found(project_id="p") == 0
    assert found(start_date="2020-01-01T00:00:00Z", end_date="2120-01-01T00:00:00+02:00") == 5
    assert found(start_date="2120-01-01T00:00:00Z") == found(end_date="2020-01-01T00:00:00Z") == 0


def test_feedback_on_a_step_is_kept_and_found(letta: Letta, agent: AgentState) -> None:
    letta.agents.messages.create(agent.id, input=SUM)
    good, bad = letta.steps.list(agent_id=agent.id, order="asc")
    said = letta.steps.feedback.create(good.id, feedback="positive", tags=["right", "short"])
    assert (said.id, said.feedback, said.tags) == (good.id, "positive", ["right", "short"])
    letta.steps.feedback.create(bad.id, feedback="negative")
    assert letta.steps.retrieve(good.id).to_dict() == said.to_dict()

    def found(**wanted: Any) -> list[str]:
        return ids(letta.steps.list(agent_id=agent.id, order="asc", **wanted))

    assert found(feedback="positive") == found(tags=["right", "other"]) == [good.id]
    assert found(has_feedback=True) == [good.id, bad.id]
    assert found(has_feedback=False) == []
    assert letta.steps.feedback.create(bad.id, feedback=None).feedback is None
    assert found(has_feedback=False) == [bad.id]
    with pytest.raises(letta_client.UnprocessableEntityError):
        letta.steps.feedback.create(good.id, feedback="so-so")  # type: ignore[arg-type]


def test_a_step_has_metrics_and_no_trace(letta: Letta, agent: AgentState) -> None:
    letta.agents.messages.create(agent.id, input=GREETING)
    [step] = letta.steps.list(agent_id=agent.id)
    metrics = letta.steps.metrics.retrieve(step.id)
    assert (metrics.id, metrics.agent_id, metrics.run_id) == (step.id, agent.id, step.run_id)
    assert (metrics.step_ns or 0) > 0
    assert letta.steps.trace.retrieve(step.id) is None


def test_an_id_that_differs_in_its_last_digits_is_unknown(letta: Letta, agent: AgentState) -> None:
    run_id = run_id_of(letta.agents.messages.create(agent.id, input=GREETING))
    [step] = letta.runs.steps.list(run_id)
    with pytest.raises(letta_client.NotFoundError):
        letta.runs.retrieve(f"{run_id[:-1]}1")
    with pytest.raises(letta_client.NotFoundError):
        letta.steps.retrieve(f"{step.id[:-1]}1")


@pytest.mark.parametrize("kind", ["run", "step"])
def test_unknown_and_malformed_ids_are_refused(letta: Letta, kind: str) -> None:
    retrieve = letta.runs.retrieve if kind == "run" else letta.steps.retrieve
    listed = letta.runs.list if kind == "run" else letta.steps.list
    unknown = f"{kind}-00000000-0000-4000-8000-000000000000"
    with pytest.raises(letta_client.NotFoundError, match="not found"):
        retrieve(unknown)
    with pytest.raises(letta_client.BadRequestError, match=f"Invalid {kind} ID format"):
        retrieve("other")
    for cursor in (unknown, "other", "job-00000000-0000-4000-8000-000000000000"):
        with pytest.raises(letta_client.BadRequestError, match="not found"):
            listed(after=cursor)


def test_the_run_of_a_batch_is_retrieved_as_it_is_listed(letta: Letta, agent: AgentState) -> None:
    batch_of(letta, agent, GREETING)
    listed: list[Run] = list(letta.runs.list(agent_id=agent.id))
    assert [run.to_dict() for run in listed] == [letta.runs.retrieve(run.id).to_dict() for run in listed]
