"""Approvals and stateful agents on real Ray, together with other requests."""

from __future__ import annotations

import json
from typing import Any

import batchray
from batchray import Agent, Result
from batchray.schema import ApprovalRequestMessage, ToolReturnMessage
from batchray.store import DEFAULT_USER, Store
from tests.cluster import agents


def script(*turns: dict[str, Any]) -> str:
    return json.dumps({"script": turns})


def asking(key: str) -> dict[str, Any]:
    return {"tool_calls": [{"name": "drop", "arguments": {"key": key}}]}


GUARDED = {"model": "offline/scripted", "tools": [agents.drop], "requires_approval": ["drop"]}
NOTES = {"model": "offline/scripted", "stateful": True, "memory_blocks": [{"label": "seen"}]}
AGENTS = [
    Agent.model_validate({"id": "guarded", **GUARDED}),
    # Each of its requests runs in a new worker process, without memory of the process that requested the approval.
    Agent.model_validate({"id": "alone", **GUARDED, "placement": "process", "num_cpus": 1}),
    *(Agent.model_validate({"id": f"notes-{n}", **NOTES}) for n in range(3)),
    Agent(id="rules", model="offline/rules"),
    Agent(id="echo", run=agents.echo),
]


def request(i: int) -> dict[str, Any]:
    match i % 4:
        case 0:
            turn = {"tool_calls": [{"name": "memory_insert", "arguments": {"label": "seen", "new_str": str(i)}}]}
            return {"agent_id": f"notes-{i // 4 % 3}", "input": script(turn, {"text": f"note {i}"})}
        case 1:
            agent_id = "alone" if i == 1 else "guarded"
            return {"agent_id": agent_id, "input": script(asking(str(i)), {"text": f"done {i}"})}
        case 2:
            return {"agent_id": "rules", "input": f"word {i}"}
        case _:
            return {"agent_id": "echo", "input": str(i)}


def answer(result: Result) -> dict[str, Any]:
    [asked] = [each for each in result.messages if isinstance(each, ApprovalRequestMessage)]
    given = {"type": "approval", "tool_call_id": asked.tool_call.tool_call_id, "approve": True}
    return {"agent_id": result.agent_id, "messages": [{"type": "approval", "approvals": [given]}]}


def test_requests_of_all_kinds_succeed_and_approvals_continue_in_another_process(options: dict[str, Any]) -> None:
    n = 120
    job = batchray.run([request(i) for i in range(n)], AGENTS, **options)
    results = list(job.results("index"))

    assert job.counts == {"succeeded": n, "errored": 0, "canceled": 0, "expired": 0}
    assert [each.text for each in results[0::4]] == [f"note {i}" for i in range(0, n, 4)]
    assert {each.stop_reason for each in results[1::4]} == {"requires_approval"}
    assert [each.text for each in results[2::4]] == [f"You wrote 2 words: word {i}" for i in range(2, n, 4)]
    assert [each.text for each in results[3::4]] == [f"echo {i}" for i in range(3, n, 4)]
    with Store.open_for_reading(options["data_dir"]) as store:
        for k in range(3):
            expected = list(range(4 * k, n, 12))
            assert [prior.index for prior in store.conversations.history(DEFAULT_USER, f"notes-{k}")] == expected
            assert store.conversations.memory(DEFAULT_USER, f"notes-{k}") == {"seen": "\n".join(map(str, expected))}

    answered = batchray.run([answer(each) for each in results[1::4]], AGENTS, **options)
    ended = list(answered.results("index"))
    assert [each.text for each in ended] == [f"done {i}" for i in range(1, n, 4)]
    returned = [each for result in ended for each in result.messages if isinstance(each, ToolReturnMessage)]
    assert [each.tool_return.partition(",")[0] for each in returned] == [f"{i} is gone" for i in range(1, n, 4)]
