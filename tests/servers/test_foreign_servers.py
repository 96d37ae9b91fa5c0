"""Batches of tool calls in each protocol on LiteLLM's proxy and on the mock llmock, killed and restarted in the middle.

Run with -m servers.  `.ci/run` installs both servers, and names their environment in FOREIGN_SERVERS.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

import batchray
from batchray.schema import Result, ToolReturnMessage
from tests.polling import until
from tests.provider_server import ProviderServer, run_in_thread
from tests.servers.foreign import ForeignServer, foreign_server, program

pytestmark = [pytest.mark.servers, pytest.mark.timeout(600)]

PROTOCOLS = ("openai", "responses", "anthropic")
N_REQUESTS = 500
"""For each protocol."""
KEY = "sk-of-the-tests-0123456789abcdef0123456789abcdef"


class Ran(NamedTuple):
    """An ended batch: its results by agent, in the order of the requests, and all tickets that were drawn."""

    results: Mapping[str, list[Result]]
    drawn: list[str]


def run_and_restart(server: ForeignServer, urls: Mapping[str, str], data_dir: Path, asked: Callable[[int], str]) -> Ran:
    """Run `N_REQUESTS` for each protocol; the agent of a protocol has its name.

    A third of the way the server is killed.  It starts again only when calls wait for it in each protocol.
    """
    numbers, drawn = itertools.count(), list[str]()

    def draw(purpose: str) -> str:
        """Draw a ticket.

        Args:
            purpose: The use of the ticket.
        """
        drawn.append(f"ticket-{next(numbers)}-for-{purpose}")
        return drawn[-1]

    providers = {
        each: {"protocol": each, "base_url": url, "auth": "bearer", "api_key_env": "FOREIGN_KEY"}
        for each, url in urls.items()
    }
    agents = [{"id": each, "model": f"{each}/m-{each}", "tools": [draw]} for each in urls]
    requests = [{"agent_id": each, "input": asked(index)} for index in range(N_REQUESTS) for each in urls]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FOREIGN_KEY", KEY)
        job = batchray.submit(
            requests, agents, providers=providers, data_dir=data_dir, executor="local", max_in_flight=48
        )
    until(lambda: job.counts.get("succeeded", 0) > len(requests) / 3, 240)
    server.kill()
    until(lambda: {wait["provider"] for wait in job.waits if wait["kind"] == "unavailable"} == {*urls})
    assert not job.is_done
    server.start()
    assert job.wait(300).status == "completed"
    results = list(job.results("index"))
    return Ran({each: [result for result in results if result.agent_id == each] for each in urls}, drawn)


def check(ran: Ran, protocol: str, purpose: Callable[[int], str]) -> None:
    """Each request has drawn one ticket, for its own purpose, and its answer names its own number and that ticket."""
    results = ran.results[protocol]
    assert Counter(result.status for result in results) == {"succeeded": N_REQUESTS}
    for index, result in enumerate(results):
        (returned,) = [message for message in result.messages if isinstance(message, ToolReturnMessage)]
        ticket = returned.tool_return
        assert ticket in ran.drawn
        assert ticket.endswith(f"-for-{purpose(index)}")
        assert f"request {index} " in result.text
        assert result.text.endswith(ticket)
        assert result.usage.step_count == 2


@pytest.fixture(scope="module")
def upstream() -> Iterator[ProviderServer]:
    """Return the provider behind the proxy."""
    with run_in_thread(keeps_bodies=False) as running:
        yield running


@pytest.fixture(scope="module")
def through_litellm(tmp_path_factory: pytest.TempPathFactory, upstream: ProviderServer) -> Iterator[Ran]:
    """Return an ended batch through LiteLLM's proxy."""
    directory = tmp_path_factory.mktemp("litellm")
    upstreams = {
        "openai": ("openai", upstream.base_url),
        "responses": ("openai", upstream.base_url),
        "anthropic": ("anthropic", upstream.root_url),
    }
    models = [
        {
            "model_name": f"m-{each}",
            "litellm_params": {"model": f"{name}/up-{each}", "api_base": url, "api_key": "upstream"},
        }
        for each, (name, url) in upstreams.items()
    ]
    (directory / "config.yaml").write_text(json.dumps({"model_list": models}))
    command = [program("litellm"), "--config", str(directory / "config.yaml"), "--host", "127.0.0.1", "--port"]
    local = {"LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    with foreign_server(command, directory, health="/health/liveliness", **local) as server:
        urls = {"openai": f"{server.url}/v1", "responses": f"{server.url}/v1", "anthropic": server.url}
        yield run_and_restart(server, urls, directory / "data", directed)


def directed(index: int) -> str:
    """Return a request whose directives make the provider behind the proxy repeat the return of the tool.

    The texts are short, because each word and each five characters of arguments are an event that costs the proxy CPU.
    """
    arguments = json.dumps({"purpose": f"no-{index}"})
    return f"[[tool:draw {arguments}]] [[say:request {index} {{results}}]]"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_litellm_loses_and_mixes_up_nothing(through_litellm: Ran, upstream: ProviderServer, protocol: str) -> None:
    check(through_litellm, protocol, lambda index: f"no-{index}")
    assert len(through_litellm.drawn) == len(PROTOCOLS) * N_REQUESTS
    assert {call.model for call in upstream.calls} == {f"up-{each}" for each in PROTOCOLS}
    assert {call.authorization.removeprefix("Bearer ") for call in upstream.calls} == {"upstream"}


@pytest.fixture(scope="module")
def on_llmock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """Return an ended batch on llmock, which calls a tool that it is offered, and then repeats the request."""
    directory = tmp_path_factory.mktemp("llmock")
    command = [program("llmock"), "serve", "--response-style", "echo", "--log-level", "warning", "--host", "127.0.0.1"]
    with foreign_server([*command, "--port"], directory, health="/health") as server:
        urls = {"openai": f"{server.url}/v1", "responses": f"{server.url}/v1", "anthropic": f"{server.url}/anthropic"}
        yield run_and_restart(server, urls, directory / "data", "request {} asks".format)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_llmock_loses_and_mixes_up_nothing(on_llmock: Ran, protocol: str) -> None:
    check(on_llmock, protocol, lambda index: "mock-purpose")  # its arguments come from the tool's schema alone
    assert len(on_llmock.drawn) == len(PROTOCOLS) * N_REQUESTS
