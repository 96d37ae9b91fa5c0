"""Checkpoints of the runs in one worker, which the driver collects.

A lane returns the checkpoints of all its runs in one call at a time, because a call for each step would cost more than
the step itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import asdict
from typing import Any

from batchray.agents import AttemptRunner, CheckpointedRun, Checkpoints, CheckpointSink, RunUpdate
from batchray.config import BoundAgent
from batchray.support.threads import LoopThread

CheckpointBatch = dict[str, list[bytes]]
"""Checkpoints that may not be stored yet, by the key of their attempt."""

WaitReport = list[dict[str, Any]]
"""The providers for which a process waits, as fields of `ProviderWait`."""

# How often a process says that it waits for a provider.
_WAIT_REPORT_S = 1.0
# How long a call waits for checkpoints; a driver whose runs have ended notices after that time.
_COLLECT_S = 1.0


class CheckpointedRuns:
    """The checkpoints of one lane's runs, by the key of their attempt."""

    def __init__(self, collect_s: float = _COLLECT_S) -> None:
        self._collect_s = collect_s
        self._checkpoints: dict[str, Checkpoints] = {}
        self._has_new = asyncio.Event()

    async def run(self, key: str, start: Callable[[CheckpointSink], Awaitable[bytes]]) -> bytes:
        """Run to the end and return the report; until then `collect` returns the checkpoints."""
        checkpoints = self._checkpoints[key] = Checkpoints(self._has_new.set)
        try:
            return await start(checkpoints)
        finally:
            self._checkpoints.pop(key, None)

    def drop(self, keys: Iterable[str]) -> None:
        """Return no more checkpoints of these runs, which are being stopped."""
        for key in keys:
            self._checkpoints.pop(key, None)

    async def collect(self, n_saved: Mapping[str, int]) -> CheckpointBatch:
        """Mark the first `n_saved` checkpoints of each run as stored; return the others, as soon as there are some.

        Empty after a second without any.  A call that marks nothing returns the same again, and more.
        """
        for key, n in n_saved.items():
            if (checkpoints := self._checkpoints.get(key)) is not None:
                checkpoints.acknowledge(n)
        if not (uncollected := self._uncollected()):
            self._has_new.clear()
            try:
                async with asyncio.timeout(self._collect_s):
                    await self._has_new.wait()
            except TimeoutError:
                return {}
            uncollected = self._uncollected()
        return uncollected

    def _uncollected(self) -> CheckpointBatch:
        return {key: list(found.unsaved) for key, found in self._checkpoints.items() if found.unsaved}


def run_isolated(
    bound: BoundAgent,
    item: bytes,
    limited: Callable[[], AbstractContextManager[None]] = nullcontext,
    unlimited: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[RunUpdate | WaitReport | None]:
    """Run one request on an event loop of its own; yield its checkpoints step by step, and its report.

    The first result is None, when the agent's code is imported.  A None follows each checkpoint too: when it is taken,
    the checkpoint before it is stored.  While the run waits for its provider a report of that comes every second.
    `limited` is entered while this waits for the run, and `unlimited`, inside it and on the run's thread, while the run
    waits for its provider.
    """
    with closing(LoopThread("batchray-run")) as loop:  # the run continues while its checkpoints are being stored
        runner = AttemptRunner(while_held=unlimited)
        try:
            loop.run(_prepare(runner, bound))
            yield None
            with limited():
                run = loop.run(_start(runner, bound, item))
            n_saved, is_waiting = 0, False
            while True:
                with limited():
                    fetched = loop.run(_fetch(runner, run, n_saved, is_waiting))
                yield fetched
                if not isinstance(fetched, RunUpdate):
                    is_waiting = bool(fetched)
                    continue
                if fetched.report is not None:
                    return
                yield None
                n_saved += len(fetched.checkpoints)
        finally:
            with suppress(RuntimeError):  # the request's own code has stopped the loop
                loop.run(runner.close())


async def _fetch(runner: AttemptRunner, run: CheckpointedRun, n_saved: int, is_waiting: bool) -> RunUpdate | WaitReport:
    """Fetch from a run; while it waits for its provider, or has just been told to wait no more, return that instead."""
    fetching = asyncio.ensure_future(run.fetch(n_saved))
    try:
        while True:
            done, _ = await asyncio.wait([fetching], timeout=_WAIT_REPORT_S)
            if done:
                return fetching.result()
            waits = [asdict(wait) for wait in runner.provider_waits()]
            if waits or is_waiting:
                return waits
    finally:
        fetching.cancel()


async def _prepare(runner: AttemptRunner, bound: BoundAgent) -> None:
    """Import an agent's code on the loop that its model's client will use."""
    runner.prepare(bound)


async def _start(runner: AttemptRunner, bound: BoundAgent, item: bytes) -> CheckpointedRun:
    keeps_steps = bound.agent.keeps_steps
    return CheckpointedRun(lambda sink: runner.run_attempt(bound, item, sink if keeps_steps else None))
