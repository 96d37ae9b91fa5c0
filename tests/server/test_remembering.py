"""Approvals and stateful agents over HTTP, also across a crash of the server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.server.http_client import call, create, ended
from tests.server.live import LiveServer, live_server


def made(server: LiveServer, **fields: Any) -> dict[str, Any]:
    answer = call(server, "POST", "/v1/agents/", {"model": "offline/scripted", **fields})
    assert answer.status == 200, answer
    return dict(answer.body)


def guarded(server: LiveServer) -> str:
    """An agent that remembers nothing, and whose tool `look_up` waits for an approval."""
    rules = [{"type": "requires_approval", "tool_name": "look_up"}, {"type": "exit_loop", "tool_name": "calculate"}]
    agent = made(server, tools=["look_up", "calculate"], tool_rules=rules, message_buffer_autoclear=True)
    assert sorted(agent["tool_rules"], key=lambda rule: str(rule["type"])) == rules[::-1]
    return str(agent["id"])


def script(*turns: Mapping[str, Any]) -> str:
    return json.dumps({"script": turns})


def looking_up(*keys: str) -> dict[str, Any]:
    return {"tool_calls": [{"name": "look_up", "arguments": {"key": key}} for key in keys]}


def remember(text: str) -> dict[str, Any]:
    return {"tool_calls": [{"name": "memory_insert", "arguments": {"label": "human", "new_str": text}}]}


def answer(agent_id: str, *ids: str, approve: bool = True) -> dict[str, Any]:
    approvals = [{"type": "approval", "tool_call_id": each, "approve": approve, "reason": "why"} for each in ids]
    return {"agent_id": agent_id, "messages": [{"type": "approval", "approvals": approvals}]}


def run(server: LiveServer, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a batch and return its results, in the order of the batch."""
    job = ended(server, create(server, list(requests))["id"])
    lines = call(server, "GET", f"/v1/messages/batches/{job['id']}/results").body.splitlines()
    return sorted((json.loads(line) for line in lines), key=lambda result: int(result["index"]))


def waiting(result: dict[str, Any]) -> list[str]:
    [asked] = [each for each in result["messages"] if each["message_type"] == "approval_request_message"]
    return [each["tool_call_id"] for each in asked["tool_calls"]]


def test_an_approval_after_a_crash_continues_the_run_where_it_stopped(tmp_path: Path) -> None:
    turns = script({"reasoning": "hm", **looking_up("apples", "pears")}, {"text": "looked up"})
    with live_server(tmp_path / "data") as server:
        agent_id = guarded(server)
        asked = run(server, *({"agent_id": agent_id, "input": turns} for _ in range(3)))
        assert {(each["status"], each["stop_reason"]) for each in asked} == {("succeeded", "requires_approval")}
        server.kill()
    with live_server(tmp_path / "data") as server:
        one, two, three = map(waiting, asked)
        results = run(
            server,
            answer(agent_id, *two),
            answer(agent_id, *one, approve=False),
            answer(agent_id, *two),
            answer(agent_id, three[0]),
        )
        assert sorted(each["error"]["type"] if each["error"] else each["stop_reason"] for each in results) == [
            "already_answered",
            "end_turn",
            "end_turn",
            "incomplete_approval",
        ]
        [approved] = [each for each in (results[0], results[2]) if not each["error"]]
        returned, spoken = approved["messages"]
        assert [each["tool_return"] for each in returned["tool_returns"]] == ["120", "80"]
        assert (spoken["content"], approved["usage"]["step_count"]) == ("looked up", 1)
        assert {each["tool_return"] for each in results[1]["messages"][0]["tool_returns"]} == {
            "The call was denied: why"
        }
        server.kill()
    with live_server(tmp_path / "data") as server:
        [late] = run(server, answer(agent_id, *three))
        assert (late["stop_reason"], late["messages"][-1]["content"]) == ("end_turn", "looked up")


