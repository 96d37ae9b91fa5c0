"""A cancel, measured at a provider: no model call begins later than 2 s after it, and the job ends within 10 s."""

from __future__ import annotations

import time
from typing import Any

import pytest

import batchray
from batchray import Agent, Job
from batchray.errors import JobEndedError
from tests.cluster import agents
from tests.cluster.agents import block_the_loop
from tests.polling import until
from tests.provider_server import ProviderServer, run_in_thread
from tests.timing import timed

CALLS_S, OVER_S = 2.0, 10.0


def nap(seconds: float) -> str:
    """A tool that blocks its thread."""
    time.sleep(seconds)
    return "awake"


async def doze(seconds: float) -> str:
    """A tool that waits as async code should."""
    return await agents.wait(batchray.AgentRequest(agent_id="wait", input=str(seconds)))


@timed
@pytest.mark.parametrize("executor", ["ray", pytest.param("local", marks=pytest.mark.full)])
def test_a_cancel_ends_model_calls_and_then_the_job(slack: float, executor: str, options: dict[str, Any]) -> None:
    options |= {"executor": executor}
    options.pop("progress")
    with run_in_thread(latency_s=0.2) as server:
        # Each would call its model again soon, or for as long as the test runs.
        kinds = [
            {"agent_id": "tools", "input": '[[tool:nap {"seconds": 3}]]'},
            {"agent_id": "tools", "input": '[[tool:doze {"seconds": 3}]]'},
            {"agent_id": "tools", "input": "[[status:500]]"},  # is retried
            {"agent_id": "plain", "input": "question"},
            {"agent_id": "block", "input": "60"},
        ]
        requests = [{**kind, "custom_id": str(n)} for n in range(60) for kind in kinds]
        job = batchray.submit(requests, all_agents(), providers=providers(server), max_in_flight=60, **options)
        until(lambda: job.progress_now().done > 20, 60)

        canceled = time.monotonic()
        job.cancel()
        record = job.wait(60)
        over = time.monotonic()
        later = batchray.run(
            [{"agent_id": "wait", "input": str(4 / slack)}], all_agents()[-1:], progress=False, **options
        )

        assert record.status == "cancelled"
        assert over - canceled < OVER_S * slack
        assert server.calls[-1].at - canceled < CALLS_S * slack
        assert later.status == "completed"
    check_that_a_second_cancel_is_refused_and_changes_nothing(job)


def check_that_a_second_cancel_is_refused_and_changes_nothing(job: Job) -> None:
    record, results = job.record(), list(job.results("index"))
    assert record.counts["canceled"] > 0
    assert sum(record.counts.values()) == record.total == len(results)
    assert {str(result.stop_reason) for result in results if result.status == "canceled"} == {"cancelled"}
    with pytest.raises(JobEndedError, match="has already ended"):
        job.cancel()
    assert (job.record(), list(job.results("index"))) == (record, results)


@timed
@pytest.mark.parametrize("placement", ["lane", pytest.param("process", marks=pytest.mark.full)])
def test_a_request_that_blocks_its_event_loop_is_stopped_too(
    slack: float, placement: str, options: dict[str, Any]
) -> None:
    options.pop("progress")
    blocker = Agent(id="blocker", run=block_the_loop, placement=placement)
    requests = [{"agent_id": "echo", "input": "a"}, {"agent_id": "blocker", "input": "?"}]
    job = batchray.submit(requests, [blocker, Agent(id="echo", run=agents.echo)], **options)
    until(lambda: job.progress_now().done == 1, 60)

    canceled = time.monotonic()
    job.cancel()
    record = job.wait(60)

    assert (record.status, record.counts["succeeded"], record.counts["canceled"]) == ("cancelled", 1, 1)
    assert time.monotonic() - canceled < OVER_S * slack
    # Its lane, if it had one, is restarted and runs requests.
    again = batchray.run([{"agent_id": "echo", "input": "b"}] * 40, [Agent(id="echo", run=agents.echo)], **options)
    assert again.counts["succeeded"] == 40


def all_agents() -> list[Agent]:
    return [
        Agent(id="tools", model="local/m", tools=[nap, doze]),
        Agent(id="plain", model="local/m"),
        Agent(id="block", run=agents.block),
        Agent(id="wait", run=agents.wait),
    ]


def providers(server: ProviderServer) -> dict[str, Any]:
    return {"local": {"protocol": "openai", "base_url": server.base_url}}
