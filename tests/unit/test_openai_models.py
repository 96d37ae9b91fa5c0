"""What OpenAI's models need: their protocol, the fields that they take, and the effort that switches reasoning."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from batchray.agents import Clients, build_agent
from batchray.agents.build import check_agents_build
from batchray.config import Agent, AgentSet, Provider, access, bind_agents
from batchray.errors import ConfigError, ModelAPIError
from batchray.models import ModelClient, routing
from batchray.models.openai import OpenAIClient
from batchray.models.responses import ResponsesClient
from batchray.models.routing import ROUTES, openai_protocol
from batchray.models.thinking import effort, thinking_switch, with_reasoning_effort
from tests.builders.model_calls import call, eager, failure
from tests.provider_server import ProviderServer

URL = "https://api.openai.com/v1"
ENVIRONMENT = {"OPENAI_API_KEY": "sk-proj-0123456789abcdefABCDEF"}

NEED_RESPONSES = (
    "gpt-5.2",
    "gpt-5.4",
    "gpt-5.4-mini-2026-03-17",
    "gpt-5.5-2026-04-23",
    "gpt-5.6-terra",
    "gpt-6-astra",
    "gpt-6.2-astra-law",
    "gpt-7",
    "gpt-10",
    "ft:gpt-5.6-luna:acme::abc123",
    "gpt-5-pro-2025-10-06",
    "o1-pro",
    "o3-deep-research-2025-06-26",
    "gpt-5-codex",
    "gpt-5.1-codex-max",
    "codex-mini-latest",
    "computer-use-preview",
    "gpt-daybreak-red-latest",
    "gpt-5.6-cyber",
)
NEED_CHAT = (
    "gpt-3.5-turbo-16k",
    "gpt-4",
    "gpt-4o-2024-05-13",
    "gpt-4.1-nano",
    "gpt-5",
    "gpt-5-mini-2025-08-07",
    "gpt-5.1",
    "gpt-5.3-chat-latest",
    "gpt-6-chat-latest",
    "o3-mini",
    "o4-mini",
    "ft:gpt-4.1:acme::gpt-5.6",
    "gpt-4o-audio-preview",
    "chatgpt-4o-latest",
    "any",
)


def test_openais_models_get_the_protocol_that_they_need() -> None:
    assert {model: openai_protocol(model, URL) for model in NEED_RESPONSES} == dict.fromkeys(
        NEED_RESPONSES, "responses"
    )
    assert {model: openai_protocol(model, URL) for model in NEED_CHAT} == dict.fromkeys(NEED_CHAT, "openai")
    assert all(any(route.models.fullmatch(model) for model in NEED_RESPONSES) for route in ROUTES)


@pytest.mark.parametrize(
    ("base_url", "protocol"),
    [
        ("https://api.openai.com/v1/", "responses"),
        ("https://eu.api.openai.com/v1", "responses"),
        ("https://acme.openai.azure.com/openai/v1", "openai"),
        ("https://openrouter.ai/api/v1", "openai"),
        ("http://127.0.0.1:8000/v1", "openai"),
        ("https://api.openai.com.example.org/v1", "openai"),
    ],
)
def test_only_openais_own_servers_are_asked_in_responses(base_url: str, protocol: str) -> None:
    assert openai_protocol("gpt-5.6-terra", base_url) == protocol


def bound(environment: dict[str, str] | None = None, **agent: Any) -> AgentSet:
    providers = {
        "local": Provider(protocol="openai", base_url="http://127.0.0.1:8000/v1"),
        "new": Provider(protocol="responses", base_url="http://127.0.0.1:8000/v1"),
        "default": Provider(protocol="responses"),
    }
    return bind_agents([Agent(id="a", **agent)], providers, ENVIRONMENT if environment is None else environment)


def client_of(agents: AgentSet) -> ModelClient:
    [agent] = agents.agents.values()
    client: ModelClient = vars(build_agent(agent, Clients()))["_client"]
    return client


@pytest.mark.parametrize(
    ("agent", "client"),
    [
        ({"model": "openai/gpt-5.6-terra"}, ResponsesClient),
        ({"model": "openai/gpt-4.1"}, OpenAIClient),
        ({"model": "openai/gpt-4.1", "protocol": "responses"}, ResponsesClient),
        ({"model": "openai/gpt-5.6-terra", "protocol": "openai"}, OpenAIClient),
        ({"model": "local/gpt-5.6-terra"}, OpenAIClient),
        ({"model": "local/m", "protocol": "responses"}, ResponsesClient),
        ({"model": "new/gpt-4.1"}, ResponsesClient),
        ({"model": "new/m", "protocol": "openai"}, OpenAIClient),
        ({"model": "default/m"}, ResponsesClient),
        ({"model": "default/m", "protocol": "openai"}, OpenAIClient),
    ],
)
def test_an_agent_gets_the_protocol_of_its_model_unless_it_names_one(
    agent: dict[str, Any], client: type[ModelClient]
) -> None:
    agents = bound(**agent)
    assert type(client_of(agents)) is client
    assert type(client_of(AgentSet.from_snapshot(agents.snapshot(), environment=ENVIRONMENT))) is client


def test_another_address_of_the_builtin_provider_stays_with_chat_completions() -> None:
    environment = {**ENVIRONMENT, "OPENAI_BASE_URL": "http://127.0.0.1:8000/v1"}
    assert type(client_of(bound(environment, model="openai/gpt-5.6-terra"))) is OpenAIClient


def test_the_protocol_does_not_change_the_address() -> None:
    assert access.OPENAI_URL == routing.OPENAI_URL
    assert "http://127.0.0.1:8000/v1" in repr(client_of(bound(model="local/m", protocol="responses")))
    assert "https://api.openai.com/v1" in repr(client_of(bound(model="default/m", protocol="openai")))


def test_a_protocol_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'a': protocol responses cannot be used with its provider, .* anthropic"):
        bound({"ANTHROPIC_API_KEY": "k"}, model="anthropic/claude", protocol="responses")
    with pytest.raises(ConfigError, match="protocol cannot be given with run"):
        Agent(id="a", run="json:loads", protocol="responses")


def test_fields_that_responses_does_not_have_are_named_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    body = {"seed": 7, "stop": "x", "n": None, "response_format": {"type": "json_object"}}
    check_agents_build(bound(model="openai/gpt-5.6-terra", body=body))
    check_agents_build(bound(model="openai/gpt-4.1", body=body))
    asked = "agent 'a': its model is asked in the Responses API, which has no"
    assert caplog.messages == [f"{asked} {name}; the field is left out" for name in ("seed", "stop")]


@pytest.fixture
async def server() -> AsyncIterator[ProviderServer]:
    async with ProviderServer() as server:
        yield server


LIMIT = {"max_completion_tokens": 9}


@pytest.mark.parametrize(
    ("kind", "model", "fields", "left"),
    [
        (OpenAIClient, "m[[refuses:temperature]]", {"temperature": 0, "user": "u"}, {"user": "u"}),
        (
            OpenAIClient,
            "m[[refuses:max_tokens=max_completion_tokens]]",
            {"max_tokens": 9},
            {"max_completion_tokens": 9},
        ),
        (OpenAIClient, "m[[refuses:top_p]][[refuses:temperature]]", {"temperature": 0, "top_p": 1}, {}),
        (OpenAIClient, "m[[refuses:reasoning_effort]]", {"thinking": True}, {}),
        (ResponsesClient, "m[[refuses:temperature]]", {"temperature": 0, "user": "u"}, {"user": "u"}),
        (ResponsesClient, "m[[refuses:include]][[refuses:store]]", {"user": "u"}, {"user": "u"}),
        (ResponsesClient, "m[[refuses:reasoning.effort]]", {"thinking": True}, {}),
        (
            ResponsesClient,
            "m[[refuses:reasoning.effort]]",
            {"thinking": True, "reasoning": {"summary": "auto"}},
            {"reasoning": {"summary": "auto"}},
        ),
    ],
)
async def test_fields_that_a_model_refuses_are_left_out_once_it_has_said_so(
    server: ProviderServer, caplog: pytest.LogCaptureFixture, kind: Any, model: str, fields: Any, left: dict[str, Any]
) -> None:
    thinking, body = fields.get("thinking"), {name: value for name, value in fields.items() if name != "thinking"}
    client = kind(server.base_url, **eager())
    for _ in range(3):
        assert (await client.ask(call(model=model, body=body, thinking=thinking))).text
    await client.close()
    n_refused = model.count("refuses")
    assert server.n_calls == 3 + n_refused
    assert len(caplog.records) == n_refused
    common = {"messages", "model", "stream", "stream_options", "input", "store", "include"}
    assert {name: value for name, value in server.calls[-1].body.items() if name not in common} == left


@pytest.mark.parametrize("kind", [OpenAIClient, ResponsesClient])
@pytest.mark.parametrize(
    "body", [{"tool_choice": "none"}, {"reasoning_effort": "high"}, {"reasoning": {"effort": "high"}}, {"store": True}]
)
async def test_the_refusal_of_a_field_that_matters_is_an_error(
    server: ProviderServer, kind: Any, body: dict[str, Any]
) -> None:
    refused = "".join(f"[[refuses:{name}]]" for name in ("tool_choice", "reasoning_effort", "reasoning", "store"))
    client = kind(server.base_url, **eager())
    error = await failure(client.ask(call(model=f"m{refused}", body=body)), ModelAPIError)
    assert (error.type, server.n_calls) == ("bad_request", 1)
    await client.close()


@pytest.mark.parametrize(
    ("model", "on", "off"),
    [
        ("gpt-5.6-terra", "medium", "none"),
        ("gpt-6-astra", "medium", "none"),
        ("openai/gpt-5.1", "medium", "none"),
        ("gpt-5", "medium", "minimal"),
        ("gpt-5-mini-2025-08-07", "medium", "minimal"),
        ("gpt-5.1-codex", "medium", "low"),
        ("o4-mini", "medium", "low"),
        ("openai/gpt-oss-120b", "medium", "low"),
        ("gpt-5-pro", None, None),
        ("o3-deep-research", None, None),
        ("gpt-4.1-mini", None, None),
        ("gpt-5.3-chat-latest", None, None),
        ("qwen3-32b", "medium", None),
    ],
)
def test_thinking_is_switched_as_far_as_the_model_can(model: str, on: str | None, off: str | None) -> None:
    assert (effort(model, None, thinking=True), effort(model, None, thinking=False)) == (on, off)
    assert effort(model, "high", thinking=False) == off
    if on is not None:
        assert (effort(model, "high", thinking=True), effort(model, "none", thinking=True)) == ("high", on)


@pytest.mark.parametrize(
    ("base_url", "given", "on", "off"),
    [
        ("https://api.deepseek.com/v1", {}, {"thinking": {"type": "enabled"}}, {"thinking": {"type": "disabled"}}),
        (
            "https://api.z.ai/api/paas/v4",
            {"reasoning_effort": "high", "top_p": 1},
            {"thinking": {"type": "enabled"}, "reasoning_effort": "high", "top_p": 1},
            {"thinking": {"type": "disabled"}, "top_p": 1},
        ),
        ("https://dashscope-intl.aliyuncs.com/v1", {}, {"enable_thinking": True}, {"enable_thinking": False}),
        ("https://openrouter.ai/api/v1", {}, {"reasoning": {"enabled": True}}, {"reasoning": {"effort": "none"}}),
        (
            "https://openrouter.ai/api/v1",
            {"reasoning": {"effort": "high"}},
            {"reasoning": {"effort": "high"}},
            {"reasoning": {"effort": "none"}},
        ),
        (
            "https://openrouter.ai/api/v1",
            {"reasoning_effort": "low"},
            {"reasoning_effort": "low"},
            {"reasoning": {"effort": "none"}},
        ),
        ("http://127.0.0.1:8000/v1", {}, {"reasoning_effort": "medium"}, {}),
        (
            "https://api.deepseek.com/v1",
            {"chat_template_kwargs": {}},
            {"chat_template_kwargs": {"enable_thinking": True}},
            {"chat_template_kwargs": {"enable_thinking": False}},
        ),
    ],
)
def test_thinking_is_switched_by_the_field_of_the_host(
    base_url: str, given: dict[str, Any], on: dict[str, Any], off: dict[str, Any]
) -> None:
    switch = thinking_switch(base_url)
    assert with_reasoning_effort(given, "some-model", True, switch) == on
    assert with_reasoning_effort(given, "some-model", False, switch) == off
    assert with_reasoning_effort(given, "some-model", None, switch) == given
