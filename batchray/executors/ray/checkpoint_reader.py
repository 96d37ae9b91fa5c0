"""What the runs of a lane hand out, as their driver reads it: for all of them together, and kept before it reads on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray.exceptions

from batchray.agents import SaveCheckpoints

_PAUSE_S = 0.2


@dataclass(eq=False)
class _Follower:
    """Who waits for a run: `keep` keeps what it has done; where that fails, `task` is cancelled and told why."""

    keep: SaveCheckpoints
    task: asyncio.Task[Any]
    n_kept: int = 0
    error: BaseException | None = None


class CheckpointReader:
    """Reads the steps of one lane's runs, one call at a time, as long as somebody follows one of them.

    `stop` is called with the keys of runs that nobody follows.
    """

    def __init__(self, lane: Any, stop: Callable[[str], None]) -> None:
        self._lane, self._stop = lane, stop
        self._followers: dict[str, _Follower] = {}
        self._unsaid: dict[str, int] = {}  # what is kept, and the lane may not know of
        self._reading: asyncio.Task[None] | None = None

    @contextmanager
    def following(self, key: str, keep: SaveCheckpoints) -> Iterator[None]:
        """Have the steps of one run kept while entered.  Raises what `keep` raises."""
        task = asyncio.current_task()
        assert task is not None
        follower = self._followers[key] = _Follower(keep, task)
        if self._reading is None or self._reading.done():
            self._reading = asyncio.ensure_future(self._read())
        try:
            yield
        except asyncio.CancelledError:
            if follower.error is None:
                raise
            task.uncancel()
            raise follower.error from None
        finally:
            del self._followers[key]
            self._unsaid.pop(key, None)

    def close(self) -> None:
        """Read no more."""
        if self._reading is not None:
            self._reading.cancel()

    async def _read(self) -> None:
        while self._followers:
            said = self._unsaid
            try:
                news = await self._lane.collect.remote(said)
            except ray.exceptions.RayError:  # who waits for a run that died hears of it by the run's own call
                await asyncio.sleep(_PAUSE_S)
                continue
            self._unsaid = {}
            await asyncio.gather(*(self._keep(key, checkpoints) for key, checkpoints in news.items()))

    async def _keep(self, key: str, checkpoints: Sequence[bytes]) -> None:
        follower = self._followers.get(key)
        if follower is None:  # given up, and still running: or it would hand out the same for ever
            self._stop(key)
            return
        if follower.error is not None:
            return
        try:
            await follower.keep(checkpoints)
        except BaseException as error:
            if self._followers.get(key) is follower:  # or its task has gone on to something else
                follower.error = error
                follower.task.cancel()
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            follower.n_kept += len(checkpoints)
            if self._followers.get(key) is follower:
                self._unsaid[key] = follower.n_kept
