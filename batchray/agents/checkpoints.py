"""Checkpoints: the finished work of a run, saved step by step so that another attempt can continue from it.

A run saves the model's reply before it runs the tools, and each tool's return as it arrives.  Another attempt
therefore repeats at most one model call, and no tool whose return was saved.  Idempotent tools start earlier.  After a
step of idempotent tools alone the next model call starts earlier too, and another attempt may repeat two.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import orjson
from pydantic import BaseModel, ConfigDict, Field

from batchray.schema import Message, MessageToolReturn, Usage

SaveCheckpoints = Callable[[Sequence[bytes]], Awaitable[None]]
"""Saves checkpoints in order; they are durable when it returns."""


class Checkpoint(BaseModel):
    """The work of a run since its last checkpoint.  `usage`, `ttft_ns` and the memory cover the whole run so far.

    `memory` and `memory_bases` are those of `RunMemory`; a checkpoint of an older version has no bases.  `returns`
    belong to an unfinished step, of which other tools still run.
    """

    model_config = ConfigDict(frozen=True)

    messages: Sequence[Message] = ()
    returns: Sequence[MessageToolReturn] = ()
    usage: Usage = Field(default_factory=Usage)
    ttft_ns: int | None = None
    memory: Mapping[str, str] = Field(default_factory=dict)
    memory_bases: Mapping[str, str] | None = None


def encode_checkpoint(
    messages: Sequence[bytes],
    returns: Sequence[MessageToolReturn],
    usage: Usage,
    ttft_ns: int | None,
    memory: Mapping[str, str],
    memory_bases: Mapping[str, str],
) -> bytes:
    """Return a Checkpoint as JSON; `messages` are JSON already."""
    fields = {
        "messages": [orjson.Fragment(message) for message in messages],
        "returns": [each.model_dump(exclude_none=True) for each in returns],
        "usage": vars(usage),
        "ttft_ns": ttft_ns,
        "memory": memory,
        "memory_bases": memory_bases,
    }
    return orjson.dumps(fields)


class CheckpointSink(Protocol):
    """Takes a run's checkpoints, as JSON."""

    def add(self, checkpoint: bytes) -> None:
        """Queue a checkpoint to be saved."""
        ...

    async def flush(self) -> None:
        """Wait until the checkpoints that are queued now are saved."""
        ...


class Checkpoints:
    """Queues a run's checkpoints until they are saved.  `on_add` is called for each new one."""

    def __init__(self, on_add: Callable[[], None]) -> None:
        self.unsaved: list[bytes] = []
        """Checkpoints not yet acknowledged as saved."""
        self._n_saved, self._on_add = 0, on_add
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def add(self, checkpoint: bytes) -> None:
        """Queue a checkpoint to be saved."""
        self.unsaved.append(checkpoint)
        self._on_add()

    async def flush(self) -> None:
        """Wait until the checkpoints that are queued now are saved."""
        if self.unsaved:
            saved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((self._n_saved + len(self.unsaved), saved))
            await saved

    def acknowledge(self, n_saved: int) -> None:
        """Mark the first `n_saved` of all checkpoints so far as saved."""
        n_new = max(n_saved - self._n_saved, 0)
        del self.unsaved[:n_new]
        self._n_saved += n_new
        while self._waiting and self._waiting[0][0] <= self._n_saved:
            _, saved = self._waiting.popleft()
            if not saved.done():  # nothing waits for it any more
                saved.set_result(None)


class RunUpdate(NamedTuple):
    """New checkpoints of a run, or its report once it has ended."""

    checkpoints: Sequence[bytes]
    report: bytes | None


class CheckpointedRun:
    """A run whose checkpoints are fetched batch by batch; each fetch acknowledges those before it as saved.

    `start` starts the run with the sink for its checkpoints.
    """

    def __init__(self, start: Callable[[CheckpointSink], Awaitable[bytes]]) -> None:
        self._changed = asyncio.Event()
        self._checkpoints = Checkpoints(self._changed.set)
        self._task = asyncio.ensure_future(start(self._checkpoints))
        self._task.add_done_callback(lambda _: self._changed.set())

    async def fetch(self, n_saved: int) -> RunUpdate:
        """Acknowledge the first `n_saved` checkpoints, and wait for more, or for the report.

        A repeated call with the same number returns the same checkpoints, and newer ones.  Raises what the run raises.
        """
        self._checkpoints.acknowledge(n_saved)
        while not self._task.done() and not self._checkpoints.unsaved:
            self._changed.clear()
            await self._changed.wait()
        if self._task.done():  # the report covers the whole run
            return RunUpdate((), self._task.result())
        return RunUpdate(tuple(self._checkpoints.unsaved), None)

    async def close(self) -> None:
        """Stop the run if it has not ended."""
        self._task.cancel()
        await asyncio.wait([self._task])


def completed_work(checkpoints: Sequence[bytes]) -> tuple[bytes, dict[str, int]]:
    """Return the messages, as a JSON array, and the usage of an unfinished run from its checkpoints."""
    parsed = [orjson.loads(checkpoint) for checkpoint in checkpoints]
    messages = [message for checkpoint in parsed for message in checkpoint["messages"]]
    return orjson.dumps(messages), parsed[-1]["usage"]


async def pump_checkpoints(fetch: Callable[[int], Awaitable[RunUpdate]], save: SaveCheckpoints) -> bytes:
    """Save a run's checkpoints as they arrive, and return its report."""
    n_saved = 0
    while True:
        checkpoints, report = await fetch(n_saved)
        if report is not None:
            return report
        await save(checkpoints)
        n_saved += len(checkpoints)
