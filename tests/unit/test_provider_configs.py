"""The agents files of `configs/providers`: each loads, and calls its provider with its key and its headers."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp.web
import orjson
import pytest

from batchray.agents import AttemptRunner, encode_input, read_report
from batchray.config import BoundAgent, load_agents
from batchray.errors import ConfigError
from batchray.models.routing import openai_protocol
from batchray.schema import new_job_id

DIRECTORY = Path(__file__).parents[2] / "configs" / "providers"
AZURE = "https://my-resource.openai.azure.com"
CALLS = {
    "anthropic": ("https://api.anthropic.com/v1/messages", "x-api-key"),
    "azure": (f"{AZURE}/openai/v1/responses", "api-key"),
    "gemini": ("https://generativelanguage.googleapis.com/v1beta/openai/chat/completions", "bearer"),
    "litellm": ("http://127.0.0.1:4000/v1/chat/completions", "bearer"),
    "llama_cpp": ("http://127.0.0.1:8080/v1/chat/completions", "bearer"),
    "ollama": ("http://127.0.0.1:11434/v1/chat/completions", None),
    "openai": ("https://api.openai.com/v1/responses", "bearer"),
    "openrouter": ("https://openrouter.ai/api/v1/chat/completions", "bearer"),
    "vllm": ("http://127.0.0.1:8000/v1/chat/completions", "bearer"),
}
"""By file: where its agent's calls go, and the header of their key."""

_TEXT = {"type": "text", "text": "Hello."}
_OUTPUT = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello."}]}
_REPLIES: dict[str, dict[str, Any]] = {
    "completions": {"choices": [{"index": 0, "message": {"content": "Hello."}, "finish_reason": "stop"}]},
    "responses": {"id": "r", "object": "response", "status": "completed", "output": [_OUTPUT]},
    "messages": {"id": "m", "type": "message", "role": "assistant", "content": [_TEXT], "stop_reason": "end_turn"},
}


def environment_of(name: str) -> dict[str, str]:
    """Return values for the variables that a file tells to export."""
    names = re.findall(r"export (\w+)=", (DIRECTORY / f"{name}.yaml").read_text())
    return {variable: AZURE if variable.endswith("ENDPOINT") else f"value-of-{variable}" for variable in names}


def load(name: str) -> BoundAgent:
    return load_agents([DIRECTORY / f"{name}.yaml"], environment_of(name)).agents["assistant"]


class Listener:
    """Any provider on loopback: it answers every call, and keeps what came."""

    def __init__(self) -> None:
        self.calls: list[aiohttp.web.BaseRequest] = []
        self.bodies: list[dict[str, Any]] = []
        self.url = ""

    async def answer(self, request: aiohttp.web.BaseRequest) -> aiohttp.web.StreamResponse:
        if request.method == "GET":  # what a model of Anthropic can do
            return aiohttp.web.json_response({}, status=404)
        self.calls.append(request)
        self.bodies.append(orjson.loads(await request.read()))
        return aiohttp.web.json_response(_REPLIES[request.path.rpartition("/")[2]])


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    listener = Listener()
    runner = aiohttp.web.ServerRunner(aiohttp.web.Server(listener.answer))
    await runner.setup()
    await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
    listener.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield listener
    finally:
        await runner.cleanup()


def test_every_file_has_its_call_here() -> None:
    assert sorted(CALLS) == sorted(file.stem for file in DIRECTORY.glob("*.yaml"))


@pytest.mark.parametrize("name", CALLS)
async def test_the_agent_of_a_file_calls_its_provider(name: str, listener: Listener) -> None:
    agent = load(name)
    assert agent.access is not None
    there = urlsplit(agent.access.base_url)
    here = agent.access.base_url.replace(f"{there.scheme}://{there.netloc}", listener.url)
    runner = AttemptRunner()
    try:
        item = encode_input(new_job_id(), 0, 1, b'{"agent_id": "assistant", "input": "Say hello."}')
        local = replace(agent, access=replace(agent.access, base_url=here, proxy=None))
        if name == "openai":  # which of its protocols a model needs is only decided for OpenAI's own address
            protocol = openai_protocol(str(agent.agent.model).partition("/")[2], agent.access.base_url)
            local = replace(local, agent=agent.agent.model_copy(update={"protocol": protocol}))
        report = read_report(await runner.run_attempt(local, item))
    finally:
        await runner.close()
    assert report.status == "succeeded", report.error
    [call] = listener.calls
    address, header = CALLS[name]
    assert f"{there.scheme}://{there.netloc}{call.path_qs}" == address
    keys = {value for variable, value in environment_of(name).items() if variable.endswith("KEY")}
    sent = {"bearer": call.headers.get("authorization", "").removeprefix("Bearer ")}
    sent |= {each: call.headers.get(each, "") for each in ("x-api-key", "api-key")}
    assert sent == {each: next(iter(keys)) if each == header else "" for each in sent}


@pytest.mark.parametrize("name", [name for name in CALLS if environment_of(name)])
def test_a_file_without_its_variables_says_which_is_missing(name: str) -> None:
    with pytest.raises(ConfigError, match="|".join(environment_of(name))):
        load_agents([DIRECTORY / f"{name}.yaml"], {})


def test_the_dated_api_of_azure_has_its_version_and_its_deployment() -> None:
    files = [DIRECTORY / "azure.yaml"]
    known = load_agents(files, environment_of("azure"))
    agent = known.agents["assistant"].agent.model_copy(update={"model": "azure_dated/any"})
    access = known.bind(agent, environment_of("azure")).access
    assert access is not None
    assert access.base_url == f"{AZURE}/openai/deployments/value-of-AZURE_OPENAI_DEPLOYMENT"
    assert access.query == (("api-version", "2024-10-21"),)


def test_the_headers_that_gateways_want_are_sent() -> None:
    of = {name: dict(access.headers) for name in CALLS if (access := load(name).access) is not None}
    assert of["openrouter"] == {"HTTP-Referer": "https://example.org", "X-OpenRouter-Title": "batchray"}
    assert of["litellm"] == {"x-litellm-num-retries": "0", "x-litellm-tags": "batchray"}


def test_local_servers_are_reached_directly() -> None:
    local = [name for name, (address, _) in CALLS.items() if address.startswith("http://")]
    proxies = {}
    for name in local:
        environment = {**environment_of(name), "HTTP_PROXY": "http://proxy:3128"}
        access = load_agents([DIRECTORY / f"{name}.yaml"], environment).agents["assistant"].access
        proxies[name] = access.proxy if access is not None else "no access"
    assert proxies == dict.fromkeys(local)
