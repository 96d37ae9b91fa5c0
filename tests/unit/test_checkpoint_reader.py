"""Checkpoints of a lane's followed runs are saved, and runs that are not followed are stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from batchray.agents import CheckpointSink
from batchray.errors import StoreError
from batchray.executors.ray.checkpoint_reader import CheckpointReader
from batchray.executors.ray.checkpointed_runs import CheckpointedRuns
from tests.builders.references import Reference
from tests.polling import run_pending_tasks


class FakeLane:
    """The checkpointed runs of a lane, with the interface of an actor's handle."""

    def __init__(self) -> None:
        self.runs, self.n_collected = CheckpointedRuns(), 0
        self.collect = SimpleNamespace(remote=lambda n_kept: Reference(self._collect(n_kept)))

    async def _collect(self, n_kept: dict[str, int]) -> Any:
        self.n_collected += 1
        await asyncio.sleep(0)
        return await self.runs.collect(n_kept)


def never(key: str) -> None:
    """Stop a run."""
    raise AssertionError(f"{key} is followed")


def adds(*checkpoints: bytes) -> Callable[[CheckpointSink], Any]:
    async def start(sink: CheckpointSink) -> bytes:
        for checkpoint in checkpoints:
            sink.add(checkpoint)
            await sink.flush()
        return b"report"

    return start


async def test_checkpoints_are_saved_in_order_for_each_run() -> None:
    lane, kept = FakeLane(), dict[str, list[bytes]]()
    reader = CheckpointReader(lane, never)

    async def follow(key: str) -> bytes:
        async def save(checkpoints: Sequence[bytes]) -> None:
            kept.setdefault(key, []).extend(checkpoints)

        with reader.following(key, save):
            return await lane.runs.run(key, adds(b"1", b"2", b"3"))

    assert list(await asyncio.gather(follow("a"), follow("b"))) == [b"report"] * 2
    assert kept == {"a": [b"1", b"2", b"3"], "b": [b"1", b"2", b"3"]}
    reader.close()


async def test_a_run_that_is_not_followed_is_stopped_and_does_not_keep_the_reader_busy() -> None:
    lane, stopped = FakeLane(), asyncio.Event()

    def stop(key: str) -> None:
        lane.runs.drop([key])
        orphan.cancel()
        stopped.set()

    async def save(checkpoints: Sequence[bytes]) -> None:
        raise AssertionError("there is nothing to save")

    reader = CheckpointReader(lane, stop)
    orphan = asyncio.ensure_future(lane.runs.run("orphan", adds(b"1")))
    with reader.following("another", save):
        await stopped.wait()
        await asyncio.wait([orphan])
        n_collected = lane.n_collected
        await run_pending_tasks()
        assert lane.n_collected <= n_collected + 1
    reader.close()


async def test_an_error_of_a_save_ends_the_block_that_follows_the_run() -> None:
    lane = FakeLane()
    reader = CheckpointReader(lane, never)

    async def save(checkpoints: Sequence[bytes]) -> None:
        raise StoreError("no")

    with pytest.raises(StoreError, match="no"), reader.following("k", save):
        await lane.runs.run("k", adds(b"1"))
    reader.close()


async def test_an_error_of_a_save_does_not_reach_a_block_that_has_ended() -> None:
    lane, saving, may_fail = FakeLane(), asyncio.Event(), asyncio.Event()
    reader = CheckpointReader(lane, never)

    async def save(checkpoints: Sequence[bytes]) -> None:
        saving.set()
        await may_fail.wait()
        raise StoreError("no")

    run = asyncio.ensure_future(lane.runs.run("k", adds(b"1")))
    with reader.following("k", save):
        await saving.wait()
    may_fail.set()
    await run_pending_tasks()
    run.cancel()
    await asyncio.wait([run])
    reader.close()
