"""Deadlines of running attempts pause while the store is unavailable; these tests wait in real time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchray.config import Agent, bind_agents
from batchray.errors import (
    StoreUnavailableError,
    WorkerDiedError,
)
from batchray.jobs.driver import run_job
from batchray.store import LedJob, Store
from tests.builders.jobs import Scripted, echo, new_job, started


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "data") as opened:
        yield opened


def lock_for(store: Store, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the store refuse outcomes for some seconds, as if another program had locked it."""
    write, end = store.outcomes.write, time.monotonic() + seconds

    def write_later(job: LedJob, attempts: Any, outcomes: Any, *more: Any) -> Any:
        if outcomes and time.monotonic() < end:
            raise StoreUnavailableError("locked")
        return write(job, attempts, outcomes, *more)

    monkeypatch.setattr(store.outcomes, "write", write_later)


async def test_deadlines_pause_while_the_store_is_unavailable(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    agents = bind_agents([Agent(id="echo", run=echo, deadline_s=0.9)])
    job = await started(store, new_job(store, "echo", "echo"), agents, deadline_grace_s=0.9)
    lock_for(store, 3, monkeypatch)
    executor = Scripted(lambda spec: asyncio.sleep(2.5) if spec.index == 0 else None)
    assert (await run_job(job, executor)).counts["succeeded"] == 2


async def test_a_wait_for_the_store_does_not_shorten_the_next_attempt(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = bind_agents([Agent(id="echo", run=echo, deadline_s=2)])
    job = await started(store, new_job(store, "echo", "echo"), agents)
    lock_for(store, 3, monkeypatch)

    async def die_late() -> None:
        await asyncio.sleep(2.5)
        raise WorkerDiedError("its lane died", is_suspect=False, ran_s=2.5)

    executor = Scripted(lambda spec: die_late() if (spec.index, spec.attempt) == (0, 1) else None)
    assert (await run_job(job, executor)).counts["succeeded"] == 2
    assert executor.specs[-1].left_s > 0.5
