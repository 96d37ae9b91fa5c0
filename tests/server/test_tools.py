"""Tools over HTTP, by Letta's client with strict validation, and the parts of Letta's API that are absent."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import letta_client
import pytest
from letta_client import Letta

from tests.server.http_client import call
from tests.server.live import LiveServer

SCRIPTED = "offline/scripted"
LOOK_UP = {"tool_calls": [{"name": "look_up", "arguments": {"key": "apples"}}]}
LOOKING = json.dumps({"script": [LOOK_UP, {"text": "done"}]})
REFUSAL = "the operator configures the tools, in the agents file: a client cannot make, change or delete one"
_REQUEST = re.compile(r'self\._(get|post|put|patch|delete|get_api_list)\(\s*f?"(/v1/[^"]*)"')


@pytest.fixture(scope="module")
def letta(server: LiveServer) -> Letta:
    return Letta(base_url=server.url, api_key="any", max_retries=0, _strict_response_validation=True)


def refusal(ask: Callable[[], object]) -> tuple[int, str]:
    """Return status and detail of an error response."""
    with pytest.raises(letta_client.APIStatusError) as raised:
        ask()
    assert isinstance(raised.value.body, dict)
    return raised.value.status_code, str(raised.value.body["detail"])


def id_of(letta: Letta, name: str) -> str:
    [tool] = letta.tools.list(name=name)
    return tool.id


def test_tools_of_the_operator_and_of_memory_are_listed_and_found(letta: Letta) -> None:
    tools = list(letta.tools.list(order="asc", limit=2))
    names = [tool.name for tool in tools]
    assert names[:2] == ["memory_insert", "memory_replace"]
    assert {"calculate", "count_words", "look_up"} <= {*names}
    assert [tool.name for tool in letta.tools.list(limit=3)] == names[::-1]
    assert letta.tools.retrieve(tools[0].id) == tools[0]
    assert (tools[0].tool_type, tools[-1].tool_type) == ("letta_memory_core", "custom")
    assert (tools[0].tags, letta.tools.retrieve(id_of(letta, "calculate")).tags) == (["idempotent"], [])
    assert [tool.name for tool in letta.tools.list(names=["calculate", "look_up"], order="asc")] == [
        "calculate",
        "look_up",
    ]
    assert [tool.name for tool in letta.tools.list(tool_ids=[tools[1].id])] == ["memory_replace"]
    assert [tool.name for tool in letta.tools.list(search="MEMORY_R")] == ["memory_replace"]
    assert [tool.name for tool in letta.tools.list(return_only_letta_tools=True, order="asc")] == names[:2]
    assert [tool.name for tool in letta.tools.list(exclude_tool_types=["letta_memory_core"], order="asc")] == names[2:]
    found = letta.tools.search(query="calculate a sum", limit=1)
    assert [(each.tool.name, each.fts_rank) for each in found] == [("calculate", 1)]
    assert [each.tool.name for each in letta.tools.search(tool_types=["letta_memory_core"])] == names[:2]
    assert letta.tools.search(query="nothing-like-this") == []
    assert refusal(lambda: letta.tools.search(search_mode="vector"))[0] == 422
    assert refusal(lambda: letta.tools.retrieve("tool-1")) == (404, "NOT_FOUND: Tool with id tool-1 not found")
    assert refusal(lambda: letta.tools.list(after="tool-1"))[0] == 400


def test_no_client_makes_changes_or_deletes_a_tool(letta: Letta) -> None:
    tool_id = id_of(letta, "calculate")
    code = "def steal():\n    '''Steals.'''\n    return open('/etc/passwd').read()"
    assert refusal(lambda: letta.tools.create(source_code=code)) == (403, REFUSAL)
    assert refusal(lambda: letta.tools.upsert(source_code=code)) == (403, REFUSAL)
    assert refusal(lambda: letta.tools.update(tool_id, source_code=code)) == (403, REFUSAL)
    assert refusal(lambda: letta.tools.delete(tool_id)) == (403, REFUSAL)
    assert refusal(lambda: letta.tools.delete("tool-1"))[0] == 404


def test_tools_are_attached_and_detached_with_their_rules(letta: Letta) -> None:
    agent = letta.agents.create(model=SCRIPTED, tools=["calculate"], message_buffer_autoclear=True)
    tool_id = id_of(letta, "look_up")
    for _ in range(2):
        attached = letta.agents.tools.attach(tool_id, agent_id=agent.id)
        assert attached is not None
        assert [tool.name for tool in attached.tools] == ["calculate", "look_up"]
    assert attached is not None
    assert attached.model_copy(update={"updated_at": None, "tools": []}) == agent.model_copy(
        update={"updated_at": None, "tools": []}
    )
    assert [tool.name for tool in letta.agents.tools.list(agent.id, order="asc", limit=1)] == ["calculate", "look_up"]
    guarded = letta.agents.tools.update_approval("look_up", agent_id=agent.id, body_requires_approval=True)
    assert guarded is not None
    assert [(rule.type, rule.tool_name) for rule in guarded.tool_rules or ()] == [("requires_approval", "look_up")]
    assert letta.agents.messages.create(agent.id, input=LOOKING).stop_reason.stop_reason == "requires_approval"
    letta.agents.tools.update_approval("look_up", agent_id=agent.id, body_requires_approval=False)
    assert letta.agents.messages.create(agent.id, input=LOOKING).stop_reason.stop_reason == "end_turn"
    letta.agents.tools.update_approval("look_up", agent_id=agent.id, body_requires_approval=True)
    for _ in range(2):
        detached = letta.agents.tools.detach(tool_id, agent_id=agent.id)
        assert detached is not None
        assert ([tool.name for tool in detached.tools], detached.tool_rules) == (["calculate"], [])


def test_tools_that_cannot_be_changed_are_refused_with_the_reason(server: LiveServer, letta: Letta) -> None:
    agent = letta.agents.create(model=SCRIPTED, memory_blocks=[{"label": "human", "value": ""}])
    insert = id_of(letta, "memory_insert")
    reason = "memory_insert comes with the memory blocks that an agent can edit; set these to read_only"
    assert refusal(lambda: letta.agents.tools.detach(insert, agent_id=agent.id)) == (403, reason)
    attached = letta.agents.tools.attach(insert, agent_id=agent.id)
    assert attached is not None
    assert [tool.name for tool in attached.tools] == ["memory_insert"]
    letta.agents.tools.update_approval("memory_insert", agent_id=agent.id, body_requires_approval=True)
    [block] = letta.agents.retrieve(agent.id).blocks
    assert block.id is not None
    letta.agents.blocks.detach(block.id, agent_id=agent.id)
    letta.agents.update(agent.id, name="without memory")  # its rule is idle now
    done = letta.agents.messages.create(agent.id, input=json.dumps({"script": [{"text": "done"}]}))
    assert done.stop_reason.stop_reason == "end_turn"
    letta.agents.blocks.attach(block.id, agent_id=agent.id)
    noting = {"tool_calls": [{"name": "memory_insert", "arguments": {"label": "human", "new_str": "x"}}]}
    asked = letta.agents.messages.create(agent.id, input=json.dumps({"script": [noting]}))
    assert asked.stop_reason.stop_reason == "requires_approval"
    reason = "agent calculator is configured by the operator and cannot be changed"
    assert refusal(lambda: letta.agents.tools.attach(insert, agent_id="calculator")) == (403, reason)
    assert refusal(lambda: letta.agents.tools.detach(id_of(letta, "calculate"), agent_id="calculator")) == (403, reason)
    assert refusal(lambda: letta.agents.tools.attach("tool-1", agent_id=agent.id))[0] == 404
    assert refusal(lambda: letta.agents.tools.attach(insert, agent_id="agent-1"))[0] == 404
    assert refusal(
        lambda: letta.agents.tools.update_approval("look_up", agent_id=agent.id, body_requires_approval=True)
    ) == (404, f"agent {agent.id!r} has no tool 'look_up'")
    path = f"/v1/agents/{agent.id}/tools/approval/memory_insert"
    assert call(server, "PATCH", path).status == 422
    assert call(server, "PATCH", f"{path}?requires_approval=false").body["tool_rules"] == []


def test_a_client_calls_a_tool_of_an_agent_without_a_model(letta: Letta) -> None:
    agent = letta.agents.create(
        model=SCRIPTED, tools=["calculate", "look_up"], memory_blocks=[{"label": "human", "value": "Ada"}]
    )
    done = letta.agents.tools.run("calculate", agent_id=agent.id, args={"expression": "6 * 7"})
    assert (done.status, done.func_return, done.stderr) == ("success", "42", [])
    assert done.agent_state is not None
    assert done.agent_state.id == agent.id
    failed = letta.agents.tools.run("calculate", agent_id=agent.id, args={"wrong": 1})
    assert failed.status == "error"
    noted = letta.agents.tools.run("memory_insert", agent_id=agent.id, args={"label": "human", "new_str": "36"})
    assert noted.agent_state is not None
    assert [block.value for block in noted.agent_state.blocks] == ["Ada\n36"]
    assert letta.agents.tools.run("calculate", agent_id="calculator", args={"expression": "1"}).func_return == "1"
    assert refusal(lambda: letta.agents.tools.run("nowhere", agent_id=agent.id))[0] == 404
    assert refusal(lambda: letta.agents.tools.run("calculate", agent_id="agent-1"))[0] == 404
    assert letta.agents.messages.list(agent.id).items == []


def requests_of_the_sdk() -> list[tuple[str, str]]:
    """Return method and path of every request that Letta's client can send, with ids that do not exist."""
    found = set[tuple[str, str]]()
    for file in (Path(letta_client.__file__).parent / "resources").rglob("*.py"):
        for method, path in _REQUEST.findall(file.read_text()):
            found.add(("GET" if method == "get_api_list" else method.upper(), re.sub(r"{\w+}", "unknown-1", path)))
    return sorted(found)


def test_every_absent_part_of_lettas_api_says_that_it_is_absent(server: LiveServer) -> None:
    absent = set[str]()
    requests = requests_of_the_sdk()
    assert len(requests) > 100
    for method, path in requests:
        answer = call(server, method, path, None if method in ("GET", "DELETE") else {})
        detail = answer.body["detail"] if answer.status >= 400 else ""
        assert detail not in ("Not Found", "Method Not Allowed"), (method, path)
        if answer.status == 404 and "not part of batchray" in detail:
            absent.add(path.split("/")[2] if not path.startswith("/v1/agents/") else path.split("/")[-1])
    assert {"archives", "identities", "folders", "groups", "templates", "mcp-servers", "passages"} <= absent
    assert absent.isdisjoint({"blocks", "tools", "batches", "runs", "steps", "agents"})
    assert call(server, "GET", "/v1/nowhere").body["detail"] == "Not Found"
