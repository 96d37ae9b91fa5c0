"""Memory blocks over HTTP, by Letta's client with strict validation of all that the server says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import letta_client
import pytest
from letta_client import Letta

from tests.server.http_client import call
from tests.server.live import LiveServer, live_server

SCRIPTED = "offline/scripted"
OPERATORS = """
agents:
  - id: notes
    model: offline/scripted
    stateful: true
    memory_blocks:
      - {label: human, value: unknown, limit: 40}
      - {label: rules, value: Be kind., read_only: true}
  - {id: fresh, model: offline/scripted, memory_blocks: [{label: human, value: unknown}]}
"""


def client_of(server: LiveServer, key: str = "any") -> Letta:
    return Letta(base_url=server.url, api_key=key, max_retries=0, _strict_response_validation=True)


@pytest.fixture(scope="module")
def letta(server: LiveServer) -> Letta:
    return client_of(server)


def noting(label: str, text: str) -> str:
    """An input that makes a scripted model insert a line into a block."""
    asked = {"tool_calls": [{"name": "memory_insert", "arguments": {"label": label, "new_str": text}}]}
    return json.dumps({"script": [asked, {"text": "noted"}]})


def refusal(ask: Callable[[], object]) -> tuple[int, str]:
    """Return status and detail of an error response."""
    with pytest.raises(letta_client.APIStatusError) as raised:
        ask()
    assert isinstance(raised.value.body, dict)
    assert set(raised.value.body) == {"detail", "trace_id"}
    return raised.value.status_code, str(raised.value.body["detail"])


def test_a_shared_block_has_one_value_that_agents_and_a_person_edit(letta: Letta) -> None:
    shared = letta.blocks.create(
        label="team/notes", value="first", tags=["t"], metadata={"n": 1}, description="Shared."
    )
    assert (shared.limit, shared.read_only, shared.tags, shared.metadata) == (20_000, False, ["t"], {"n": 1})
    first = letta.agents.create(
        model=SCRIPTED, block_ids=[shared.id], memory_blocks=[{"label": "human", "value": "Ada"}]
    )
    second = letta.agents.create(model=SCRIPTED, block_ids=[shared.id], message_buffer_autoclear=True)
    letta.agents.messages.create(first.id, input=noting("team/notes", "by the first"))
    letta.agents.messages.create(second.id, input=noting("team/notes", "by the second"))
    said = "first\nby the first\nby the second"
    assert letta.blocks.retrieve(shared.id).value == said
    assert [letta.agents.blocks.retrieve("team/notes", agent_id=each.id).value for each in (first, second)] == [
        said
    ] * 2
    assert letta.agents.blocks.update("team/notes", agent_id=first.id, value="by a person").id == shared.id
    assert [block.value for block in letta.agents.retrieve(second.id).blocks] == ["by a person"]
    assert [agent.id for agent in letta.blocks.agents.list(shared.id, limit=1)] == [second.id, first.id]
    assert [block.label for block in letta.agents.blocks.list(first.id, order="asc", limit=1)] == [
        "human",
        "team/notes",
    ]
    letta.blocks.delete(shared.id)
    assert [block.label for block in letta.agents.retrieve(first.id).blocks] == ["human"]
    assert letta.agents.retrieve(second.id).blocks == []
    assert refusal(lambda: letta.blocks.retrieve(shared.id)) == (404, f"Block with id {shared.id} not found")


def test_blocks_are_attached_detached_and_replaced(letta: Letta) -> None:
    one, two = (letta.blocks.create(label=label, value=label) for label in ("one", "two"))
    agent = letta.agents.create(model=SCRIPTED)
    assert [block.id for block in letta.agents.blocks.attach(one.id, agent_id=agent.id).blocks] == [one.id]
    assert [block.id for block in letta.agents.blocks.attach(one.id, agent_id=agent.id).blocks] == [one.id]
    assert letta.agents.blocks.detach(one.id, agent_id=agent.id).blocks == []
    assert letta.agents.blocks.detach(one.id, agent_id=agent.id).blocks == []
    replaced = letta.agents.update(agent.id, block_ids=[two.id, one.id], name="renamed")
    assert ([block.id for block in replaced.blocks], replaced.name) == ([two.id, one.id], "renamed")
    same = letta.blocks.create(label="one", value="")
    status, detail = refusal(lambda: letta.agents.blocks.attach(same.id, agent_id=agent.id))
    assert (status, detail) == (409, f"agent {agent.id} cannot have two blocks of the label 'one'; detach one first")
    assert refusal(lambda: letta.blocks.update(two.id, label="one"))[0] == 409
    assert refusal(lambda: letta.agents.update(agent.id, block_ids=["block-1"], name="x"))[0] == 404
    assert letta.agents.retrieve(agent.id).name == "renamed"
    assert refusal(lambda: letta.agents.blocks.attach("block-1", agent_id=agent.id))[0] == 404
    assert refusal(lambda: letta.agents.blocks.detach("block-1", agent_id=agent.id))[0] == 404


def test_a_changed_block_keeps_what_was_not_changed_and_its_limit_holds(letta: Letta) -> None:
    made = letta.blocks.create(label="short", value="12345", limit=6, description="D", template_name="T")
    changed = letta.blocks.update(made.id, value="123456", read_only=True)
    assert changed == made.model_copy(update={"value": "123456", "read_only": True})
    agent = letta.agents.create(model=SCRIPTED, block_ids=[made.id])
    letta.agents.messages.create(agent.id, input=noting("short", "x"))
    assert letta.blocks.retrieve(made.id) == changed
    for fields in ({"value": "1234567"}, {"limit": 5}, {"limit": 0}, {"label": "\n"}, {"limit": 10**7}, {"tags": [7]}):
        assert refusal(lambda fields=fields: letta.blocks.update(made.id, **fields))[0] == 422  # type: ignore[misc]
    assert refusal(lambda: letta.blocks.create(label="", value="x"))[0] == 422
    unknown = refusal(lambda: letta.blocks.create(label="a", value="x", extra_body={"labels": "x"}))
    assert unknown == (422, "labels: unknown key")
    assert letta.blocks.retrieve(made.id) == changed


def test_blocks_are_listed_page_by_page_and_found(letta: Letta) -> None:
    tag = "test_blocks_are_listed"
    made = [
        letta.blocks.create(label=f"b{n}", value=f"Text {n}", tags=[tag, str(n)], is_template=n == 1) for n in (1, 2, 3)
    ]
    letta.agents.create(model=SCRIPTED, block_ids=[made[2].id])

    def found(**query: Any) -> list[str]:
        listed = [block.id for block in letta.blocks.list(**{"tags": [tag], "limit": 1, "order": "asc", **query})]
        return [f"b{[each.id for each in made].index(block_id) + 1}" for block_id in listed]

    assert found() == found(order="desc")[::-1] == ["b1", "b2", "b3"]
    assert found(after=made[0].id) == ["b2", "b3"]
    assert [block.id for block in letta.blocks.list(before=made[2].id, order="asc", tags=[tag], limit=1).items] == [
        made[1].id
    ]
    assert found(tags=["1", "3"]) == ["b1", "b3"]
    assert found(tags=[tag, "2"], match_all_tags=True) == found(label="b2") == found(value_search="TEXT 2") == ["b2"]
    assert found(label_search="B") == ["b1", "b2", "b3"]
    assert found(templates_only=True) == ["b1"]
    assert found(connected_to_agents_count_eq=[1, 9]) == found(connected_to_agents_count_gt=0) == ["b3"]
    assert found(connected_to_agents_count_lt=1) == ["b1", "b2"]
    assert found(description_search="x") == found(name="x") == found(project_id="x") == []
    assert refusal(lambda: letta.blocks.list(identity_id="x")) == (
        422,
        "query: identity_id: batchray has no identities",
    )
    assert refusal(lambda: letta.blocks.list(after="block-1"))[0] == 400
    assert refusal(lambda: letta.agents.blocks.list("agent-1"))[0] == 404


def test_blocks_of_the_operators_agents_are_read_and_edited_per_user(tmp_path: Path) -> None:
    agents, data_dir = tmp_path / "agents.yaml", tmp_path / "data"
    agents.write_text(OPERATORS)
    with live_server(data_dir, agents=agents) as server:
        letta = client_of(server)
        own = letta.blocks.create(label="own", value="kept")
        human, rules = letta.agents.blocks.list("notes", order="asc")
        assert letta.blocks.retrieve(rules.id) == rules
        assert [block.value for block in letta.blocks.list(order="asc", limit=2)] == [
            "unknown",
            "Be kind.",
            "unknown",
            "kept",
        ]
        assert [block.value for block in letta.blocks.list(limit=1)] == ["kept", "unknown", "Be kind.", "unknown"]
        assert [agent.id for agent in letta.blocks.agents.list(human.id)] == ["notes"]
        assert letta.agents.blocks.update("human", agent_id="notes", value="a person").value == "a person"
        letta.agents.messages.create("notes", input=noting("human", "a run"))
        assert letta.blocks.retrieve(human.id).value == "a person\na run"
        refused = [
            refusal(ask)
            for ask in (
                lambda: letta.blocks.update(human.id, value="x" * 41),
                lambda: letta.blocks.update(human.id, limit=50),
                lambda: letta.blocks.update(rules.id, value="x"),
                lambda: letta.agents.blocks.update("human", agent_id="fresh", value="x"),
                lambda: letta.agents.blocks.attach(own.id, agent_id="notes"),
                lambda: letta.agents.blocks.detach(human.id, agent_id="notes"),
                lambda: letta.agents.create(model=SCRIPTED, block_ids=[human.id]),
                lambda: letta.blocks.delete(human.id),
                lambda: letta.agents.blocks.retrieve("nowhere", agent_id="notes"),
            )
        ]
        assert [status for status, _ in refused] == [422, *[403] * 7, 404]
        assert refused[0][1] == "value: it has 41 characters; the block's limit is 40"
        assert refused[-1][1] == "agent 'notes' has no block of the label 'nowhere'; it has: human, rules"
        server.kill()
    with live_server(data_dir, agents=agents) as server:
        letta = client_of(server)
        assert [letta.blocks.retrieve(each.id).value for each in (human, own)] == ["a person\na run", "kept"]


def test_a_raw_path_of_a_block_is_no_way_around_the_checks(server: LiveServer) -> None:
    for path in ("block-%00", "%F0%9F%92%A9", "block-1%2F..%2F..", "x" * 3000):
        answer = call(server, "GET", f"/v1/blocks/{path}")
        assert (answer.status, set(answer.body)) == (404, {"detail", "trace_id"})
    assert call(server, "PATCH", "/v1/agents/calculator/core-memory/blocks/a/b/", {"value": "x"}).status == 404
    assert call(server, "PATCH", "/v1/blocks/block-1", b"{").status == 422
