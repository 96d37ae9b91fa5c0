"""Real servers that end, restart or ask to wait, and requests whose deadline is shorter than that."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from batchray.agents import AttemptReport, AttemptRunner, RunUpdate, encode_input, read_report
from batchray.config import Agent, AgentSet, BoundAgent, Provider, bind_agents
from batchray.executors import LocalExecutor
from batchray.executors.ray.checkpointed_runs import run_isolated
from batchray.jobs.driver import run_job
from batchray.schema import new_job_id
from batchray.store import NewItem, NewJob, Store
from tests.builders.jobs import started
from tests.polling import wait_until
from tests.provider_server import ProviderServer, run_in_thread

JOB = new_job_id()


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def bound(server: ProviderServer, deadline_s: float) -> BoundAgent:
    provider = Provider(protocol="openai", base_url=server.base_url)
    agent = Agent(id="a", model="local/m", tools=(add,), deadline_s=deadline_s)
    return bind_agents([agent], {"local": provider}, {}).agents["a"]


def item(index: int, text: str) -> bytes:
    return encode_input(JOB, index, 1, json.dumps({"agent_id": "a", "input": text}).encode())


@contextmanager
def reserved(port: int) -> Iterator[None]:
    """Refuse connections to a port: a server of another test process might get it meanwhile."""
    with socket.socket() as bound_only:
        bound_only.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound_only.bind(("127.0.0.1", port))
        yield


async def test_a_server_that_restarts_in_the_middle_loses_no_request() -> None:
    async with ProviderServer(latency_s=0.05) as first:
        runner, agent = AttemptRunner(), bound(first, deadline_s=2.0)

        async def run(index: int) -> AttemptReport:
            text = f'{index} [[tool:add {{"a": 1, "b": {index}}}]]'
            return read_report(await runner.run_attempt(agent, item(index, text)))

        runs = [asyncio.create_task(run(index)) for index in range(60)]
        await wait_until(lambda: first.n_calls > 60)  # one has been answered: deadlines wait for that provider only
    with reserved(first.port):
        await wait_until(lambda: any(wait.n_waiting > 30 for wait in runner.provider_waits()))
        # Longer than the requests have.  An answer that was on its way may end the first wait.
        await wait_until(lambda: any(wait.since_s > 2.2 for wait in runner.provider_waits()))
        (wait,) = runner.provider_waits()
        assert (wait.provider, wait.kind, wait.has_answered) == ("local", "unavailable", True)
        assert not any(run.done() for run in runs[30:])
    async with ProviderServer(port=first.port) as second:
        reports = await asyncio.gather(*runs)
        assert {report.status for report in reports} == {"succeeded"}
        assert {report.usage["step_count"] for report in reports} == {2}
        assert second.n_calls <= 2 * 60
    assert runner.provider_waits() == []
    await runner.close()


def test_a_process_lives_on_while_its_request_waits_for_the_provider() -> None:
    entered: list[str] = []

    @contextmanager
    def noted(name: str) -> Iterator[None]:
        entered.append(f"{name} begins")
        yield
        entered.append(f"{name} ends")

    with run_in_thread() as server:
        agent = bound(server, deadline_s=0.3)
        updates = list(
            run_isolated(
                agent, item(0, "[[429:retry-after=0.6 x1]]"), lambda: noted("limit"), lambda: noted("provider wait")
            )
        )
    assert isinstance(updates[-1], RunUpdate)
    assert updates[-1].report is not None
    assert read_report(updates[-1].report).status == "succeeded"
    inside = entered.index("provider wait begins"), entered.index("provider wait ends")
    assert entered[inside[0] - 1] == "limit begins"
    assert entered[inside[1] + 1] == "limit ends"


async def test_a_single_request_waits_for_its_provider_until_its_deadline(tmp_path: Path) -> None:
    executor, job_id = LocalExecutor(), new_job_id()
    async with ProviderServer() as server:
        agents = AgentSet({"a": bound(server, deadline_s=0.3)})
    with Store.open(tmp_path / "data") as store:
        request = json.dumps({"agent_id": "a", "input": "hi"}).encode()
        store.jobs.create(NewJob(job_id, lambda ids: {}, kind="run", agent_id="a"), [NewItem("a", None, request)])
        job = await started(store, job_id, agents, deadline_grace_s=0.2)
        record = await run_job(job, executor, providers=executor.providers)
        result = store.items.result(record, 0)
    await executor.close()
    assert result is not None
    assert result.error is not None
    assert (result.status, result.error["type"]) == ("errored", "deadline_exceeded")
    assert result.error["message"].startswith("its provider 'local' took no calls until its deadline: connection error")