def test_a_rule_that_names_an_unknown_tool_is_refused(server: LiveServer) -> None:
    rules = [{"type": "requires_approval", "tool_name": "nowhere"}]
    refused = call(server, "POST", "/v1/agents/", {"model": "offline/rules", "tool_rules": rules})
    assert refused.status == 400
    assert "requires_approval names 'nowhere'" in refused.body["detail"]


def test_a_terminal_tool_ends_the_run(server: LiveServer) -> None:
    asked = {"tool_calls": [{"name": "calculate", "arguments": {"expression": "1 + 1"}}]}
    [result] = run(server, {"agent_id": guarded(server), "input": script(asked, {"text": "never said"})})
    assert (result["stop_reason"], result["messages"][-1]["tool_return"]) == ("tool_rule", "2")


def test_the_assistant_message_tool_of_a_request_becomes_a_message(server: LiveServer) -> None:
    agent_id = made(server, tools=["look_up"])["id"]
    asked = {"agent_id": agent_id, "input": script(looking_up("apples"), {"text": "done"})}
    plain, spoken = run(
        server, asked, {**asked, "assistant_message_tool_name": "look_up", "assistant_message_tool_kwarg": "key"}
    )
    assert [each["message_type"] for each in plain["messages"]] == [
        "tool_call_message",
        "tool_return_message",
        "assistant_message",
    ]
    assert [each["content"] for each in spoken["messages"]] == ["apples", "done"]


def test_a_single_run_waits_for_an_approval_and_continues(server: LiveServer) -> None:
    agent_id = guarded(server)
    path = f"/v1/agents/{agent_id}/messages"
    asked = call(server, "POST", path, {"input": script(looking_up("apples"), {"text": "looked up"})}).body
    assert asked["stop_reason"]["stop_reason"] == "requires_approval"
    body = {"messages": answer(agent_id, *waiting(asked))["messages"]}
    answered = call(server, "POST", path, body).body
    assert answered["messages"][-1]["content"] == "looked up"
    again = call(server, "POST", path, body)
    assert (again.status, again.body["error"]["type"]) == (409, "already_answered")
    unknown = call(server, "POST", path, {"messages": answer(agent_id, "nowhere")["messages"]})
    assert (unknown.status, unknown.body["error"]["type"]) == (409, "no_pending_approval")
    listed = call(server, "GET", f"{path}?order=asc").body
    assert [each["message_type"] for each in listed] == [
        "user_message",
        "approval_request_message",
        "approval_response_message",
        "tool_return_message",
        "assistant_message",
    ] + ["approval_response_message"] * 2


@pytest.fixture
def notes(server: LiveServer) -> str:
    """An agent with a memory that remembers, as agents made over HTTP do by default."""
    return str(made(server, memory_blocks=[{"label": "human", "value": "", "limit": 12}])["id"])


def ids_of(server: LiveServer, agent_id: str) -> list[str]:
    """The ids of an agent's messages, oldest first, each once."""
    listed = call(server, "GET", f"/v1/agents/{agent_id}/messages?order=asc").body
    return list(dict.fromkeys(str(message["id"]) for message in listed))


def state(server: LiveServer, agent_id: str) -> dict[str, Any]:
    shown = call(server, "GET", f"/v1/agents/{agent_id}").body
    [listed] = [each for each in call(server, "GET", "/v1/agents/?limit=1000").body if each["id"] == agent_id]
    assert listed == shown
    return dict(shown)


