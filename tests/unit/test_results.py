from __future__ import annotations

import json
import math
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from batchray.agents import AttemptRunner, encode_input, read_report
from batchray.config import Agent, bind_agents
from batchray.schema import AssistantMessage, ItemStatus, Result, item_id, new_job_id
from batchray.schema.outcomes import OutcomeData
from batchray.store import JobRecord, NewAttempt, NewItem, NewJob, NewOutcome, Store, run_all, utc_now
from batchray.views.results import parse_time, result_of, to_frame


def double(n: int) -> int:
    return 2 * n


AGENT = Agent(
    id="a",
    model="offline/scripted",
    script=(
        {"text": "let me see", "reasoning": "hm", "tool_calls": [{"name": "double", "arguments": {"n": 4}}]},
        {"text": "It is 8."},
    ),
    tools=(double,),
)


@pytest.fixture
def job(tmp_path: Path) -> JobRecord:
    with Store.open(tmp_path) as store:
        job_id = new_job_id()
        store.jobs.create(NewJob(job_id, lambda ids: {}), [NewItem("a", None, b"{}")])
        return store.jobs.get(job_id)


async def results(tmp_path: Path, job_id: str, *requests: dict[str, Any]) -> list[Result]:
    """Run requests by the agent above, and read their results back from a store."""
    bodies = [json.dumps({"agent_id": "a", "input": "hi", **request}).encode() for request in requests]
    attempt_runner, bound = AttemptRunner(), bind_agents([AGENT]).agents["a"]
    with Store.open(tmp_path / "data") as store:
        items = [NewItem("a", request.get("custom_id"), body) for request, body in zip(requests, bodies, strict=True)]
        store.jobs.create(NewJob(job_id, lambda ids: {}), items)
        job = store.jobs.start(job_id)
        store.outcomes.write(job, [NewAttempt(index, 1) for index in range(len(items))])
        for index, body in enumerate(bodies):
            report = read_report(await attempt_runner.run_attempt(bound, encode_input(job_id, index, 1, body)))
            outcome = {each.name: getattr(report, each.name) for each in fields(OutcomeData)}
            outcome |= {"index": report.index, "attempt": report.attempt, "duration_ns": 2_500_000_000}
            store.outcomes.write(job, [], [NewOutcome(**outcome, queued_ns=1_500_000_000)])
        return [result_of(job, stored) for stored in store.items.results(job)]


async def test_a_result_is_an_output_line(tmp_path: Path) -> None:
    job_id = new_job_id()
    (result,) = await results(tmp_path, job_id, {"custom_id": "c-1", "metadata": {"row": [3]}})
    assert result.metadata == {"row": [3]}
    line = json.loads(result.model_dump_json())
    assert list(line) == [
        "index",
        "custom_id",
        "metadata",
        "batch_item_id",
        "agent_id",
        "status",
        "stop_reason",
        "messages",
        "usage",
        "error",
        "attempts",
        "timing",
    ]
    assert (line["index"], line["custom_id"], line["batch_item_id"]) == (0, "c-1", item_id(job_id, 0))
    assert (line["status"], line["stop_reason"], line["error"], line["attempts"]) == ("succeeded", "end_turn", None, 1)
    assert line["usage"]["step_count"] == 2
    assert line["timing"]["queued_ns"] == 1_500_000_000
    assert [message["message_type"] for message in line["messages"]] == [
        "reasoning_message",
        "assistant_message",
        "tool_call_message",
        "tool_return_message",
        "assistant_message",
    ]
    assert Result.model_validate(line) == result


async def test_only_the_types_that_were_asked_for_are_given_back(tmp_path: Path) -> None:
    asked = [["tool_return_message"], ["assistant_message", "reasoning_message"], [], None]
    requests = [{"include_return_message_types": types} for types in asked]
    given = [
        [message.message_type for message in each.messages] for each in await results(tmp_path, new_job_id(), *requests)
    ]
    assert given[:3] == [
        ["tool_return_message"],
        ["reasoning_message", "assistant_message", "assistant_message"],
        [],
    ]
    assert len(given[3]) == 5


async def test_the_text_is_the_last_thing_that_the_agent_said(tmp_path: Path) -> None:
    first, second = await results(tmp_path, new_job_id(), {}, {"include_return_message_types": ["tool_call_message"]})
    assert (first.text, second.text) == ("It is 8.", "")
    parts = AssistantMessage.model_validate(
        {"id": "m", "date": datetime.now(UTC), "content": [{"text": "a"}, {"text": "b"}]}
    )
    assert first.model_copy(update={"messages": [parts]}).text == "ab"


def test_an_item_that_never_ran_has_a_result(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        job_id = new_job_id()
        store.jobs.create(NewJob(job_id, lambda ids: {}), [NewItem("a", None, b'{"agent_id":"a","input":"x"}')])
        job = store.jobs.start(job_id)
        run_all(store.outcomes.end_unfinished(job, "expired", "error", {"type": "expired", "message": "too late"}))
        (stored,) = store.items.results(job)
    result = result_of(job, stored)
    assert (result.status, result.messages, result.usage.total_tokens) == (ItemStatus.EXPIRED, [], 0)
    assert result.error is not None
    assert result.error.type == "expired"
    assert result.timing.duration_ns == 0


async def test_a_frame_has_a_row_an_item_with_durations_in_seconds(tmp_path: Path) -> None:
    frame = to_frame(await results(tmp_path, new_job_id(), {"custom_id": "c-0"}, {}))
    assert list(frame.index) == [0, 1]
    assert frame["custom_id"][0] == "c-0"
    assert frame["custom_id"].isna()[1]
    assert list(frame["status"]) == ["succeeded", "succeeded"]
    assert list(frame["text"]) == ["It is 8."] * 2
    assert list(frame["queued_s"]) == [1.5, 1.5]
    assert list(frame["duration_s"]) == [2.5, 2.5]
    assert all(0 <= value < math.inf for value in frame["ttft_s"])
    assert frame["error"].isna().all()
    assert frame["steps"].sum() == 4


def test_times_are_read_as_the_store_writes_them(job: JobRecord) -> None:
    created = parse_time(job.created_at)
    now = parse_time(utc_now())
    assert created is not None
    assert now is not None
    assert created.tzinfo is not None
    assert created <= now
    assert parse_time(None) is None
