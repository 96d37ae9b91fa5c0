"""Jobs that run in the test's own process, and an executor whose attempts the test controls."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

from batchray.agents import SaveCheckpoints
from batchray.config import Agent, AgentSet, bind_agents, load_settings
from batchray.executors import AttemptSpec, LocalExecutor
from batchray.jobs.driver import start_job
from batchray.jobs.running import RunningJob
from batchray.schema import AgentRequest, new_job_id
from batchray.store import NewItem, NewJob, Store


def echo(request: AgentRequest) -> str:
    return str(request.input)


def fail(request: AgentRequest) -> str:
    raise LookupError("no such thing")


AGENTS = bind_agents([Agent(id="echo", run=echo), Agent(id="fail", run=fail)])


def new_job(store: Store, *agent_ids: str, kind: Literal["batch", "run"] = "batch") -> str:
    """Create a job with one item for each agent id, and return its id."""
    job_id = new_job_id()
    bodies = [json.dumps({"agent_id": name, "input": f"text {i}"}).encode() for i, name in enumerate(agent_ids)]
    store.jobs.create(
        NewJob(job_id, lambda ids: {}, kind=kind),
        [NewItem(name, None, body) for name, body in zip(agent_ids, bodies, strict=True)],
    )
    return job_id


async def started(store: Store, job_id: str, agents: AgentSet = AGENTS, **settings: Any) -> RunningJob:
    """Start a job for the local executor."""
    return await start_job(job_id, agents, store, load_settings(executor="local", **settings))


class Scripted:
    """A `LocalExecutor` that first awaits whatever the test returns for an attempt, and records all attempts."""

    def __init__(self, before: Callable[[AttemptSpec], Any] = lambda spec: None) -> None:
        self._local, self._before = LocalExecutor(), before
        self.specs: list[AttemptSpec] = []
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.cancelled: list[int] = []

    async def run(self, spec: AttemptSpec, keep: SaveCheckpoints) -> bytes:
        self.specs.append(spec)
        provider = spec.agent.agent.provider_name or "-"
        for name in (provider, "all"):
            self.running[name] += 1
            self.most[name] = max(self.most[name], self.running[name])
        try:
            happening = self._before(spec)
            if happening is not None:
                await happening
            return await self._local.run(spec, keep)
        except asyncio.CancelledError:
            self.cancelled.append(spec.index)
            raise
        finally:
            for name in (provider, "all"):
                self.running[name] -= 1

    async def close(self) -> None:
        await self._local.close()

    def attempts_of(self, index: int) -> list[AttemptSpec]:
        return [spec for spec in self.specs if spec.index == index]
