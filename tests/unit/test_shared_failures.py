"""Failures that all requests of a provider share, and what a report says of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import orjson
import pytest

from batchray.agents import AttemptReport, AttemptRunner, encode_input, read_report
from batchray.config import Agent, Provider, bind_agents
from batchray.models.provider_errors import ProviderError
from batchray.models.shared_failures import is_shared
from batchray.schema import new_job_id
from tests.polling import wait_until
from tests.provider_server import ProviderServer

JOB = new_job_id()


@pytest.fixture
async def server() -> AsyncIterator[ProviderServer]:
    async with ProviderServer() as server:
        yield server


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, {"message": "Incorrect API key provided"}),
        (403, {"message": "Country, region, or territory not supported"}),
        (404, {"message": "The model `gpt-9` does not exist", "code": "model_not_found"}),
        (404, "Not Found"),
        (402, {"message": "Insufficient Balance"}),
        (429, {"message": "You exceeded your current quota", "code": "insufficient_quota"}),
        (
            400,
            {"message": "Your credit balance is too low to access the Anthropic API.", "type": "invalid_request_error"},
        ),
        (400, {"message": "API key not valid. Please pass a valid API key.", "code": 400}),
        (400, {"message": "Model Not Exist", "code": "invalid_request_error"}),
        (400, {"message": "Budget has been exceeded! Current cost: 2.1, Max budget: 2.0", "type": "budget_exceeded"}),
    ],
)
def test_a_failure_of_the_account_key_or_model_is_shared(status: int, error: object) -> None:
    assert is_shared(status, ProviderError.of_body(orjson.dumps({"error": error})))


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, {"message": "Invalid value: 'x'"}),
        (413, {"message": "Request too large"}),
        (422, {"message": "field required"}),
        (400, {"message": "This model's maximum context length is 8192 tokens"}),
        (400, {"message": "The response was filtered", "code": "content_filter"}),
        (403, {"message": "Your chosen model requires moderation and your input was flagged for violence"}),
    ],
)
def test_a_failure_of_the_requests_own_content_is_not_shared(status: int, error: object) -> None:
    assert not is_shared(status, ProviderError.of_body(orjson.dumps({"error": error})))


async def attempt(runner: AttemptRunner, server: ProviderServer, text: str) -> AttemptReport:
    provider = Provider(protocol="openai", base_url=server.base_url)
    agents = bind_agents([Agent(id="a", model="local/m")], {"local": provider}, {})
    request = json.dumps({"agent_id": "a", "input": text}).encode()
    return read_report(await runner.run_attempt(agents.agents["a"], encode_input(JOB, 0, 1, request)))


@pytest.mark.parametrize(
    ("text", "shared"),
    [
        ("[[401:message=no such key]]", {"provider": "local", "kind": "authentication_error"}),
        ("[[404:message=no model m]]", {"provider": "local", "kind": "not_found"}),
        ("[[429:code=insufficient_quota]]", {"provider": "local", "kind": "insufficient_quota"}),
        ("[[status:400]]", None),
        ("[[toolong]]", None),
        ("hi", None),
    ],
)
async def test_a_report_names_the_provider_of_a_shared_failure(
    attempt_runner: AttemptRunner, server: ProviderServer, text: str, shared: object
) -> None:
    report = await attempt(attempt_runner, server, text)
    assert (report.shared_failure, report.status == "succeeded") == (shared, text == "hi")


async def test_a_runner_reports_the_calls_that_a_provider_holds_back(server: ProviderServer) -> None:
    told: list[int] = []
    runner = AttemptRunner(on_provider_wait=lambda: told.append(1))
    assert runner.provider_waits() == []
    run = asyncio.create_task(attempt(runner, server, "[[429:retry-after=60 message=Rate limit reached]]"))
    await wait_until(lambda: told)
    await wait_until(lambda: runner.provider_waits()[0].n_waiting)
    (wait,) = runner.provider_waits()
    assert (wait.provider, wait.kind, wait.has_answered) == ("local", "rate_limited", False)
    assert wait.reason == "status 429: Rate limit reached"
    assert 50 < wait.wait_s <= 60
    assert 0 <= wait.since_s == wait.total_s < 10
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
    await runner.close()
