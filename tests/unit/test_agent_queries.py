"""Filters and orders of lists of agents and of their messages."""

from __future__ import annotations

import typing
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from letta_client.types import agent_list_params, agent_retrieve_params
from letta_client.types.agents import message_list_params
from pydantic import ValidationError

from batchray.schema import Message, TextContent, ToolCall
from batchray.server.agent_queries import AgentMessagesQuery, AgentQuery, AgentsQuery
from batchray.server.agent_states import ListedAgent
from batchray.store import LastRun

AGENTS = (
    ListedAgent("operators", "operators"),
    ListedAgent("b", "Beta", ("x", "y"), "p", "me", last_run=LastRun("2026-01-03", "end_turn", 1)),
    ListedAgent("a", "Alpha", ("y",), None, "me", last_run=LastRun("2026-01-02", "error", 1)),
    ListedAgent("hidden", "hidden", ("x",), None, "me", True),
)


def found(**query: Any) -> list[str]:
    asked = AgentsQuery.model_validate(query).with_order()
    matching = {agent.id for agent in AGENTS if asked.matches(agent)}
    return [each for each in asked.sort(AGENTS) if each in matching]


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ({}, ["a", "b", "operators"]),
        ({"order": "asc"}, ["operators", "b", "a"]),
        ({"ascending": "true"}, ["operators", "b", "a"]),
        ({"order_by": "last_run_completion"}, ["b", "a", "operators"]),
        ({"sort_by": "last_run_completion", "order": "asc"}, ["operators", "a", "b"]),
        ({"name": "Beta"}, ["b"]),
        ({"query_text": "ALPH"}, ["a"]),
        ({"tags": ["x", "y"]}, ["a", "b"]),
        ({"tags": ["x", "y"], "match_all_tags": "true"}, ["b"]),
        ({"last_stop_reason": "error"}, ["a"]),
        ({"project_id": "p"}, ["b"]),
        ({"created_by_id": "me"}, ["a", "b"]),
        ({"identity_id": "i"}, []),
        ({"identifier_keys": ["k"]}, []),
        ({"template_id": "t"}, []),
        ({"base_template_id": "t"}, []),
        ({"include": ["agent.tags"], "include_relationships": ["tools"]}, ["a", "b", "operators"]),
    ],
)
def test_a_filter_chooses_agents(query: dict[str, Any], ids: list[str]) -> None:
    assert found(**query) == ids


@pytest.mark.parametrize(
    "query",
    [
        {"order_by": "name"},
        {"sort_by": "name"},
        {"last_stop_reason": "tired"},
        {"include": ["agent.mood"]},
        {"order": "asc", "ascending": "false"},
        {"order_by": "created_at", "sort_by": "last_run_completion"},
    ],
)
def test_an_unknown_value_of_a_filter_is_refused(query: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AgentsQuery.model_validate(query)


@given(st.lists(st.none() | st.text("abc", max_size=2)), st.sampled_from(["created_at", "last_run_completion"]))
def test_one_order_is_the_other_one_reversed(times: list[str | None], order_by: str) -> None:
    agents = [ListedAgent(str(i), "", last_run=LastRun(at, "", 0) if at else None) for i, at in enumerate(times)]
    ids = [AgentsQuery.model_validate({"order": order, "order_by": order_by}).sort(agents) for order in ("asc", "desc")]
    assert ids[0] == ids[1][::-1]
    assert sorted(ids[0]) == sorted(agent.id for agent in agents)


@pytest.mark.parametrize(
    ("model", "params"),
    [
        (AgentsQuery, agent_list_params.AgentListParams),
        (AgentQuery, agent_retrieve_params.AgentRetrieveParams),
        (AgentMessagesQuery, message_list_params.MessageListParams),
    ],
)
def test_every_parameter_of_lettas_client_is_known(model: Any, params: Any) -> None:
    assert typing.get_type_hints(params).keys() <= model.model_fields.keys()


def test_messages_are_filtered_and_shown_as_the_query_asks() -> None:
    common = {"agent_id": "a", "created_at": datetime(2026, 1, 1, tzinfo=UTC)}
    spoken = Message(
        id="message-1b4e28ba-2fa1-4d3b-a3f5-000000700300",
        role="assistant",
        content=[TextContent(text="hello")],
        tool_calls=[ToolCall.of("1", "send_message", '{"message": "hi"}')],
        group_id="g",
        **common,
    )

    def kinds(**query: Any) -> list[str]:
        asked = AgentMessagesQuery.model_validate({"order": "asc", **query})
        assert asked.matches(spoken) == bool(asked.parts(spoken)) or query.keys() & {"group_id", "conversation_id"}
        return [part.message_type for part in asked.parts(spoken)] if asked.matches(spoken) else []

    assert kinds() == ["assistant_message", "tool_call_message"]
    assert kinds(order="desc") == ["tool_call_message", "assistant_message"]
    assert kinds(use_assistant_message="true") == ["assistant_message", "assistant_message"]
    assert kinds(include_return_message_types=["tool_call_message"]) == ["tool_call_message"]
    assert kinds(include_return_message_types=["user_message"]) == []
    assert (kinds(group_id="g"), kinds(group_id="h")) == (kinds(), [])
    assert (kinds(conversation_id="default"), kinds(conversation_id="conv-1")) == (kinds(), [])
