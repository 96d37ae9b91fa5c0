"""Checkpoints: what a run has done, handed out after each step and taken up again where its process died.

A run hands out what its model said, and runs the tools when that is kept; it hands out what each tool gave back as it
comes.  So an attempt that goes on from there repeats one model call at the most, and no tool whose return was kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import orjson
from pydantic import BaseModel, ConfigDict, Field

from batchray.schema import Message, MessageToolReturn, Usage

SaveCheckpoints = Callable[[Sequence[bytes]], Awaitable[None]]
"""Keeps checkpoints, in their order; they are kept when it returns."""


class Checkpoint(BaseModel):
    """What a run has done since its last checkpoint; `usage`, `ttft_ns` and `memory` are of all of it so far.

    `returns` are those of a step that is not finished: other tools of it still run.
    """

    model_config = ConfigDict(frozen=True)

    messages: Sequence[Message] = ()
    returns: Sequence[MessageToolReturn] = ()
    usage: Usage = Field(default_factory=Usage)
    ttft_ns: int | None = None
    memory: Mapping[str, str] = Field(default_factory=dict)


class CheckpointSink(Protocol):
    """Where a run leaves its checkpoints, in JSON."""

    def add(self, checkpoint: bytes) -> None:
        """Take a checkpoint to be kept."""
        ...

    async def flush(self) -> None:
        """Wait until all that was added is kept."""
        ...


class Checkpoints:
    """Where a run leaves its checkpoints until they are kept.  `on_new` is called when there is one more."""

    def __init__(self, on_new: Callable[[], None]) -> None:
        self.new: list[bytes] = []
        """Those that are not known to be kept."""
        self._n_kept, self._on_new = 0, on_new
        self._settled = asyncio.Event()
        self._settled.set()

    def add(self, checkpoint: bytes) -> None:
        """Take a checkpoint to be kept."""
        self.new.append(checkpoint)
        self._settled.clear()
        self._on_new()

    async def flush(self) -> None:
        """Wait until all that was added is kept."""
        await self._settled.wait()

    def forget(self, n_kept: int) -> None:
        """Take note that the first `n_kept` are kept, of all that there ever were."""
        n_new = max(n_kept - self._n_kept, 0)
        del self.new[:n_new]
        self._n_kept += n_new
        if not self.new:
            self._settled.set()


class RunUpdate(NamedTuple):
    """What there is of a run: its new checkpoints; or its report, when it is over."""

    checkpoints: Sequence[bytes]
    report: bytes | None


class CheckpointedRun:
    """A run whose checkpoints are fetched one after the other; to fetch the next ones is to have kept those before.

    `start` begins the run, which leaves its checkpoints with what it is given.
    """

    def __init__(self, start: Callable[[CheckpointSink], Awaitable[bytes]]) -> None:
        self._news = asyncio.Event()
        self._checkpoints = Checkpoints(self._news.set)
        self._task = asyncio.ensure_future(start(self._checkpoints))
        self._task.add_done_callback(lambda _: self._news.set())

    async def fetch(self, n_kept: int) -> RunUpdate:
        """Wait for checkpoints after the first `n_kept`, which are kept, or for the report.

        Asking again for the same gives the same, and more.  Raises what the run raises.
        """
        self._checkpoints.forget(n_kept)
        while not self._task.done() and not self._checkpoints.new:
            self._news.clear()
            await self._news.wait()
        if self._task.done():  # the report holds all of it
            return RunUpdate((), self._task.result())
        return RunUpdate(tuple(self._checkpoints.new), None)

    async def close(self) -> None:
        """Stop the run where it is not over."""
        self._task.cancel()
        await asyncio.wait([self._task])


def completed_work(checkpoints: Sequence[bytes]) -> tuple[bytes, dict[str, int]]:
    """Return the messages, as a JSON array, and the usage of a run that came no further than these checkpoints."""
    parsed = [orjson.loads(checkpoint) for checkpoint in checkpoints]
    messages = [message for checkpoint in parsed for message in checkpoint["messages"]]
    return orjson.dumps(messages), parsed[-1]["usage"]


async def pump_checkpoints(fetch: Callable[[int], Awaitable[RunUpdate]], save: SaveCheckpoints) -> bytes:
    """Keep the checkpoints of a run as they come, and return its report."""
    n_kept = 0
    while True:
        checkpoints, report = await fetch(n_kept)
        if report is not None:
            return report
        await save(checkpoints)
        n_kept += len(checkpoints)