@pytest.mark.parametrize("given", [{}, {"message_buffer_autoclear": None}, {"message_buffer_autoclear": False}])
def test_an_agent_made_over_http_remembers_and_its_state_says_so(server: LiveServer, given: dict[str, Any]) -> None:
    agent = made(server, **given)
    assert (agent["message_buffer_autoclear"], agent["message_ids"]) == (False, [])
    in_batch = run(server, *({"agent_id": agent["id"], "input": script({"text": f"answer {i}"})} for i in range(2)))
    asked = call(server, "POST", f"/v1/agents/{agent['id']}/messages", {"input": script({"text": "answer 2"})}).body
    ids = state(server, agent["id"])["message_ids"]
    assert (ids, len(ids)) == (ids_of(server, agent["id"]), 6)
    assert {result["messages"][-1]["id"] for result in in_batch} | {asked["messages"][-1]["id"]} < set(ids)
    tokens = [result["usage"]["prompt_tokens"] for result in in_batch] + [asked["usage"]["prompt_tokens"]]
    assert tokens[0] < tokens[1] < tokens[2]
    assert call(server, "PATCH", f"/v1/agents/{agent['id']}/reset-messages").body["message_ids"] == []
    assert ids_of(server, agent["id"]) == state(server, agent["id"])["message_ids"] == []


def test_an_agent_shows_its_last_run_and_lists_are_ordered_by_it(server: LiveServer) -> None:
    first, second, never = (made(server, tags=["ran"])["id"] for _ in range(3))
    assert state(server, never)["last_run_completion"] is None
    run(server, *({"agent_id": each, "input": script({"text": "x"})} for each in (first, second)))
    failing = {"agent_id": first, "input": script({"fail": {"type": "api_error"}})}
    run(server, failing)
    shown = state(server, first)
    assert (shown["last_stop_reason"], shown["last_run_duration_ms"] >= 0) == ("llm_api_error", True)
    assert shown["last_run_completion"] > state(server, second)["last_run_completion"]

    def listed(query: str) -> list[str]:
        answer = call(server, "GET", f"/v1/agents/?tags=ran&{query}")
        assert answer.status == 200, answer
        return [agent["id"] for agent in answer.body]

    assert listed("order_by=last_run_completion") == [first, second, never]
    assert listed(f"order_by=last_run_completion&limit=1&before={never}") == [second]
    assert listed("sort_by=last_run_completion&order=asc") == [never, second, first]
    assert listed("last_stop_reason=llm_api_error") == [first]
    assert listed("identity_id=identity-1") == []
    for agent_id in (first, second, never):
        call(server, "DELETE", f"/v1/agents/{agent_id}")


def test_an_unknown_or_refused_parameter_of_a_list_is_named(server: LiveServer) -> None:
    for path in ("/v1/agents/", "/v1/messages/batches", "/v1/agents/calculator", "/v1/agents/calculator/messages"):
        answer = call(server, "GET", f"{path}?tag=x&limit=1&limt%0d%0a=1")
        names = ["limit"] * path.endswith("calculator") + ["limt??", "tag"]
        assert (answer.status, answer.headers["Warning"]) == (200, f'299 batchray "no effect here: {", ".join(names)}"')
        assert call(server, "GET", path).headers.get("Warning") is None
    refused = call(server, "GET", "/v1/agents/calculator/messages?include_err=true")
    assert (refused.status, refused.body["detail"].startswith("query: include_err: ")) == (422, True)


def test_the_messages_of_an_agent_are_filtered_by_type(server: LiveServer) -> None:
    agent_id = made(server)["id"]
    run(server, *({"agent_id": agent_id, "input": script({"text": f"answer {i}"})} for i in range(3)))
    path = f"/v1/agents/{agent_id}/messages?include_return_message_types=assistant_message&limit=2"
    newest = call(server, "GET", path).body
    assert [each["content"] for each in newest] == ["answer 2", "answer 1"]
    older = call(server, "GET", f"{path}&after={newest[-1]['id']}").body
    assert [each["content"] for each in older] == ["answer 0"]
    assert call(server, "GET", f"/v1/agents/{agent_id}/messages?conversation_id=other").body == []


