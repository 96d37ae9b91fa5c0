"""Runs that are kept step by step, at the place where they run: a lane hands them out a call at a time.

A lane's run goes on between the calls that fetch from it.  One that nobody asks for any more is stopped: its driver may
have lost it, and follow another attempt at the same item by now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

from batchray.agents import Answerer, Fetched, Keeper, SteppedRun
from batchray.config import BoundAgent

# A driver may wait for its disk between two calls; a report is asked for again only where it got lost on the way.
_UNASKED_S = 300.0
_REPORTED_S = 10.0


class SteppedRuns:
    """The runs of one lane that are kept step by step, by the key of their attempt."""

    def __init__(self, unasked_s: float = _UNASKED_S, reported_s: float = _REPORTED_S) -> None:
        self._unasked_s, self._reported_s = unasked_s, reported_s
        self._runs: dict[str, SteppedRun] = {}
        self._ends: dict[str, asyncio.TimerHandle] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def begin(self, key: str, start: Callable[[Keeper], Awaitable[bytes]]) -> Fetched:
        """Begin a run and fetch what comes first.  A second call for one key, as Ray may make it, begins nothing."""
        if key not in self._runs:
            self._runs[key] = SteppedRun(start)
        fetched = await self.fetch(key, 0)
        assert fetched is not None
        return fetched

    async def fetch(self, key: str, n_kept: int) -> Fetched | None:
        """Fetch what comes after the first `n_kept` checkpoints; None where there is no such run.

        A cancelled fetch stops the run.
        """
        run = self._runs.get(key)
        if run is None:
            return None
        if (end := self._ends.pop(key, None)) is not None:
            end.cancel()
        try:
            fetched = await run.fetch(n_kept)
        except BaseException:
            self.abandon(key)
            raise
        patience_s = self._unasked_s if fetched.report is None else self._reported_s
        self._ends[key] = asyncio.get_running_loop().call_later(patience_s, self.abandon, key)
        return fetched

    def abandon(self, key: str) -> None:
        """Stop a run that nobody waits for."""
        if (end := self._ends.pop(key, None)) is not None:
            end.cancel()
        if (run := self._runs.pop(key, None)) is not None:
            task = asyncio.ensure_future(run.close())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)


def steps_alone(bound: BoundAgent, item: bytes) -> Iterator[Fetched | None]:
    """Run one request on an event loop of its own, and yield what it has done, step by step, and its report.

    After what is to be kept comes None: when that is taken, what came before it is kept.  The run stands still between.
    """
    with asyncio.Runner() as runner:
        answerer = Answerer()
        try:
            run = runner.run(_begun(answerer, bound, item))
            n_kept, fetched = 0, runner.run(run.fetch(0))
            while fetched.report is None:
                yield fetched
                yield None
                n_kept += len(fetched.checkpoints)
                fetched = runner.run(run.fetch(n_kept))
            yield fetched
        finally:
            runner.run(answerer.close())


async def _begun(answerer: Answerer, bound: BoundAgent, item: bytes) -> SteppedRun:
    return SteppedRun(lambda keeper: answerer.answer(bound, item, keeper))
