"""Agents as Letta's clients see and describe them."""

from __future__ import annotations

import typing
from typing import Any

import pytest
import typing_extensions
from letta_client.types import LlmConfigParam, agent_create_params
from pydantic import BaseModel

from batchray.config import Agent, Tool, bind_agents
from batchray.schema.agent_settings import GivenLLMConfig, ModelSettings, ResponseFormat, ToolRule
from batchray.server.agent_catalog import AgentCatalog, KeptState
from batchray.server.agent_options import options_of, settings_of
from batchray.server.block_shapes import shown_settings_blocks
from batchray.server.routes.agents import updated
from batchray.server.tool_catalog import ToolCatalog


def test_the_state_of_an_operators_agent_is_that_of_its_settings() -> None:
    block = {"label": "human", "value": "at first"}
    agents = bind_agents(
        [
            Agent(id="clerk", model="offline/rules", system="Be brief.", stateful=True, memory_blocks=(block,)),
            Agent(id="plain", model="offline/rules", temperature=0.5, max_tokens=9),
        ]
    )
    catalog = AgentCatalog(agents)
    blocks = shown_settings_blocks(agents.agents["clerk"].agent, {"human": "edited"})
    clerk = catalog.configured_state("clerk", KeptState(blocks, ["message-1"]))
    assert (clerk.message_buffer_autoclear, clerk.message_ids, clerk.system) == (False, ["message-1"], "Be brief.")
    assert [shown.value for shown in clerk.memory.blocks] == ["edited"]
    plain = catalog.configured_state("plain", KeptState())
    assert (plain.message_buffer_autoclear, plain.message_ids) == (True, [])
    assert (plain.llm_config.temperature, plain.llm_config.max_tokens) == (0.5, 9)


def test_an_agent_of_an_older_version_stays_stateless_when_it_is_changed() -> None:
    agent = {"id": "a", "model": "offline/rules", "temperature": 0.5}
    spec = {"agent": agent, "given": {"name": "a", "model": "offline/rules", "model_settings": {"temperature": 0.5}}}
    given = updated(spec, {"name": "b", "system": None}, {"max_tokens": 9})
    assert (given["name"], given["message_buffer_autoclear"]) == ("b", True)
    assert given["settings"] == {"temperature": 0.5, "max_tokens": 9}
    assert "system" not in given


def look(name: str) -> str:
    """Look a name up."""
    return name


def test_a_tool_that_the_operator_marks_idempotent_is_so_for_agents_made_over_http() -> None:
    tool = Tool(function=look, idempotent=True)
    tools = ToolCatalog(bind_agents([Agent(id="a", model="offline/rules", tools=(tool,))]))
    assert tools.functions(["look", "memory_insert"]) == [{"function": f"{__name__}:look", "idempotent": True}]
    assert (tools.shown("look").tags, tools.shown("memory_insert").tags) == (["idempotent"], ["idempotent"])
    made = Agent.model_validate({"id": "b", "model": "offline/rules", "tools": tools.functions(["look"])})
    assert tools.names_of(made, {}) == ["look"]


# -- settings


def parts_of(kind: Any) -> set[Any]:
    """The typed dicts of Letta's client in a type, without those inside of them."""
    if typing_extensions.is_typeddict(kind):
        return {kind}
    return set[Any]().union(*map(parts_of, typing.get_args(kind)))


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (ModelSettings, agent_create_params.ModelSettings),
        (GivenLLMConfig, LlmConfigParam),
        (ToolRule, agent_create_params.ToolRule),
        (ResponseFormat, agent_create_params.ResponseFormat),
    ],
)
def test_every_field_of_a_nested_type_of_lettas_client_is_known(model: type[BaseModel], kind: Any) -> None:
    kinds = parts_of(kind)
    assert kinds
    for each in kinds:
        assert typing.get_type_hints(each).keys() <= model.model_fields.keys(), each


SCHEMA = {"type": "json_schema", "json_schema": {"schema": {}}}
SETTINGS: dict[str, Any] = {
    "temperature": 0.5,
    "max_output_tokens": 9,
    "max_tokens": 9,
    "parallel_tool_calls": False,
    "response_format": SCHEMA,
    "reasoning": {"reasoning_effort": "low"},
    "reasoning_effort": "low",
    "thinking": {"type": "disabled"},
    "effort": "low",
    "verbosity": "low",
    "frequency_penalty": 0.5,
    "enable_reasoner": False,
}
NAMES_OF_THE_MODEL = {"provider_type", "model", "handle", "provider_name"}


@pytest.mark.parametrize(("model", "place"), [(ModelSettings, "model_settings"), (GivenLLMConfig, "llm_config")])
def test_every_accepted_setting_changes_the_agent(model: Any, place: str) -> None:
    accepted = model.model_fields.keys() - model.refused.keys() - model.without_effect - NAMES_OF_THE_MODEL
    for name in accepted:
        options = options_of(settings_of({place: {name: SETTINGS[name]}}).values, "offline", None)
        agent = Agent.model_validate({"id": "a", "model": "offline/rules", **options})
        assert (agent.request_body, agent.enable_thinking) != ({}, None), name


def test_settings_become_the_fields_of_each_protocol() -> None:
    assert options_of({"response_format": SCHEMA}, "openai", None) == {
        "body": {"response_format": {"type": "json_schema", "json_schema": {"name": "response", "schema": {}}}}
    }
    assert options_of({"parallel_tool_calls": False, "effort": "low"}, "anthropic", None) == {
        "body": {
            "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
            "output_config": {"effort": "low"},
        }
    }
    assert options_of({"parallel_tool_calls": True}, "anthropic", None) == {}
    thinking = {"thinking": {"type": "enabled"}}
    assert options_of(thinking, "openai", "https://api.z.ai/v1") == {"body": thinking}
