"""Every field that Letta's clients can send for an agent works, is refused by name, or is named in a warning."""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from letta_client.types import agent_create_params, agent_update_params

from batchray.server.tool_catalog import tool_id
from tests.provider_server import run_in_thread
from tests.server.http_client import Response, call
from tests.server.live import LiveServer, live_server

AGENTS = "/v1/agents/"
CREATED = set(typing.get_type_hints(agent_create_params.AgentCreateParams))
UPDATED = set(typing.get_type_hints(agent_update_params.AgentUpdateParams))
CONFIG = {"model": "rules", "handle": "offline/rules", "model_endpoint_type": "openai", "context_window": 8192}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
RULES = [{"type": "exit_loop", "tool_name": "calculate"}, {"type": "continue_loop", "tool_name": "calculate"}]

# A value of each field that works, and what the agent then shows.
EFFECTS: dict[str, tuple[Any, Mapping[str, Any]]] = {
    "name": ("Ada", {"name": "Ada"}),
    "description": ("d", {"description": "d"}),
    "system": ("s", {"system": "s"}),
    "tags": (["b", "a"], {"tags": ["b", "a"]}),
    "metadata": ({"n": 1}, {"metadata": {"n": 1}}),
    "model": ("offline/scripted", {"model": "offline/scripted"}),
    "llm_config": (
        {**CONFIG, "temperature": 0.25},
        {"model_settings": {"provider_type": "openai", "temperature": 0.25}},
    ),
    "model_settings": ({"temperature": 0.25}, {"model_settings": {"provider_type": "openai", "temperature": 0.25}}),
    "max_tokens": (9, {"model_settings": {"provider_type": "openai", "max_output_tokens": 9}}),
    "parallel_tool_calls": (True, {"model_settings": {"provider_type": "openai", "parallel_tool_calls": True}}),
    "response_format": (SCHEMA, {"response_format": SCHEMA}),
    "reasoning": (True, {"enable_reasoner": True}),
    "enable_reasoner": (False, {"enable_reasoner": False}),
    "tool_ids": ([tool_id("count_words")], {"tools": ["count_words"]}),
    "tools": (["calculate"], {"tools": ["calculate"]}),
    "tool_rules": (RULES, {"tool_rules": RULES}),
    "memory_blocks": ([{"label": "human", "value": "v"}], {"blocks": ["v"]}),
    "block_ids": ([], {"blocks": []}),
    "include_base_tools": (False, {}),
    "message_buffer_autoclear": (True, {"message_buffer_autoclear": True}),
    "hidden": (True, {"hidden": True}),
    "project_id": ("project-1", {"project_id": "project-1"}),
}
WARNED: dict[str, Any] = {
    "agent_type": "memgpt_agent",
    "compaction_settings": {"model": "offline/rules"},
    "context_window_limit": 9000,
    "embedding": "openai/text-embedding-3-small",
    "embedding_chunk_size": 300,
    "embedding_config": {"embedding_dim": 1, "embedding_endpoint_type": "openai", "embedding_model": "m"},
    "include_base_tool_rules": True,
    "max_files_open": 5,
    "per_file_view_window_char_limit": 500,
    "timezone": "Europe/Berlin",
}
REFUSED: dict[str, Any] = {
    "base_template_id": "t",
    "enable_sleeptime": True,
    "folder_ids": ["folder-1"],
    "from_template": "t",
    "identity_ids": ["identity-1"],
    "include_default_source": True,
    "include_multi_agent_tools": True,
    "initial_message_sequence": [{"role": "user", "content": "x"}],
    "last_run_completion": "2026-01-01T00:00:00Z",
    "last_run_duration_ms": 7,
    "last_stop_reason": "error",
    "max_reasoning_tokens": 2000,
    "memory_variables": {"name": "Ada"},
    "message_ids": ["message-1"],
    "project": "p",
    "secrets": {"TOKEN": "x"},
    "source_ids": ["source-1"],
    "template": True,
    "template_id": "t",
    "tool_exec_environment_variables": {"TOKEN": "x"},
}
VALUES = {**{name: value for name, (value, _) in EFFECTS.items()}, **WARNED, **REFUSED}


def make(server: LiveServer, **fields: Any) -> Response:
    tools = {"tools": ["calculate"]} if "tool_rules" in fields else {}
    return call(server, "POST", AGENTS, {"model": "offline/rules", **tools, **fields})


@pytest.fixture(scope="module")
def changed(server: LiveServer) -> str:
    """An agent that the tests change."""
    return str(make(server).body["id"])


def test_the_tables_hold_every_field_of_lettas_client_once() -> None:
    assert EFFECTS.keys() | WARNED.keys() | REFUSED.keys() == CREATED | UPDATED
    assert len(VALUES) == len(EFFECTS) + len(WARNED) + len(REFUSED)