def test_an_agent_whose_buffer_is_cleared_starts_every_request_without_history(server: LiveServer) -> None:
    agent = made(server, message_buffer_autoclear=True)
    asked = {"agent_id": agent["id"], "input": script({"text": "answer"})}
    first, second = run(server, asked, asked)
    assert first["usage"]["prompt_tokens"] == second["usage"]["prompt_tokens"]
    shown = state(server, agent["id"])
    assert (shown["message_buffer_autoclear"], shown["message_ids"]) == (True, [])
    path = f"/v1/agents/{agent['id']}"
    assert call(server, "PATCH", path, {"name": "other"}).body["message_buffer_autoclear"] is True
    assert call(server, "PATCH", path, {"message_buffer_autoclear": False}).body["message_buffer_autoclear"] is False
    third, fourth = run(server, asked, asked)
    assert third["usage"]["prompt_tokens"] < fourth["usage"]["prompt_tokens"]
    assert len(state(server, agent["id"])["message_ids"]) == 4


def test_a_stateful_agent_remembers_batches_and_single_runs(server: LiveServer, notes: str) -> None:
    run(server, *({"agent_id": notes, "input": script({"text": f"answer {i}"})} for i in range(4)))
    call(server, "POST", f"/v1/agents/{notes}/messages", {"input": script({"text": "answer 4"})})
    path = f"/v1/agents/{notes}/messages"
    said = [each for each in call(server, "GET", f"{path}?order=asc").body if each["message_type"] != "user_message"]
    assert [each["content"] for each in said] == [f"answer {i}" for i in range(5)]
    newest = call(server, "GET", f"{path}?limit=2").body
    assert [each["message_type"] for each in newest] == ["assistant_message", "user_message"]
    assert newest[0]["content"] == "answer 4"
    older = call(server, "GET", f"{path}?limit=1&after={newest[-1]['id']}").body
    assert [each["content"] for each in older] == ["answer 3"]
    newer = call(server, "GET", f"{path}?limit=1&before={newest[-1]['id']}").body
    assert newer == newest[:1]
    assert call(server, "GET", f"{path}?after=message-1").status == 400
    reset = call(server, "PATCH", f"/v1/agents/{notes}/reset-messages", {"add_default_initial_messages": False})
    assert (reset.status, reset.body["id"]) == (200, notes)
    assert call(server, "GET", path).body == []


def test_the_memory_of_an_agent_is_edited_by_its_model_and_shown(server: LiveServer, notes: str) -> None:
    too_long = remember("of too many characters")
    [first, second, failed] = run(
        server,
        {"agent_id": notes, "input": script(remember("Ada"), {"text": "noted"})},
        {"agent_id": notes, "input": script(remember("tea"), too_long, {"text": "noted"})},
        {"agent_id": notes, "input": script(remember("x"), {"fail": {"type": "api_error"}})},
    )
    assert (first["stop_reason"], second["stop_reason"], failed["status"]) == ("end_turn", "end_turn", "errored")
    assert [each["status"] for each in second["messages"] if "tool_return" in each] == ["success", "error"]
    state = call(server, "GET", f"/v1/agents/{notes}").body
    assert [block["value"] for block in state["blocks"]] == ["Ada\ntea"]
    assert state["memory"]["blocks"] == state["blocks"]
    assert call(server, "DELETE", f"/v1/agents/{notes}").status == 200


def test_a_stateful_agent_with_a_pending_approval_refuses_other_messages(server: LiveServer) -> None:
    rules = [{"type": "requires_approval", "tool_name": "look_up"}]
    agent_id = made(server, tools=["look_up"], tool_rules=rules)["id"]
    path = f"/v1/agents/{agent_id}/messages"
    asked = call(server, "POST", path, {"input": script(looking_up("pears"), {"text": "looked up"})}).body
    refused = call(server, "POST", path, {"input": script({"text": "hi"})})
    assert (refused.status, refused.body["error"]["type"]) == (409, "pending_approval")
    body = {"messages": answer(agent_id, *waiting(asked))["messages"]}
    assert call(server, "POST", path, body).body["messages"][-1]["content"] == "looked up"
    assert call(server, "POST", path, {"input": script({"text": "hi"})}).status == 200
