"""What a lane's runs hand out is kept for those who follow them, and runs that nobody follows are stopped."""

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
from tests.polling import run_pending_tasks


class Place:
    """A lane's stepped runs, called as an actor's handle is."""

    def __init__(self) -> None:
        self.runs, self.n_collected = CheckpointedRuns(), 0
        self.collect = SimpleNamespace(remote=self._collect)

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


async def test_what_runs_hand_out_is_kept_in_order_for_each_follower() -> None:
    place, kept = Place(), dict[str, list[bytes]]()
    reader = CheckpointReader(place, never)

    async def pump_checkpoints(key: str) -> bytes:
        async def keep(checkpoints: Sequence[bytes]) -> None:
            kept.setdefault(key, []).extend(checkpoints)

        with reader.following(key, keep):
            return await place.runs.run(key, adds(b"1", b"2", b"3"))

    assert list(await asyncio.gather(pump_checkpoints("a"), pump_checkpoints("b"))) == [b"report"] * 2
    assert kept == {"a": [b"1", b"2", b"3"], "b": [b"1", b"2", b"3"]}
    reader.close()


async def test_a_run_that_nobody_follows_is_stopped_and_does_not_keep_the_reader_busy() -> None:
    place, stopped = Place(), asyncio.Event()

    def stop(key: str) -> None:
        place.runs.drop([key])
        orphan.cancel()
        stopped.set()

    async def keep(checkpoints: Sequence[bytes]) -> None:
        raise AssertionError("there is nothing to keep")

    reader = CheckpointReader(place, stop)
    orphan = asyncio.ensure_future(place.runs.run("orphan", adds(b"1")))
    with reader.following("another", keep):
        await stopped.wait()
        await asyncio.wait([orphan])
        n_collected = place.n_collected
        await run_pending_tasks()
        assert place.n_collected <= n_collected + 1
    reader.close()


async def test_who_follows_a_run_is_told_why_its_steps_could_not_be_kept() -> None:
    place = Place()
    reader = CheckpointReader(place, never)

    async def keep(checkpoints: Sequence[bytes]) -> None:
        raise StoreError("no")

    with pytest.raises(StoreError, match="no"), reader.following("k", keep):
        await place.runs.run("k", adds(b"1"))
    reader.close()


async def test_who_has_left_a_run_is_not_disturbed_where_its_steps_cannot_be_kept() -> None:
    place, keeping, may_fail = Place(), asyncio.Event(), asyncio.Event()
    reader = CheckpointReader(place, never)

    async def keep(checkpoints: Sequence[bytes]) -> None:
        keeping.set()
        await may_fail.wait()
        raise StoreError("no")

    run = asyncio.ensure_future(place.runs.run("k", adds(b"1")))
    with reader.following("k", keep):
        await keeping.wait()
    may_fail.set()
    await run_pending_tasks()
    run.cancel()
    await asyncio.wait([run])
    reader.close()