def judge(name: str, answer: Response) -> None:
    """Check that an answer to a body with a field is the one that its table demands."""
    if name in REFUSED:
        assert (answer.status, answer.body["detail"].startswith(f"{name}: ")) == (422, True), answer
        return
    warning = f'299 batchray "no effect here: {name}"' if name in WARNED else None
    if name == "llm_config":
        warning = '299 batchray "no effect here: llm_config.context_window, llm_config.model_endpoint_type"'
    assert (answer.status, answer.headers.get("Warning")) == (200, warning), answer
    if name in EFFECTS:
        tools, blocks = answer.body["tools"], answer.body["blocks"]
        shown = {**answer.body, "tools": [tool["name"] for tool in tools], "blocks": [each["value"] for each in blocks]}
        shown["enable_reasoner"] = answer.body["llm_config"].get("enable_reasoner")
        assert {field: shown[field] for field in EFFECTS[name][1]} == EFFECTS[name][1]


@pytest.mark.parametrize("name", sorted(CREATED))
def test_a_field_of_a_new_agent_is_not_dropped(server: LiveServer, name: str) -> None:
    answer = make(server, **{name: VALUES[name]})
    judge(name, answer)
    if answer.status == 200:
        assert call(server, "GET", f"{AGENTS}{answer.body['id']}").body == answer.body
        assert call(server, "DELETE", f"{AGENTS}{answer.body['id']}").status == 200


@pytest.mark.parametrize("name", sorted(UPDATED))
def test_a_field_of_a_change_is_not_dropped(server: LiveServer, changed: str, name: str) -> None:
    made = make(server, tools=["calculate"]).body["id"]
    judge(name, call(server, "PATCH", f"{AGENTS}{made}", {name: VALUES[name]}))
    assert call(server, "DELETE", f"{AGENTS}{made}").status == 200


@pytest.mark.parametrize("name", sorted(set(WARNED) | set(REFUSED)))
def test_a_field_that_asks_for_nothing_is_accepted(server: LiveServer, changed: str, name: str) -> None:
    kind = type(VALUES[name])
    nothing = [None, *([kind()] if kind in (bool, list, dict) and name in REFUSED else [])]
    for value in nothing if name in UPDATED else ():
        answer = call(server, "PATCH", f"{AGENTS}{changed}", {name: value})
        assert (answer.status, answer.headers.get("Warning")) == (200, None), answer


UNKNOWN_VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown field": ({"sytem": "x"}, "sytem: unknown key; did you mean 'system'?"),
    "an unknown setting": ({"model_settings": {"temprature": 1}}, "model_settings.temprature: unknown key"),
    "an unknown key of a block": (
        {"memory_blocks": [{"label": "a", "value": "b", "x": 1}]},
        "memory_blocks[0].x: unknown key",
    ),
    "an agent type": ({"agent_type": "best"}, "agent_type: "),
    "a provider type": ({"model_settings": {"provider_type": "acme"}}, "model_settings.provider_type: "),
    "a negative temperature": ({"model_settings": {"temperature": -1}}, "model_settings.temperature: "),
    "no tokens": ({"max_tokens": 0}, "max_tokens: "),
    "an effort": ({"model_settings": {"reasoning": {"reasoning_effort": "much"}}}, "model_settings.reasoning.reason"),
    "a rule": ({"tool_rules": [{"type": "run_first", "tool_name": "calculate"}]}, "tool_rules[0].type: "),
    "a rule of children": (
        {"tool_rules": [{"type": "constrain_child_tools", "tool_name": "a", "children": ["b"]}]},
        "tool_rules[0].children: ",
    ),
    "a format": ({"response_format": {"type": "xml"}}, "response_format.type: "),
    "a format without its schema": ({"response_format": {"type": "json_schema"}}, "response_format: "),
    "Google's settings": (
        {"model_settings": {"thinking_config": {"thinking_budget": 9}}},
        "model_settings.thinking_co",
    ),
    "log probabilities": ({"llm_config": {**CONFIG, "top_logprobs": 3}}, "llm_config.top_logprobs: "),
}


@pytest.mark.parametrize(("fields", "detail"), UNKNOWN_VALUES.values(), ids=UNKNOWN_VALUES)
def test_an_unknown_value_is_refused_by_name(server: LiveServer, fields: dict[str, Any], detail: str) -> None:
    answer = make(server, **fields)
    assert (answer.status, answer.body["detail"][: len(detail)]) == (422, detail)


