from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from batchray.agents import AttemptRunner, encode_input, read_report
from batchray.config import Agent, bind_agents
from batchray.schema import AssistantMessage, ItemStatus, Result, item_id, new_job_id
from batchray.schema.outcomes import OutcomeData
from batchray.store import JobRecord, NewAttempt, NewItem, NewJob, NewOutcome, Store, StoredResult, run_all, utc_now
from batchray.views.frames import to_frame
from batchray.views.result_columns import COLUMNS, result_columns
from batchray.views.results import ResultViews, parse_time


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


_RECORD: Any = SimpleNamespace(id=new_job_id())
_NEVER_RAN: dict[str, Any] = {
    "seq": 1,
    "index": 0,
    "agent_id": "a",
    "custom_id": None,
    "request": b'{"agent_id":"a","input":"x"}',
    "attempts": 0,
    "queued_ns": 0,
    "status": "expired",
    "stop_reason": "error",
    "usage": {},
    "error": {"type": "expired", "message": "too late"},
    "ttft_ns": None,
    "duration_ns": 0,
    "messages": b"[]",
}


@pytest.fixture
def job(tmp_path: Path) -> JobRecord:
    with Store.open(tmp_path) as store:
        job_id = new_job_id()
        store.jobs.create(NewJob(job_id, lambda ids: {}), [NewItem("a", None, b"{}")])
        return store.jobs.get(job_id)


async def results(
    tmp_path: Path,
    job_id: str,
    *requests: dict[str, Any],
    snapshot: Mapping[str, Any] | None = None,
    include_input: bool = False,
) -> list[Result]:
    """Run requests by the agent above, and read their results back from a store."""
    job, outcomes = await stored(tmp_path, job_id, *requests)
    views = ResultViews(job, snapshot or {}, include_input=include_input)
    return [views.result(each) for each in outcomes]


async def stored(tmp_path: Path, job_id: str, *requests: dict[str, Any]) -> tuple[JobRecord, list[StoredResult]]:
    """Run requests by the agent above, and return what a store has of them."""
    hi = {"agent_id": "a", "input": "hi"}
    bodies = [json.dumps({k: v for k, v in {**hi, **each}.items() if v is not None}).encode() for each in requests]
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
        return job, store.items.results(job)


async def test_a_result_is_an_output_line(tmp_path: Path) -> None:
    job_id = new_job_id()
    (result,) = await results(tmp_path, job_id, {"custom_id": "c-1", "metadata": {"row": [3]}})
    assert result.metadata == {"row": [3]}
    line = json.loads(result.model_dump_json())
    assert list(line) == [
        "index",
        "custom_id",
        "metadata",
        "row",
        "batch_item_id",
        "agent_id",
        "model",
        "status",
        "stop_reason",
        "input",
        "messages",
        "usage",
        "cost_usd",
        "error",
        "stdout",
        "stderr",
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
    result = ResultViews(job).result(stored)
    assert (result.status, result.messages, result.usage.total_tokens) == (ItemStatus.EXPIRED, [], 0)
    assert result.error is not None
    assert result.error.type == "expired"
    assert result.timing.duration_ns == 0


async def test_a_frame_has_a_row_an_item_with_durations_in_seconds(tmp_path: Path) -> None:
    job, outcomes = await stored(tmp_path, new_job_id(), {"custom_id": "c-0"}, {})
    frame = to_frame([result_columns(ResultViews(job), outcomes)])
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


async def test_a_result_has_its_model_and_the_cost_of_its_tokens(tmp_path: Path) -> None:
    prices = {"input": 1_000_000.0, "output": 2_000_000.0}
    snapshot = {"a": {"agent": {"id": "a", "model": "other/earlier", "prices": prices}}}
    (result,) = await results(tmp_path, new_job_id(), {}, snapshot=snapshot)
    assert result.model == "offline/scripted"
    assert result.cost_usd == result.usage.prompt_tokens + 2 * result.usage.completion_tokens > 0
    stored = StoredResult(**{**_NEVER_RAN, "usage": {"step_count": 2}})
    of_snapshot = ResultViews(_RECORD, snapshot)
    assert (of_snapshot.result(stored).model, of_snapshot.result(stored).cost_usd) == ("other/earlier", None)
    assert of_snapshot.result(StoredResult(**_NEVER_RAN)).cost_usd == 0
    without = ResultViews(_RECORD, {"a": {"agent": {"id": "a", "run": "m:f"}}}).result(StoredResult(**_NEVER_RAN))
    assert (without.model, without.cost_usd) == (None, None)


async def test_the_input_is_included_on_demand(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "x"}]
    requests: list[dict[str, Any]] = [{}, {"input": None, "messages": messages}]
    with_input = await results(tmp_path, new_job_id(), *requests, include_input=True)
    assert [each.input for each in with_input] == ["hi", messages]
    assert [each.input for each in await results(tmp_path / "b", new_job_id(), *requests)] == [None, None]


async def test_a_frame_has_the_same_types_for_every_job(tmp_path: Path) -> None:
    parts = {"input": [{"type": "text", "text": "x"}], "metadata": {"row": 1}}
    job, outcomes = await stored(tmp_path, new_job_id(), parts, {})
    failed = result_columns(ResultViews(_RECORD), [StoredResult(**_NEVER_RAN)])
    succeeded = result_columns(ResultViews(job), outcomes)
    frames = [to_frame(pages) for pages in ([], [failed], [succeeded], [failed, succeeded])]
    assert {str(dict(frame.dtypes)) for frame in frames} == {str(dict(frames[0].dtypes))}
    assert {str(frame.index.dtype) for frame in frames} == {"int64"}
    assert {str(dtype) for dtype in frames[0].dtypes} == {"string", "Int64", "Float64", "object"}
    assert list(frames[0].columns) == list(COLUMNS)
    row = frames[2].iloc[0]
    assert json.loads(row["input"]) == parts["input"]
    assert (row["metadata"], row["model"], frames[2]["input"][1]) == ({"row": 1}, "offline/scripted", "hi")
    assert [call["name"] for call in row["tool_calls"]] == ["double"]
    assert [message["message_type"] for message in row["messages"]][-1] == "assistant_message"
    assert list(frames[1]["input"]) == ["x"]
    assert frames[1]["tool_calls"][0] == []


def test_times_are_read_as_the_store_writes_them(job: JobRecord) -> None:
    created = parse_time(job.created_at)
    now = parse_time(utc_now())
    assert created is not None
    assert now is not None
    assert created.tzinfo is not None
    assert created <= now
    assert parse_time(None) is None
