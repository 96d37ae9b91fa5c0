"""Runs that are kept step by step, at the place where they run.

A lane hands out what all of its runs have done in one call at a time: one a step would cost more than the step itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext, suppress

from batchray.agents import AttemptRunner, CheckpointedRun, Checkpoints, CheckpointSink, RunUpdate
from batchray.config import BoundAgent
from batchray.support.threads import LoopThread

CheckpointBatch = dict[str, list[bytes]]
"""Checkpoints that are not known to be kept, by the key of their attempt."""

# A driver that has nothing more to ask for is so long in finding out.
_COLLECT_S = 1.0


class CheckpointedRuns:
    """The checkpoints of the runs of one lane that are kept step by step, by the key of their attempt."""

    def __init__(self, collect_s: float = _COLLECT_S) -> None:
        self._collect_s = collect_s
        self._checkpoints: dict[str, Checkpoints] = {}
        self._news = asyncio.Event()

    async def run(self, key: str, start: Callable[[CheckpointSink], Awaitable[bytes]]) -> bytes:
        """Run to the end, and return the report; until then the checkpoints are to be collected."""
        checkpoints = self._checkpoints[key] = Checkpoints(self._news.set)
        try:
            return await start(checkpoints)
        finally:
            self._checkpoints.pop(key, None)

    def drop(self, keys: Iterable[str]) -> None:
        """Hand nothing more out of these runs, which are being stopped."""
        for key in keys:
            self._checkpoints.pop(key, None)

    async def collect(self, n_kept: Mapping[str, int]) -> CheckpointBatch:
        """Take note of how many checkpoints of each run are kept; return those that are not, as soon as there are some.

        Empty after a while without any.  Asking again without news of what was kept gives the same, and more.
        """
        for key, n in n_kept.items():
            if (checkpoints := self._checkpoints.get(key)) is not None:
                checkpoints.acknowledge(n)
        if not (news := self._uncollected()):
            self._news.clear()
            try:
                async with asyncio.timeout(self._collect_s):
                    await self._news.wait()
            except TimeoutError:
                return {}
            news = self._uncollected()
        return news

    def _uncollected(self) -> CheckpointBatch:
        return {key: list(found.unsaved) for key, found in self._checkpoints.items() if found.unsaved}


def run_isolated(
    bound: BoundAgent, item: bytes, limited: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Iterator[RunUpdate | None]:
    """Run one request on an event loop of its own, and yield what it has done, step by step, and its report.

    None comes first, when its agent's code is there; and after what is to be kept: when that is taken, what came before
    it is kept.  `limited` is entered while something of the run is waited for.
    """
    with closing(LoopThread("batchray-run")) as loop:  # it goes on while what it has done is being kept
        answerer = AttemptRunner()
        try:
            loop.run(_prepared(answerer, bound))
            yield None
            with limited():
                run = loop.run(_begun(answerer, bound, item))
            n_kept = 0
            while True:
                with limited():
                    fetched = loop.run(run.fetch(n_kept))
                yield fetched
                if fetched.report is not None:
                    return
                yield None
                n_kept += len(fetched.checkpoints)
        finally:
            with suppress(RuntimeError):  # the request's own code has ended the loop
                loop.run(answerer.close())


async def _prepared(answerer: AttemptRunner, bound: BoundAgent) -> None:
    """Import an agent's code, where its model's client finds the loop that it will run on."""
    answerer.prepare(bound)


async def _begun(answerer: AttemptRunner, bound: BoundAgent, item: bytes) -> CheckpointedRun:
    keeps_steps = bound.agent.keeps_steps
    return CheckpointedRun(lambda sink: answerer.run_attempt(bound, item, sink if keeps_steps else None))