def test_the_unused_one_of_two_values_for_a_setting_is_named(server: LiveServer) -> None:
    both = {"max_tokens": 8, "model_settings": {"max_output_tokens": 9}, "parallel_tool_calls": True}
    config = {**CONFIG, "handle": "offline/scripted", "max_tokens": 9, "parallel_tool_calls": False}
    answer = make(server, **both, llm_config=config)
    assert (answer.body["llm_config"]["max_tokens"], answer.body["model"]) == (9, "offline/rules")
    named = answer.headers["Warning"].partition("no effect here: ")[2].rstrip('"').split(", ")
    of_config = ("context_window", "model", "model_endpoint_type", "parallel_tool_calls")
    assert named == [*(f"llm_config.{name}" for name in of_config), "max_tokens"]


def test_a_change_keeps_the_settings_that_it_does_not_name(server: LiveServer) -> None:
    agent_id = make(server, model_settings={"temperature": 0.5, "max_output_tokens": 9}).body["id"]
    changed = call(server, "PATCH", f"{AGENTS}{agent_id}", {"max_tokens": 7, "name": "x"}).body
    shown = {"provider_type": "openai", "temperature": 0.5, "max_output_tokens": 7}
    assert changed["model_settings"] == shown
    assert (changed["llm_config"]["temperature"], changed["llm_config"]["max_tokens"]) == (0.5, 7)


def test_settings_reach_the_provider_in_its_own_words(tmp_path: Path) -> None:
    with run_in_thread() as provider:
        protocols = ("openai", "responses", "anthropic")
        providers = {name: {"protocol": name, "base_url": provider.base_url} for name in protocols}
        file = tmp_path / "agents.json"
        file.write_text(json.dumps({"providers": providers, "agents": []}))
        with live_server(tmp_path / "data", agents=file) as server:

            def sent(handle: str, **fields: Any) -> dict[str, Any]:
                made = call(server, "POST", AGENTS, {"model": handle, **fields})
                assert made.status == 200, made
                answer = call(server, "POST", f"{AGENTS}{made.body['id']}/messages", {"input": "Hello"})
                assert answer.status == 200, answer
                return dict(provider.calls[-1].body)

            common = {"max_tokens": 90, "response_format": SCHEMA, "parallel_tool_calls": False}
            chat = sent("openai/m", **common, llm_config={**CONFIG, "handle": "openai/m", "frequency_penalty": 0.5})
            assert (chat["max_tokens"], chat["response_format"], chat["frequency_penalty"]) == (90, SCHEMA, 0.5)
            assert "parallel_tool_calls" not in chat  # the agent has no tools
            reasoning = {"reasoning": {"reasoning_effort": "high"}, "verbosity": "low"}
            responses = sent("responses/m", **common, model_settings=reasoning)
            assert (responses["max_output_tokens"], responses["reasoning"]["effort"]) == (90, "high")
            assert (responses["text"]["format"]["type"], responses["text"]["verbosity"]) == ("json_schema", "low")
            thinking = {"thinking": {"type": "enabled", "budget_tokens": 2000}, "max_output_tokens": 4000}
            messages = sent("anthropic/m", response_format=SCHEMA, model_settings=thinking)
            assert (messages["max_tokens"], messages["thinking"]) == (4000, thinking["thinking"])
            assert messages["output_config"]["format"]["schema"] == {"type": "object"}
            refused: dict[str, dict[str, Any]] = {
                "openai/m": {"model_settings": thinking},
                "responses/m": {"llm_config": {**CONFIG, "handle": "responses/m", "frequency_penalty": 0.5}},
                "anthropic/m": {"response_format": {"type": "json_object"}},
            }
            for handle, fields in refused.items():
                assert call(server, "POST", AGENTS, {"model": handle, **fields}).status == 422


def test_lettas_base_tools_that_an_agent_does_not_need_are_named_in_a_warning(server: LiveServer) -> None:
    body = {
        "model": "offline/rules",
        "memory_blocks": [{"label": "human", "value": "Her name is Ada."}],
        "tools": ["send_message", "calculate", "core_memory_replace", "memory_replace"],
        "tool_rules": [{"type": "exit_loop", "tool_name": "send_message"}],
    }
    answer = call(server, "POST", AGENTS, body)
    warning = "tool_rules.send_message, tools.core_memory_replace, tools.send_message"
    assert (answer.status, answer.headers["Warning"]) == (200, f'299 batchray "no effect here: {warning}"')
    assert [tool["name"] for tool in answer.body["tools"]] == ["calculate", "memory_replace"]
    asked = call(server, "POST", f"{AGENTS}{answer.body['id']}/messages", {"input": "What is 4 * 5?"})
    assert asked.body["messages"][-1]["content"] == "4 * 5 = 20"
    for unknown in ({"tools": ["archival_memory_search"]}, {"tools": ["web_search"]}):
        assert call(server, "POST", AGENTS, body | unknown).status == 404
    approved = {"tool_rules": [{"type": "requires_approval", "tool_name": "send_message"}]}
    assert call(server, "POST", AGENTS, body | approved).status == 400
