"""Reads the checkpoints of a lane's runs on the driver's side, and saves them before it reads on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray.exceptions

from batchray.agents import SaveCheckpoints
from batchray.executors.ray.answers import answer_of
from batchray.support.cancellation import CancelScope

_PAUSE_S = 0.2


@dataclass(eq=False)
class _Follower:
    """A wait for one run: `save` stores its checkpoints; if that fails, `scope` ends the wait with the error."""

    save: SaveCheckpoints
    scope: CancelScope
    n_saved: int = 0


class CheckpointReader:
    """Reads the checkpoints of one lane's runs, one call at a time, while any of its runs is followed.

    `stop` is called with the keys of runs that are not followed any more.
    """

    def __init__(self, lane: Any, stop: Callable[[str], None]) -> None:
        self._lane, self._stop = lane, stop
        self._followers: dict[str, _Follower] = {}
        self._unreported: dict[str, int] = {}  # how many are saved, which the lane may not know yet
        self._reading: asyncio.Task[None] | None = None

    @contextmanager
    def following(self, key: str, save: SaveCheckpoints) -> Iterator[None]:
        """Save one run's checkpoints inside this block.  An error of `save` ends the block and is raised."""
        with CancelScope() as scope:
            self._followers[key] = _Follower(save, scope)
            if self._reading is None or self._reading.done():
                self._reading = asyncio.ensure_future(self._read())
            try:
                yield
            finally:
                del self._followers[key]
                self._unreported.pop(key, None)

    def close(self) -> None:
        """Stop reading."""
        if self._reading is not None:
            self._reading.cancel()

    async def _read(self) -> None:
        while self._followers:
            reported = self._unreported
            try:
                collected = await answer_of(self._lane.collect.remote(reported))
            except ray.exceptions.RayError:  # if a run died, its own call reports it
                await asyncio.sleep(_PAUSE_S)
                continue
            self._unreported = {}
            await asyncio.gather(*(self._save(key, checkpoints) for key, checkpoints in collected.items()))

    async def _save(self, key: str, checkpoints: Sequence[bytes]) -> None:
        follower = self._followers.get(key)
        if follower is None:  # given up but still running: without a stop it would return the same forever
            self._stop(key)
            return
        if follower.scope.error is not None:
            return
        try:
            await follower.save(checkpoints)
        except BaseException as error:
            follower.scope.cancel_with(error)  # without effect if the block has ended meanwhile
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            follower.n_saved += len(checkpoints)
            if self._followers.get(key) is follower:
                self._unreported[key] = follower.n_saved
